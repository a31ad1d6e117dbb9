// What a call's arguments point to, copied into the slot before the hand-off: the sentry then reads
// it without a host call. The shapes are those of the one table of system calls.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

enum ShapeKind : uint8_t { kNothing, kString, kFixed, kBytes, kArray };

// What to copy of one argument: `size` bytes, or a multiple of it by another argument.
struct Shape {
  ShapeKind kind = kNothing;
  uint8_t length_arg = 0;
  uint16_t size = 0;
};
struct Call {
  Shape arg[6];
};

#define VAL(n) \
  Shape {}
#define PTR(n) \
  Shape {}
#define LEN(n) \
  Shape {}
#define OFF(n) \
  Shape {}
#define FLAGS(n) \
  Shape {}
#define MODE(n) \
  Shape {}
#define ID(n) \
  Shape {}
#define PID(n) \
  Shape {}
#define SIG(n) \
  Shape {}
#define FD(n) \
  Shape {}
#define DIRFD(n) \
  Shape {}
#define PATH(n) \
  Shape { kString }
#define STR(n) \
  Shape { kString }
#define ARGV(n) \
  Shape {}
#define IN(n, bytes) \
  Shape { kFixed, 0, bytes }
#define OUT(n, bytes) \
  Shape {}
#define INOUT(n, bytes) \
  Shape { kFixed, 0, bytes }
#define IN_LEN(n, a) \
  Shape { kBytes, a }
#define OUT_LEN(n, a) \
  Shape {}
#define IN_CNT(n, a, bytes) \
  Shape { kArray, a, bytes }
#define OUT_CNT(n, a, bytes) \
  Shape {}
#define INOUT_CNT(n, a, bytes) \
  Shape { kArray, a, bytes }
#define IOV_IN(n, a) \
  Shape { kArray, a, 16 }
#define IOV_OUT(n, a) \
  Shape { kArray, a, 16 }
#define SOCKADDR_IN(n, a) \
  Shape { kBytes, a }
#define SOCKADDR_OUT(n, a) \
  Shape {}
#define MSG_IN(n) \
  Shape { kFixed, 0, 56 }
#define MSG_OUT(n) \
  Shape { kFixed, 0, 56 }
#define FUTEX(n) \
  Shape {}

constexpr uint32_t kCallCount = 512;

struct CallTable {
  Call call[kCallCount] = {};
  constexpr CallTable() {
#define SYSCALL(nr, name, handler, support, note, ...) call[nr] = Call{{__VA_ARGS__}};
#include "sentry/base/syscalls.def"
#undef SYSCALL
  }
};
constexpr CallTable kCalls;

constexpr uint32_t kMaxString = 4096;
constexpr uint32_t kMaxBytes = 4096;

uint64_t Argument(const Slot* s, uint32_t index) {
  switch (index) {
    case 0:
      return s->rdi;
    case 1:
      return s->rsi;
    case 2:
      return s->rdx;
    case 3:
      return s->r10;
    case 4:
      return s->r8;
    default:
      return s->r9;
  }
}

}  // namespace

void CopyIn(Slot* s) {
  s->copy_in_count = 0;
  if (s->rax >= kCallCount) return;
  const Call& call = kCalls.call[s->rax];
  uint32_t used = 0, count = 0;
  for (uint32_t i = 0; i < 6; i++) {
    const Shape& shape = call.arg[i];
    if (shape.kind == kNothing) continue;
    uint64_t addr = Argument(s, i);
    if (addr == 0) continue;
    uint64_t room = kCopyInSize - used;
    unsigned char* to = s->in_area + used;
    const void* from = reinterpret_cast<const void*>(addr);
    uint64_t got = 0;
    if (shape.kind == kString) {
      got = StubCopyString(to, from, room < kMaxString ? room : kMaxString);
    } else {
      uint64_t want = shape.size;
      if (shape.kind == kBytes) want = Argument(s, shape.length_arg);
      if (shape.kind == kArray) {
        uint64_t n = Argument(s, shape.length_arg);
        want = n <= kMaxBytes ? n * shape.size : kMaxBytes;
      }
      // What is larger is cheaper for the sentry to read in one piece.
      if (want > kMaxBytes) continue;
      if (want > room) want = room;
      got = want - StubCopy(to, from, want);
    }
    if (got == 0) continue;
    s->copy_in[count++] = CopyEntry{addr, static_cast<uint32_t>(got), used};
    used = (used + static_cast<uint32_t>(got) + 7) & ~7u;
    if (count == kMaxCopies || used >= kCopyInSize) break;
  }
  s->copy_in_count = count;
}

}  // namespace platform::stub
