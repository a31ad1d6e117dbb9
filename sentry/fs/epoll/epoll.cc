#include "sentry/fs/epoll/epoll.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <limits>
#include <utility>
#include <vector>

#include "sentry/fs/epoll/epoll_impl.h"
#include "sentry/vfs/inode.h"

namespace sentry {
namespace {

constexpr uint32_t kExclusiveOk =
    EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
constexpr int kMaxNests = 4;              // EP_MAX_NESTS
constexpr int kMaxWatches = 1024 * 1024;  // fs.epoll.max_user_watches

// Serialises what makes epoll instances watch one another, so that no loop appears.
fiber::Mutex& NestMutex() {
  static fiber::Mutex* mutex = new fiber::Mutex;
  return *mutex;
}

}  // namespace

EventPoll::EventPoll(Vfs& vfs, uint32_t flags)
    : AnonFile(vfs, "[eventpoll]", O_RDWR | (flags & O_NONBLOCK)) {
  MayHaveLanes(/*early=*/false);  // a process has few places for them
}

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
  NoteErased(*item);
  Registry::Get().Remove(key.file, item.get());
}

// --- the ready list ---

void EventPoll::PushReady(Item& item) {
  absl::MutexLock lock(&ready_mutex_);
  LaneWatches* lanes = lanes_.load(std::memory_order_acquire);
  if (lanes != nullptr && NeedsSentry(item)) lanes->SetSentryReady(true);
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

bool EventPoll::MarkReady(Item& item) {
  PushReady(item);
  LaneWatches* lanes = lanes_.load(std::memory_order_acquire);
  const bool in_process = lanes != nullptr && lanes->WakeStubs();
  queue_.Wake(EPOLLIN | EPOLLRDNORM);
  return in_process;
}

void EventPoll::ReportNow(Item& item) {
  if (item.Ready() == 0) return;
  item.edge.store(true);
  MarkReady(item);
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
      uint32_t ready;
      if (item->in_lane.load()) {
        ready = TakeFromLane(*item);
      } else {
        item->edge.store(false);
        ready = item->Ready(&item->told);
      }
      if (ready == 0) continue;
      if (!item->in_lane.load() && lane_watches_ != nullptr &&
          item->file_key->WantsLanes(/*expected=*/false)) {
        wanting_.store(item->fd, std::memory_order_relaxed);
      }
      uint32_t wanted = item->events.load();
      events.push_back({ready, item->data.load()});
      taken.push_back({item, wanted, (wanted & (EPOLLET | EPOLLONESHOT)) == 0});
      if (wanted & EPOLLONESHOT) SetEvents(*item, wanted & kEpollPrivateBits);
    }
    if (!events.empty()) {
      base::Status copied = emit(events);
      for (Taken& t : taken) {
        if (!copied.ok()) {
          SetEvents(*t.item, t.events_before);
          t.item->edge.store(true);
        }
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
  // Meanwhile the process itself does not look.
  LaneWait wait(*this);
  while (true) {
    wait.Arm();
    LookAtLanes();
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
  LookAtLanes();
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

void EventPoll::WatchEdges(uint32_t /*wish*/) {
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

EventPoll::Item& EventPoll::Insert(const Key& key, EpollEvent event, fiber::WaitQueue* queue) {
  event.events |= EPOLLERR | EPOLLHUP;
  base::Ref<Item> item = base::MakeRef<Item>(this, key.fd, key.file, event);
  item->told = key.file->LaneCame();
  items_[key] = item;
  Registry::Get().Add(key.file, item);
  key.file->WatchRelease(&OnFileRelease);
  fiber::MutexLock lock(&item->mutex);
  item->wait_queue = queue;
  if (queue != nullptr) {
    queue->Register(item.get(), ~0u, (event.events & EPOLLEXCLUSIVE) != 0);
  }
  return *item;
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
  if (Item::count.load() >= kMaxWatches) return base::Error(ENOSPC);
  auto add = [&]() -> base::Status {
    fiber::MutexLock lock(&mutex_);
    SyncLanes();
    const Key key{file.get(), fd};
    if (items_.contains(key)) return base::Error(EEXIST);
    Item& item = Insert(key, event, queue);
    NoteAdded(item);
    ReportNow(item);
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
  SyncLanes();
  auto it = items_.find({&file, fd});
  if (it == items_.end()) return base::Error(ENOENT);
  Item& item = *it->second;
  if (item.events.load() & EPOLLEXCLUSIVE) return base::Error(EINVAL);
  item.data.store(event.data);
  item.events.store(event.events | EPOLLERR | EPOLLHUP);
  NoteModified(item);
  ReportNow(item);
  return base::Ok();
}

const FileDescription* EventPoll::Target(int fd, uint32_t number) {
  fiber::MutexLock lock(&mutex_);
  SyncLanes();
  for (const auto& [key, item] : items_) {
    if (key.fd == fd && number-- == 0) return key.file;
  }
  return nullptr;
}

base::Status EventPoll::Remove(int fd, FileDescription& file) {
  if (&file == this) return base::Error(EINVAL);
  fiber::MutexLock lock(&mutex_);
  SyncLanes();
  if (!items_.contains({&file, fd})) return base::Error(ENOENT);
  Erase({&file, fd});
  return base::Ok();
}

std::string EventPoll::FdInfo() const {
  const_cast<EventPoll*>(this)->TakeLaneChanges();  // NOLINT: what it knows is not what it watches
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
