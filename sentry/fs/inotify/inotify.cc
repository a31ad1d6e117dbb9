#include "sentry/fs/inotify/inotify.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <atomic>
#include <cstring>
#include <vector>

#include "sentry/base/user_memory.h"

namespace sentry {
namespace {

constexpr int kMaxInstances = 128;
constexpr int kMaxWatches = 65536;
constexpr size_t kMaxQueued = 16384;

std::atomic<int> g_instances{0};
std::atomic<int> g_watches{0};

}  // namespace

// A watch of one instance on one inode, which it keeps.
class InotifyWatch : public InodeWatch {
 public:
  InotifyWatch(InotifyFile* file, base::Ref<Inode> inode, int wd, uint32_t mask)
      : inode_(std::move(inode)), wd_(wd), mask_(mask), file_(file) {
    WatchUnmount(*inode_);
  }
  uint32_t mask() const override { return mask_.load(std::memory_order_relaxed); }
  void set_mask(uint32_t mask) { mask_.store(mask, std::memory_order_relaxed); }
  int wd() const { return wd_; }
  Inode& inode() const { return *inode_; }

  void OnEvent(uint32_t mask, uint32_t cookie, std::string_view name) override {
    absl::MutexLock l(&mutex_);
    if (file_ == nullptr) return;
    const uint32_t wanted = mask_.load(std::memory_order_relaxed);
    file_->Queue(wd_, mask & (wanted | IN_ISDIR | IN_UNMOUNT), cookie, name);
    // The object is gone, or one event was asked for.
    if ((mask & (IN_DELETE_SELF | IN_UNMOUNT)) != 0 || (wanted & IN_ONESHOT) != 0) {
      file_->DropWatch(wd_);
      file_ = nullptr;
      inode_->MakeWatches().Remove(*this);
    }
  }

  // After it returns the instance is told nothing more.
  void Detach() {
    {
      absl::MutexLock l(&mutex_);
      file_ = nullptr;
    }
    inode_->MakeWatches().Remove(*this);
  }

 private:
  ~InotifyWatch() override {
    UnwatchUnmount(*inode_);
    g_watches.fetch_sub(1);
  }
  const base::Ref<Inode> inode_;
  const int wd_;
  std::atomic<uint32_t> mask_;
  absl::Mutex mutex_;
  InotifyFile* file_ ABSL_GUARDED_BY(mutex_);
};

size_t InotifyFile::Event::size() const {
  constexpr size_t kHeader = sizeof(inotify_event);
  if (name.empty()) return kHeader;
  return kHeader + (name.size() + 1 + kHeader - 1) / kHeader * kHeader;
}

base::Result<base::Ref<InotifyFile>> InotifyFile::New(Vfs& vfs, uint32_t flags) {
  if (g_instances.fetch_add(1) >= kMaxInstances) {
    g_instances.fetch_sub(1);
    return base::Error(EMFILE);
  }
  return base::MakeRef<InotifyFile>(vfs, flags);
}

InotifyFile::InotifyFile(Vfs& vfs, uint32_t flags)
    : AnonFile(vfs, "inotify", O_RDONLY | (flags & O_NONBLOCK)) {}

InotifyFile::~InotifyFile() {
  std::vector<base::Ref<InotifyWatch>> watches;
  {
    absl::MutexLock l(&mutex_);
    for (auto& [wd, watch] : watches_) watches.push_back(std::move(watch));
    watches_.clear();
  }
  for (const auto& watch : watches) watch->Detach();
  g_instances.fetch_sub(1);
}

void InotifyFile::Queue(int wd, uint32_t mask, uint32_t cookie, std::string_view name) {
  {
    absl::MutexLock l(&mutex_);
    if (!events_.empty()) {
      // Linux: inotify_merge drops what repeats the last event.
      const Event& last = events_.back();
      if (last.wd == wd && last.mask == mask && last.cookie == cookie && last.name == name) return;
    }
    if (events_.size() > kMaxQueued) return;
    if (events_.size() == kMaxQueued) {
      events_.push_back({-1, IN_Q_OVERFLOW, 0, ""});
    } else {
      events_.push_back({wd, mask, cookie, std::string(name)});
    }
  }
  queue_.Wake(EPOLLIN);
}

void InotifyFile::DropWatch(int wd) {
  base::Ref<InotifyWatch> dropped;  // the caller has another reference
  {
    absl::MutexLock l(&mutex_);
    auto it = watches_.find(wd);
    if (it == watches_.end()) return;
    dropped = std::move(it->second);
    watches_.erase(it);
  }
  Queue(wd, IN_IGNORED, 0, {});
}

base::Result<int> InotifyFile::AddWatch(base::Ref<Inode> inode, uint32_t mask) {
  const uint32_t kept = (mask & (IN_ALL_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK)) | IN_UNMOUNT;
  base::Ref<InotifyWatch> watch;
  {
    absl::MutexLock l(&mutex_);
    for (const auto& [wd, w] : watches_) {
      if (&w->inode() != inode.get()) continue;
      if ((mask & IN_MASK_CREATE) != 0) return base::Error(EEXIST);
      w->set_mask((mask & IN_MASK_ADD) != 0 ? w->mask() | kept : kept);
      return wd;
    }
    if (g_watches.fetch_add(1) >= kMaxWatches) {
      g_watches.fetch_sub(1);
      return base::Error(ENOSPC);
    }
    watch = base::MakeRef<InotifyWatch>(this, inode, next_wd_++, kept);
    watches_[watch->wd()] = watch;
  }
  inode->MakeWatches().Add(watch);
  return watch->wd();
}

base::Status InotifyFile::RemoveWatch(int wd) {
  base::Ref<InotifyWatch> watch;
  {
    absl::MutexLock l(&mutex_);
    auto it = watches_.find(wd);
    if (it == watches_.end()) return base::Error(EINVAL);
    watch = it->second;
  }
  watch->Detach();
  DropWatch(wd);
  return base::Ok();
}

base::Result<size_t> InotifyFile::Read(IoDest& dst, bool nonblock) {
  const size_t room = dst.remaining();
  std::string out;
  bool too_small = false;
  auto take = [&] {
    absl::MutexLock l(&mutex_);
    if (events_.empty()) return false;
    while (!events_.empty() && out.size() + events_.front().size() <= room) {
      const Event& e = events_.front();
      const size_t at = out.size();
      out.resize(at + e.size(), '\0');
      const inotify_event header{e.wd, e.mask, e.cookie,
                                 static_cast<uint32_t>(e.size() - sizeof(inotify_event))};
      memcpy(out.data() + at, &header, sizeof(header));
      memcpy(out.data() + at + sizeof(header), e.name.data(), e.name.size());
      events_.pop_front();
    }
    too_small = out.empty();
    return true;
  };
  if (!take()) {
    if (nonblock) return base::Error(EAGAIN);
    auto reason = fiber::WaitUntil(queue_, EPOLLIN, take, {.interruptible = true});
    if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  }
  if (too_small) return base::Error(EINVAL);
  return dst.Put(std::as_bytes(std::span(out)));
}

base::Result<uint64_t> InotifyFile::Ioctl(const IoctlArgs& args) {
  if (args.cmd != FIONREAD) return base::Error(ENOTTY);
  size_t bytes = 0;
  {
    absl::MutexLock l(&mutex_);
    for (const Event& e : events_) bytes += e.size();
  }
  TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, static_cast<int>(bytes)));
  return uint64_t{0};
}

uint32_t InotifyFile::Readiness() {
  absl::MutexLock l(&mutex_);
  return events_.empty() ? 0 : EPOLLIN | EPOLLRDNORM;
}

std::string InotifyFile::FdInfo() const {
  std::string out;
  absl::MutexLock l(&mutex_);
  for (const auto& [wd, w] : watches_) {
    char line[128];
    snprintf(line, sizeof(line), "inotify wd:%x ino:%llx sdev:%llx mask:%x ignored_mask:0\n", wd,
             static_cast<unsigned long long>(w->inode().ino()),
             static_cast<unsigned long long>(w->inode().fs().dev()), w->mask() & ~IN_UNMOUNT);
    out += line;
  }
  return out;
}

}  // namespace sentry
