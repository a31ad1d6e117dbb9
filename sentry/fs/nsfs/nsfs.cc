#include "sentry/fs/nsfs/nsfs.h"

#include <linux/nsfs.h>
#include <sched.h>

#include "sentry/base/user_memory.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/vfs.h"

#ifndef NS_GET_MNTNS_ID
#define NS_GET_MNTNS_ID _IOR(NSIO, 0x5, uint64_t)
#endif

namespace sentry {

using base::Error;
using base::Result;

const NamespaceKind kNamespaceKind[kNamespaceKinds] = {
    {"cgroup", CLONE_NEWCGROUP}, {"ipc", CLONE_NEWIPC}, {"mnt", CLONE_NEWNS},
    {"net", CLONE_NEWNET},       {"pid", CLONE_NEWPID}, {"user", CLONE_NEWUSER},
    {"uts", CLONE_NEWUTS},
};

namespace {

constexpr uint64_t kMagic = 0x6e736673;  // NSFS_MAGIC
// NS_GET_PID_FROM_PIDNS, NS_GET_TGID_FROM_PIDNS, NS_GET_PID_IN_PIDNS, NS_GET_TGID_IN_PIDNS
constexpr uint32_t kPidFrom = _IOR(NSIO, 0x6, int), kTgidFrom = _IOR(NSIO, 0x7, int);
constexpr uint32_t kPidIn = _IOR(NSIO, 0x8, int), kTgidIn = _IOR(NSIO, 0x9, int);

const char* NameOf(int type) {
  for (const NamespaceKind& kind : kNamespaceKind) {
    if (kind.type == type) return kind.name;
  }
  return "?";
}

template <typename T>
NamespaceRef Make(int type, base::Ref<T> ns) {
  uint64_t id = ns ? ns->id() : 0;
  return {type, std::move(ns), id};
}

class NsFile : public FileDescription {
 public:
  NsFile(Path path, uint32_t flags, NamespaceRef ns)
      : FileDescription(std::move(path), flags), ns_(std::move(ns)) {}
  const NamespaceRef& ns() const { return ns_; }
  bool CanPoll() const override { return false; }
  Result<uint64_t> Ioctl(const IoctlArgs& args) override;

 private:
  ~NsFile() override = default;
  const NamespaceRef ns_;
};

class NsInode : public Inode {
 public:
  NsInode(Filesystem* fs, NamespaceRef ns) : Inode(fs, ns.id, S_IFREG | 0444), ns_(std::move(ns)) {}
  const NamespaceRef& ns() const { return ns_; }
  Result<InodeAttr> GetAttr() override {
    InodeAttr attr;
    attr.ino = ino();
    attr.dev = fs().dev();
    attr.mode = S_IFREG | 0444;
    return attr;
  }
  base::Status SetAttr(const AttrChange&) override { return Error(EPERM); }
  Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override {
    if ((args.flags & O_ACCMODE) != O_RDONLY) return Error(EPERM);
    return base::Ref<FileDescription>(base::MakeRef<NsFile>(args.path, args.flags, ns_));
  }

 private:
  ~NsInode() override = default;
  const NamespaceRef ns_;
};

// A descriptor of the caller's for `ns`, whose user namespace is `owner`. EPERM if that is not the
// caller's or below it (Linux: ns_get_owner, pidns_get_parent).
Result<uint64_t> OpenFor(Task& t, NamespaceRef ns, const UserNamespace* owner) {
  while (owner != nullptr && owner != t.creds().user_ns.get()) owner = owner->parent().get();
  if (owner == nullptr) return Error(EPERM);
  return OpenNamespace(t, std::move(ns));
}

// NS_GET_PID_FROM_PIDNS and its kin: a number there is one here, or the other way round.
Result<uint64_t> TranslatePid(Task& t, const NamespaceRef& ns, uint32_t cmd, int number) {
  if (ns.type != CLONE_NEWPID) return Error(EINVAL);
  const auto& there = static_cast<const PidNamespace&>(*ns.object);
  const bool from = cmd == kPidFrom || cmd == kTgidFrom;
  const base::Ref<Pid> pid = from ? there.Find(number) : t.pid_namespace().Find(number);
  if (pid == nullptr) return Error(ESRCH);
  base::Ref<Pid> wanted = pid;
  {
    absl::MutexLock lock(&t.kernel().task_mutex());
    if (pid->task == nullptr) return Error(ESRCH);
    if (cmd == kTgidFrom || cmd == kTgidIn) wanted = pid->task->thread_group().pid();
  }
  const int out = wanted->NumberIn(from ? t.pid_namespace() : there);
  return out != 0 ? Result<uint64_t>(static_cast<uint64_t>(out)) : Error(ESRCH);
}

// follows ns_ioctl() of fs/nsfs.c.
Result<uint64_t> NsFile::Ioctl(const IoctlArgs& args) {
  Task* t = Task::Current();
  if (t == nullptr) return Error(ENOTTY);
  const bool is_user = ns_.type == CLONE_NEWUSER;
  auto* user = is_user ? static_cast<UserNamespace*>(ns_.object.get()) : nullptr;
  switch (args.cmd) {
    case NS_GET_NSTYPE:
      return static_cast<uint64_t>(ns_.type);
    case NS_GET_MNTNS_ID:
      if (ns_.type != CLONE_NEWNS) return Error(EINVAL);
      TRY(base::UserPtr<uint64_t>(args.arg).CopyOut(args.memory, ns_.id));
      return 0;
    case NS_GET_OWNER_UID:
      if (!is_user) return Error(EINVAL);
      TRY(base::UserPtr<uid_t>(args.arg).CopyOut(args.memory,
                                                 t->user_ns().MapUidOut(user->owner())));
      return 0;
    case NS_GET_PARENT:
      if (is_user) {
        return OpenFor(*t, Make(CLONE_NEWUSER, user->parent()), user->parent().get());
      }
      if (ns_.type == CLONE_NEWPID) {
        const auto& parent = static_cast<PidNamespace*>(ns_.object.get())->parent();
        if (!parent || !t->pid_namespace().IsAncestorOf(*parent)) return Error(EPERM);
        return OpenFor(*t, Make(CLONE_NEWPID, parent), parent->user_ns().get());
      }
      return Error(EINVAL);
    case NS_GET_USERNS: {
      // A mount namespace keeps no owner.
      if (ns_.type == CLONE_NEWNS) return Error(ENOTTY);
      base::Ref<UserNamespace> owner =
          is_user ? user->parent() : static_cast<Namespace*>(ns_.object.get())->user_ns();
      const UserNamespace* seen = owner.get();
      return OpenFor(*t, Make(CLONE_NEWUSER, std::move(owner)), seen);
    }
    case kPidFrom:
    case kTgidFrom:
    case kPidIn:
    case kTgidIn:
      return TranslatePid(*t, ns_, args.cmd, static_cast<int>(args.arg));
    default:
      return Error(ENOTTY);
  }
}

}  // namespace

Result<uint64_t> OpenNamespace(Task& t, NamespaceRef ns) {
  const Path path = NamespacePath(t.kernel().vfs(), ns);
  auto file = base::MakeRef<NsFile>(path, O_RDONLY, std::move(ns));
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), /*cloexec=*/true)));
}

NamespaceRef NamespaceOf(Task& task, int type, bool for_children) {
  switch (type) {
    case CLONE_NEWCGROUP:
      return Make(type, task.cgroup_namespace_ref());
    case CLONE_NEWIPC:
      return Make(type, task.ipc_namespace_ref());
    case CLONE_NEWNS:
      return Make(type, task.mount_namespace_ref());
    case CLONE_NEWNET:
      return Make(type, task.net_namespace_ref());
    case CLONE_NEWPID:
      if (for_children) return Make(type, task.pid_ns_for_children());
      return Make(type, base::Ref<PidNamespace>(&task.pid_namespace()));
    case CLONE_NEWUSER: {
      const base::Ref<const Credentials> creds = task.credentials();
      return Make(type, creds ? creds->user_ns : nullptr);
    }
    default:
      return Make(type, task.uts_namespace_ref());
  }
}

Path NamespacePath(Vfs& vfs, const NamespaceRef& ns) {
  static Filesystem* fs = base::MakeRef<Filesystem>("nsfs", kMagic).release();
  return vfs.AnonymousPath(base::MakeRef<NsInode>(fs, ns),
                           std::string(NameOf(ns.type)) + ":[" + std::to_string(ns.id) + "]");
}

const NamespaceRef* NamespaceOfFile(const FileDescription& file) {
  const auto* ns = dynamic_cast<const NsFile*>(&file);
  return ns == nullptr ? nullptr : &ns->ns();
}

const NamespaceRef* NamespaceOfInode(const Inode& inode) {
  const auto* ns = dynamic_cast<const NsInode*>(&inode);
  return ns == nullptr ? nullptr : &ns->ns();
}

}  // namespace sentry
