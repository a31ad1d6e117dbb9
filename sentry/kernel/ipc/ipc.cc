#include "sentry/kernel/ipc/ipc.h"

#include <linux/capability.h>

#include <algorithm>

#include "sentry/base/time.h"
#include "sentry/kernel/ipc/msg.h"
#include "sentry/kernel/ipc/sem.h"
#include "sentry/kernel/ipc/shm.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;

namespace {

std::atomic<uint64_t> ipc_memory{0};

uint64_t MaxIpcMemory() {
  static const uint64_t max =
      std::clamp<uint64_t>(Kernel::Get().root_cgroup()->total_memory() / 32, 8 << 20, 256 << 20);
  return max;
}

}  // namespace

bool ChargeIpcMemory(uint64_t bytes) {
  uint64_t used = ipc_memory.load(std::memory_order_relaxed);
  do {
    if (bytes > MaxIpcMemory() || used > MaxIpcMemory() - bytes) return false;
  } while (!ipc_memory.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

void UnchargeIpcMemory(uint64_t bytes) { ipc_memory.fetch_sub(bytes, std::memory_order_relaxed); }

base::Status CheckIpcAccess(const Credentials& creds, const UserNamespace& ns, const IpcPerm& perm,
                            uint32_t mode) {
  uint32_t wanted = (mode >> 6 | mode >> 3 | mode) & 7;
  uint32_t granted = perm.mode;
  auto in_group = [&](gid_t gid) {
    return creds.egid == gid || std::binary_search(creds.groups.begin(), creds.groups.end(), gid);
  };
  if (creds.euid == perm.cuid || creds.euid == perm.uid) {
    granted >>= 6;
  } else if (in_group(perm.cgid) || in_group(perm.gid)) {
    granted >>= 3;
  }
  if ((wanted & ~granted) != 0 && !creds.HasCapIn(CAP_IPC_OWNER, ns)) return Error(EACCES);
  return base::Ok();
}

base::Status CheckIpcOwner(const Credentials& creds, const UserNamespace& ns, const IpcPerm& perm) {
  if (creds.euid == perm.cuid || creds.euid == perm.uid || creds.HasCapIn(CAP_SYS_ADMIN, ns)) {
    return base::Ok();
  }
  return Error(EPERM);
}

UserIpcPerm ShowIpcPerm(const IpcPerm& perm, const UserNamespace& ns) {
  UserIpcPerm user{};
  user.key = perm.key;
  user.uid = ns.MapUidOut(perm.uid);
  user.gid = ns.MapGidOut(perm.gid);
  user.cuid = ns.MapUidOut(perm.cuid);
  user.cgid = ns.MapGidOut(perm.cgid);
  user.mode = perm.mode;
  user.seq = static_cast<uint16_t>(perm.seq);
  return user;
}

base::Status SetIpcPerm(const UserIpcPerm& wanted, const UserNamespace& ns, IpcPerm* perm) {
  constexpr uint32_t kPermissions = 0777;
  uid_t uid = TRY(ns.MapUidIn(wanted.uid));
  gid_t gid = TRY(ns.MapGidIn(wanted.gid));
  perm->uid = uid;
  perm->gid = gid;
  perm->mode = (perm->mode & ~kPermissions) | (wanted.mode & kPermissions);
  return base::Ok();
}

IpcPerm IpcCaller::NewPerm(key_t key, int flags) const {
  IpcPerm perm;
  perm.key = key;
  perm.uid = perm.cuid = creds.euid;
  perm.gid = perm.cgid = creds.egid;
  perm.mode = static_cast<uint32_t>(flags) & 0777;
  return perm;
}

IpcState::~IpcState() = default;

base::Ref<IpcState> IpcState::Of(IpcNamespace& ns) {
  static constexpr char kKey = 0;
  base::Ref<base::RefCounted> part = ns.GetOrMake(
      &kKey, []() -> base::Ref<base::RefCounted> { return base::MakeRef<IpcState>(); });
  return base::Ref<IpcState>(static_cast<IpcState*>(part.get()));
}

IpcCaller CallerOf(Task& t) {
  base::Ref<IpcNamespace> ns = t.ipc_namespace_ref();
  base::Ref<IpcState> state = IpcState::Of(*ns);
  return {t.creds(), std::move(ns), std::move(state), t.thread_group().pid()};
}

int ShownPid(const base::Ref<Pid>& pid) {
  Task* reader = Task::Current();
  if (!pid || reader == nullptr) return 0;
  return pid->NumberIn(reader->pid_namespace());
}

// ktime_get_real_seconds(): as of the last tick, as time(2) is.
int64_t IpcNow() { return base::ClockNs(CLOCK_REALTIME_COARSE) / base::kNsPerSec; }

}  // namespace sentry
