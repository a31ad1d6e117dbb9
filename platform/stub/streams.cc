// Calls on byte streams and event counters that are answered by a lane (platform/stream_lane.h):
// what is there is read, what fits is written, and if there is nothing they wait. All else is the
// sentry's: errors, ends of streams, writes of which a part fits.
#include "platform/stream_lane.h"

#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr int64_t kEfault = -14, kEagain = -11;
constexpr uint32_t kMsgDontWait = 0x40, kMsgNoSignal = 0x4000;
constexpr uint64_t kMaxParts = 16;  // more are the sentry's

struct Part {  // struct iovec
  uint64_t addr, length;
};

// The guest's memory that a call moves bytes from or to. What lies in the stub's region is
// nobody's.
class Buffers {
 public:
  bool AddRange(uint64_t addr, uint64_t length) {
    if (addr >= kRegionBase || length > kRegionBase - addr) return false;
    parts_[count_++] = {addr, length};
    total_ += length;
    return true;
  }
  bool AddVector(uint64_t addr, uint64_t count) {
    if (count == 0 || count > kMaxParts) return false;
    Part parts[kMaxParts];
    if (StubCopy(parts, reinterpret_cast<const void*>(addr), count * sizeof(Part)) != 0) {
      return false;
    }
    for (uint64_t i = 0; i < count; i++) {
      if (!AddRange(parts[i].addr, parts[i].length)) return false;
    }
    return true;
  }
  uint64_t total() const { return total_; }
  void Rewind() { part_ = offset_ = 0; }

  // Copies the next `n` bytes to (or from) `ring`. False at a fault.
  template <bool kToGuest>
  bool Move(unsigned char* ring, uint64_t n) {
    while (n != 0) {
      const Part& part = parts_[part_];
      if (offset_ == part.length) {
        part_++;
        offset_ = 0;
        continue;
      }
      const uint64_t left = part.length - offset_, k = n < left ? n : left;
      auto* guest = reinterpret_cast<unsigned char*>(part.addr + offset_);
      if ((kToGuest ? StubCopy(guest, ring, k) : StubCopy(ring, guest, k)) != 0) return false;
      ring += k;
      offset_ += k;
      n -= k;
    }
    return true;
  }

 private:
  Part parts_[kMaxParts];
  uint64_t count_ = 0, total_ = 0, part_ = 0, offset_ = 0;
};

// The lane of the call's descriptor, which is less than kLaneFds, and its name in `*name`; null:
// none.
StreamLane* LaneOf(Slot* s, bool out, uint64_t* name) {
  const LaneFd& fd = Header()->lane_fds[s->rdi];
  *name = Load(out ? &fd.out : &fd.in);
  if (*name == 0 || LaneIndex(*name) >= kLanes) return nullptr;
  return reinterpret_cast<StreamLane*>(kLaneBase + LaneIndex(*name) * kLaneStride);
}

unsigned char* RingOf(StreamLane* lane, uint64_t at) {
  return reinterpret_cast<unsigned char*>(lane) + kLaneHeaderSize + at;
}

// What the calls that move bytes differ in.
enum Call { kPlain, kVector, kSocket };
enum Step {
  kAnswered,
  kDeclined,  // or answered, and the sentry is to be told
  kVain,      // it would wait
};

bool IsSocket(uint32_t kind) { return kind == kLaneTcp || kind == kLaneUnix; }
bool IsCounter(uint32_t kind) { return kind == kLaneCounter || kind == kLaneSemaphore; }

Step Finish(Slot* s, LaneOutcome outcome, bool wrote, uint64_t name, int64_t result) {
  if (outcome == LaneOutcome::kWait) return kVain;
  if (outcome == LaneOutcome::kDone) {
    s->rax = static_cast<uint64_t>(result);
    return kAnswered;
  }
  if (outcome == LaneOutcome::kTell) {
    s->lane_result = result;
    s->lane_name = name;
    s->lane_wrote = wrote ? 1 : 0;
    s->lane_done = 1;
  }
  return kDeclined;
}

Step ReadCount(Slot* s, Buffers* buffers, StreamLane* lane, uint64_t name) {
  uint64_t value;
  if (buffers->total() < sizeof(value)) return kDeclined;
  const LaneOutcome outcome =
      ReadCounter(lane, StubWaker(), LaneGeneration(name), s->lane_owner, &value);
  if (outcome == LaneOutcome::kDeclined || outcome == LaneOutcome::kWait) {
    return Finish(s, outcome, /*wrote=*/false, name, 0);
  }
  const bool copied = buffers->Move<true>(reinterpret_cast<unsigned char*>(&value), sizeof(value));
  return Finish(s, outcome, /*wrote=*/false, name, copied ? int64_t{sizeof(value)} : kEfault);
}

Step WriteCount(Slot* s, Buffers* buffers, StreamLane* lane, uint64_t name) {
  uint64_t value;
  if (buffers->total() < sizeof(value) ||
      !buffers->Move<false>(reinterpret_cast<unsigned char*>(&value), sizeof(value))) {
    return kDeclined;
  }
  const LaneOutcome outcome =
      WriteCounter(lane, StubWaker(), LaneGeneration(name), s->lane_owner, value);
  return Finish(s, outcome, /*wrote=*/true, name, sizeof(value));
}

Step Read(Slot* s, Buffers* buffers, Call call, StreamLane* lane, uint64_t name) {
  const uint32_t kind = Load(&lane->kind);
  if (call == kSocket && !IsSocket(kind)) return kDeclined;
  buffers->Rewind();
  if (IsCounter(kind)) return call == kPlain ? ReadCount(s, buffers, lane, name) : kDeclined;
  uint64_t n = buffers->total();
  // A pipe gives all it has.
  if (kind == kLanePipe && n > kLaneMostBytes && LaneUsed(lane) > kLaneMostBytes) return kDeclined;
  LaneOutcome outcome = ReadLane(
      lane, StubWaker(), LaneGeneration(name), s->lane_owner, &n,
      [&](uint64_t at, uint64_t length) { return buffers->Move<true>(RingOf(lane, at), length); });
  return Finish(s, outcome, /*wrote=*/false, name, static_cast<int64_t>(n));
}

Step Write(Slot* s, Buffers* buffers, Call call, StreamLane* lane, uint64_t name) {
  const uint32_t kind = Load(&lane->kind);
  if (call == kSocket && !IsSocket(kind)) return kDeclined;
  buffers->Rewind();
  if (IsCounter(kind)) return call == kPlain ? WriteCount(s, buffers, lane, name) : kDeclined;
  const uint64_t n = buffers->total();
  LaneOutcome outcome = WriteLane(
      lane, StubWaker(), LaneGeneration(name), s->lane_owner, n,
      [&](uint64_t at, uint64_t length) { return buffers->Move<false>(RingOf(lane, at), length); });
  // A part of it may fit, which is the sentry's to find out.
  if (outcome == LaneOutcome::kWait && LaneWritable(lane) && n > LaneRoom(lane)) return kDeclined;
  return Finish(s, outcome, /*wrote=*/true, name, static_cast<int64_t>(n));
}

// One of the four, with what it needs.
struct Move {
  Buffers* buffers;
  Call call;
  bool out;
  bool leaves;  // MSG_DONTWAIT
};

Step Try(Slot* s, const Move& m, StreamLane* lane, uint64_t name) {
  return m.out ? Write(s, m.buffers, m.call, lane, name) : Read(s, m.buffers, m.call, lane, name);
}

bool HasNews(const Move& m, const StreamLane* lane, uint64_t name) {
  const uint32_t generation = LaneGeneration(name);
  return m.out ? LaneHasRoom(lane, generation) : LaneHasNews(lane, generation);
}

// Until there is news of the lane, which may be another's already. False: the wait is interrupted.
bool AwaitNews(Slot* s, const Move& m, StreamLane* lane, uint64_t name) {
  Spin spin;
  while (SpinAgain(s, &spin)) {
    if (!HasNews(m, lane, name)) continue;
    EndSpin(s, spin, true);
    return true;
  }
  EndSpin(s, spin, false);
  uint32_t* word = m.out ? &lane->room_waiters : &lane->data_waiters;
  const uint32_t value = AddLaneWaiter(word, kStubSleeps);
  uint64_t same;
  if (LaneOf(s, m.out, &same) != lane || same != name || HasNews(m, lane, name)) return true;
  return SleepOn(s, word, value, -1) != Wake::kInterrupted;
}

// A call that finds nothing to read, or no room.
bool Wait(Slot* s, const Move& m, StreamLane* lane, uint64_t name) {
  const uint32_t patience = m.leaves ? kLeaves : Load(m.out ? &lane->writer : &lane->reader);
  // Who finds no room is told of some, also by an edge: the sentry sees to that.
  if (patience == kLeaves && !m.out) {
    s->rax = static_cast<uint64_t>(kEagain);
    return true;
  }
  if (patience != kWaits || (m.out && IsCounter(Load(&lane->kind)))) return false;
  BeginLaneWait(s, s->rdi);
  for (;;) {
    uint64_t now;
    if (LaneOf(s, m.out, &now) != lane || now != name) return LeaveLaneWait(s, -1);
    const Step step = Try(s, m, lane, name);
    if (step == kAnswered) {
      Store(&s->lane_wait, 0u);
      return true;
    }
    if (step == kDeclined) return s->lane_done ? false : LeaveLaneWait(s, -1);
    if (!AwaitNews(s, m, lane, name)) return LeaveLaneWait(s, -1);
  }
}

bool Run(Slot* s, const Move& m) {
  uint64_t name;
  StreamLane* lane = LaneOf(s, m.out, &name);
  if (lane == nullptr) return false;
  const Step step = Try(s, m, lane, name);
  return step == kVain ? Wait(s, m, lane, name) : step == kAnswered;
}

bool RunRange(Slot* s, Call call, bool out, bool leaves = false) {
  Buffers buffers;
  return buffers.AddRange(s->rsi, s->rdx) && Run(s, {&buffers, call, out, leaves});
}

bool RunVector(Slot* s, bool out) {
  Buffers buffers;
  return buffers.AddVector(s->rsi, s->rdx) && Run(s, {&buffers, kVector, out, false});
}

// Descriptors are ints; what is left of the register is nobody's.
bool HasLanes(const Slot* s) { return s->lane_owner != 0 && s->rdi < kLaneFds; }

}  // namespace

bool StreamRead(Slot* s) { return HasLanes(s) && RunRange(s, kPlain, /*out=*/false); }
bool StreamWrite(Slot* s) { return HasLanes(s) && RunRange(s, kPlain, /*out=*/true); }
bool StreamReadv(Slot* s) { return HasLanes(s) && RunVector(s, /*out=*/false); }
bool StreamWritev(Slot* s) { return HasLanes(s) && RunVector(s, /*out=*/true); }

bool StreamSendto(Slot* s) {
  const uint32_t flags = static_cast<uint32_t>(s->r10);
  if (!HasLanes(s) || s->r8 != 0 || (flags & ~(kMsgDontWait | kMsgNoSignal)) != 0) return false;
  return RunRange(s, kSocket, /*out=*/true, (flags & kMsgDontWait) != 0);
}

bool StreamRecvfrom(Slot* s) {
  const uint32_t flags = static_cast<uint32_t>(s->r10);
  if (!HasLanes(s) || s->r8 != 0 || (flags & ~(kMsgDontWait | kMsgNoSignal)) != 0) return false;
  return RunRange(s, kSocket, /*out=*/false, (flags & kMsgDontWait) != 0);
}

}  // namespace platform::stub
