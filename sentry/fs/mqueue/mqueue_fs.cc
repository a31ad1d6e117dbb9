#include "sentry/fs/mqueue/mqueue_fs.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "sentry/fs/pseudo/pseudo.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

constexpr uint64_t kMagic = 0x19800202;  // MQUEUE_MAGIC
constexpr uint64_t kFileSize = 80;       // FILENT_SIZE
// What Linux counts for a message and for a priority in use.
constexpr uint64_t kMessageCost = 48, kPriorityCost = 48;
constexpr mode_t kRootMode = S_ISVTX | 0777;

// An open queue.
class QueueFile;

class QueueInode : public PseudoInode {
 public:
  QueueInode(PseudoFs* fs, const NewInode& args, base::Ref<MqueueLimits> limits, int64_t messages,
             int64_t size, base::Ref<UserCount> user, uint64_t charged)
      : PseudoInode(fs, 0, S_IFREG | (args.mode & 07777), args.uid, args.gid),
        queue(messages, size),
        limits_(std::move(limits)),
        user_(std::move(user)),
        charged_(charged) {}
  Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;

  MessageQueue queue;

 private:
  ~QueueInode() override {
    user_->mqueue_bytes.fetch_sub(charged_, std::memory_order_relaxed);
    limits_->queues.fetch_sub(1, std::memory_order_relaxed);
  }
  uint64_t size() const override { return kFileSize; }

  const base::Ref<MqueueLimits> limits_;
  const base::Ref<UserCount> user_;
  const uint64_t charged_;
};

class QueueFile : public SeekableFile {
 public:
  QueueFile(Path path, uint32_t flags, base::Ref<QueueInode> inode)
      : SeekableFile(std::move(path), flags), inode_(std::move(inode)) {}
  MessageQueue& queue() { return inode_->queue; }

  Result<size_t> PRead(IoDest& dst, uint64_t offset, bool) override {
    std::string text = inode_->queue.StatusText();
    if (offset >= text.size()) return size_t{0};
    return dst.Put(std::as_bytes(std::span(text)).subspan(offset));
  }
  uint32_t Readiness() override { return inode_->queue.Readiness(); }
  fiber::WaitQueue* wait_queue() override { return &inode_->queue.wait_queue(); }
  bool CanPoll() const override { return true; }
  // Whoever is to be notified and closes a descriptor of the queue is no longer
  // (mqueue_flush_file).
  Status OnClose() override {
    if (Task* t = Task::Current()) inode_->queue.Unregister(t->thread_group().pid());
    return base::Ok();
  }

 private:
  ~QueueFile() override = default;
  const base::Ref<QueueInode> inode_;
};

Result<base::Ref<FileDescription>> QueueInode::Open(const OpenArgs& args) {
  return base::Ref<FileDescription>(
      base::MakeRef<QueueFile>(args.path, args.flags, base::Ref<QueueInode>(this)));
}

// Linux: mq_attr_ok.
Status CheckAttr(const mq_attr& attr, const MqueueLimits& limits, bool privileged) {
  if (attr.mq_maxmsg <= 0 || attr.mq_msgsize <= 0) return Error(EINVAL);
  if (attr.mq_maxmsg > (privileged ? kHardMsgMax : limits.msg_max.load()) ||
      attr.mq_msgsize > (privileged ? kHardMsgSizeMax : limits.msgsize_max.load())) {
    return Error(EINVAL);
  }
  return base::Ok();
}

class QueueDir : public PseudoDir {
 public:
  QueueDir(PseudoFs* fs, base::Ref<MqueueLimits> limits)
      : PseudoDir(fs, kRootMode, 1), limits_(std::move(limits)) {}

  // With lock() held exclusively, and the caller's right to it checked. `attr` has been checked.
  Result<base::Ref<Inode>> CreateQueue(std::string_view name, const NewInode& args,
                                       const mq_attr* attr) {
    Task* t = Task::Current();
    if (t == nullptr) return Error(EACCES);
    MqueueLimits& limits = *limits_;
    if (limits.queues.fetch_add(1, std::memory_order_relaxed) >= limits.queues_max &&
        !t->HasCap(CAP_SYS_RESOURCE)) {
      limits.queues.fetch_sub(1, std::memory_order_relaxed);
      return Error(ENOSPC);
    }
    int64_t messages = std::min(limits.msg_max.load(), limits.msg_default.load());
    int64_t size = std::min(limits.msgsize_max.load(), limits.msgsize_default.load());
    if (attr != nullptr) {
      messages = attr->mq_maxmsg;
      size = attr->mq_msgsize;
    }
    const uint64_t bytes =
        static_cast<uint64_t>(messages) * (static_cast<uint64_t>(size) + kMessageCost) +
        static_cast<uint64_t>(std::min<int64_t>(messages, kMaxMqPriority)) * kPriorityCost;
    base::Ref<UserCount> user = t->kernel().CountOfUser(t->creds().ruid);
    const uint64_t limit = t->Rlimit(RLIMIT_MSGQUEUE);
    if (user->mqueue_bytes.fetch_add(bytes, std::memory_order_relaxed) + bytes > limit) {
      user->mqueue_bytes.fetch_sub(bytes, std::memory_order_relaxed);
      limits.queues.fetch_sub(1, std::memory_order_relaxed);
      return Error(EMFILE);
    }
    auto inode = base::MakeRef<QueueInode>(&pseudo_fs(), args, limits_, messages, size,
                                           std::move(user), bytes);
    absl::MutexLock l(&mutex_);
    queues_.emplace(std::string(name), inode);
    return base::Ref<Inode>(std::move(inode));
  }
  Result<base::Ref<Inode>> Create(std::string_view name, const NewInode& args) override {
    if (!S_ISREG(args.mode)) return Error(EPERM);
    return CreateQueue(name, args, nullptr);
  }
  Status Unlink(std::string_view name, Inode&) override {
    absl::MutexLock l(&mutex_);
    auto it = queues_.find(name);
    if (it == queues_.end()) return Error(ENOENT);
    queues_.erase(it);
    return base::Ok();
  }

 protected:
  Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    absl::MutexLock l(&mutex_);
    auto it = queues_.find(name);
    if (it == queues_.end()) return Error(ENOENT);
    return base::Ref<Inode>(it->second);
  }
  bool RevalidateDynamic(std::string_view name, Inode* child) override {
    absl::MutexLock l(&mutex_);
    auto it = queues_.find(name);
    return (it == queues_.end() ? nullptr : it->second.get()) == child;
  }
  void ListDynamic(std::vector<PseudoEntry>* out) override {
    absl::MutexLock l(&mutex_);
    for (const auto& [name, inode] : queues_) out->push_back({name, inode->ino(), DT_REG});
  }

 private:
  ~QueueDir() override = default;
  const base::Ref<MqueueLimits> limits_;
  absl::Mutex mutex_;  // leaf
  std::map<std::string, base::Ref<QueueInode>, std::less<>> queues_ ABSL_GUARDED_BY(mutex_);
};

class MqueueType : public FilesystemType {
 public:
  std::string_view name() const override { return "mqueue"; }
  Result<base::Ref<Inode>> Mount(const MountArgs&) override {
    return MqueueState::Of(*Kernel::Get().CurrentNamespaces().ipc)->root_inode();
  }
};

}  // namespace

MqueueState::MqueueState() : limits_(base::MakeRef<MqueueLimits>()) {
  auto fs = base::MakeRef<PseudoFs>("mqueue", kMagic, /*dynamic=*/true);
  root_ = base::MakeRef<QueueDir>(fs.get(), limits_);
  mount_ = Vfs::NewMount(root_, MS_NOSUID | MS_NODEV | MS_NOEXEC, "mqueue");
}

base::Ref<MqueueState> MqueueState::Of(IpcNamespace& ns) {
  static constexpr char kKey = 0;
  base::Ref<base::RefCounted> part = ns.GetOrMake(
      &kKey, []() -> base::Ref<base::RefCounted> { return base::MakeRef<MqueueState>(); });
  return base::Ref<MqueueState>(static_cast<MqueueState*>(part.get()));
}

Path MqueueState::root() const { return {mount_, Dentry::RootOf(root_)}; }

Result<base::Ref<FileDescription>> OpenQueue(Task& t, std::string_view name, uint32_t flags,
                                             mode_t mode, const mq_attr* attr) {
  base::Ref<MqueueState> state = MqueueState::Of(*t.ipc_namespace_ref());
  if (name.empty()) return Error(ENOENT);
  if (name.size() > kNameMax) return Error(ENAMETOOLONG);
  if (name.find('/') != name.npos || name == "." || name == "..") return Error(EACCES);
  Path root = state->root();
  auto& dir = static_cast<QueueDir&>(*state->root_inode());
  const Credentials& creds = t.creds();
  fiber::WriterLock lock(&dir.lock());
  Result<base::Ref<Inode>> found = dir.Lookup(name);
  if (!found.ok()) {
    if (!(flags & O_CREAT)) return Error(ENOENT);
    if (attr != nullptr) {
      TRY(CheckAttr(*attr, state->limits(), t.HasCap(CAP_SYS_RESOURCE)));
    }
    TRY(dir.CheckPermission(creds, kMayWrite | kMayExec));
    found = TRY(dir.CreateQueue(name,
                                {.mode = S_IFREG | (mode & 07777 & ~t.fs_context().umask()),
                                 .uid = creds.fsuid,
                                 .gid = creds.fsgid},
                                attr));
  } else {
    if ((flags & O_CREAT) && (flags & O_EXCL)) return Error(EEXIST);
    if ((flags & O_ACCMODE) == O_ACCMODE) return Error(EINVAL);
    constexpr int kAccess[] = {kMayRead, kMayWrite, kMayRead | kMayWrite};
    TRY((*found)->CheckPermission(creds, kAccess[flags & O_ACCMODE]));
  }
  base::Ref<Dentry> dentry = root.dentry->FindChild(name);
  if (dentry && dentry->inode_ptr() != found->get()) dentry->Invalidate();
  dentry = root.dentry->AddChild(name, *found);
  return (*found)->Open({{root.mount, dentry}, flags & ~uint32_t{O_CREAT | O_EXCL}, creds});
}

MessageQueue* QueueOf(FileDescription& file) {
  auto* queue = dynamic_cast<QueueFile*>(&file);
  return queue == nullptr ? nullptr : &queue->queue();
}

void RegisterMqueue(Vfs& vfs) { vfs.RegisterFilesystem(std::make_unique<MqueueType>()); }

}  // namespace sentry
