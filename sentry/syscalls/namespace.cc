// unshare(2) and setns(2).
#include <sched.h>

#include "sentry/fs/nsfs/nsfs.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Ref;
using base::Result;

Result<uint64_t> SysUnshare(Task& t, const SyscallArgs& a) {
  uint64_t flags = a[0];
  constexpr uint64_t kKnown = CLONE_THREAD | CLONE_FS | CLONE_NEWNS | CLONE_SIGHAND | CLONE_VM |
                              CLONE_FILES | CLONE_SYSVSEM | CLONE_NEWUTS | CLONE_NEWIPC |
                              CLONE_NEWNET | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWCGROUP;
  if (flags & ~kKnown) return Error(EINVAL);
  if (flags & CLONE_NEWUSER) flags |= CLONE_THREAD | CLONE_FS;
  if (flags & CLONE_VM) flags |= CLONE_SIGHAND;
  if (flags & CLONE_SIGHAND) flags |= CLONE_THREAD;
  if (flags & CLONE_NEWNS) flags |= CLONE_FS;
  if ((flags & CLONE_THREAD) && t.thread_group().thread_count() > 1) return Error(EINVAL);
  if ((flags & CLONE_VM) && !t.CanQueue()) return Error(EINVAL);
  if ((flags & CLONE_SIGHAND) && t.thread_group().handlers()->ref_count() > 1) return Error(EINVAL);

  Ref<const Credentials> creds = t.credentials();
  if (flags & CLONE_NEWUSER) {
    Ref<Credentials> c = creds->Clone();
    TRY(EnterNewUserNamespace(*c));
    creds = c;
  }
  constexpr uint64_t kPrivileged =
      CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP;
  if ((flags & kPrivileged) && !creds->HasCap(CAP_SYS_ADMIN)) return Error(EPERM);
  Ref<PidNamespace> pid_ns;
  if (flags & CLONE_NEWPID) {
    if (t.pid_ns_for_children().get() != &t.pid_namespace()) return Error(EINVAL);
    if (t.pid_namespace().level() >= 31) return Error(ENOSPC);
    pid_ns = base::MakeRef<PidNamespace>(Ref<PidNamespace>(&t.pid_namespace()), creds->user_ns);
  }
  if ((flags & CLONE_FS) && t.fs_context().ref_count() > 1) t.SetFsContext(t.fs_context().Fork());
  if ((flags & CLONE_FILES) && t.fd_table().ref_count() > 1) t.SetFdTable(t.fd_table().Fork());
  if (flags & CLONE_NEWNS) {
    Path root = t.fs_context().root(), cwd = t.fs_context().cwd();
    Path* paths[] = {&root, &cwd};
    t.SetMountNamespace(t.mount_namespace().Copy(paths, creds->user_ns));
    t.fs_context().SetRoot(std::move(root));
    t.fs_context().SetCwd(std::move(cwd));
  }
  if (flags & CLONE_NEWUTS) t.SetUtsNamespace(t.uts_namespace().Copy(creds->user_ns));
  // What semaphores are to be undone belongs to the namespace that is left.
  if (flags & (CLONE_SYSVSEM | CLONE_NEWIPC)) t.sem_undo = base::MakeRef<SharedPart>();
  if (flags & CLONE_NEWIPC) t.SetIpcNamespace(base::MakeRef<IpcNamespace>(creds->user_ns));
  if (flags & CLONE_NEWNET) t.SetNetNamespace(base::MakeRef<NetNamespace>(creds->user_ns));
  if (pid_ns) t.set_pid_ns_for_children(std::move(pid_ns));
  if (flags & CLONE_NEWUSER) t.SetCredentials(std::move(creds));
  return 0;
}

namespace {

// The caller's credentials in user namespace `ns`: all capabilities (Linux: userns_install).
Result<Ref<const Credentials>> CredentialsIn(Task& t, const Ref<UserNamespace>& ns) {
  if (t.creds().user_ns == ns || t.thread_group().thread_count() > 1 ||
      t.fs_context().ref_count() > 1) {
    return Error(EINVAL);
  }
  if (!t.creds().HasCapIn(CAP_SYS_ADMIN, *ns)) return Error(EPERM);
  Ref<Credentials> creds = t.creds().Clone();
  creds->user_ns = ns;
  GrantAllCapabilities(*creds);
  return Ref<const Credentials>(std::move(creds));
}

// setns with a pidfd: into the namespaces of a process (kernel/nsproxy.c).
Result<uint64_t> EnterNamespacesOf(Task& t, Task& target, uint64_t flags) {
  constexpr uint64_t kSupported = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET |
                                  CLONE_NEWPID | CLONE_NEWCGROUP | CLONE_NEWUSER;
  if (flags == 0 || (flags & ~kSupported)) return Error(EINVAL);
  Ref<UtsNamespace> uts = target.uts_namespace_ref();
  Ref<IpcNamespace> ipc = target.ipc_namespace_ref();
  Ref<NetNamespace> net = target.net_namespace_ref();
  Ref<MountNamespace> mounts = target.mount_namespace_ref();
  Ref<FsContext> fs = target.fs_context_ref();
  if (!uts || !ipc || !net || !mounts || !fs) return Error(ESRCH);
  PidNamespace& pid_ns = target.pid_namespace();
  Ref<const Credentials> creds = t.credentials();
  if (flags & CLONE_NEWUSER) {
    const Ref<const Credentials> theirs = target.credentials();
    if (!theirs) return Error(ESRCH);
    creds = TRY(CredentialsIn(t, theirs->user_ns));
  }
  auto may = [&](const UserNamespace& ns) {
    return creds->HasCap(CAP_SYS_ADMIN) && creds->HasCapIn(CAP_SYS_ADMIN, ns);
  };
  if ((flags & CLONE_NEWUTS) && !may(*uts->user_ns())) return Error(EPERM);
  if ((flags & CLONE_NEWIPC) && !may(*ipc->user_ns())) return Error(EPERM);
  if ((flags & CLONE_NEWNET) && !may(*net->user_ns())) return Error(EPERM);
  if ((flags & CLONE_NEWPID) &&
      (!may(*pid_ns.user_ns()) || !t.pid_namespace().IsAncestorOf(pid_ns))) {
    return Error(EINVAL);
  }
  if (flags & CLONE_NEWNS) {
    if (!creds->HasCap(CAP_SYS_CHROOT) || !creds->HasCap(CAP_SYS_ADMIN)) return Error(EPERM);
    if (t.fs_context().ref_count() > 1) return Error(EINVAL);
  }
  if (flags & CLONE_NEWUSER) t.SetCredentials(std::move(creds));
  if (flags & CLONE_NEWUTS) t.SetUtsNamespace(std::move(uts));
  if (flags & CLONE_NEWIPC) {
    t.sem_undo = base::MakeRef<SharedPart>();
    t.SetIpcNamespace(std::move(ipc));
  }
  if (flags & CLONE_NEWNET) t.SetNetNamespace(std::move(net));
  if (flags & CLONE_NEWPID) t.set_pid_ns_for_children(Ref<PidNamespace>(&pid_ns));
  if (flags & CLONE_NEWNS) {
    t.SetMountNamespace(std::move(mounts));
    t.fs_context().SetRoot(fs->root());
    t.fs_context().SetCwd(fs->root());
  }
  return 0;
}

}  // namespace

namespace {

template <typename T>
Ref<T> As(const NamespaceRef& ns) {
  return Ref<T>(static_cast<T*>(ns.object.get()));
}

// setns with a file of nsfs: into that namespace (Linux: the install of each kind).
Result<uint64_t> EnterNamespace(Task& t, const NamespaceRef& ns) {
  auto may = [&](const UserNamespace& owner) {
    return t.HasCap(CAP_SYS_ADMIN) && t.creds().HasCapIn(CAP_SYS_ADMIN, owner);
  };
  switch (ns.type) {
    case CLONE_NEWUTS:
      if (!may(*As<UtsNamespace>(ns)->user_ns())) return Error(EPERM);
      t.SetUtsNamespace(As<UtsNamespace>(ns));
      return 0;
    case CLONE_NEWIPC:
      if (!may(*As<IpcNamespace>(ns)->user_ns())) return Error(EPERM);
      t.sem_undo = base::MakeRef<SharedPart>();
      t.SetIpcNamespace(As<IpcNamespace>(ns));
      return 0;
    case CLONE_NEWNET:
      if (!may(*As<NetNamespace>(ns)->user_ns())) return Error(EPERM);
      t.SetNetNamespace(As<NetNamespace>(ns));
      return 0;
    case CLONE_NEWUSER:
      t.SetCredentials(TRY(CredentialsIn(t, As<UserNamespace>(ns))));
      return 0;
    case CLONE_NEWPID: {
      Ref<PidNamespace> pid_ns = As<PidNamespace>(ns);
      if (!may(*pid_ns->user_ns())) return Error(EPERM);
      if (!t.pid_namespace().IsAncestorOf(*pid_ns)) return Error(EINVAL);
      t.set_pid_ns_for_children(std::move(pid_ns));
      return 0;
    }
    case CLONE_NEWNS: {
      if (!t.HasCap(CAP_SYS_CHROOT) || !t.HasCap(CAP_SYS_ADMIN)) return Error(EPERM);
      if (t.fs_context().ref_count() > 1) return Error(EINVAL);
      Ref<MountNamespace> mounts = As<MountNamespace>(ns);
      Ref<Mount> root = mounts->root_mount();
      if (!root) return Error(EINVAL);
      Path path{root, root->root()};
      mounts->CrossDown(&path);
      t.SetMountNamespace(std::move(mounts));
      t.fs_context().SetRoot(path);
      t.fs_context().SetCwd(path);
      return 0;
    }
    default:
      return Error(EINVAL);  // cgroup namespaces have no effect here
  }
}

}  // namespace

Result<uint64_t> SysSetns(Task& t, const SyscallArgs& a) {
  Ref<FileDescription> file = TRY(GetOpenFile(t, a.Int(0)));
  if (const NamespaceRef* ns = NamespaceOfFile(*file)) {
    if (a.Int(1) != 0 && a.Int(1) != ns->type) return Error(EINVAL);
    return EnterNamespace(t, *ns);
  }
  Ref<Pid> pid = PidOfFile(*file);
  if (!pid) return Error(EINVAL);
  Ref<ThreadGroup> group = t.kernel().GroupOf(*pid);
  Ref<Task> target = group ? group->leader() : nullptr;
  if (!target) return Error(ESRCH);
  return EnterNamespacesOf(t, *target, a.Uint(1));
}

}  // namespace sentry
