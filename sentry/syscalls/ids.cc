// Ids of processes and users, capabilities (Linux: kernel/sys.c, kernel/capability.c, groups.c).
#include <linux/capability.h>
#include <linux/securebits.h>

#include <algorithm>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Ref;
using base::Result;
using base::Status;
using base::UserPtr;

namespace {

constexpr uint32_t kNoId = ~uint32_t{0};  // "leave it as it is"
constexpr int kMaxGroups = 65536;         // NGROUPS_MAX
constexpr CapSet kFsCaps = CapBit(CAP_CHOWN) | CapBit(CAP_MKNOD) | CapBit(CAP_DAC_OVERRIDE) |
                           CapBit(CAP_DAC_READ_SEARCH) | CapBit(CAP_FOWNER) | CapBit(CAP_FSETID) |
                           CapBit(CAP_LINUX_IMMUTABLE) | CapBit(CAP_MAC_OVERRIDE);

// The root of the namespace as a kernel id; an id that nobody has if it is not mapped.
uid_t RootOf(const Credentials& c) {
  Result<uid_t> root = c.user_ns->MapUidIn(0);
  return root.ok() ? *root : kNoId;
}

// Linux: cap_emulate_setxuid, after a change of uids from `old`.
void FixCaps(const Credentials& old, Credentials* c) {
  if (c->securebits & SECBIT_NO_SETUID_FIXUP) return;
  uid_t root = RootOf(*c);
  bool was_root = old.ruid == root || old.euid == root || old.suid == root;
  bool is_root = c->ruid == root || c->euid == root || c->suid == root;
  if (was_root && !is_root) {
    if (!(c->securebits & SECBIT_KEEP_CAPS)) c->permitted = c->effective = 0;
    c->ambient = 0;
  }
  if (old.euid == root && c->euid != root) c->effective = 0;
  if (old.euid != root && c->euid == root) c->effective = c->permitted;
}

// Linux: cap_task_fix_setuid for LSM_SETID_FS.
void FixFsCaps(const Credentials& old, Credentials* c) {
  if (c->securebits & SECBIT_NO_SETUID_FIXUP) return;
  uid_t root = RootOf(*c);
  if (old.fsuid == root && c->fsuid != root) c->effective &= ~kFsCaps;
  if (old.fsuid != root && c->fsuid == root) c->effective |= c->permitted & kFsCaps;
}

// Commits, as commit_creds: a change of effective ids or fewer capabilities makes the process
// undumpable and clears its parent-death signal.
void Commit(Task& t, Ref<Credentials> c) {
  const Credentials& old = t.creds();
  bool changed = old.euid != c->euid || old.egid != c->egid || old.fsuid != c->fsuid ||
                 old.fsgid != c->fsgid || (c->permitted & ~old.permitted) != 0;
  if (changed) {
    t.mm().SetDumpable(0);
    t.pdeath_signal = 0;
  }
  t.SetCredentials(std::move(c));
}

Result<uid_t> InUid(Task& t, uint32_t id) {
  if (id == kNoId) return kNoId;
  return t.user_ns().MapUidIn(id);
}
Result<gid_t> InGid(Task& t, uint32_t id) {
  if (id == kNoId) return kNoId;
  return t.user_ns().MapGidIn(id);
}

}  // namespace

Result<uint64_t> SysGetpid(Task& t, const SyscallArgs&) { return static_cast<uint64_t>(t.Pid_()); }
Result<uint64_t> SysGettid(Task& t, const SyscallArgs&) { return static_cast<uint64_t>(t.Tid()); }
Result<uint64_t> SysGetppid(Task& t, const SyscallArgs&) {
  return static_cast<uint64_t>(t.thread_group().ParentPidIn(t.pid_namespace()));
}
Result<uint64_t> SysGetuid(Task& t, const SyscallArgs&) {
  return t.user_ns().MapUidOut(t.creds().ruid);
}
Result<uint64_t> SysGeteuid(Task& t, const SyscallArgs&) {
  return t.user_ns().MapUidOut(t.creds().euid);
}
Result<uint64_t> SysGetgid(Task& t, const SyscallArgs&) {
  return t.user_ns().MapGidOut(t.creds().rgid);
}
Result<uint64_t> SysGetegid(Task& t, const SyscallArgs&) {
  return t.user_ns().MapGidOut(t.creds().egid);
}

Result<uint64_t> SysGetresuid(Task& t, const SyscallArgs& a) {
  const UserNamespace& ns = t.user_ns();
  const Credentials& c = t.creds();
  const uid_t ids[] = {c.ruid, c.euid, c.suid};
  for (int i = 0; i < 3; ++i)
    TRY(UserPtr<uint32_t>(a[i]).CopyOut(t.memory(), ns.MapUidOut(ids[i])));
  return 0;
}

Result<uint64_t> SysGetresgid(Task& t, const SyscallArgs& a) {
  const UserNamespace& ns = t.user_ns();
  const Credentials& c = t.creds();
  const gid_t ids[] = {c.rgid, c.egid, c.sgid};
  for (int i = 0; i < 3; ++i)
    TRY(UserPtr<uint32_t>(a[i]).CopyOut(t.memory(), ns.MapGidOut(ids[i])));
  return 0;
}

Result<uint64_t> SysSetuid(Task& t, const SyscallArgs& a) {
  if (a.Uint(0) == kNoId) return Error(EINVAL);
  uid_t id = TRY(InUid(t, a.Uint(0)));
  const Credentials& old = t.creds();
  Ref<Credentials> c = old.Clone();
  if (old.HasCap(CAP_SETUID)) {
    c->ruid = c->suid = id;
  } else if (id != old.ruid && id != old.suid) {
    return Error(EPERM);
  }
  c->euid = c->fsuid = id;
  FixCaps(old, c.get());
  Commit(t, std::move(c));
  return 0;
}

Result<uint64_t> SysSetgid(Task& t, const SyscallArgs& a) {
  if (a.Uint(0) == kNoId) return Error(EINVAL);
  gid_t id = TRY(InGid(t, a.Uint(0)));
  const Credentials& old = t.creds();
  Ref<Credentials> c = old.Clone();
  if (old.HasCap(CAP_SETGID)) {
    c->rgid = c->sgid = id;
  } else if (id != old.rgid && id != old.sgid) {
    return Error(EPERM);
  }
  c->egid = c->fsgid = id;
  Commit(t, std::move(c));
  return 0;
}

Result<uint64_t> SysSetreuid(Task& t, const SyscallArgs& a) {
  uid_t r = TRY(InUid(t, a.Uint(0))), e = TRY(InUid(t, a.Uint(1)));
  const Credentials& old = t.creds();
  Ref<Credentials> c = old.Clone();
  bool may = old.HasCap(CAP_SETUID);
  if (r != kNoId) {
    c->ruid = r;
    if (r != old.ruid && r != old.euid && !may) return Error(EPERM);
  }
  if (e != kNoId) {
    c->euid = e;
    if (e != old.ruid && e != old.euid && e != old.suid && !may) return Error(EPERM);
  }
  if (r != kNoId || (e != kNoId && e != old.ruid)) c->suid = c->euid;
  c->fsuid = c->euid;
  FixCaps(old, c.get());
  Commit(t, std::move(c));
  return 0;
}

Result<uint64_t> SysSetregid(Task& t, const SyscallArgs& a) {
  gid_t r = TRY(InGid(t, a.Uint(0))), e = TRY(InGid(t, a.Uint(1)));
  const Credentials& old = t.creds();
  Ref<Credentials> c = old.Clone();
  bool may = old.HasCap(CAP_SETGID);
  if (r != kNoId) {
    c->rgid = r;
    if (r != old.rgid && r != old.egid && !may) return Error(EPERM);
  }
  if (e != kNoId) {
    c->egid = e;
    if (e != old.rgid && e != old.egid && e != old.sgid && !may) return Error(EPERM);
  }
  if (r != kNoId || (e != kNoId && e != old.rgid)) c->sgid = c->egid;
  c->fsgid = c->egid;
  Commit(t, std::move(c));
  return 0;
}

Result<uint64_t> SysSetresuid(Task& t, const SyscallArgs& a) {
  const Credentials& old = t.creds();
  uid_t ids[3];
  bool may = old.HasCap(CAP_SETUID);
  for (int i = 0; i < 3; ++i) {
    ids[i] = TRY(InUid(t, a.Uint(i)));
    if (ids[i] != kNoId && ids[i] != old.ruid && ids[i] != old.euid && ids[i] != old.suid && !may) {
      return Error(EPERM);
    }
  }
  Ref<Credentials> c = old.Clone();
  if (ids[0] != kNoId) c->ruid = ids[0];
  if (ids[1] != kNoId) c->euid = ids[1];
  if (ids[2] != kNoId) c->suid = ids[2];
  c->fsuid = c->euid;
  FixCaps(old, c.get());
  Commit(t, std::move(c));
  return 0;
}

Result<uint64_t> SysSetresgid(Task& t, const SyscallArgs& a) {
  const Credentials& old = t.creds();
  gid_t ids[3];
  bool may = old.HasCap(CAP_SETGID);
  for (int i = 0; i < 3; ++i) {
    ids[i] = TRY(InGid(t, a.Uint(i)));
    if (ids[i] != kNoId && ids[i] != old.rgid && ids[i] != old.egid && ids[i] != old.sgid && !may) {
      return Error(EPERM);
    }
  }
  Ref<Credentials> c = old.Clone();
  if (ids[0] != kNoId) c->rgid = ids[0];
  if (ids[1] != kNoId) c->egid = ids[1];
  if (ids[2] != kNoId) c->sgid = ids[2];
  c->fsgid = c->egid;
  Commit(t, std::move(c));
  return 0;
}

// Both return the old id, whether they change it or not.
Result<uint64_t> SysSetfsuid(Task& t, const SyscallArgs& a) {
  const Credentials& old = t.creds();
  uint64_t result = t.user_ns().MapUidOut(old.fsuid);
  Result<uid_t> id = InUid(t, a.Uint(0));
  if (!id.ok() || *id == kNoId || *id == old.fsuid) return result;
  if (*id != old.ruid && *id != old.euid && *id != old.suid && !old.HasCap(CAP_SETUID))
    return result;
  Ref<Credentials> c = old.Clone();
  c->fsuid = *id;
  FixFsCaps(old, c.get());
  Commit(t, std::move(c));
  return result;
}

Result<uint64_t> SysSetfsgid(Task& t, const SyscallArgs& a) {
  const Credentials& old = t.creds();
  uint64_t result = t.user_ns().MapGidOut(old.fsgid);
  Result<gid_t> id = InGid(t, a.Uint(0));
  if (!id.ok() || *id == kNoId || *id == old.fsgid) return result;
  if (*id != old.rgid && *id != old.egid && *id != old.sgid && !old.HasCap(CAP_SETGID))
    return result;
  Ref<Credentials> c = old.Clone();
  c->fsgid = *id;
  Commit(t, std::move(c));
  return result;
}

Result<uint64_t> SysGetgroups(Task& t, const SyscallArgs& a) {
  int size = a.Int(0);
  const std::vector<gid_t>& groups = t.creds().groups;
  int count = static_cast<int>(groups.size());
  if (size < 0) return Error(EINVAL);
  if (size == 0) return static_cast<uint64_t>(count);
  if (count > size) return Error(EINVAL);
  std::vector<uint32_t> out;
  for (gid_t g : groups) out.push_back(t.user_ns().MapGidOut(g));
  TRY(t.memory().Write(a[1], std::as_bytes(std::span(out))));
  return static_cast<uint64_t>(count);
}

Result<uint64_t> SysSetgroups(Task& t, const SyscallArgs& a) {
  if (!t.HasCap(CAP_SETGID) || !t.user_ns().MaySetgroups()) return Error(EPERM);
  if (a.Uint(0) > kMaxGroups) return Error(EINVAL);
  std::vector<uint32_t> in(a.Uint(0));
  TRY(t.memory().Read(a[1], std::as_writable_bytes(std::span(in))));
  Ref<Credentials> c = t.creds().Clone();
  c->groups.clear();
  for (uint32_t id : in) {
    if (id == kNoId) return Error(EINVAL);
    c->groups.push_back(TRY(t.user_ns().MapGidIn(id)));
  }
  std::sort(c->groups.begin(), c->groups.end());
  t.SetCredentials(std::move(c));
  return 0;
}

Result<uint64_t> SysGetpgid(Task& t, const SyscallArgs& a) {
  Ref<ThreadGroup> group = t.thread_group_ref();
  if (a.Int(0) != 0) {
    Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), a.Int(0));
    if (!target) return Error(ESRCH);
    group = target->thread_group_ref();
  }
  Ref<ProcessGroup> pgrp = group->process_group();
  if (!pgrp) return Error(ESRCH);
  return static_cast<uint64_t>(pgrp->pid()->NumberIn(t.pid_namespace()));
}

Result<uint64_t> SysGetpgrp(Task& t, const SyscallArgs&) { return SysGetpgid(t, SyscallArgs{}); }

Result<uint64_t> SysSetpgid(Task& t, const SyscallArgs& a) {
  TRY(t.kernel().SetProcessGroup(t, a.Int(0), a.Int(1)));
  return 0;
}

Result<uint64_t> SysGetsid(Task& t, const SyscallArgs& a) {
  Ref<ThreadGroup> group = t.thread_group_ref();
  if (a.Int(0) != 0) {
    Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), a.Int(0));
    if (!target) return Error(ESRCH);
    group = target->thread_group_ref();
  }
  Ref<Session> session = group->session();
  if (!session) return Error(ESRCH);
  return static_cast<uint64_t>(session->pid()->NumberIn(t.pid_namespace()));
}

Result<uint64_t> SysSetsid(Task& t, const SyscallArgs&) {
  return static_cast<uint64_t>(TRY(t.kernel().NewSession(t)));
}

// --- capabilities ---

namespace {

struct CapHeader {
  uint32_t version;
  int32_t pid;
};
struct CapData {
  uint32_t effective, permitted, inheritable;
};

// How many CapData a version has. An unknown one is answered with the preferred one and EINVAL.
Result<int> CapCount(Task& t, uint64_t addr, const CapHeader& header) {
  switch (header.version) {
    case _LINUX_CAPABILITY_VERSION_1:
      return 1;
    case _LINUX_CAPABILITY_VERSION_2:
    case _LINUX_CAPABILITY_VERSION_3:
      return 2;
    default:
      TRY(UserPtr<uint32_t>(addr).CopyOut(t.memory(), _LINUX_CAPABILITY_VERSION_3));
      return Error(EINVAL);
  }
}

}  // namespace

Result<uint64_t> SysCapget(Task& t, const SyscallArgs& a) {
  CapHeader header = TRY(UserPtr<CapHeader>(a[0]).CopyIn(t.memory()));
  Result<int> count = CapCount(t, a[0], header);
  if (!count.ok()) {
    // A probe for the version: no error without a place for the data.
    if (count.error().code() == EINVAL && a[1] == 0) return 0;
    return count.error();
  }
  if (header.pid < 0) return Error(EINVAL);
  Ref<const Credentials> c = t.credentials();
  if (header.pid != 0 && header.pid != t.Tid()) {
    Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), header.pid);
    if (!target) return Error(ESRCH);
    c = target->credentials();
  }
  CapData data[2];
  for (int i = 0; i < 2; ++i) {
    data[i] = {static_cast<uint32_t>(c->effective >> (32 * i)),
               static_cast<uint32_t>(c->permitted >> (32 * i)),
               static_cast<uint32_t>(c->inheritable >> (32 * i))};
  }
  TRY(t.memory().Write(a[1], std::as_bytes(std::span(data, *count))));
  return 0;
}

Result<uint64_t> SysCapset(Task& t, const SyscallArgs& a) {
  CapHeader header = TRY(UserPtr<CapHeader>(a[0]).CopyIn(t.memory()));
  int count = TRY(CapCount(t, a[0], header));
  if (header.pid != 0 && header.pid != t.Tid()) return Error(EPERM);
  CapData data[2]{};
  TRY(t.memory().Read(a[1], std::as_writable_bytes(std::span(data, count))));
  CapSet effective = (data[0].effective | uint64_t{data[1].effective} << 32) & kAllCaps;
  CapSet permitted = (data[0].permitted | uint64_t{data[1].permitted} << 32) & kAllCaps;
  CapSet inheritable = (data[0].inheritable | uint64_t{data[1].inheritable} << 32) & kAllCaps;
  const Credentials& old = t.creds();
  // Linux: cap_capset.
  if (!old.HasCap(CAP_SETPCAP) && (inheritable & ~(old.inheritable | old.permitted)))
    return Error(EPERM);
  if (inheritable & ~(old.inheritable | old.bounding)) return Error(EPERM);
  if (permitted & ~old.permitted) return Error(EPERM);
  if (effective & ~permitted) return Error(EPERM);
  Ref<Credentials> c = old.Clone();
  c->effective = effective;
  c->permitted = permitted;
  c->inheritable = inheritable;
  c->ambient &= permitted & inheritable;
  t.SetCredentials(std::move(c));
  return 0;
}

}  // namespace sentry
