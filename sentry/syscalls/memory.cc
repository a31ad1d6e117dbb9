// The mmap family: mmap, munmap, mprotect, mremap, brk, madvise, msync, mincore, mlock, pkey_*.
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/personality.h>

#include <algorithm>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/syscalls/handlers.h"

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMincoreChunk = 4096;  // pages at once

Result<uint64_t> Zero(base::Status status) {
  if (!status.ok()) return status.error();
  return uint64_t{0};
}

bool ReadImpliesExec(Task& t) { return (t.personality.load() & READ_IMPLIES_EXEC) != 0; }

Result<uint64_t> DoMprotect(Task& t, uint64_t addr, uint64_t length, uint64_t prot) {
  if (prot > UINT32_MAX) return Error(EINVAL);
  return Zero(t.mm().Mprotect(t, addr, length, static_cast<int>(prot), ReadImpliesExec(t)));
}

}  // namespace

Result<uint64_t> SysMmap(Task& t, const SyscallArgs& args) {
  MmapArgs mmap{.addr = args[0],
                .length = args[1],
                .prot = args.Int(2),
                .flags = args.Int(3),
                .offset = args[5],
                .read_implies_exec = ReadImpliesExec(t)};
  if (mmap.offset % kPage != 0) return Error(EINVAL);
  if (!(mmap.flags & MAP_ANONYMOUS)) {
    mmap.file = TRY(t.GetFile(args.Int(4)));
    if (mmap.file->is_path()) return Error(EBADF);
  }
  return t.mm().Mmap(t, mmap);
}

Result<uint64_t> SysMunmap(Task& t, const SyscallArgs& args) {
  return Zero(t.mm().Munmap(t, args[0], args[1]));
}

Result<uint64_t> SysMprotect(Task& t, const SyscallArgs& args) {
  return DoMprotect(t, args[0], args[1], args[2]);
}

Result<uint64_t> SysPkeyMprotect(Task& t, const SyscallArgs& args) {
  // As on a machine without protection keys: -1 alone is a key that exists.
  if (args.Int(3) != -1) return Error(EINVAL);
  return DoMprotect(t, args[0], args[1], args[2]);
}

Result<uint64_t> SysPkeyAlloc(Task& t, const SyscallArgs& args) {
  constexpr uint64_t kAccessMask = 3;  // PKEY_DISABLE_ACCESS | PKEY_DISABLE_WRITE
  if (args[0] != 0 || (args[1] & ~kAccessMask)) return Error(EINVAL);
  return Error(ENOSPC);
}

Result<uint64_t> SysPkeyFree(Task& t, const SyscallArgs& args) { return Error(EINVAL); }

Result<uint64_t> SysBrk(Task& t, const SyscallArgs& args) { return t.mm().Brk(t, args[0]); }

Result<uint64_t> SysMremap(Task& t, const SyscallArgs& args) {
  if (args[3] > UINT32_MAX) return Error(EINVAL);
  return t.mm().Mremap(t, args[0], args[1], args[2], args.Int(3), args[4]);
}

Result<uint64_t> SysRemapFilePages(Task& t, const SyscallArgs& args) {
  const int prot = args[2] > INT32_MAX ? -1 : args.Int(2);
  return Zero(t.mm().RemapFilePages(t, args[0], args[1], prot, args[3]));
}

Result<uint64_t> SysMadvise(Task& t, const SyscallArgs& args) {
  return Zero(t.mm().Madvise(t, args[0], args[1], args.Int(2)));
}

Result<uint64_t> SysProcessMadvise(Task& t, const SyscallArgs& args) {
  if (args[4] != 0) return Error(EINVAL);
  const UserIovec ranges = TRY(ImportIovec(t.memory(), args[1], args[2]));
  const base::Ref<FileDescription> file = TRY(t.GetFile(args.Int(0)));
  const base::Ref<Pid> pid = PidOfFile(*file);
  if (!pid) return Error(EBADF);
  const base::Ref<Task> target =
      t.kernel().FindTask(t.pid_namespace(), pid->NumberIn(t.pid_namespace()));
  if (!target) return Error(ESRCH);
  const base::Ref<MemoryManager> mm = target->mm_ref();
  if (!mm) return Error(ESRCH);
  const int advice = args.Int(3);
  const bool own = mm.get() == &t.mm();
  if (!own) {
    // Hints alone are for others, and they may all be ignored.
    if (advice != MADV_COLD && advice != MADV_PAGEOUT && advice != MADV_WILLNEED &&
        advice != MADV_COLLAPSE) {
      return Error(EINVAL);
    }
    if (!t.HasCap(CAP_SYS_NICE)) return Error(EPERM);
  }
  uint64_t done = 0;
  for (const iovec& range : ranges.parts) {
    const uint64_t addr = reinterpret_cast<uint64_t>(range.iov_base);
    base::Status status = base::Ok();
    if (own) {
      status = mm->Madvise(t, addr, range.iov_len, advice);
    } else if (addr % kPage != 0) {
      status = Error(EINVAL);
    } else if (!mm->IsMapped(addr, range.iov_len)) {
      status = Error(ENOMEM);
    }
    if (!status.ok()) {
      if (done > 0) break;
      return status.error();
    }
    done += range.iov_len;
  }
  return done;
}

Result<uint64_t> SysMseal(Task& t, const SyscallArgs& args) {
  if (args[2] != 0) return Error(EINVAL);
  return Zero(t.mm().Mseal(args[0], args[1]));
}

Result<uint64_t> SysMsync(Task& t, const SyscallArgs& args) {
  return Zero(t.mm().Msync(args[0], args[1], args.Int(2)));
}

Result<uint64_t> SysMincore(Task& t, const SyscallArgs& args) {
  const uint64_t addr = args[0], length = args[1], vec = args[2];
  if (addr % kPage != 0) return Error(EINVAL);
  if (addr > kUserAddressEnd || length > kUserAddressEnd - addr) return Error(ENOMEM);
  const uint64_t pages = (length + kPage - 1) / kPage;
  TRY(CheckUserRange(vec, pages));
  for (uint64_t done = 0; done < pages;) {
    const uint64_t n = std::min(kMincoreChunk, pages - done);
    const auto resident = TRY(t.mm().Mincore(addr + done * kPage, n * kPage));
    TRY(t.memory().Write(vec + done, std::as_bytes(std::span(resident))));
    done += n;
  }
  return uint64_t{0};
}

Result<uint64_t> SysMlock(Task& t, const SyscallArgs& args) {
  return Zero(t.mm().Mlock(t, args[0], args[1], /*on_fault=*/false));
}

Result<uint64_t> SysMlock2(Task& t, const SyscallArgs& args) {
  if (args.Int(2) & ~MLOCK_ONFAULT) return Error(EINVAL);
  return Zero(t.mm().Mlock(t, args[0], args[1], (args.Int(2) & MLOCK_ONFAULT) != 0));
}

Result<uint64_t> SysMunlock(Task& t, const SyscallArgs& args) {
  return Zero(t.mm().Munlock(args[0], args[1]));
}

Result<uint64_t> SysMlockall(Task& t, const SyscallArgs& args) {
  return Zero(t.mm().MlockAll(t, args.Int(0)));
}

Result<uint64_t> SysMunlockall(Task& t, const SyscallArgs& args) {
  t.mm().MunlockAll();
  return uint64_t{0};
}

}  // namespace sentry
