// Work on the address space, ordered by the sentry.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr int kEintr = 4;
constexpr int kEio = 5;
constexpr int kEfault = 14;
constexpr int kEinval = 22;

struct IoVec {
  uint64_t base, length;
};
struct MsgHdr {
  uint64_t name;
  uint32_t name_length;
  uint64_t iov, iov_length, control, control_length;
  int32_t flags;
};
struct ControlHeader {
  uint64_t length;
  int32_t level, type;
};

// Takes this batch's turn at the socket.
void TakeTurn(uint32_t ticket) {
  MailboxHeader* h = Header();
  for (;;) {
    uint32_t now = Load(&h->fd_turn);
    if (now == ticket) return;
    for (int i = 0; i < 100 && Load(&h->fd_turn) == now; i++) Pause();
    __atomic_fetch_add(&h->fd_waiters, 1, __ATOMIC_SEQ_CST);
    if (Load(&h->fd_turn) == now) FutexWait(&h->fd_turn, now);
    __atomic_fetch_sub(&h->fd_waiters, 1, __ATOMIC_SEQ_CST);
  }
}

void EndTurn(uint32_t ticket) {
  MailboxHeader* h = Header();
  Store(&h->fd_turn, ticket + 1);
  if (Load(&h->fd_waiters)) FutexWake(&h->fd_turn, 0x7fffffff);
}

// Receives the batch's descriptors, which the sentry has sent before it answered.
bool ReceiveFds(int* fds, uint32_t count) {
  struct {
    ControlHeader header;
    int32_t fds[kMaxOrderFds];
  } control;
  char byte;
  IoVec iov{Addr(&byte), 1};
  MsgHdr msg{};
  msg.iov = Addr(&iov);
  msg.iov_length = 1;
  msg.control = Addr(&control);
  msg.control_length = sizeof(control);
  long n = Syscall(kSysRecvmsg, static_cast<uint64_t>(Header()->socket), Addr(&msg), 0);
  if (n != 1 || msg.control_length < sizeof(ControlHeader)) return false;
  uint64_t got = (control.header.length - sizeof(ControlHeader)) / sizeof(int32_t);
  for (uint32_t i = 0; i < got && i < kMaxOrderFds; i++) {
    if (i < count) {
      fds[i] = control.fds[i];
    } else {
      Syscall(kSysClose, static_cast<uint64_t>(control.fds[i]));
    }
  }
  return got == count;
}

// A call that in strict mode waits for the sentry's word. A signal can end that before the sentry
// has seen it.
long MemoryCall(long nr, uint64_t a, uint64_t b, uint64_t c = 0, uint64_t d = 0, uint64_t e = 0,
                uint64_t f = 0) {
  long r;
  do {
    r = Syscall(nr, a, b, c, d, e, f);
  } while (r == -kEintr);
  return r;
}

constexpr int kReadWriteExec = 7, kReadExec = 5;

// One thread at a time changes code, since who meets an int3 knows of one place alone, and none
// while the process is copied. Nobody waits for ever: the word is the guest's to spoil.
void BeginPatching(uint64_t addr) {
  constexpr int kMostYields = 100'000;
  for (int i = 0; i < kMostYields; i++) {
    uint64_t nobody = 0;
    if (__atomic_compare_exchange_n(&Header()->patching, &nobody, addr, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST)) {
      return;
    }
    Syscall(kSysSchedYield);
  }
  Store(&Header()->patching, addr);
}
void EndPatching() { Store(&Header()->patching, uint64_t{0}); }

// Changes `count` (5 to 7) bytes of code at `addr`, whose page is and stays readable and
// executable, if they are those of `old`: as they were when the call trapped. A thread that runs
// into the middle meets an int3 and tries again.
void Patch(uint64_t addr, uint64_t bytes, uint64_t count, uint64_t old) {
  auto* code = reinterpret_cast<unsigned char*>(addr);
  uint64_t first = addr & ~(kPageSize - 1);
  uint64_t length = ((addr + count - 1) & ~(kPageSize - 1)) + kPageSize - first;
  if (count < 5 || count > 7) return;
  BeginPatching(addr);
  uint64_t now = 0;
  if (StubCopy(&now, code, count) == 0 && now == old &&
      MemoryCall(kSysMprotect, first, length, kReadWriteExec) == 0) {
    unsigned char image[8];
    __builtin_memcpy(image, &bytes, sizeof(image));
    unsigned char int3 = 0xcc;
    if (StubCopy(code, &int3, 1) == 0) {
      StubCopy(code + 1, image + 1, count - 1);
      __atomic_thread_fence(__ATOMIC_SEQ_CST);
      StubCopy(code, image, 1);
    }
    MemoryCall(kSysMprotect, first, length, kReadExec);
  }
  EndPatching();
}

// clone(2) itself begins anew after a signal; its wait for the sentry's word does not.
long RunFork(Slot* s, const int* fds) {
  LoadFpuForClone(s);
  const int socket = SharedPage()->strict ? -1 : fds[1];
  BeginPatching(kStubBase);
  long pid;
  do {
    pid = StubFork(s, fds[0], socket, Header()->socket);
  } while (pid == -kEintr);
  EndPatching();
  s->forked = 1;
  return pid;
}

long RunCloneThread(Slot* s, uint64_t slot) {
  if (slot >= kMaxSlots) return -kEinval;
  LoadFpuForClone(s);
  long tid;
  do {
    tid = StubCloneThread(SlotAt(static_cast<uint32_t>(slot)));
  } while (tid == -kEintr);
  return tid;
}

// Lets a parked thread go on as another one.
long RunWakeThread(Slot* s, uint64_t slot) {
  if (slot >= kMaxSlots) return -kEinval;
  Slot* thread = SlotAt(static_cast<uint32_t>(slot));
  if (Load(&thread->parked) != kParked) return 0;
  GiveFpu(s, thread);
  Store(&thread->parked, uint32_t{kReleased});
  FutexWake(&thread->parked, 1);
  return 0;
}

long RunOrder(Slot* s, const OrderEntry& o, const int* fds, uint32_t fd_count) {
  uint32_t fd_index = static_cast<uint32_t>(o.fd);
  switch (o.op) {
    case OrderOp::kMmap: {
      int fd = o.fd < 0 ? -1 : fd_index < fd_count ? fds[fd_index] : -1;
      long r = MemoryCall(kSysMmap, o.a, o.b, o.c, o.d, static_cast<uint64_t>(fd), o.e);
      return r < 0 && r > -4096 ? r : 0;
    }
    case OrderOp::kMunmap:
      return MemoryCall(kSysMunmap, o.a, o.b);
    case OrderOp::kMprotect:
      return MemoryCall(kSysMprotect, o.a, o.b, o.c);
    case OrderOp::kMadvise:
      return MemoryCall(kSysMadvise, o.a, o.b, o.c);
    case OrderOp::kMremap:
      if (o.a == o.c) return MemoryCall(kSysMremap, o.a, o.b, o.d);
      return MemoryCall(kSysMremap, o.a, o.b, o.d, 3 /* MREMAP_MAYMOVE | MREMAP_FIXED */, o.c);
    case OrderOp::kSaveFpu:
      return SaveFpu(s, o.a);
    case OrderOp::kRestoreFpu:
      return RestoreFpu(s, o.a);
    case OrderOp::kWrite: {
      if (o.c > kCopyOutSize || o.b > kCopyOutSize - o.c) return -kEinval;
      return StubCopy(reinterpret_cast<void*>(o.a), s->out_area + o.c, o.b) == 0 ? 0 : -kEfault;
    }
    case OrderOp::kFutexWake:
      return Syscall(kSysFutex, o.a, o.c ? FUTEX_WAKE | FUTEX_PRIVATE_FLAG : FUTEX_WAKE, o.b);
    case OrderOp::kCloneThread:
      return RunCloneThread(s, o.a);
    case OrderOp::kWakeThread:
      return RunWakeThread(s, o.a);
    case OrderOp::kPatch:
      Patch(o.a, o.b, o.c, o.d);
      return 0;
    case OrderOp::kCompareExchange: {
      long held = StubCompareExchange(o.a, static_cast<uint32_t>(o.b), static_cast<uint32_t>(o.c));
      return held < 0 ? -kEfault : held;
    }
    case OrderOp::kRseq:
      return HostRseq(s, o.a, o.b, o.c, o.d);
    case OrderOp::kMembarrier:
      return Syscall(kSysMembarrier, o.a, o.b, o.c);
    case OrderOp::kFork:
      if (fd_count != 2) return -kEinval;
      return RunFork(s, fds);
  }
  return -kEinval;
}

}  // namespace

bool RunOrders(Slot* s, uint32_t count, uint32_t fd_count) {
  int fds[kMaxOrderFds];
  uint32_t ticket = s->fd_ticket;
  if (count > kMaxOrders) count = kMaxOrders;
  if (fd_count > kMaxOrderFds) fd_count = kMaxOrderFds;
  bool ok = true;
  const bool strict = SharedPage()->strict != 0;
  if (fd_count != 0) {
    for (uint32_t i = 0; i < fd_count; i++) fds[i] = strict ? OrderedFd(SlotIndex(s)) : -1;
    TakeTurn(ticket);
    ok = strict || ReceiveFds(fds, fd_count);
    if (!ok) {
      s->order_index = 0;
      s->order_error = kEio;
    }
  }
  for (uint32_t i = 0; ok && i < count; i++) {
    long r = RunOrder(s, s->orders[i], fds, fd_count);
    s->orders[i].result = static_cast<uint64_t>(r);
    if (r < 0 && r > -4096) {
      s->order_index = i;
      s->order_error = static_cast<int32_t>(-r);
      ok = false;
    }
  }
  if (fd_count != 0) {
    for (uint32_t i = 0; i < (strict ? 1 : fd_count); i++) {
      if (fds[i] >= 0) Syscall(kSysClose, static_cast<uint64_t>(fds[i]));
    }
    EndTurn(ticket);
  }
  return ok;
}

void RunLastOrders(Slot* s, uint32_t count) {
  for (uint32_t i = 0; i < count && i < kMaxOrders; i++) RunOrder(s, s->orders[i], nullptr, 0);
}

long HostRseq(Slot* s, uint64_t addr, uint64_t length, uint64_t flags, uint64_t signature) {
  const long r = Syscall(kSysRseq, addr, length, flags, signature);
  if (r == 0) s->rseq_held = (flags & kRseqUnregister) == 0;
  return r;
}

int RunCopyOut(Slot* s, uint32_t count) {
  if (count > kMaxCopies) count = kMaxCopies;
  for (uint32_t i = 0; i < count; i++) {
    CopyEntry e = s->copy_out[i];
    const unsigned char* from = s->out_area + e.offset;
    if (e.offset & kFromWindow) {
      const uint64_t offset = e.offset & ~kFromWindow;
      if (offset + e.length > kFileWindowsEnd - kFileWindowBase) return kEfault;
      from = reinterpret_cast<const unsigned char*>(kFileWindowBase + offset);
    } else if (e.offset > kCopyOutSize || e.length > kCopyOutSize - e.offset) {
      return kEfault;
    }
    if (StubCopy(reinterpret_cast<void*>(e.addr), from, e.length) != 0) {
      const uint64_t fault = s->copy_fault;
      return fault >= kFileWindowBase && fault < kFileWindowsEnd ? kEio : kEfault;
    }
  }
  return 0;
}

}  // namespace platform::stub
