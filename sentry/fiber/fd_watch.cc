#include "sentry/fiber/fd_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/host_io.h"
#include "sentry/base/log.h"
#include "sentry/fiber/worker.h"

namespace fiber {
namespace {

// Made once. Never closed.
const base::UniqueFd& EpollInstance() {
  static const base::UniqueFd* epoll = new base::UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  return *epoll;
}

}  // namespace

base::Status PrepareFdWatches() {
  return EpollInstance().valid() ? base::Ok() : base::Status(base::LastError());
}

struct FdWatch::Entry : public base::RefCounted {
  uint64_t id = 0;
  int fd = -1;
  base::UniqueFd duplicate;  // if `fd` itself was in the epoll set already
  uint32_t flags = 0;        // EPOLLET or EPOLLONESHOT
  Callback callback;
};

// The epoll thread. Never destroyed.
class FdPoller {
 public:
  using Entry = FdWatch::Entry;

  static FdPoller& Get() {
    static FdPoller* poller = new FdPoller;
    return *poller;
  }

  base::Status Add(Entry* entry, int fd, uint32_t events) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    entry->id = ++last_id_;
    entry->fd = fd;
    base::Status status = Control(EPOLL_CTL_ADD, entry, events);
    if (!status.ok() && status.error() == base::Error(EEXIST)) {
      entry->duplicate.reset(fcntl(fd, F_DUPFD_CLOEXEC, 3));
      if (!entry->duplicate.valid()) return base::LastError();
      entry->fd = entry->duplicate.get();
      status = Control(EPOLL_CTL_ADD, entry, events);
    }
    if (status.ok()) entries_.emplace(entry->id, base::Ref<Entry>(entry));
    return status;
  }

  base::Status Rearm(Entry* entry, uint32_t events) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return Control(EPOLL_CTL_MOD, entry, events);
  }

  void Remove(Entry* entry) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (entries_.erase(entry->id) > 0) {
      epoll_ctl(epoll_, EPOLL_CTL_DEL, entry->fd, nullptr);
    }
    if (OnThread()) return;
    while (running_ == entry->id) callback_done_.Wait(&mu_);
  }

 private:
  FdPoller() : epoll_(EpollInstance().get()) {
    if (epoll_ < 0) {
      LOG_ERROR("no epoll instance: %s", strerror(errno));
      abort();
    }
    StartThread("runsc-epoll", [this] { Loop(); });
  }

  // Callbacks do not park, so they stay on the thread.
  static bool& OnThread() {
    static thread_local bool on_thread = false;
    return on_thread;
  }

  base::Status Control(int op, Entry* entry, uint32_t events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    epoll_event event{};
    event.events = events | entry->flags;
    event.data.u64 = entry->id;
    if (epoll_ctl(epoll_, op, entry->fd, &event) != 0) return base::LastError();
    return base::Ok();
  }

  void Loop() ABSL_LOCKS_EXCLUDED(mu_) {
    OnThread() = true;
    constexpr int kBatch = 64;
    epoll_event events[kBatch];
    while (true) {
      const int n = base::HostEpollWait(epoll_, events, kBatch, -1);
      for (int i = 0; i < n; ++i) Dispatch(events[i]);
    }
  }

  void Dispatch(const epoll_event& event) ABSL_LOCKS_EXCLUDED(mu_) {
    base::Ref<Entry> entry;
    {
      absl::MutexLock lock(&mu_);
      const uint64_t id = event.data.u64;  // the field is unaligned
      const auto it = entries_.find(id);
      if (it == entries_.end()) return;
      entry = it->second;
      running_ = entry->id;
    }
    entry->callback(event.events);
    absl::MutexLock lock(&mu_);
    running_ = 0;
    callback_done_.SignalAll();
  }

  const int epoll_;
  absl::Mutex mu_;
  absl::CondVar callback_done_;
  std::unordered_map<uint64_t, base::Ref<Entry>> entries_ ABSL_GUARDED_BY(mu_);
  uint64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t running_ ABSL_GUARDED_BY(mu_) = 0;  // id of the entry whose callback runs
};

FdWatch::FdWatch() = default;

FdWatch::~FdWatch() { Stop(); }

base::Status FdWatch::Start(int fd, uint32_t events, Mode mode, Callback callback) {
  if (entry_) return base::Error(EBUSY);
  auto entry = base::MakeRef<Entry>();
  entry->flags = mode == Mode::kEdge ? EPOLLET : EPOLLONESHOT;
  entry->callback = std::move(callback);
  // The callback may run before Add returns.
  entry_ = entry;
  base::Status status = FdPoller::Get().Add(entry.get(), fd, events);
  if (!status.ok()) entry_.reset();
  return status;
}

base::Status FdWatch::Rearm(uint32_t events) {
  if (!entry_) return base::Error(EINVAL);
  return FdPoller::Get().Rearm(entry_.get(), events);
}

void FdWatch::Stop() {
  if (!entry_) return;
  FdPoller::Get().Remove(entry_.get());
  entry_.reset();
}

WakeReason WaitFd(int fd, uint32_t events, const ParkOptions& options) {
  pollfd poll_fd{};
  poll_fd.fd = fd;
  poll_fd.events = static_cast<short>(events);  // EPOLLIN is POLLIN, and so on
  if (base::HostPoll(&poll_fd, 1, 0) != 0) return WakeReason::kWoken;

  std::atomic<bool> ready{false};
  Fiber* self = Current();
  FdWatch watch;
  const base::Status status =
      watch.Start(fd, events, FdWatch::Mode::kOneShot, [&ready, self](uint32_t) {
        ready.store(true, std::memory_order_release);
        self->Unpark();
      });
  if (!status.ok()) return WakeReason::kWoken;
  WakeReason reason = WakeReason::kWoken;
  while (!ready.load(std::memory_order_acquire) && reason == WakeReason::kWoken) {
    reason = Park(options);
  }
  watch.Stop();
  return ready.load(std::memory_order_acquire) ? WakeReason::kWoken : reason;
}

}  // namespace fiber
