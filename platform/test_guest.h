// Guest programs and a small driver for tests and benchmarks of the platform.
#pragma once

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "platform/platform.h"

// Code of the guest, in test_guest.S; position-independent, at most one page.
extern "C" const char guest_begin[], guest_end[];
extern "C" const char guest_syscall_loop[], guest_fault[], guest_spin[], guest_avx[],
    guest_counter[], guest_site[], guest_divide[], guest_int80[], guest_trap[], guest_set_gs[],
    guest_hostile[], guest_avx_store[], guest_compare[], guest_flags[], guest_getpid[],
    guest_gettid_loop[], guest_futex_wake[], guest_forger[], guest_caller[], guest_restorer[],
    guest_bare_restorer[];

namespace platform::test {

inline constexpr uint64_t kCode = 0x400000;
inline constexpr uint64_t kStack = 0x800000;
inline constexpr uint64_t kStackSize = 0x100000;
inline constexpr uint64_t kData = 0xa00000;
inline constexpr uint64_t kDataSize = 0x10000;

// Strict mode if the environment has RUNSC_TEST_STRICT: the same tests hold there.
inline Options TestOptions() {
  Options options;
  options.strict = getenv("RUNSC_TEST_STRICT") != nullptr;
  return options;
}
// The platform that the tests are about: $RUNSC_TEST_PLATFORM, else systrap.
inline bool TestsPtrace() {
  const char* name = getenv("RUNSC_TEST_PLATFORM");
  return name != nullptr && strcmp(name, "ptrace") == 0;
}
inline base::Result<std::unique_ptr<Platform>> CreatePlatform(const Options& options,
                                                              std::string* why) {
  return TestsPtrace() ? CreatePtrace(options, why) : CreateSystrap(options, why);
}

inline uint64_t GuestAddr(const char* symbol) {
  return kCode + static_cast<uint64_t>(symbol - guest_begin);
}

// One guest thread and its listener.
struct Thread : TrapListener {
  void OnTrap() override { trapped = true; }
  std::unique_ptr<Context> context;
  bool trapped = false;
};

// Polls as the scheduler does.
inline void PollOnce(Platform& p, int64_t wait_ns = 0) {
  if (p.Poll() == 0 && !p.ShouldSpin()) {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    p.Wait(t.tv_sec * 1'000'000'000ll + t.tv_nsec + (wait_ns ? wait_ns : 1'000'000'000));
  }
}

inline const Trap& Await(Platform& p, Thread& t) {
  while (!t.trapped) PollOnce(p);
  return t.context->trap();
}

inline const Trap& RunGuest(Platform& p, Thread& t, ResumeMode mode = ResumeMode::kGuest) {
  t.trapped = false;
  t.context->Resume(mode);
  return Await(p, t);
}

inline std::vector<std::byte> GuestCode() {
  const auto* b = reinterpret_cast<const std::byte*>(guest_begin);
  return std::vector<std::byte>(b, b + (guest_end - guest_begin));
}

inline order::Mmap Anonymous(uint64_t addr, uint64_t length, int prot) {
  order::Mmap m{};
  m.addr = addr;
  m.length = length;
  m.prot = prot;
  return m;
}

inline order::Mmap CodeFile() {
  int fd = memfd_create("code", MFD_CLOEXEC);
  std::vector<std::byte> code = GuestCode();
  order::Mmap m = Anonymous(kCode, 0x1000, PROT_READ | PROT_EXEC);
  if (ftruncate(fd, 0x1000) != 0 || pwrite(fd, code.data(), code.size(), 0) < 0) abort();
  m.file = base::MakeRef<base::HostFd>(fd);
  static uint64_t files = 0;
  m.has_identity = true;
  m.identity = {
      .dev = 1, .ino = ++files, .size = 0x1000, .mtime_ns = 0, .ctime_ns = 0, .writes = 0};
  return m;
}

// A fresh address space with code, stack and data; its main thread at `entry`.
struct Guest {
  std::unique_ptr<AddressSpace> space;
  Thread main;

  // With `from_file` the code is a private mapping of a file, which may be patched.
  bool Load(Platform& p, bool from_file = false) {
    return from_file ? LoadFile(p, CodeFile()) : Load(p, nullptr);
  }
  // The code is that of `file`.
  bool LoadFile(Platform& p, const order::Mmap& file) { return Load(p, &file); }
  bool Load(Platform& p, const order::Mmap* file) {
    auto made = p.NewAddressSpace();
    if (!made.ok()) return false;
    space = std::move(*made);
    main.context = space->TakeMainContext();
    main.context->set_listener(&main);
    Context& c = *main.context;
    if (file) {
      c.QueueOrder(*file);
    } else {
      c.QueueOrder(Anonymous(kCode, 0x1000, PROT_READ | PROT_WRITE));
      c.QueueOrder(order::Write{kCode, GuestCode()});
      c.QueueOrder(order::Mprotect{kCode, 0x1000, PROT_READ | PROT_EXEC});
    }
    c.QueueOrder(Anonymous(kStack, kStackSize, PROT_READ | PROT_WRITE));
    c.QueueOrder(Anonymous(kData, kDataSize, PROT_READ | PROT_WRITE));
    return RunGuest(p, main, ResumeMode::kOrdersOnly).kind == TrapKind::kOrdersDone;
  }
  void SetEntry(const char* entry) {
    Regs& r = main.context->regs();
    r = Regs{};
    r.rip = GuestAddr(entry);
    r.rsp = kStack + kStackSize - 64;
  }
};

}  // namespace platform::test
