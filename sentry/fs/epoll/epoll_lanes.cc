// Epoll instances that a process changes and looks at by itself, as far as they watch files with
// lanes (sentry/lanes).
#include <algorithm>
#include <utility>
#include <vector>

#include "sentry/fs/epoll/epoll_impl.h"

namespace sentry {
namespace {

// Looks after which it is seen to whether more items could be the process's business, which costs
// as much as there are items: so many looks at least.
constexpr size_t kLooksPerPromotion = 16;

FdTable* TableOf(const base::Ref<base::RefCounted>& table) {
  return static_cast<FdTable*>(table.get());
}

}  // namespace

EventPoll::LaneWait::LaneWait(EventPoll& poll) : poll_(poll) {
  poll_.waits_.fetch_add(1);
  if (LaneWatches* lanes = poll_.lanes_.load(std::memory_order_acquire)) lanes->SetBusy(true);
}

void EventPoll::LaneWait::Arm() {
  if (LaneWatches* lanes = poll_.lanes_.load(std::memory_order_acquire)) lanes->SetSleeping(true);
}

EventPoll::LaneWait::~LaneWait() {
  LaneWatches* lanes = poll_.lanes_.load(std::memory_order_acquire);
  if (lanes != nullptr) poll_.UpdateSentryReady();
  if (poll_.waits_.fetch_sub(1) == 1 && lanes != nullptr) {
    lanes->SetSleeping(false);
    lanes->SetBusy(poll_.lanes_closed_.load());
    // Another wait may have begun between the two.
    if (poll_.waits_.load() > 0) {
      lanes->SetBusy(true);
      lanes->SetSleeping(true);
    }
  }
}

void EventPoll::CloseLanes() {
  lanes_closed_.store(true);
  if (LaneWatches* lanes = lanes_.load(std::memory_order_acquire)) lanes->SetBusy(true);
}

bool EventPoll::BindWatches(int fd, const base::Ref<LaneBinding>& binding) {
  fiber::MutexLock lock(&mutex_);
  if (lanes_closed_.load() || queue_.HasWaiters()) return false;
  if (lane_watches_ != nullptr) return &lane_watches_->binding() == binding.get();
  base::Ref<base::RefCounted> table = binding->table();
  if (table == nullptr || TableOf(table)->Get(fd).get() != this) return false;
  lane_watches_ = LaneWatches::New(fd, binding, *this, *this);
  if (lane_watches_ == nullptr) return false;
  // From now on everything is noted there.
  for (auto& [key, item] : items_) lane_watches_->Set(key.fd, platform::kWatchSentry);
  lanes_.store(lane_watches_.get(), std::memory_order_release);
  Promote(TableOf(table));
  UpdateSentryReady();
  TableOf(table)->SetLanes(fd, this, binding, 0, 0);
  lane_watches_->Open();
  if (waits_.load() > 0 || lanes_closed_.load()) lane_watches_->SetBusy(true);
  return true;
}

void EventPoll::TakeLaneChanges() {
  fiber::MutexLock lock(&mutex_);
  SyncLanes();
}

bool EventPoll::WatchesPartners() {
  fiber::MutexLock lock(&mutex_);
  return std::any_of(items_.begin(), items_.end(), [](const auto& item) {
    return dynamic_cast<LanePartner*>(item.first.file) != nullptr;
  });
}

void EventPoll::SyncLanes() {
  if (lane_watches_ == nullptr) return;
  std::vector<LaneWatches::Change> changes = lane_watches_->Take();
  if (changes.empty()) return;
  base::Ref<base::RefCounted> table = lane_watches_->binding().table();
  for (const LaneWatches::Change& change : changes) Apply(change, TableOf(table));
}

void EventPoll::Apply(const LaneWatches::Change& change, FdTable* table) {
  auto it = lane_items_.find(change.fd);
  if (it != lane_items_.end()) {
    Item& item = *it->second;
    if (!change.watched) return Erase({item.file_key, item.fd});
    item.data.store(change.data);
    item.events.store(change.events);
    return;
  }
  if (!change.watched) return;
  base::Ref<FileDescription> file = table != nullptr ? table->Get(change.fd) : nullptr;
  // Its descriptor has been closed since, and with it the watch.
  if (file == nullptr || !file->CanPoll() || From(*file) != nullptr ||
      change.lane != lane_watches_->binding().NameOf(change.fd)) {
    return lane_watches_->Set(change.fd, platform::kWatchNone);
  }
  const bool in_lane = file->HasOpenLanes() && table->HasLanes(change.fd, file.get());
  AddFromLane(change, std::move(file), in_lane);
}

void EventPoll::AddFromLane(const LaneWatches::Change& change, base::Ref<FileDescription> file,
                            bool in_lane) {
  const Key key{file.get(), change.fd};
  if (items_.contains(key)) return;
  Item& item = Insert(key, {change.events, change.data}, file->wait_queue());
  item.events.store(change.events);  // told once already, maybe
  if (in_lane) {
    // What the process has found there it will not find again.
    item.in_lane.store(true);
    lane_items_[item.fd] = &item;
  } else {
    SetInLane(item, false);
  }
  if (item.Ready() != 0) MarkReady(item);
}

bool EventPoll::ServedByLane(const Item& item, FdTable* table) {
  return table != nullptr && (item.events.load() & ~platform::kLaneWatchBits) == 0 &&
         item.file_key->HasOpenLanes() && table->HasLanes(item.fd, item.file_key);
}

void EventPoll::SetInLane(Item& item, bool in_lane) {
  // From now on data is no edge for itself; what has come and was not told is news to the process.
  const bool was_in_lane = item.in_lane.exchange(in_lane);
  if (in_lane) {
    lane_items_[item.fd] = &item;
    lane_watches_->Set(item.fd, platform::kWatchLane, item.events.load(), item.data.load(),
                       was_in_lane ? item.file_key->LaneCame() : item.told);
  } else {
    lane_items_.erase(item.fd);
    lane_watches_->Set(item.fd, platform::kWatchSentry);
  }
}

void EventPoll::Promote(FdTable* table) {
  for (auto& [key, item] : items_) {
    if (item->in_lane.load() || lane_items_.contains(key.fd)) continue;
    if (static_cast<uint32_t>(key.fd) >= platform::kLaneEpollFds) continue;
    if (ServedByLane(*item, table)) SetInLane(*item, true);
  }
}

void EventPoll::LookAtLanes() {
  if (lanes_.load(std::memory_order_acquire) == nullptr) return;
  fiber::MutexLock lock(&mutex_);
  SyncLanes();
  base::Ref<base::RefCounted> table = lane_watches_->binding().table();
  for (auto it = lane_items_.begin(); it != lane_items_.end();) {
    Item& item = *(it++)->second;
    if (!ServedByLane(item, TableOf(table))) SetInLane(item, false);
    if (!item.in_lane.load()) {
      if (item.Ready() != 0) PushReady(item);
      continue;
    }
    uint64_t came = 0;
    if (item.ReadyFor(WishForLanes(), &came) == 0) continue;
    const bool edges = (item.events.load() & EPOLLET) != 0;
    if (!edges || item.edge.load() || (item.WantsData() && lane_watches_->HasEdge(item.fd, came))) {
      PushReady(item);
    }
  }
  if (++looks_ < std::max(kLooksPerPromotion, items_.size())) return;
  looks_ = 0;
  Promote(TableOf(table));
}

platform::LaneWish EventPoll::WishForLanes() const {
  return lanes_closed_.load() ? platform::kWish : lane_watches_->wish();
}

bool EventPoll::NeedsSentry(const Item& item) {
  return !item.in_lane.load(std::memory_order_relaxed) ||
         (item.edge.load(std::memory_order_relaxed) && (item.events.load() & EPOLLET) != 0);
}

uint32_t EventPoll::TakeFromLane(Item& item) {
  uint64_t came = 0;
  const uint32_t ready = item.ReadyFor(WishForLanes(), &came);
  if (ready == 0 || (item.events.load() & EPOLLET) == 0) return ready;
  const bool news = item.WantsData() && lane_watches_->TakeEdge(item.fd, came);
  return item.edge.exchange(false) || news ? ready : 0;
}

uint32_t EventPoll::WantedNow(const Item& item) const {
  const uint32_t known = item.events.load(std::memory_order_acquire);
  LaneWatches* lanes = lanes_.load(std::memory_order_acquire);
  if (lanes == nullptr || !item.in_lane.load()) return known;
  return lanes->EventsOf(item.fd).value_or(known);
}

void EventPoll::SetEvents(Item& item, uint32_t events) {
  item.events.store(events);
  if (item.in_lane.load()) SetInLane(item, true);
}

void EventPoll::NoteAdded(Item& item) {
  if (lane_watches_ == nullptr || lane_items_.contains(item.fd)) return;
  lane_watches_->Set(item.fd, platform::kWatchSentry);
}

void EventPoll::NoteModified(Item& item) {
  if (!item.in_lane.load()) return;
  const bool plain = (item.events.load() & ~platform::kLaneWatchBits) == 0;
  SetInLane(item, plain);
}

void EventPoll::NoteErased(Item& item) {
  if (lane_watches_ == nullptr) return;
  if (item.in_lane.exchange(false)) {
    lane_items_.erase(item.fd);
  } else if (lane_items_.contains(item.fd)) {
    return;  // another file has that descriptor now
  }
  lane_watches_->Set(item.fd, platform::kWatchNone);
}

void EventPoll::UpdateSentryReady() {
  LaneWatches* lanes = lanes_.load(std::memory_order_acquire);
  if (lanes == nullptr) return;
  absl::MutexLock lock(&ready_mutex_);
  bool ready = false;
  for (Item* item = ready_head_; item != nullptr && !ready; item = item->ready_next) {
    ready = NeedsSentry(*item);
  }
  lanes->SetSentryReady(ready);
}

}  // namespace sentry
