#include "sentry/syscalls/trace/ptrace_regs.h"

#include <elf.h>
#include <sys/user.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"

namespace sentry {

namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr uint64_t kUserCs = 0x33, kUserSs = 0x2b;
// What a tracer may set of the flags (FLAG_MASK): as a signal handler's return, and NT.
constexpr uint64_t kTracerFlags = 0x44dd5 | 0x10000;
constexpr uint64_t kTrapFlag = 0x100;
// The kernel's struct user has two words more than that of <sys/user.h>.
constexpr uint64_t kUserSize = sizeof(user) + 2 * sizeof(uint64_t);
constexpr size_t kLegacySize = 512, kSoftwareOffset = 464, kMxcsrOffset = 24, kMxcsrMaskOffset = 28;
constexpr uint64_t kFeaturesFpSse = 3;

// The software's words in an image of the FPU (struct _fpx_sw_bytes).
struct Software {
  uint32_t magic1, extended_size;
  uint64_t features;
  uint32_t size;
};
constexpr uint32_t kMagic1 = 0x46505853, kMagic2 = 0x46505845;

template <typename T>
T Load(const std::vector<std::byte>& bytes, size_t at) {
  T value;
  memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}
template <typename T>
void Store(std::vector<std::byte>* bytes, size_t at, const T& value) {
  memcpy(bytes->data() + at, &value, sizeof(value));
}

uint64_t ShownFlags(const StoppedTracee& tracee, const platform::Regs& r) {
  return tracee.state().forced_tf ? r.eflags & ~kTrapFlag : r.eflags;
}

user_regs_struct ToUser(const StoppedTracee& tracee) {
  const platform::Regs& r = tracee.task().regs();
  user_regs_struct u{};
  u.r15 = r.r15, u.r14 = r.r14, u.r13 = r.r13, u.r12 = r.r12, u.rbp = r.rbp, u.rbx = r.rbx;
  u.r11 = r.r11, u.r10 = r.r10, u.r9 = r.r9, u.r8 = r.r8, u.rax = r.rax, u.rcx = r.rcx;
  u.rdx = r.rdx, u.rsi = r.rsi, u.rdi = r.rdi, u.orig_rax = r.orig_rax, u.rip = r.rip;
  u.cs = kUserCs, u.ss = kUserSs, u.rsp = r.rsp;
  u.eflags = ShownFlags(tracee, r);
  u.fs_base = r.fs_base, u.gs_base = r.gs_base;
  return u;
}

// Linux: putreg.
Status PutRegister(StoppedTracee& tracee, size_t offset, uint64_t value) {
  platform::Regs& r = tracee.task().regs();
  switch (offset) {
#define PLAIN(name)                      \
  case offsetof(user_regs_struct, name): \
    r.name = value;                      \
    return base::Ok()
    PLAIN(r15);
    PLAIN(r14);
    PLAIN(r13);
    PLAIN(r12);
    PLAIN(rbp);
    PLAIN(rbx);
    PLAIN(r11);
    PLAIN(r10);
    PLAIN(r9);
    PLAIN(r8);
    PLAIN(rax);
    PLAIN(rcx);
    PLAIN(rdx);
    PLAIN(rsi);
    PLAIN(rdi);
    PLAIN(orig_rax);
    PLAIN(rip);
    PLAIN(rsp);
#undef PLAIN
    case offsetof(user_regs_struct, eflags):
      // A trap flag that the tracer sets is the guest's own.
      if (value & kTrapFlag) tracee.state().forced_tf = false;
      r.eflags = (r.eflags & ~kTracerFlags) | (value & kTracerFlags);
      return base::Ok();
    case offsetof(user_regs_struct, fs_base):
      if (value >= kUserAddressEnd) return Error(EIO);
      r.fs_base = value;
      return base::Ok();
    case offsetof(user_regs_struct, gs_base):
      if (value >= kUserAddressEnd) return Error(EIO);
      r.gs_base = value;
      return base::Ok();
    // There are no segments but those that every program has.
    case offsetof(user_regs_struct, cs):
      return (value & 0xffff) == kUserCs ? base::Ok() : Status(Error(EIO));
    case offsetof(user_regs_struct, ss):
      return (value & 0xffff) == kUserSs ? base::Ok() : Status(Error(EIO));
    default:
      return (value & 0xffff) == 0 ? base::Ok() : Status(Error(EIO));
  }
}

// The image that order::SaveFpu makes.
Result<std::vector<std::byte>> SaveFpu(const StoppedTracee& tracee) {
  Result<std::vector<std::byte>> image = Error(EIO);
  tracee.Run([&] {
    Task& t = tracee.task();
    std::vector<platform::Order> orders;
    orders.push_back(platform::order::SaveFpu{0});
    Result<std::vector<uint64_t>> done = t.RunOrders(std::move(orders));
    if (!done.ok()) {
      image = done.error();
      return;
    }
    std::span<const std::byte> saved = t.context().saved_fpu();
    image = std::vector<std::byte>(saved.begin(), saved.end());
  });
  return image;
}

Status RestoreFpu(const StoppedTracee& tracee, std::vector<std::byte> image) {
  Status status = Error(EIO);
  tracee.Run([&] {
    std::vector<platform::Order> orders;
    orders.push_back(platform::order::RestoreFpu{1, std::move(image)});
    Result<std::vector<uint64_t>> done = tracee.task().RunOrders(std::move(orders));
    status = done.ok() ? base::Ok() : Status(done.error());
  });
  return status;
}

// The image without its end marker, with the words that a tracer finds in the software's place: the
// features that are enabled.
std::vector<std::byte> ToXstate(std::vector<std::byte> image) {
  const uint64_t features = Load<Software>(image, kSoftwareOffset).features;
  image.resize(image.size() - sizeof(kMagic2));
  memset(image.data() + kSoftwareOffset, 0, kLegacySize - kSoftwareOffset);
  Store(&image, kSoftwareOffset, features);
  return image;
}

Status CheckMxcsr(const std::vector<std::byte>& image, const std::vector<std::byte>& now) {
  uint32_t mask = Load<uint32_t>(now, kMxcsrMaskOffset);
  if (mask == 0) mask = 0xffbf;
  if (Load<uint32_t>(image, kMxcsrOffset) & ~mask) return Error(EINVAL);
  return base::Ok();
}

// Linux: xstateregs_set and, for the legacy part alone, xfpregs_set.
Status SetXstate(StoppedTracee& tracee, std::vector<std::byte> bytes, bool whole) {
  std::vector<std::byte> image = TRY(SaveFpu(tracee));
  const size_t size = image.size() - sizeof(kMagic2);
  if (whole ? bytes.size() != size : bytes.size() != kLegacySize) {
    return Error(whole ? EFAULT : EINVAL);
  }
  TRY(CheckMxcsr(bytes, image));
  const Software software = Load<Software>(image, kSoftwareOffset);
  if (whole && (Load<uint64_t>(bytes, kLegacySize) & ~software.features)) return Error(EINVAL);
  if (!whole) {
    bytes.insert(bytes.end(), image.begin() + kLegacySize, image.begin() + static_cast<long>(size));
    Store(&bytes, kLegacySize, Load<uint64_t>(bytes, kLegacySize) | kFeaturesFpSse);
  }
  bytes.resize(image.size());
  Store(&bytes, kSoftwareOffset,
        Software{kMagic1, static_cast<uint32_t>(image.size()), software.features,
                 static_cast<uint32_t>(size)});
  Store(&bytes, size, kMagic2);
  return RestoreFpu(tracee, std::move(bytes));
}

}  // namespace

Result<uint64_t> PeekUser(const StoppedTracee& tracee, uint64_t offset) {
  if (offset % sizeof(uint64_t) != 0 || offset >= kUserSize) return Error(EIO);
  if (offset < sizeof(user_regs_struct)) {
    const user_regs_struct regs = ToUser(tracee);
    uint64_t value;
    memcpy(&value, reinterpret_cast<const char*>(&regs) + offset, sizeof(value));
    return value;
  }
  if (offset < offsetof(user, u_debugreg) || offset >= sizeof(user)) return uint64_t{0};
  return tracee.state().debugreg[(offset - offsetof(user, u_debugreg)) / sizeof(uint64_t)];
}

Status PokeUser(StoppedTracee& tracee, uint64_t offset, uint64_t value) {
  if (offset % sizeof(uint64_t) != 0 || offset >= kUserSize) return Error(EIO);
  if (offset < sizeof(user_regs_struct)) return PutRegister(tracee, offset, value);
  if (offset < offsetof(user, u_debugreg) || offset >= sizeof(user)) return Error(EIO);
  constexpr size_t kControl = 7;
  constexpr uint64_t kEnableBits = 0xff;
  const size_t n = (offset - offsetof(user, u_debugreg)) / sizeof(uint64_t);
  if (n == 4 || n == 5) return Error(EIO);
  if (n < 4 && value >= kUserAddressEnd) return Error(EINVAL);
  // The debug registers of the processor are the host's: there are no slots for breakpoints.
  if (n == kControl && (value & kEnableBits)) return Error(ENOSPC);
  tracee.state().debugreg[n] = value;
  return base::Ok();
}

Result<std::vector<std::byte>> GetRegset(const StoppedTracee& tracee, uint64_t type) {
  switch (type) {
    case NT_PRSTATUS: {
      const user_regs_struct regs = ToUser(tracee);
      std::span<const std::byte> bytes = std::as_bytes(std::span(&regs, 1));
      return std::vector<std::byte>(bytes.begin(), bytes.end());
    }
    case NT_PRFPREG: {
      std::vector<std::byte> image = ToXstate(TRY(SaveFpu(tracee)));
      image.resize(kLegacySize);
      memset(image.data() + kSoftwareOffset, 0, kLegacySize - kSoftwareOffset);
      return image;
    }
    case NT_X86_XSTATE:
      return ToXstate(TRY(SaveFpu(tracee)));
    default:
      return Error(EINVAL);
  }
}

Status SetRegset(StoppedTracee& tracee, uint64_t type, std::vector<std::byte> bytes) {
  switch (type) {
    case NT_PRSTATUS: {
      if (bytes.size() % sizeof(uint64_t) != 0) return Error(EINVAL);
      bytes.resize(std::min(bytes.size(), sizeof(user_regs_struct)));
      for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
        TRY(PutRegister(tracee, at, Load<uint64_t>(bytes, at)));
      }
      return base::Ok();
    }
    case NT_PRFPREG:
      return SetXstate(tracee, std::move(bytes), /*whole=*/false);
    case NT_X86_XSTATE:
      return SetXstate(tracee, std::move(bytes), /*whole=*/true);
    default:
      return Error(EINVAL);
  }
}

}  // namespace sentry
