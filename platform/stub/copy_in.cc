// What a call's arguments point to, copied into the slot before the hand-off: the sentry then reads
// it without a host call. The shapes are those of the one table of system calls.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

enum ShapeKind : uint8_t { kNothing, kString, kFixed, kBytes, kArray, kStrings };

// What to copy of one argument: `size` bytes, or a multiple of it by another argument.
struct Shape {
  ShapeKind kind = kNothing;
  uint8_t length_arg = 0;
  uint16_t size = 0;
};
struct Call {
  Shape arg[6];
  constexpr bool Copies() const {
    for (const Shape& shape : arg) {
      if (shape.kind != kNothing) return true;
    }
    return false;
  }
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
  Shape { kStrings }
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
constexpr uint64_t kNrSigreturn = 15;

struct CallTable {
  Call call[kCallCount] = {};
  bool copies[kCallCount] = {};
  constexpr CallTable() {
#define SYSCALL(nr, name, handler, support, note, ...) call[nr] = Call{{__VA_ARGS__}};
#include "sentry/base/syscalls.def"
#undef SYSCALL
    copies[kNrSigreturn] = true;
    for (uint32_t nr = 0; nr < kCallCount; nr++) copies[nr] |= call[nr].Copies();
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

namespace {

constexpr uint32_t kUcontextSize = 304;  // without the FPU state, which is elsewhere

// What has been copied so far.
struct Copied {
  Slot* const s;
  uint32_t used = 0, count = 0;

  bool Full() const { return count == kMaxCopiesIn || used >= kCopyInSize; }
  uint64_t Room() const { return kCopyInSize - used; }
  unsigned char* To() const { return s->in_area + used; }
  void Add(uint64_t addr, uint64_t got) {
    if (got == 0) return;
    uint32_t length = static_cast<uint32_t>(got);
    CopyEntry* last = count != 0 ? &s->copy_in[count - 1] : nullptr;
    if (last && last->addr + last->length == addr && last->offset + last->length == used) {
      last->length += length;
    } else {
      s->copy_in[count++] = CopyEntry{addr, length, used};
    }
    used += length;
  }
  void Align() { used = (used + 7) & ~7u; }
};

// An array of pointers up to its NULL, and the strings that they point to.
void CopyStrings(Copied* c, uint64_t addr) {
  uint64_t n = 0;
  bool ended = false;
  c->Align();
  while (!ended && (n + 1) * 8 <= c->Room()) {
    if (StubCopy(c->To() + n * 8, reinterpret_cast<const void*>(addr + n * 8), 8) != 0) break;
    uint64_t pointer;
    __builtin_memcpy(&pointer, c->To() + n * 8, sizeof(pointer));
    ended = pointer == 0;
    n++;
  }
  const unsigned char* pointers = c->To();
  c->Add(addr, n * 8);
  for (uint64_t i = 0; ended && i + 1 < n && !c->Full(); i++) {
    uint64_t pointer;
    __builtin_memcpy(&pointer, pointers + i * 8, sizeof(pointer));
    uint64_t most = c->Room() < kMaxString ? c->Room() : kMaxString;
    c->Add(pointer, StubCopyString(c->To(), reinterpret_cast<const void*>(pointer), most));
  }
}

uint64_t CopyOne(Copied* c, const Shape& shape, uint64_t addr) {
  uint64_t room = c->Room();
  const void* from = reinterpret_cast<const void*>(addr);
  if (shape.kind == kString) {
    return StubCopyString(c->To(), from, room < kMaxString ? room : kMaxString);
  }
  uint64_t want = shape.size;
  if (shape.kind == kBytes) want = Argument(c->s, shape.length_arg);
  if (shape.kind == kArray) {
    uint64_t n = Argument(c->s, shape.length_arg);
    want = n <= kMaxBytes ? n * shape.size : kMaxBytes;
  }
  // What is larger is cheaper for the sentry to read in one piece.
  if (want > kMaxBytes) return 0;
  if (want > room) want = room;
  return want - StubCopy(c->To(), from, want);
}

}  // namespace

void CopyIn(Slot* s) {
  s->copied_in = 0;
  if (s->rax >= kCallCount || !kCalls.copies[s->rax]) return;
  Copied c{s};
  if (s->rax == kNrSigreturn) {
    uint64_t left = StubCopy(c.To(), reinterpret_cast<const void*>(s->rsp), kUcontextSize);
    c.Add(s->rsp, kUcontextSize - left);
  }
  const Call& call = kCalls.call[s->rax];
  for (uint32_t i = 0; i < 6 && !c.Full(); i++) {
    const Shape& shape = call.arg[i];
    uint64_t addr = Argument(s, i);
    if (shape.kind == kNothing || addr == 0) continue;
    if (shape.kind == kStrings) {
      CopyStrings(&c, addr);
    } else {
      c.Align();
      c.Add(addr, CopyOne(&c, shape, addr));
    }
  }
  s->copied_in = c.count;
}

}  // namespace platform::stub
