#include "platform/systrap/chores.h"

#include <algorithm>
#include <utility>

#include "platform/systrap/platform.h"
#include "platform/systrap/stub_process.h"

namespace platform {

Chores::~Chores() {
  {
    absl::MutexLock lock(&mu_);
    wanted_ = 0;
    fill_pool_ = false;
  }
  std::vector<base::Ref<StubProcess>> ready;
  {
    absl::MutexLock lock(&mu_);
    ready.swap(ready_);
  }
  ready.clear();
  while (DoOne()) {
  }
}

void Chores::Kill(base::Ref<StubProcess> process) {
  {
    absl::MutexLock lock(&mu_);
    to_kill_.push_back(std::move(process));
    pending_.fetch_add(1, std::memory_order_relaxed);
  }
  DoOldestBeyondLimit();
}

void Chores::Bury(Remains remains) {
  {
    absl::MutexLock lock(&mu_);
    to_bury_.push_back(std::move(remains));
    pending_.fetch_add(1, std::memory_order_relaxed);
  }
  DoOldestBeyondLimit();
}

void Chores::FillPool() {
  absl::MutexLock lock(&mu_);
  if (std::exchange(fill_pool_, true)) return;
  pending_.fetch_add(1, std::memory_order_relaxed);
}

base::Result<base::Ref<StubProcess>> Chores::TakeMailbox() {
  {
    absl::MutexLock lock(&mu_);
    pending_.fetch_sub(wanted_, std::memory_order_relaxed);
    base::Ref<StubProcess> process;
    if (!ready_.empty()) {
      process = std::move(ready_.back());
      ready_.pop_back();
    }
    // Some more may be in the making, or ready.
    wanted_ = kReadyMailboxes - std::min(kReadyMailboxes, ready_.size());
    pending_.fetch_add(wanted_, std::memory_order_relaxed);
    if (process) return process;
  }
  return StubProcess::Create(platform_, nullptr);
}

void Chores::DoOldestBeyondLimit() {
  if (pending_.load(std::memory_order_relaxed) > kMaxPending) DoOne();
}

bool Chores::DoOne() {
  base::Ref<StubProcess> victim;
  Remains remains;
  enum { kKill, kFill, kMake, kBury } what;
  {
    absl::MutexLock lock(&mu_);
    if (!to_kill_.empty()) {
      what = kKill;
      victim = std::move(to_kill_.front());
      to_kill_.pop_front();
    } else if (std::exchange(fill_pool_, false)) {
      what = kFill;
    } else if (wanted_ != 0) {
      what = kMake;
      wanted_--;
    } else if (!to_bury_.empty()) {
      what = kBury;
      remains = std::move(to_bury_.front());
      to_bury_.pop_front();
    } else {
      return false;
    }
    pending_.fetch_sub(1, std::memory_order_relaxed);
  }
  switch (what) {
    case kKill:
      victim->Kill();
      break;
    case kFill:
      platform_->KickKeeper();
      break;
    case kMake:
      if (auto made = StubProcess::Create(platform_, nullptr); made.ok()) {
        absl::MutexLock lock(&mu_);
        ready_.push_back(std::move(*made));
      }
      break;
    case kBury:
      break;  // by the end of `remains`
  }
  return true;
}

}  // namespace platform
