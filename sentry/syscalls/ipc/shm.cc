// shmget, shmat, shmdt, shmctl.
#include "sentry/kernel/ipc/shm.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/ipc/control.h"

#ifndef SHM_STAT_ANY
#define SHM_STAT_ANY 15
#endif

namespace sentry {

using base::Error;
using base::Result;
using base::UserPtr;

namespace {

constexpr uint64_t kPage = 4096;

uint64_t PageUp(uint64_t v) { return (v + kPage - 1) & ~(kPage - 1); }

// Where a mapping of a segment stands.
struct Attached {
  base::Ref<FileDescription> file;
  uint64_t start, end, offset;
};

// The mappings of the attachment that begins at `addr` (Linux: ksys_shmdt): the first of a segment
// whose place agrees, and what is left of the same behind it.
std::vector<Attached> FindAttached(MemoryManager& mm, uint64_t addr) {
  std::vector<Attached> found;
  uint64_t size = 0;
  mm.ForEachVma([&](const Vma& vma) {
    if (!vma.file || vma.start < addr || vma.start - addr != vma.offset) return;
    if (found.empty()) {
      size = PageUp(ShmSizeOf(*vma.file));
      if (size == 0) return;
    } else if (vma.file != found[0].file) {
      return;
    }
    if (vma.end - addr <= size) found.push_back({vma.file, vma.start, vma.end, vma.offset});
  });
  return found;
}

}  // namespace

Result<uint64_t> SysShmget(Task& t, const SyscallArgs& a) {
  return GetShm(t.kernel().vfs(), CallerOf(t), a.Int(0), a[1], a.Int(2));
}

Result<uint64_t> SysShmat(Task& t, const SyscallArgs& a) {
  const int id = a.Int(0), flags = a.Int(2);
  uint64_t addr = a[1];
  if (id < 0) return Error(EINVAL);
  MmapArgs mmap{.flags = MAP_SHARED};
  if (addr != 0) {
    if (addr % kPage != 0) {
      if (!(flags & SHM_RND)) return Error(EINVAL);
      addr -= addr % kPage;
      if (addr == 0 && (flags & SHM_REMAP)) return Error(EINVAL);
    }
    mmap.flags |= (flags & SHM_REMAP) ? MAP_FIXED : MAP_FIXED_NOREPLACE;
  } else if (flags & SHM_REMAP) {
    return Error(EINVAL);
  }
  uint32_t access = 0444;
  mmap.prot = PROT_READ;
  if (!(flags & SHM_RDONLY)) {
    access |= 0222;
    mmap.prot |= PROT_WRITE;
  }
  if (flags & SHM_EXEC) {
    access |= 0111;
    mmap.prot |= PROT_EXEC;
  }
  mmap.file = TRY(OpenShm(t.kernel().vfs(), CallerOf(t), id, access));
  mmap.addr = addr;
  mmap.length = ShmSizeOf(*mmap.file);
  if (addr != 0 && addr + mmap.length < addr) return Error(EINVAL);
  Result<uint64_t> at = t.mm().Mmap(t, mmap);
  if (!at.ok() && at.error().code() == EEXIST) return Error(EINVAL);
  return at;
}

Result<uint64_t> SysShmdt(Task& t, const SyscallArgs& a) {
  if (a[0] % kPage != 0) return Error(EINVAL);
  std::vector<Attached> found = FindAttached(t.mm(), a[0]);
  if (found.empty()) return Error(EINVAL);
  for (const Attached& part : found) TRY(t.mm().Munmap(t, part.start, part.end - part.start));
  NoteShmDetach(*found[0].file);
  // Whoever asks next how many attachments there are is to see one less.
  TRY(t.RunOrders({}));
  return 0;
}

Result<uint64_t> SysShmctl(Task& t, const SyscallArgs& a) {
  const int id = a.Int(0), command = a.Int(1);
  if (command < 0 || id < 0) return Error(EINVAL);
  const IpcCaller caller = CallerOf(t);
  switch (command) {
    case IPC_INFO:
      return TellInfo<shminfo>(t, a[2], [&](shminfo* info) { return ShmInfo(caller, info); });
    case SHM_INFO:
      return TellInfo<shm_info>(t, a[2], [&](shm_info* info) { return ShmUsage(caller, info); });
    case SHM_STAT:
    case SHM_STAT_ANY:
    case IPC_STAT:
      return TellStat<shmid_ds>(t, command, SHM_STAT, a[2],
                                [&](IpcStat how) { return StatShm(caller, id, how); });
    case IPC_SET: {
      UserIpcPerm perm = TRY(UserPtr<UserIpcPerm>(a[2]).CopyIn(t.memory()));
      TRY(SetShm(caller, id, perm));
      return 0;
    }
    case IPC_RMID:
      TRY(RemoveShm(caller, id));
      return 0;
    case SHM_LOCK:
    case SHM_UNLOCK:
      TRY(LockShm(caller, id, command == SHM_LOCK, t.Rlimit(RLIMIT_MEMLOCK)));
      return 0;
    default:
      return Error(EINVAL);
  }
}

}  // namespace sentry
