#include "sentry/kernel/futex/futex_pi.h"

#include <linux/futex.h>

#include <algorithm>
#include <utility>

#include "sentry/kernel/kernel.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/inode.h"

namespace sentry {

namespace {

using base::Error;
using base::Result;

Result<uint32_t> ReadWord(Task& t, uint64_t addr) {
  return base::UserPtr<uint32_t>(addr).CopyIn(t.memory());
}

// True if the word held `expected` and now holds `desired`.
Result<bool> Exchange(Task& t, uint64_t addr, uint32_t expected, uint32_t desired) {
  std::vector<platform::Order> orders;
  orders.push_back(platform::order::CompareExchange{addr, expected, desired});
  std::vector<uint64_t> held = TRY(t.RunOrders(std::move(orders)));
  return !held.empty() && held[0] == expected;
}

// As it stands in words that `t` owns: in its own namespace.
uint32_t TidOf(const Task& t) { return static_cast<uint32_t>(t.TidIn(t.pid_namespace())); }

}  // namespace

// One futex that somebody waits for, or is about to.
struct PiFutexes::Futex : base::RefCounted {
  Futex(PiFutexes* all, FutexKey key, base::Ref<base::RefCounted> keep)
      : all(all), key(key), keep(std::move(keep)) {}
  ~Futex() override = default;
  void OnZeroRefs() override {
    {
      absl::MutexLock l(&all->mutex_);
      auto it = all->futexes_.find(key);
      if (it != all->futexes_.end() && it->second == this) all->futexes_.erase(it);
    }
    delete this;
  }

  PiFutexes* const all;
  const FutexKey key;
  const base::Ref<base::RefCounted> keep;  // what the key points to
  // Held while the word is looked at and changed. Only those who map the word wait for it.
  fiber::Mutex lock;
  // The rest is guarded by all->mutex_.
  Task* owner = nullptr;       // while there are waiters
  bool fixing = false;         // the owner has still to write itself into the word
  std::list<Waiter*> waiters;  // first in line first
  std::list<Waiter*> to_be_requeued;
};

struct PiFutexes::Waiter {
  explicit Waiter(Task& t) : task(&t), tid(TidOf(t)) {}
  Task* const task;
  const uint32_t tid;
  fiber::WaitQueue queue;
  // Guarded by mutex_.
  Futex* futex = nullptr;   // in whose list of waiters it is
  base::Ref<Futex> target;  // of a WaitRequeue: where it may be moved
  bool requeued = false;    // it was
  bool owner_died = false;  // the lock was not handed over but left behind
  std::atomic<bool> granted{false};
};

class PiFutexes::LockBoth {
 public:
  LockBoth(Futex& a, Futex& b) ABSL_NO_THREAD_SAFETY_ANALYSIS : first_(&a < &b ? &a : &b),
                                                                second_(&a < &b ? &b : &a) {
    first_->lock.Lock();
    second_->lock.Lock();
  }
  ~LockBoth() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    second_->lock.Unlock();
    first_->lock.Unlock();
  }
  LockBoth(const LockBoth&) = delete;
  LockBoth& operator=(const LockBoth&) = delete;

 private:
  Futex* const first_;
  Futex* const second_;
};

PiFutexes& PiFutexes::Get() {
  static PiFutexes* all = new PiFutexes;
  return *all;
}

Result<base::Ref<PiFutexes::Futex>> PiFutexes::Find(Task& t, Word word) {
  if (word.addr % sizeof(uint32_t) != 0) return Error(EINVAL);
  FutexKey key{&t.mm(), word.addr};
  base::Ref<base::RefCounted> keep = t.mm_ref();
  bool mapped = word.is_private;
  if (!word.is_private) {
    t.mm().ForEachVma([&](const Vma& vma) {
      if (word.addr < vma.start || word.addr >= vma.end) return;
      mapped = true;
      if (!vma.shared) return;
      uint64_t offset = word.addr - vma.start;
      if (vma.file && vma.file->inode() != nullptr) {
        key = {vma.file->inode(), vma.offset + offset};
        keep = base::Ref<base::RefCounted>(vma.file->inode());
      } else {
        key = {vma.host.file.get(), vma.host.offset + offset};
        keep = base::Ref<base::RefCounted>(vma.host.file.get());
      }
    });
  }
  if (!mapped) return Error(EFAULT);
  absl::MutexLock l(&mutex_);
  Futex*& place = futexes_[key];
  if (place != nullptr && place->TryIncRef()) return base::Ref<Futex>::Adopt(place);
  base::Ref<Futex> made = base::MakeRef<Futex>(this, key, std::move(keep));
  place = made.get();
  return made;
}

// --- the lines of waiters ---

void PiFutexes::Enqueue(Futex& futex, Waiter& waiter) {
  if (futex.waiters.empty()) owned_[futex.owner].push_back(&futex);
  futex.waiters.push_back(&waiter);
  waiter.futex = &futex;
  blocked_[waiter.task] = &futex;
}

// The first in line owns the futex now; the word is the caller's matter, or with `owner_died` that
// of the new owner.
void PiFutexes::GrantFirst(Futex& futex, bool owner_died) {
  Waiter* first = futex.waiters.front();
  futex.waiters.pop_front();
  auto it = owned_.find(futex.owner);
  if (it != owned_.end()) {
    it->second.remove(&futex);
    if (it->second.empty()) owned_.erase(it);
  }
  futex.owner = futex.waiters.empty() && !owner_died ? nullptr : first->task;
  if (!futex.waiters.empty()) owned_[futex.owner].push_back(&futex);
  futex.fixing = owner_died;
  blocked_.erase(first->task);
  first->futex = nullptr;
  first->owner_died = owner_died;
  first->granted.store(true, std::memory_order_release);
  first->queue.WakeAll(EPOLLIN);
}

bool PiFutexes::WouldDeadlock(const Task& waiter, const Task* owner) {
  while (owner != nullptr) {
    if (owner == &waiter) return true;
    auto it = blocked_.find(owner);
    owner = it == blocked_.end() ? nullptr : it->second->owner;
  }
  return false;
}

// The word must agree with what the futex's waiters wait for (Linux: attach_to_pi_state).
base::Status PiFutexes::CheckState(Futex& futex, uint32_t word, bool* waited) {
  absl::MutexLock l(&mutex_);
  *waited = !futex.waiters.empty();
  if (!*waited || futex.fixing) return base::Ok();
  uint32_t tid = word & FUTEX_TID_MASK;
  if (tid == 0 && (word & FUTEX_OWNER_DIED)) return base::Ok();
  if (tid != TidOf(*futex.owner)) return Error(EINVAL);
  return base::Ok();
}

// Joins the line of a futex that somebody owns.
base::Status PiFutexes::Attach(Task& t, Futex& futex, uint32_t word, Waiter& waiter) {
  base::Ref<Task> owner =
      t.kernel().FindTask(t.pid_namespace(), static_cast<int>(word & FUTEX_TID_MASK));
  {
    absl::MutexLock l(&mutex_);
    if (futex.waiters.empty() && !futex.fixing) futex.owner = owner.get();
    if (futex.owner == nullptr) return Error(ESRCH);
    if (WouldDeadlock(*waiter.task, futex.owner)) return Error(EDEADLK);
    Enqueue(futex, waiter);
    // An owner that is gone has been asked for what it owns already, if it is not to be seen here.
    if (futex.waiters.size() > 1 || futex.fixing || owner->mm_ref()) return base::Ok();
    futex.waiters.clear();
    waiter.futex = nullptr;
    blocked_.erase(waiter.task);
    auto it = owned_.find(futex.owner);
    it->second.remove(&futex);
    if (it->second.empty()) owned_.erase(it);
    futex.owner = nullptr;
  }
  return Error(ESRCH);
}

// Takes the lock for `waiter` if it is free; else joins its line. With futex.lock held.
Result<bool> PiFutexes::TryTake(Task& t, uint64_t addr, Futex& futex, Waiter& waiter) {
  while (true) {
    uint32_t word = TRY(ReadWord(t, addr));
    if ((word & FUTEX_TID_MASK) == waiter.tid) return Error(EDEADLK);
    bool waited;
    TRY(CheckState(futex, word, &waited));
    if (!waited && (word & FUTEX_TID_MASK) == 0) {
      uint32_t mine = (word & FUTEX_OWNER_DIED) | waiter.tid;
      {
        absl::MutexLock l(&mutex_);
        if (!futex.to_be_requeued.empty()) mine |= FUTEX_WAITERS;
      }
      if (TRY(Exchange(t, addr, word, mine))) return true;
      continue;
    }
    if (!(word & FUTEX_WAITERS) && !TRY(Exchange(t, addr, word, word | FUTEX_WAITERS))) continue;
    base::Status attached = Attach(t, futex, word, waiter);
    if (attached.ok()) return false;
    if (attached.error().code() != ESRCH) return attached.error();
    // An owner that is not there: unless it has just let go.
    if (TRY(ReadWord(t, addr)) == (word | FUTEX_WAITERS)) return Error(ESRCH);
  }
}

// Waits in the line until the lock is granted. Without futex.lock.
Result<uint64_t> PiFutexes::Await(Task& t, uint64_t addr, Futex& futex, Waiter& waiter,
                                  int64_t deadline_ns, int interrupted) {
  fiber::WakeReason reason = fiber::WaitUntil(
      waiter.queue, EPOLLIN, [&] { return waiter.granted.load(std::memory_order_acquire); },
      {.interruptible = true, .deadline_ns = deadline_ns});
  fiber::MutexLock l(&futex.lock);
  {
    absl::MutexLock l2(&mutex_);
    if (!waiter.granted.load(std::memory_order_relaxed)) {
      futex.waiters.remove(&waiter);
      waiter.futex = nullptr;
      blocked_.erase(waiter.task);
      if (futex.waiters.empty()) {
        auto it = owned_.find(futex.owner);
        it->second.remove(&futex);
        if (it->second.empty()) owned_.erase(it);
        if (!futex.fixing) futex.owner = nullptr;
      }
      return Error(reason == fiber::WakeReason::kTimeout ? ETIMEDOUT : interrupted);
    }
    if (!waiter.owner_died) return uint64_t{0};
  }
  // The owner died: its place in the word is to be taken.
  Result<uint64_t> result = uint64_t{0};
  while (true) {
    Result<uint32_t> word = ReadWord(t, addr);
    if (!word.ok()) {
      result = word.error();
      break;
    }
    Result<bool> done = Exchange(t, addr, *word, FUTEX_OWNER_DIED | FUTEX_WAITERS | waiter.tid);
    if (done.ok() && !*done) continue;
    if (!done.ok()) result = done.error();
    break;
  }
  absl::MutexLock l2(&mutex_);
  futex.fixing = false;
  if (futex.waiters.empty()) futex.owner = nullptr;
  return result;
}

// --- the operations ---

Result<uint64_t> PiFutexes::Lock(Task& t, Word word, int64_t deadline_ns, bool only_try) {
  base::Ref<Futex> futex = TRY(Find(t, word));
  Waiter waiter(t);
  {
    fiber::MutexLock l(&futex->lock);
    if (TRY(TryTake(t, word.addr, *futex, waiter))) return uint64_t{0};
  }
  if (only_try) deadline_ns = 0;
  Result<uint64_t> result = Await(t, word.addr, *futex, waiter, deadline_ns, base::kERESTARTNOINTR);
  if (only_try && !result.ok() && result.error().code() != EFAULT) return Error(EAGAIN);
  return result;
}

Result<uint64_t> PiFutexes::Unlock(Task& t, Word word) {
  if ((TRY(ReadWord(t, word.addr)) & FUTEX_TID_MASK) != TidOf(t)) return Error(EPERM);
  base::Ref<Futex> futex = TRY(Find(t, word));
  fiber::MutexLock l(&futex->lock);
  while (true) {
    uint32_t held = TRY(ReadWord(t, word.addr));
    if ((held & FUTEX_TID_MASK) != TidOf(t)) return Error(EPERM);
    uint32_t next = 0;
    {
      absl::MutexLock l2(&mutex_);
      if (!futex->waiters.empty()) {
        if (futex->owner != &t) return Error(EINVAL);
        next = FUTEX_WAITERS | futex->waiters.front()->tid;
      }
    }
    // Waiters leave and join with the lock held that is held here.
    if (!TRY(Exchange(t, word.addr, held, next))) continue;
    absl::MutexLock l2(&mutex_);
    if (next != 0) GrantFirst(*futex, false);
    return uint64_t{0};
  }
}

Result<uint64_t> PiFutexes::WaitRequeue(Task& t, Word word, uint32_t value, Word target,
                                        int64_t deadline_ns) {
  if (word.addr == target.addr) return Error(EINVAL);
  base::Ref<Futex> futex = TRY(Find(t, word));
  Waiter waiter(t);
  waiter.target = TRY(Find(t, target));
  if (futex == waiter.target) return Error(EINVAL);
  {
    fiber::MutexLock l(&futex->lock);
    if (TRY(ReadWord(t, word.addr)) != value) return Error(EAGAIN);
    absl::MutexLock l2(&mutex_);
    futex->to_be_requeued.push_back(&waiter);
  }
  fiber::WakeReason reason = fiber::WaitUntil(
      waiter.queue, EPOLLIN, [&] { return waiter.granted.load(std::memory_order_acquire); },
      {.interruptible = true, .deadline_ns = deadline_ns});
  {
    fiber::MutexLock l(&futex->lock);
    absl::MutexLock l2(&mutex_);
    if (!waiter.requeued) {
      futex->to_be_requeued.remove(&waiter);
      return Error(reason == fiber::WakeReason::kTimeout ? ETIMEDOUT : base::kERESTARTNOINTR);
    }
  }
  if (reason != fiber::WakeReason::kWoken) deadline_ns = 0;  // what ended the wait ends this too
  Result<uint64_t> result = Await(t, target.addr, *waiter.target, waiter, deadline_ns, EAGAIN);
  if (!result.ok() && result.error().code() == ETIMEDOUT &&
      reason == fiber::WakeReason::kInterrupted) {
    return Error(EAGAIN);
  }
  return result;
}

Result<uint64_t> PiFutexes::Requeue(Task& t, Word word, uint32_t value, Word target,
                                    int32_t count) {
  if (word.addr == target.addr) return Error(EINVAL);
  base::Ref<Futex> from = TRY(Find(t, word));
  base::Ref<Futex> to = TRY(Find(t, target));
  if (from == to) return Error(EINVAL);
  LockBoth both(*from, *to);
  if (TRY(ReadWord(t, word.addr)) != value) return Error(EAGAIN);
  uint64_t moved = 0;
  // One to be woken, and `count` others.
  for (int64_t left = int64_t{count} + 1; left > 0; --left) {
    Waiter* waiter = nullptr;
    {
      absl::MutexLock l(&mutex_);
      if (from->to_be_requeued.empty()) break;
      waiter = from->to_be_requeued.front();
      if (waiter->target != to) return Error(EINVAL);
    }
    Result<bool> taken = TryTake(t, target.addr, *to, *waiter);
    if (!taken.ok()) {
      if (moved > 0) break;
      return taken.error();
    }
    absl::MutexLock l(&mutex_);
    from->to_be_requeued.remove(waiter);
    waiter->requeued = true;
    if (*taken) {
      waiter->granted.store(true, std::memory_order_release);
      waiter->queue.WakeAll(EPOLLIN);
    }
    ++moved;
  }
  return moved;
}

void PiFutexes::OwnerExits(Task& t) {
  absl::MutexLock l(&mutex_);
  while (true) {
    auto it = owned_.find(&t);
    if (it == owned_.end()) return;
    GrantFirst(*it->second.front(), true);
  }
}

}  // namespace sentry
