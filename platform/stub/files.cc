// Reads of regular files, moves of their position, and closing of descriptors, that need no sentry
// (platform/file_lane.h, platform/fd_lane.h). All errors are the sentry's, and whatever is not
// plain.
#include "platform/file_lane.h"

#include "platform/fd_lane.h"
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr uint64_t kMostCount = 0x7fff'f000;  // MAX_RW_COUNT
// While the stub copies, the thread does nothing else: no signal, no stop.
constexpr uint64_t kMostBytes = kFileWindowSize;
constexpr int kTries = 4;
constexpr uint32_t kSeekSet = 0, kSeekCur = 1, kSeekEnd = 2;

// What the lane says of the file, as long as it has that name.
struct Known {
  uint64_t name, size, source;
  FileBegin begin;
};

// Descriptors are ints; what is left of the register is nobody's.
FileLane* LaneOf(Slot* s) {
  if (s->lane_owner == 0 || s->rdi >= kFileLanes) return nullptr;
  MailboxHeader* header = Header();
  if (FdIsClosed(&header->closes, static_cast<uint32_t>(s->rdi))) return nullptr;
  return &header->files[s->rdi];
}

bool Look(const FileLane* lane, Known* known) {
  known->name = Load(&lane->name);
  if (known->name == 0) return false;
  known->size = Load(&lane->size);
  known->source = Load(&lane->source);
  known->begin = {Load(&lane->begin_place), Load(&lane->begin_length)};
  return true;
}

bool Holds(const FileLane* lane, const Known& known) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return Load(&lane->name) == known.name;
}

ShownWindow* FindWindow(uint64_t source, uint64_t offset) {
  for (ShownWindow& w : Header()->windows) {
    if (Load(&w.source) == source && Load(&w.offset) == offset) return &w;
  }
  return nullptr;
}

// Copies bytes of the file to the guest. False: a window is missing, or either side faults.
bool CopyBytes(uint64_t source, uint64_t offset, uint64_t to, uint64_t n) {
  if (source == 0) return false;
  while (n != 0) {
    const uint64_t skip = offset % kFileWindowSize, left = kFileWindowSize - skip;
    const uint64_t k = n < left ? n : left;
    ShownWindow* w = FindWindow(source, offset - skip);
    if (w == nullptr) return false;
    const uint64_t turn = Load(&w->turn);
    if (Load(&w->source) != source || Load(&w->offset) != offset - skip) return false;
    const uint64_t index = static_cast<uint64_t>(w - Header()->windows);
    const uint64_t from = kFileWindowBase + index * kFileWindowSize + skip;
    if (StubCopy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), k) != 0) {
      return false;
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (Load(&w->turn) != turn) return false;
    if (Load(&w->used) == 0) Store(&w->used, uint64_t{1});
    offset += k;
    to += k;
    n -= k;
  }
  return true;
}

// The same for bytes that the sentry has put here.
bool CopyFromBegin(FileLane* lane, FileBegin begin, uint64_t offset, uint64_t to, uint64_t n) {
  if (begin.place >= kFileBegins || begin.length > kFileBeginSize || offset > begin.length ||
      n > begin.length - offset) {
    return false;
  }
  const unsigned char* from = Header()->file_begins[begin.place] + offset;
  if (StubCopy(reinterpret_cast<void*>(to), from, n) != 0) return false;
  if (Load(&lane->begin_used) == 0) Store(&lane->begin_used, 1u);
  return true;
}

// Reads as read(2) does with the arguments of the call, from `offset`: `*n` bytes, as long as what
// is known of the file holds.
bool ReadAt(const Slot* s, FileLane* lane, const Known& known, uint64_t offset, uint64_t* n) {
  const uint64_t to = s->rsi, count = s->rdx;
  if (count == 0 || count > kMostCount || to >= kRegionBase || count > kRegionBase - to ||
      static_cast<int64_t>(offset + count) < 0) {
    return false;
  }
  const uint64_t left = offset < known.size ? known.size - offset : 0;
  *n = count < left ? count : left;
  return *n == 0 || CopyFromBegin(lane, known.begin, offset, to, *n) ||
         (*n <= kMostBytes && CopyBytes(known.source, offset, to, *n));
}

bool Answer(Slot* s, uint64_t value) {
  s->rax = value;
  return true;
}

// The position and whose it is; false if the sentry has it. Half old and half new is found out by
// who moves it, or looks at the name again.
bool LookAtPosition(const FileLane* lane, LanePosition* at) {
  at->name = Load(&lane->position.name);
  at->offset = Load(&lane->position.offset);
  return at->name != 0 && static_cast<int64_t>(at->offset) >= 0;
}

// Where lseek(2) leads from `at`; false: the sentry is to say.
bool Target(Slot* s, const FileLane* lane, const LanePosition& at, uint64_t* target) {
  int64_t base = 0, to;
  switch (static_cast<uint32_t>(s->rdx)) {
    case kSeekSet:
      break;
    case kSeekCur:
      base = static_cast<int64_t>(at.offset);
      break;
    case kSeekEnd: {
      Known known;
      if (!Look(lane, &known) || !Holds(lane, known)) return false;
      base = static_cast<int64_t>(known.size);
      break;
    }
    default:
      return false;
  }
  if (__builtin_add_overflow(base, static_cast<int64_t>(s->rsi), &to) || to < 0) return false;
  *target = static_cast<uint64_t>(to);
  return true;
}

}  // namespace

bool FileRead(Slot* s) {
  FileLane* lane = LaneOf(s);
  if (lane == nullptr) return false;
  // Who reads beside others gets what they have not got.
  for (int i = 0; i < kTries; i++) {
    LanePosition at;
    Known known;
    uint64_t n;
    if (!LookAtPosition(lane, &at) || !Look(lane, &known)) return false;
    if (!ReadAt(s, lane, known, at.offset, &n) || !Holds(lane, known)) return false;
    if (n == 0) return Load(&lane->position.name) == at.name && Answer(s, 0);
    if (MoveLanePosition(&lane->position, at, at.offset + n)) return Answer(s, n);
  }
  return false;
}

bool FilePread(Slot* s) {
  FileLane* lane = LaneOf(s);
  Known known;
  uint64_t n;
  if (lane == nullptr || static_cast<int64_t>(s->r10) < 0 || !Look(lane, &known)) return false;
  return ReadAt(s, lane, known, s->r10, &n) && Holds(lane, known) && Answer(s, n);
}

bool FileLseek(Slot* s) {
  FileLane* lane = LaneOf(s);
  if (lane == nullptr) return false;
  for (int i = 0; i < kTries; i++) {
    LanePosition at;
    uint64_t target;
    if (!LookAtPosition(lane, &at) || !Target(s, lane, at, &target)) return false;
    if (MoveLanePosition(&lane->position, at, target)) return Answer(s, target);
  }
  return false;
}

bool FileClose(Slot* s) {
  const uint32_t fd = static_cast<uint32_t>(s->rdi);
  return CloseFd(&Header()->closes, Load(&s->fd_places), fd) && Answer(s, 0);
}

}  // namespace platform::stub
