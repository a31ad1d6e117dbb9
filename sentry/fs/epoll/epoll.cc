#include "sentry/fs/epoll/epoll.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <limits>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "sentry/vfs/inode.h"

namespace sentry {
namespace {

constexpr uint32_t kPrivateBits = EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE;
constexpr uint32_t kExclusiveOk =
    EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
constexpr int kMaxNests = 4;              // EP_MAX_NESTS
constexpr int kMaxWatches = 1024 * 1024;  // fs.epoll.max_user_watches

std::atomic<int> g_watches{0};

// Serialises what makes epoll instances watch one another, so that no loop appears.
fiber::Mutex& NestMutex() {
  static fiber::Mutex* mutex = new fiber::Mutex;
  return *mutex;
}

}  // namespace

// A file in an interest list. Referenced by the list and by the registry.
class EventPoll::Item : public base::RefCounted, public fiber::Waiter {
 public:
  Item(EventPoll* owner, int fd, FileDescription* file, const EpollEvent& event)
      : owner(owner), fd(fd), file(file), events(event.events), data(event.data) {
    g_watches.fetch_add(1, std::memory_order_relaxed);
  }

  void OnEvent(uint32_t what) override {
    uint32_t wanted = events.load(std::memory_order_acquire);
    if ((wanted & ~kPrivateBits) == 0 || (what != 0 && (what & wanted) == 0)) return;
    owner->MarkReady(*this);
  }
  bool TryEvent(uint32_t what) override {
    OnEvent(what);
    return owner->queue_.HasWaiters();
  }
  void WatchEdges() {
    fiber::MutexLock lock(&mutex);
    if (file != nullptr) file->WatchEdges();
  }
  // What of the wanted events is true.
  uint32_t Ready() {
    fiber::MutexLock lock(&mutex);
    if (file == nullptr) return 0;
    const uint32_t wanted = events.load(std::memory_order_acquire);
    if (wanted & EPOLLET) file->WatchEdges();
    return file->Readiness() & wanted;
  }
  // After it returns the file is not touched again. Idempotent.
  void Detach() {
    fiber::MutexLock lock(&mutex);
    if (file == nullptr) return;
    if (wait_queue != nullptr) wait_queue->Unregister(this);
    file = nullptr;
  }

  EventPoll* const owner;  // valid while in its list or, under the registry's lock, in the registry
  const int fd;
  fiber::Mutex mutex;  // after the owner's, before the file's
  FileDescription* file ABSL_GUARDED_BY(mutex);
  fiber::WaitQueue* wait_queue ABSL_GUARDED_BY(mutex) = nullptr;
  std::atomic<uint32_t> events;
  std::atomic<uint64_t> data;
  // Guarded by the owner's ready_mutex_.
  Item* ready_prev = nullptr;
  Item* ready_next = nullptr;
  bool queued = false;

 private:
  ~Item() override { g_watches.fetch_sub(1, std::memory_order_relaxed); }
};

// Which items watch a file.
class EventPoll::Registry {
 public:
  static Registry& Get() {
    static Registry* registry = new Registry;
    return *registry;
  }
  void Add(FileDescription* file, base::Ref<Item> item) {
    absl::MutexLock lock(&mutex_);
    items_[file].push_back(std::move(item));
  }
  void Remove(FileDescription* file, const Item* item) {
    base::Ref<Item> dropped;
    absl::MutexLock lock(&mutex_);
    auto it = items_.find(file);
    if (it == items_.end()) return;
    auto& list = it->second;
    for (auto& entry : list) {
      if (entry.get() != item) continue;
      dropped = std::move(entry);
      entry = std::move(list.back());
      list.pop_back();
      break;
    }
    if (list.empty()) items_.erase(it);
  }
  // The watchers of a file with their instances, where those still live.
  struct Watch {
    base::Ref<Item> item;
    base::Ref<EventPoll> owner;
  };
  std::vector<Watch> Find(FileDescription* file) {
    std::vector<Watch> found;
    absl::MutexLock lock(&mutex_);
    auto it = items_.find(file);
    if (it == items_.end()) return found;
    for (auto& item : it->second) {
      Watch watch{item, nullptr};
      if (item->owner->TryIncRef()) watch.owner = base::Ref<EventPoll>::Adopt(item->owner);
      found.push_back(std::move(watch));
    }
    return found;
  }

 private:
  absl::Mutex mutex_;
  absl::flat_hash_map<FileDescription*, std::vector<base::Ref<Item>>> items_
      ABSL_GUARDED_BY(mutex_);
};

EventPoll::EventPoll(Vfs& vfs, uint32_t flags)
    : AnonFile(vfs, "[eventpoll]", O_RDWR | (flags & O_NONBLOCK)) {}

void EventPoll::OnZeroRefs() {
  {
    fiber::MutexLock lock(&mutex_);
    while (!items_.empty()) Erase(items_.begin()->first);
  }
  AnonFile::OnZeroRefs();
}

void EventPoll::OnFileRelease(FileDescription& file) {
  for (Registry::Watch& watch : Registry::Get().Find(&file)) {
    watch.item->Detach();
    if (watch.owner == nullptr) continue;  // it is being torn down and forgets the item itself
    fiber::MutexLock lock(&watch.owner->mutex_);
    watch.owner->Erase({&file, watch.item->fd});
  }
}

void EventPoll::Erase(Key key) {
  auto it = items_.find(key);
  if (it == items_.end()) return;
  base::Ref<Item> item = std::move(it->second);
  items_.erase(it);
  item->Detach();
  DropReady(*item);
  Registry::Get().Remove(key.file, item.get());
}

// --- the ready list ---

void EventPoll::PushReady(Item& item) {
  absl::MutexLock lock(&ready_mutex_);
  if (item.queued) return;
  item.queued = true;
  item.ready_prev = ready_tail_;
  item.ready_next = nullptr;
  (ready_tail_ != nullptr ? ready_tail_->ready_next : ready_head_) = &item;
  ready_tail_ = &item;
  ++ready_count_;
}

void EventPoll::DropReady(Item& item) {
  absl::MutexLock lock(&ready_mutex_);
  if (!item.queued) return;
  item.queued = false;
  (item.ready_prev != nullptr ? item.ready_prev->ready_next : ready_head_) = item.ready_next;
  (item.ready_next != nullptr ? item.ready_next->ready_prev : ready_tail_) = item.ready_prev;
  --ready_count_;
}

EventPoll::Item* EventPoll::PopReady() {
  absl::MutexLock lock(&ready_mutex_);
  Item* item = ready_head_;
  if (item == nullptr) return nullptr;
  item->queued = false;
  ready_head_ = item->ready_next;
  (ready_head_ != nullptr ? ready_head_->ready_prev : ready_tail_) = nullptr;
  --ready_count_;
  return item;
}

bool EventPoll::HasReady() const {
  absl::MutexLock lock(&ready_mutex_);
  return ready_head_ != nullptr;
}

size_t EventPoll::ready_count() const {
  absl::MutexLock lock(&ready_mutex_);
  return ready_count_;
}

void EventPoll::MarkReady(Item& item) {
  PushReady(item);
  queue_.Wake(EPOLLIN | EPOLLRDNORM);
}

base::Result<size_t> EventPoll::Collect(size_t max, const Emit& emit) {
  std::vector<EpollEvent> events;
  struct Taken {
    Item* item;
    uint32_t events_before;
    bool again;
  };
  std::vector<Taken> taken;
  {
    fiber::MutexLock lock(&mutex_);
    // An item that becomes ready meanwhile waits for the next call.
    for (size_t budget = ready_count(); budget > 0 && events.size() < max; --budget) {
      Item* item = PopReady();
      if (item == nullptr) break;
      uint32_t ready = item->Ready();
      if (ready == 0) continue;
      uint32_t wanted = item->events.load();
      events.push_back({ready, item->data.load()});
      taken.push_back({item, wanted, (wanted & (EPOLLET | EPOLLONESHOT)) == 0});
      if (wanted & EPOLLONESHOT) item->events.store(wanted & kPrivateBits);
    }
    if (!events.empty()) {
      base::Status copied = emit(events);
      for (Taken& t : taken) {
        if (!copied.ok()) t.item->events.store(t.events_before);
        if (!copied.ok() || t.again) PushReady(*t.item);
      }
      if (!copied.ok()) return copied.error();
    }
  }
  // What is left may be of use to another waiter.
  if (!events.empty() && HasReady()) queue_.Wake(EPOLLIN | EPOLLRDNORM);
  return events.size();
}

base::Result<size_t> EventPoll::Wait(size_t max, int64_t deadline_ns, const Emit& emit) {
  while (true) {
    size_t n = TRY(Collect(max, emit));
    if (n > 0 || deadline_ns == 0) return n;
    auto reason = fiber::WaitUntil(
        queue_, EPOLLIN, [this] { return HasReady(); },
        {.interruptible = true, .deadline_ns = deadline_ns}, /*exclusive=*/true);
    if (reason == fiber::WakeReason::kInterrupted) return base::Error(EINTR);
    if (reason == fiber::WakeReason::kTimeout) deadline_ns = 0;  // looks once more
  }
}

uint32_t EventPoll::Readiness() {
  fiber::MutexLock lock(&mutex_);
  for (size_t budget = ready_count(); budget > 0; --budget) {
    Item* item = PopReady();
    if (item == nullptr) break;
    if (item->Ready() == 0) continue;
    PushReady(*item);
    return EPOLLIN | EPOLLRDNORM;
  }
  return 0;
}

void EventPoll::WatchEdges() {
  fiber::MutexLock lock(&mutex_);
  for (auto& [key, item] : items_) item->WatchEdges();
}

// --- the interest list ---

int EventPoll::DepthBelow(const EventPoll* sought, int depth, bool* loop) {
  if (this == sought) *loop = true;
  if (*loop || depth > kMaxNests) return depth;
  std::vector<base::Ref<EventPoll>> children;
  {
    fiber::MutexLock lock(&mutex_);
    for (auto& [key, item] : items_) {
      EventPoll* child = From(*key.file);
      if (child != nullptr && child->TryIncRef()) {
        children.push_back(base::Ref<EventPoll>::Adopt(child));
      }
    }
  }
  int deepest = 0;
  for (auto& child : children) {
    deepest = std::max(deepest, 1 + child->DepthBelow(sought, depth + 1, loop));
    if (*loop || deepest > kMaxNests) break;
  }
  return deepest;
}

int EventPoll::DepthAbove(int depth) {
  if (depth > kMaxNests) return depth;
  int deepest = 0;
  for (Registry::Watch& watch : Registry::Get().Find(this)) {
    if (watch.owner != nullptr) deepest = std::max(deepest, 1 + watch.owner->DepthAbove(depth + 1));
    if (deepest > kMaxNests) break;
  }
  return deepest;
}

base::Status EventPoll::Add(int fd, const base::Ref<FileDescription>& file,
                            const EpollEvent& event) {
  EventPoll* nested = From(*file);
  if (nested == this) return base::Error(EINVAL);
  if (event.events & EPOLLEXCLUSIVE) {
    if (nested != nullptr || (event.events & ~kExclusiveOk) != 0) return base::Error(EINVAL);
  }
  if (!file->CanPoll()) return base::Error(EPERM);
  fiber::WaitQueue* queue = file->wait_queue();  // null: what it is ready for never changes
  if (g_watches.load() >= kMaxWatches) return base::Error(ENOSPC);
  auto add = [&]() -> base::Status {
    base::Ref<Item> item;
    fiber::MutexLock lock(&mutex_);
    Key key{file.get(), fd};
    if (items_.contains(key)) return base::Error(EEXIST);
    EpollEvent e = event;
    e.events |= EPOLLERR | EPOLLHUP;
    item = base::MakeRef<Item>(this, fd, file.get(), e);
    items_[key] = item;
    Registry::Get().Add(file.get(), item);
    file->WatchRelease(&OnFileRelease);
    {
      fiber::MutexLock item_lock(&item->mutex);
      item->wait_queue = queue;
      if (queue != nullptr) queue->Register(item.get(), ~0u, (e.events & EPOLLEXCLUSIVE) != 0);
    }
    if (item->Ready() != 0) MarkReady(*item);
    return base::Ok();
  };
  if (nested == nullptr) return add();
  fiber::MutexLock nest(&NestMutex());
  bool loop = false;
  int below = nested->DepthBelow(this, 0, &loop);
  if (loop || below > kMaxNests || below + 1 + DepthAbove(0) > kMaxNests) return base::Error(ELOOP);
  return add();
}

base::Status EventPoll::Modify(int fd, FileDescription& file, const EpollEvent& event) {
  if (&file == this || (event.events & EPOLLEXCLUSIVE)) return base::Error(EINVAL);
  fiber::MutexLock lock(&mutex_);
  auto it = items_.find({&file, fd});
  if (it == items_.end()) return base::Error(ENOENT);
  Item& item = *it->second;
  if (item.events.load() & EPOLLEXCLUSIVE) return base::Error(EINVAL);
  item.data.store(event.data);
  item.events.store(event.events | EPOLLERR | EPOLLHUP);
  if (item.Ready() != 0) MarkReady(item);
  return base::Ok();
}

base::Status EventPoll::Remove(int fd, FileDescription& file) {
  if (&file == this) return base::Error(EINVAL);
  fiber::MutexLock lock(&mutex_);
  if (!items_.contains({&file, fd})) return base::Error(ENOENT);
  Erase({&file, fd});
  return base::Ok();
}

std::string EventPoll::FdInfo() const {
  std::string text;
  fiber::MutexLock lock(&mutex_);
  for (const auto& [key, item] : items_) {
    char line[128];
    Inode* inode = key.file->inode();
    snprintf(line, sizeof(line), "tfd: %8d events: %8x data: %16llx  pos:%lli ino:%lx sdev:%x\n",
             key.fd, item->events.load(), static_cast<unsigned long long>(item->data.load()), 0LL,
             inode != nullptr ? static_cast<unsigned long>(inode->ino()) : 0UL,
             inode != nullptr ? static_cast<unsigned>(inode->fs().dev()) : 0U);
    text += line;
  }
  return text;
}

}  // namespace sentry
