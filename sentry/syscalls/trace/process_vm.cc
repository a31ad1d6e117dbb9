// process_vm_readv(2) and process_vm_writev(2) (Linux: mm/process_vm_access.c).
#include <algorithm>

#include "sentry/kernel/inspect.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Ref;
using base::Result;

namespace {

constexpr size_t kChunk = 16384;

Result<uint64_t> Transfer(Task& t, const SyscallArgs& a, bool write) {
  if (a[5] != 0) return Error(EINVAL);
  UserIovec local = TRY(ImportIovec(t.memory(), a[1], a[2]));
  if (a[4] > kIovMax) return Error(EINVAL);
  // The remote ranges are the other's: nothing but their array is checked here.
  std::vector<iovec> remote(a[4]);
  if (!remote.empty()) TRY(t.memory().Read(a[3], std::as_writable_bytes(std::span(remote))));
  if (local.total == 0) return 0;
  Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), a.Int(0));
  if (!target) return Error(ESRCH);
  TRY(MayInspect(t, *target));
  Ref<MemoryManager> mm = target->mm_ref();
  if (!mm) return Error(ESRCH);
  base::UserMemory& other = mm->address_space();
  UserIoSource source(t.memory(), local);
  UserIoDest dest(t.memory(), std::move(local));
  std::vector<std::byte> chunk(kChunk);
  uint64_t done = 0;
  for (const iovec& range : remote) {
    uint64_t addr = reinterpret_cast<uint64_t>(range.iov_base), left = range.iov_len;
    while (left > 0) {
      size_t room = write ? source.remaining() : dest.remaining();
      size_t n = std::min<uint64_t>({left, room, kChunk});
      if (n == 0) return done;
      std::span<std::byte> part = std::span(chunk).first(n);
      Result<size_t> in = write ? source.Get(part) : other.ReadPartial(addr, part);
      if (!in.ok()) return done > 0 ? Result<uint64_t>(done) : in.error();
      part = part.first(*in);
      Result<size_t> out = write ? other.WritePartial(addr, part) : dest.Put(part);
      if (!out.ok()) return done > 0 ? Result<uint64_t>(done) : out.error();
      done += *out;
      addr += *out;
      left -= *out;
      if (*out < n) return done;
    }
  }
  return done;
}

}  // namespace

Result<uint64_t> SysProcessVmReadv(Task& t, const SyscallArgs& a) { return Transfer(t, a, false); }
Result<uint64_t> SysProcessVmWritev(Task& t, const SyscallArgs& a) { return Transfer(t, a, true); }

}  // namespace sentry
