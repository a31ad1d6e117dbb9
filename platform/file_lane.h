// What a stub knows of the regular files that its process has open, so that it reads them without
// the sentry: how long they are, and where the position is. The bytes it copies from its windows
// (mapped/file_windows.h), or those at the begin of a file from where the sentry has put them when
// it was opened. Compiled into the sentry and the stubs; freestanding.
//
// All of it stands in the process's own mailbox. Who forges it deceives itself alone: what is
// copied comes from windows that are mapped for it, and a position is checked when the sentry
// takes it back.
#pragma once

#include <cstddef>
#include <cstdint>

namespace platform {

inline constexpr uint32_t kFileLanes = 256;  // descriptors below this may have one
// Places for the first bytes of files, and how many one holds.
inline constexpr uint32_t kFileBegins = 4;
inline constexpr uint32_t kFileBeginSize = 16 * 1024;

// The position of an open file while the stub has it: it moves both words at once, so that who
// moves the position from where it was finds out whether it was the only one. The sentry takes it
// back by taking the name away, whoever is about to move it, and waits for nobody.
struct alignas(16) LanePosition {
  uint64_t name;  // given once; 0: the sentry has the position
  uint64_t offset;
};

struct alignas(16) FileLane {
  LanePosition position;
  // Of what is below, given once; 0: that is not known. Whoever has used it looks again whether it
  // is still the same: the sentry takes it away before the file changes.
  uint64_t name;
  uint64_t size;
  uint64_t source;  // base::FileSource::id; 0: there is none
  // So many of the first bytes stand at this place, as long as the name does.
  uint32_t begin_place, begin_length;
  uint32_t begin_used;  // written by the stub: it has copied from there
  uint32_t pad[3];
};
static_assert(sizeof(FileLane) == 64);

// The first bytes of a file. `place` is below kFileBegins, and there are at most kFileBeginSize.
struct FileBegin {
  uint32_t place = 0, length = 0;
};

// What a window shows.
struct ShownWindow {
  uint64_t turn;    // given once, each time that it shows something else
  uint64_t source;  // 0: nothing
  uint64_t offset;  // of the file
  uint64_t used;    // written by the stub: it has copied from it
};
static_assert(sizeof(ShownWindow) == 32);

// Moves it from `from` to `offset`. False: it is not there any more.
inline bool MoveLanePosition(LanePosition* position, LanePosition from, uint64_t offset) {
  bool moved;
  __asm__ volatile("lock cmpxchg16b %[at]"
                   : "=@ccz"(moved), [at] "+m"(*position), "+a"(from.name), "+d"(from.offset)
                   : "b"(from.name), "c"(offset)
                   : "memory");
  return moved;
}

// For the sentry. Precondition: it has the position.
inline void LendLanePosition(LanePosition* position, uint64_t name, uint64_t offset) {
  __atomic_store_n(&position->offset, offset, __ATOMIC_SEQ_CST);
  __atomic_store_n(&position->name, name, __ATOMIC_SEQ_CST);
}
// The name that stood there. From then on nobody moves it.
inline uint64_t TakeLanePosition(LanePosition* position, uint64_t* offset) {
  const uint64_t name = __atomic_exchange_n(&position->name, uint64_t{0}, __ATOMIC_SEQ_CST);
  *offset = __atomic_load_n(&position->offset, __ATOMIC_SEQ_CST);
  return name;
}

inline void HideFileLane(FileLane* lane) {
  __atomic_store_n(&lane->name, uint64_t{0}, __ATOMIC_SEQ_CST);
}
inline void ShowFileLane(FileLane* lane, uint64_t name, uint64_t size, uint64_t source,
                         FileBegin begin) {
  HideFileLane(lane);
  __atomic_store_n(&lane->begin_place, begin.place, __ATOMIC_SEQ_CST);
  __atomic_store_n(&lane->begin_length, begin.length, __ATOMIC_SEQ_CST);
  __atomic_store_n(&lane->begin_used, 0u, __ATOMIC_SEQ_CST);
  __atomic_store_n(&lane->size, size, __ATOMIC_SEQ_CST);
  __atomic_store_n(&lane->source, source, __ATOMIC_SEQ_CST);
  __atomic_store_n(&lane->name, name, __ATOMIC_SEQ_CST);
}

inline void HideWindow(ShownWindow* window, uint64_t turn) {
  __atomic_store_n(&window->source, uint64_t{0}, __ATOMIC_SEQ_CST);
  __atomic_store_n(&window->turn, turn, __ATOMIC_SEQ_CST);
}
inline void ShowWindow(ShownWindow* window, uint64_t source, uint64_t offset) {
  __atomic_store_n(&window->offset, offset, __ATOMIC_SEQ_CST);
  __atomic_store_n(&window->source, source, __ATOMIC_SEQ_CST);
}

}  // namespace platform
