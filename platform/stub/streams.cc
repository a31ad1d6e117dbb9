// Calls on byte streams that are answered by a lane (platform/stream_lane.h): what is there is
// read, what fits is written. All else is the sentry's: waiting, errors, ends of streams.
#include "platform/stream_lane.h"

#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

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

bool Finish(Slot* s, LaneOutcome outcome, bool wrote, uint64_t name, uint64_t n) {
  if (outcome == LaneOutcome::kDone) {
    s->rax = n;
    return true;
  }
  if (outcome == LaneOutcome::kTell) {
    s->lane_result = static_cast<int64_t>(n);
    s->lane_name = name;
    s->lane_wrote = wrote ? 1 : 0;
    s->lane_done = 1;
  }
  return false;
}

bool Read(Slot* s, Buffers* buffers) {
  uint64_t name;
  StreamLane* lane = LaneOf(s, /*out=*/false, &name);
  if (lane == nullptr) return false;
  uint64_t n = buffers->total();
  LaneOutcome outcome = ReadLane(
      lane, Sleepers(), LaneGeneration(name), s->lane_owner, &n,
      [&](uint64_t at, uint64_t length) { return buffers->Move<true>(RingOf(lane, at), length); });
  return Finish(s, outcome, /*wrote=*/false, name, n);
}

bool Write(Slot* s, Buffers* buffers) {
  uint64_t name;
  StreamLane* lane = LaneOf(s, /*out=*/true, &name);
  if (lane == nullptr) return false;
  const uint64_t n = buffers->total();
  LaneOutcome outcome = WriteLane(
      lane, Sleepers(), LaneGeneration(name), s->lane_owner, n,
      [&](uint64_t at, uint64_t length) { return buffers->Move<false>(RingOf(lane, at), length); });
  return Finish(s, outcome, /*wrote=*/true, name, n);
}

// Descriptors are ints; what is left of the register is nobody's.
bool HasLanes(const Slot* s) { return s->lane_owner != 0 && s->rdi < kLaneFds; }

}  // namespace

bool StreamRead(Slot* s) {
  if (!HasLanes(s)) return false;
  Buffers buffers;
  return buffers.AddRange(s->rsi, s->rdx) && Read(s, &buffers);
}

bool StreamWrite(Slot* s) {
  if (!HasLanes(s)) return false;
  Buffers buffers;
  return buffers.AddRange(s->rsi, s->rdx) && Write(s, &buffers);
}

bool StreamReadv(Slot* s) {
  if (!HasLanes(s)) return false;
  Buffers buffers;
  return buffers.AddVector(s->rsi, s->rdx) && Read(s, &buffers);
}

bool StreamWritev(Slot* s) {
  if (!HasLanes(s)) return false;
  Buffers buffers;
  return buffers.AddVector(s->rsi, s->rdx) && Write(s, &buffers);
}

bool StreamSendto(Slot* s) {
  if (!HasLanes(s) || s->r8 != 0) return false;
  if ((static_cast<uint32_t>(s->r10) & ~(kMsgDontWait | kMsgNoSignal)) != 0) return false;
  return StreamWrite(s);
}

bool StreamRecvfrom(Slot* s) {
  if (!HasLanes(s) || s->r8 != 0) return false;
  if ((static_cast<uint32_t>(s->r10) & ~(kMsgDontWait | kMsgNoSignal)) != 0) return false;
  return StreamRead(s);
}

}  // namespace platform::stub
