// What the sources of EventPoll share.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fs/epoll/epoll.h"

namespace sentry {

inline constexpr uint32_t kEpollPrivateBits = EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE;

// A file in an interest list. Referenced by the list and by the registry.
class EventPoll::Item : public base::RefCounted, public fiber::Waiter {
 public:
  Item(EventPoll* owner, int fd, FileDescription* file, const EpollEvent& event)
      : owner(owner), fd(fd), file_key(file), file(file), events(event.events), data(event.data) {
    count.fetch_add(1, std::memory_order_relaxed);
  }

  void OnEvent(uint32_t what) override { TryEvent(what); }
  bool TryEvent(uint32_t what) override {
    const uint32_t wanted = owner->WantedNow(*this);
    bool in_process = false;
    if ((wanted & ~kEpollPrivateBits) != 0 && (what == 0 || (what & wanted) != 0)) {
      if ((wanted & EPOLLET) != 0 && !(in_lane.load() && IsData(what))) edge.store(true);
      in_process = owner->MarkReady(*this);
    }
    return in_process || owner->queue_.HasWaiters();
  }
  void WatchEdges() {
    fiber::MutexLock lock(&mutex);
    if (file != nullptr) file->WatchEdges();
  }
  // Data that has come is told by how much has, where the process may have told of it already.
  static bool IsData(uint32_t what) {
    return what != 0 && (what & ~(platform::kLaneIn | kWakeQuietly)) == 0;
  }
  bool WantsData() const { return (events.load() & platform::kLaneIn) != 0; }
  // The same as Ready, for an item that is in_lane. *came: how much had come by its lane before.
  uint32_t ReadyFor(uint32_t wish, uint64_t* came) {
    fiber::MutexLock lock(&mutex);
    if (file == nullptr) return 0;
    const uint32_t wanted = events.load(std::memory_order_acquire);
    if (wanted & EPOLLET) file->WatchEdges(wish);
    *came = file->LaneCame();
    return file->ReadinessFor(wish) & wanted;
  }
  // What of the wanted events is true. *came: see ReadyFor; only of a watch for edges.
  uint32_t Ready(uint64_t* came = nullptr) {
    fiber::MutexLock lock(&mutex);
    if (file == nullptr) return 0;
    const uint32_t wanted = events.load(std::memory_order_acquire);
    if (wanted & EPOLLET) file->WatchEdges();
    if ((wanted & EPOLLET) != 0 && came != nullptr) *came = file->LaneCame();
    return file->Readiness() & wanted;
  }
  // After it returns the file is not touched again. Idempotent.
  void Detach() {
    fiber::MutexLock lock(&mutex);
    if (file == nullptr) return;
    if (wait_queue != nullptr) wait_queue->Unregister(this);
    file = nullptr;
  }

  static inline std::atomic<int> count{0};
  EventPoll* const owner;  // valid while in its list or, under the registry's lock, in the registry
  const int fd;
  FileDescription* const file_key;  // alive while the item is in its owner's list
  fiber::Mutex mutex;               // after the owner's, before the file's
  FileDescription* file ABSL_GUARDED_BY(mutex);
  fiber::WaitQueue* wait_queue ABSL_GUARDED_BY(mutex) = nullptr;
  std::atomic<uint32_t> events;
  std::atomic<uint64_t> data;
  std::atomic<bool> in_lane{false};  // the process looks at it by itself; written under the owner's
  // EPOLLET of an item that is in_lane: something has happened, other than that data has come, that
  // is to be told.
  std::atomic<bool> edge{false};
  // EPOLLET: how much had come when that was told last, by the sentry. Guarded by the owner's
  // mutex_.
  uint64_t told = 0;
  // Guarded by the owner's ready_mutex_.
  Item* ready_prev = nullptr;
  Item* ready_next = nullptr;
  bool queued = false;

 private:
  ~Item() override { count.fetch_sub(1, std::memory_order_relaxed); }
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

}  // namespace sentry
