// Start of the zygote, and how it makes stubs. It is started by execveat with its socket to the
// sentry as descriptor 0 and the shared file as descriptor 1, and nothing else.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr int kSocket = 0;
constexpr int kSharedFd = 1;
constexpr uint64_t kAtSysinfoEhdr = 33;
constexpr uint64_t kTemporary = 0x10'0000;  // where the vDSO waits while the region is cleared
constexpr uint64_t kMaxVdsoPages = kVvarMax / kPageSize;

alignas(64) unsigned char g_stack[16384];

bool IsError(long r) { return r < 0 && r > -4096; }

bool IsMapped(uint64_t addr) {
  unsigned char residency;
  return Syscall(kSysMincore, addr, kPageSize, Addr(&residency)) == 0;
}

// Moves the mapped pages [from, from + pages) to `to`. The special mappings of the vDSO can only be
// moved whole, and where one ends is known by trying.
bool MovePages(uint64_t from, uint64_t pages, uint64_t to) {
  while (pages != 0) {
    uint64_t n = 1;
    for (; n <= pages; n++) {
      long r = Syscall(kSysMremap, from, n * kPageSize, n * kPageSize, 3, to);
      if (!IsError(r)) break;
    }
    if (n > pages) return false;
    from += n * kPageSize;
    to += n * kPageSize;
    pages -= n;
  }
  return true;
}

void Unmap(uint64_t begin, uint64_t end) {
  if (begin < end) Syscall(kSysMunmap, begin, end - begin);
}

// Unmaps all that the host's exec left but our image, and moves the vDSO with its data pages into
// the region. Returns where the vDSO is then, or 0.
uint64_t ClearAddressSpace(uint64_t vdso) {
  uint64_t pages = 0, first = vdso;
  bool moved = false;
  if (vdso != 0) {
    uint64_t end = vdso;
    while (end < vdso + kMaxVdsoPages * kPageSize && IsMapped(end)) end += kPageSize;
    while (first > vdso - kMaxVdsoPages * kPageSize && IsMapped(first - kPageSize)) {
      first -= kPageSize;
    }
    pages = (end - first) / kPageSize;
    moved = MovePages(first, pages, kTemporary);
  }
  if (moved) {
    Unmap(0, kTemporary);
    Unmap(kTemporary + pages * kPageSize, kStubBase);
  } else {
    Unmap(0, kStubBase);
  }
  Unmap(kStubBase + kStubMax, kRegionEnd);
  if (!moved || !MovePages(kTemporary, pages, kVvarBase)) {
    Unmap(0, kStubBase);
    return 0;
  }
  return kVvarBase + (vdso - first);
}

struct IoVec {
  uint64_t base, length;
};
struct MsgHdr {
  uint64_t name;
  uint32_t name_length;
  uint64_t iov, iov_length, control, control_length;
  int32_t flags;
};
struct Control {
  uint64_t length;
  int32_t level, type;
  int32_t fds[2];
};

struct FilterProgram {
  uint16_t length;
  uint64_t instructions;
};

[[noreturn]] void Die() {
  for (;;) Syscall(kSysExit, 1);
}

// A message to the sentry, with a descriptor if `fd` is not -1. Without it the sentry would wait
// for ever, so the end of the zygote stands for one that cannot be sent.
void Send(uint64_t message, uint64_t size, int fd) {
  Control control{};
  IoVec iov{message, size};
  MsgHdr msg{};
  msg.iov = Addr(&iov);
  msg.iov_length = 1;
  if (fd >= 0) {
    control.length = 16 + sizeof(int32_t);
    control.level = 1;  // SOL_SOCKET
    control.type = 1;   // SCM_RIGHTS
    control.fds[0] = fd;
    msg.control = Addr(&control);
    msg.control_length = sizeof(control);
  }
  if (IsError(Syscall(kSysSendmsg, kSocket, Addr(&msg), 0x4000 /* MSG_NOSIGNAL */))) Die();
}

// The child: becomes the stub of an address space with its first thread in slot 0.
[[noreturn]] void BecomeStub(int mailbox_fd, int socket_fd) {
  Syscall(kSysClose, kSocket);
  if (IsError(Syscall(kSysMmap, kMailboxBase, kMailboxSize, 3, 0x11,  // MAP_SHARED | MAP_FIXED
                      static_cast<uint64_t>(mailbox_fd), 0))) {
    Die();
  }
  Syscall(kSysClose, static_cast<uint64_t>(mailbox_fd));
  const Shared* shared = SharedPage();
  if (shared->strict) {
    Syscall(kSysClose, static_cast<uint64_t>(socket_fd));
    socket_fd = -1;
  }
  Header()->socket = socket_fd;
  // Under a tracer it ends with that, and is held to the stubs' calls already.
  if (!shared->traced && Syscall(kSysPrctl, 1 /* PR_SET_PDEATHSIG */, 9) != 0) Die();
  FilterProgram program{static_cast<uint16_t>(shared->filter_length), Addr(shared->filter)};
  if (!shared->traced &&
      Syscall(kSysSeccomp, 1 /* SECCOMP_SET_MODE_FILTER */, 0, Addr(&program)) != 0) {
    Die();
  }
  Slot* slot = SlotAt(0);
  __asm__ volatile(
      "mov %0, %%rsp\n\t"
      "xor %%ebp, %%ebp\n\t"
      "mov %1, %%rdi\n\t"
      "call StubFirstThreadMain\n\t"
      "ud2"
      :
      : "r"(Addr(slot) + kSlotStackEnd), "r"(slot)
      : "memory", "rdi");
  __builtin_unreachable();
}

void Serve() {
  for (;;) {
    ZygoteRequest request{};
    Control control{};
    IoVec iov{Addr(&request), sizeof(request)};
    MsgHdr msg{};
    msg.iov = Addr(&iov);
    msg.iov_length = 1;
    msg.control = Addr(&control);
    msg.control_length = sizeof(control);
    long n = Syscall(kSysRecvmsg, kSocket, Addr(&msg), 0);
    if (n == -4) continue;  // EINTR
    if (n != sizeof(request) || msg.control_length != sizeof(control)) Die();
    long pid = Syscall(kSysClone, kZygoteCloneFlags, 0, 0, Addr(&SlotAt(0)->host_tid), 0);
    if (pid == 0) BecomeStub(control.fds[0], control.fds[1]);
    Syscall(kSysClose, static_cast<uint64_t>(control.fds[0]));
    Syscall(kSysClose, static_cast<uint64_t>(control.fds[1]));
    ZygoteReply reply{static_cast<int32_t>(pid)};
    Send(Addr(&reply), sizeof(reply), -1);
  }
}

// The table through which patched sites jump; see mailbox.h. Without it nothing can be patched.
bool MakeJumpTable() {
  if (IsError(Syscall(kSysMmap, kJumpTable, kJumpTableSize, 3, 0x32, ~0ull, 0))) return false;
  auto* table = reinterpret_cast<uint64_t*>(kJumpTable);
  for (uint32_t i = 0; i < kMaxSites; i++) table[i] = Addr(kIslands) + i * kIslandSize;
  return Syscall(kSysMprotect, kJumpTable, kJumpTableSize, 1) == 0;
}

struct KernelSigaction {
  uint64_t handler, flags, restorer, mask;
};

void InstallHandlers() {
  // SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER; the frame is left by our own code.
  KernelSigaction action{Addr(reinterpret_cast<const void*>(&StubSignalEntry)),
                         0x4 | 0x08000000 | 0x40000000 | 0x04000000, kStubBase, 0};
  // ILL, TRAP, BUS, FPE, SEGV, SYS and the interrupt.
  const int signals[] = {4, 5, 7, 8, 11, 31, kInterruptSignal};
  for (int signo : signals) {
    Syscall(kSysRtSigaction, static_cast<uint64_t>(signo), Addr(&action), 0, 8);
  }
}

// Installs the zygote's filter; returns the call gate's listener, or -errno (a host that grants
// none: then the stubs' own filter decides alone, unless the sentry gives up). Under a tracer,
// which needs no help, the host's filter stands below where the host has it.
int InstallFilter() {
  constexpr uint64_t kNewListener = 8, kWaitKillableRecv = 32;  // SECCOMP_FILTER_FLAG_*
  const Shared* shared = SharedPage();
  FilterProgram program{static_cast<uint16_t>(shared->zygote_filter_length),
                        Addr(shared->zygote_filter[1])};
  // In strict mode a call that the sentry has let go on is made: no signal comes between, after
  // which it would be asked for again.
  uint64_t flags = kNewListener | (shared->strict ? kWaitKillableRecv : 0);
  long fd = -1;
  if (!shared->traced) fd = Syscall(kSysSeccomp, 1, flags, Addr(&program));
  if (!IsError(fd)) return static_cast<int>(fd);
  program.instructions = Addr(shared->zygote_filter[0]);
  if (Syscall(kSysSeccomp, 1, 0, Addr(&program)) != 0 && !shared->traced) Die();
  return static_cast<int>(fd);
}

}  // namespace

extern "C" [[noreturn]] void ZygoteMain(const uint64_t* stack) {
  // argc, argv, NULL, envp, NULL, auxv
  const uint64_t* p = stack + 1 + stack[0] + 1;
  while (*p != 0) p++;
  uint64_t vdso = 0;
  for (p++; p[0] != 0; p += 2) {
    if (p[0] == kAtSysinfoEhdr) vdso = p[1];
  }
  ZygoteHello hello{};
  hello.vdso_base = ClearAddressSpace(vdso);
  long r = Syscall(kSysMmap, kSharedBase, kSharedSize, 1, 0x11, kSharedFd, 0);
  if (IsError(r)) hello.error = static_cast<int32_t>(-r);
  Syscall(kSysClose, kSharedFd);
  if (!MakeJumpTable()) hello.error = 12;  // ENOMEM
  InstallHandlers();
  hello.traced_entry = Addr(reinterpret_cast<const void*>(&StubTracedCall));
  int listener = hello.error == 0 ? InstallFilter() : -1;
  if (listener < 0) hello.listener_error = -listener;
  Send(Addr(&hello), sizeof(hello), listener);
  if (listener >= 0) Syscall(kSysClose, static_cast<uint64_t>(listener));
  if (hello.error != 0) Die();
  Serve();
  Die();
}

extern "C" __attribute__((naked, used)) void _start() {
  __asm__ volatile(
      "mov %%rsp, %%rdi\n\t"
      "lea %[stack], %%rsp\n\t"
      "add %[size], %%rsp\n\t"
      "xor %%ebp, %%ebp\n\t"
      "call ZygoteMain\n\t"
      "ud2\n\t"
      :
      : [stack] "m"(g_stack), [size] "i"(sizeof(g_stack)));
}

}  // namespace platform::stub

// What the compiler may call on its own.
extern "C" __attribute__((used)) void* memset(void* p, int c, unsigned long n) {
  void* d = p;
  __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
  return p;
}
extern "C" __attribute__((used)) void* memcpy(void* p, const void* q, unsigned long n) {
  void* d = p;
  __asm__ volatile("rep movsb" : "+D"(d), "+S"(q), "+c"(n) : : "memory");
  return p;
}
