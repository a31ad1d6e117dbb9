// Leases of files (Linux: fs/locks.c, generic_setlease and __break_lease).
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <utility>

#include "sentry/vfs/file_description.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/inode.h"

namespace sentry {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

int64_t Now() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * kSecond + ts.tv_nsec;
}

bool Past(int64_t deadline_ns, int64_t now) { return deadline_ns != 0 && deadline_ns <= now; }

}  // namespace

std::atomic<int> g_leases_enable{1}, g_lease_break_time{45};

FileLocks::Lease* FileLocks::FindLease(const FileDescription& holder) {
  for (Lease& lease : leases_) {
    if (lease.holder == &holder) return &lease;
  }
  return nullptr;
}

// lease_modify().
void FileLocks::ModifyLease(const FileDescription& holder, int type) {
  if (type == F_UNLCK) {
    std::erase_if(leases_, [&](const Lease& lease) { return lease.holder == &holder; });
    NoteAny();
    return;
  }
  Lease& lease = *FindLease(holder);
  lease.type = type;
  if (type == F_RDLCK) lease.downgrade = false;
}

base::Status FileLocks::SetLease(FileDescription& holder, int fd, int type,
                                 const std::function<bool()>& alone) {
  if (!alone()) return base::Error(EAGAIN);
  bool changed = false;
  {
    absl::MutexLock l(&mutex_);
    for (const Lease& lease : leases_) {
      if (lease.holder == &holder) continue;
      if (type == F_WRLCK || lease.unlock) return base::Error(EAGAIN);
    }
    changed = FindLease(holder) != nullptr;
    if (changed) {
      ModifyLease(holder, type);
    } else {
      if (g_leases_enable.load() == 0) return base::Error(EINVAL);
      leases_.push_back({.holder = &holder, .fd = fd, .type = type});
      NoteAny();
    }
  }
  if (changed) {
    queue_.WakeAll(EPOLLOUT);
    return base::Ok();
  }
  // Whoever has opened it meanwhile may not have seen the lease.
  if (alone()) return base::Ok();
  (void)DropLease(holder);
  return base::Error(EAGAIN);
}

base::Status FileLocks::DropLease(const FileDescription& holder) {
  {
    absl::MutexLock l(&mutex_);
    if (FindLease(holder) == nullptr) return base::Error(EAGAIN);
    ModifyLease(holder, F_UNLCK);
  }
  queue_.WakeAll(EPOLLOUT);
  return base::Ok();
}

int FileLocks::LeaseOf(const FileDescription& holder) {
  int64_t next;
  (void)LeasesAllow(true, &next);  // ends what is over
  absl::ReaderMutexLock l(&mutex_);
  const Lease* lease = FindLease(holder);
  if (lease == nullptr || lease->unlock) return F_UNLCK;
  return lease->downgrade ? F_RDLCK : lease->type;
}

bool FileLocks::LeasesAllow(bool write, int64_t* next_ns) {
  const int64_t now = Now();
  *next_ns = fiber::kNoDeadline;
  bool allow = true;
  absl::MutexLock l(&mutex_);
  std::erase_if(leases_,
                [&](const Lease& lease) { return lease.unlock && Past(lease.unlock_ns, now); });
  NoteAny();
  for (Lease& lease : leases_) {
    if (lease.downgrade && Past(lease.downgrade_ns, now)) {
      lease.type = F_RDLCK;
      lease.downgrade = false;
    }
    if (!write && lease.type != F_WRLCK) continue;
    allow = false;
    for (int64_t end :
         {lease.unlock ? lease.unlock_ns : 0, lease.downgrade ? lease.downgrade_ns : 0}) {
      if (end != 0) *next_ns = std::min(*next_ns, end);
    }
  }
  return allow;
}

base::Status FileLocks::BreakLeases(bool write, bool nonblock) {
  int64_t next;
  if (LeasesAllow(write, &next)) return base::Ok();
  const int seconds = g_lease_break_time.load();
  const int64_t deadline = seconds > 0 ? Now() + seconds * kSecond : 0;
  std::vector<std::pair<base::Ref<FileDescription>, int>> told;
  {
    absl::MutexLock l(&mutex_);
    for (Lease& lease : leases_) {
      if (!write && (lease.type != F_WRLCK || lease.unlock || lease.downgrade)) continue;
      if (write && lease.unlock) continue;
      (write ? lease.unlock : lease.downgrade) = true;
      (write ? lease.unlock_ns : lease.downgrade_ns) = deadline;
      if (!lease.holder->TryIncRef()) continue;  // it is about to go
      told.emplace_back(base::Ref<FileDescription>::Adopt(lease.holder), lease.fd);
    }
  }
  for (const auto& [holder, fd] : told) holder->NotifyOwner(fd, POLL_MSG);
  told.clear();
  if (nonblock) return LeasesAllow(write, &next) ? base::Ok() : base::Error(EWOULDBLOCK);
  while (!LeasesAllow(write, &next)) {
    int64_t unused;
    const auto reason =
        fiber::WaitUntil(queue_, EPOLLOUT, [&] { return LeasesAllow(write, &unused); },
                         {.interruptible = true, .deadline_ns = next});
    if (reason == fiber::WakeReason::kInterrupted) return base::Error(base::kERESTARTSYS);
  }
  // What has run out lets others in too.
  queue_.WakeAll(EPOLLOUT);
  return base::Ok();
}

base::Status BreakLease(Inode& inode, uint32_t flags) {
  FileLocks* locks = inode.locks_if_any();
  if (locks == nullptr || !locks->has_leases()) return base::Ok();
  return locks->BreakLeases((flags & O_ACCMODE) != O_RDONLY, (flags & O_NONBLOCK) != 0);
}

}  // namespace sentry
