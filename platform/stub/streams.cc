// Calls on byte streams and event counters that are answered by a lane (platform/stream_lane.h):
// what is there is read, what fits is written. All else is the sentry's: waiting, errors, ends of
// streams.
#include "platform/stream_lane.h"

#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr int64_t kEfault = -14;
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

uint32_t* Sleepers() { return reinterpret_cast<uint32_t*>(kLaneBase + kLaneSleepersAt); }

// What the calls that move bytes differ in.
enum Call { kPlain, kVector, kSocket };

bool IsSocket(uint32_t kind) { return kind == kLaneTcp || kind == kLaneUnix; }
bool IsCounter(uint32_t kind) { return kind == kLaneCounter || kind == kLaneSemaphore; }

bool Finish(Slot* s, LaneOutcome outcome, bool wrote, uint64_t name, int64_t result) {
  if (outcome == LaneOutcome::kDone) {
    s->rax = static_cast<uint64_t>(result);
    return true;
  }
  if (outcome == LaneOutcome::kTell) {
    s->lane_result = result;
    s->lane_name = name;
    s->lane_wrote = wrote ? 1 : 0;
    s->lane_done = 1;
  }
  return false;
}

bool ReadCount(Slot* s, Buffers* buffers, StreamLane* lane, uint64_t name) {
  uint64_t value;
  if (buffers->total() < sizeof(value)) return false;
  const LaneOutcome outcome =
      ReadCounter(lane, Sleepers(), LaneGeneration(name), s->lane_owner, &value);
  if (outcome == LaneOutcome::kDeclined) return false;
  const bool copied = buffers->Move<true>(reinterpret_cast<unsigned char*>(&value), sizeof(value));
  return Finish(s, outcome, /*wrote=*/false, name, copied ? int64_t{sizeof(value)} : kEfault);
}

bool WriteCount(Slot* s, Buffers* buffers, StreamLane* lane, uint64_t name) {
  uint64_t value;
  if (buffers->total() < sizeof(value) ||
      !buffers->Move<false>(reinterpret_cast<unsigned char*>(&value), sizeof(value))) {
    return false;
  }
  const LaneOutcome outcome =
      WriteCounter(lane, Sleepers(), LaneGeneration(name), s->lane_owner, value);
  return Finish(s, outcome, /*wrote=*/true, name, sizeof(value));
}

bool Read(Slot* s, Buffers* buffers, Call call) {
  uint64_t name;
  StreamLane* lane = LaneOf(s, /*out=*/false, &name);
  if (lane == nullptr) return false;
  const uint32_t kind = Load(&lane->kind);
  if (call == kSocket && !IsSocket(kind)) return false;
  if (IsCounter(kind)) return call == kPlain && ReadCount(s, buffers, lane, name);
  uint64_t n = buffers->total();
  // A pipe gives all it has.
  if (kind == kLanePipe && n > kLaneMostBytes && LaneUsed(lane) > kLaneMostBytes) return false;
  LaneOutcome outcome = ReadLane(
      lane, Sleepers(), LaneGeneration(name), s->lane_owner, &n,
      [&](uint64_t at, uint64_t length) { return buffers->Move<true>(RingOf(lane, at), length); });
  return Finish(s, outcome, /*wrote=*/false, name, static_cast<int64_t>(n));
}

bool Write(Slot* s, Buffers* buffers, Call call) {
  uint64_t name;
  StreamLane* lane = LaneOf(s, /*out=*/true, &name);
  if (lane == nullptr) return false;
  const uint32_t kind = Load(&lane->kind);
  if (call == kSocket && !IsSocket(kind)) return false;
  if (IsCounter(kind)) return call == kPlain && WriteCount(s, buffers, lane, name);
  const uint64_t n = buffers->total();
  LaneOutcome outcome = WriteLane(
      lane, Sleepers(), LaneGeneration(name), s->lane_owner, n,
      [&](uint64_t at, uint64_t length) { return buffers->Move<false>(RingOf(lane, at), length); });
  return Finish(s, outcome, /*wrote=*/true, name, static_cast<int64_t>(n));
}

bool ReadRange(Slot* s, Call call) {
  Buffers buffers;
  return buffers.AddRange(s->rsi, s->rdx) && Read(s, &buffers, call);
}

bool WriteRange(Slot* s, Call call) {
  Buffers buffers;
  return buffers.AddRange(s->rsi, s->rdx) && Write(s, &buffers, call);
}

// Descriptors are ints; what is left of the register is nobody's.
bool HasLanes(const Slot* s) { return s->lane_owner != 0 && s->rdi < kLaneFds; }

}  // namespace

bool StreamRead(Slot* s) { return HasLanes(s) && ReadRange(s, kPlain); }
bool StreamWrite(Slot* s) { return HasLanes(s) && WriteRange(s, kPlain); }

bool StreamReadv(Slot* s) {
  if (!HasLanes(s)) return false;
  Buffers buffers;
  return buffers.AddVector(s->rsi, s->rdx) && Read(s, &buffers, kVector);
}

bool StreamWritev(Slot* s) {
  if (!HasLanes(s)) return false;
  Buffers buffers;
  return buffers.AddVector(s->rsi, s->rdx) && Write(s, &buffers, kVector);
}

bool StreamSendto(Slot* s) {
  if (!HasLanes(s) || s->r8 != 0) return false;
  if ((static_cast<uint32_t>(s->r10) & ~(kMsgDontWait | kMsgNoSignal)) != 0) return false;
  return WriteRange(s, kSocket);
}

bool StreamRecvfrom(Slot* s) {
  if (!HasLanes(s) || s->r8 != 0) return false;
  if ((static_cast<uint32_t>(s->r10) & ~(kMsgDontWait | kMsgNoSignal)) != 0) return false;
  return ReadRange(s, kSocket);
}

}  // namespace platform::stub
