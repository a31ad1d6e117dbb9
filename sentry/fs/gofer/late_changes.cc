// Changes of attributes that are not waited for. Who unpacks files (tar, dpkg, cp -p) sets times,
// owner and permissions of each that it has just written: three exchanges with the gofer, of which
// the guest needs to know nothing.
#include <sys/stat.h>

#include <utility>

#include "sentry/base/log.h"
#include "sentry/fs/gofer/inode.h"

namespace sentry {
namespace {

// So many are under way at most; further ones are waited for.
constexpr int kMaxLate = 64;
// What can be asked for late. Times that are "now" would become known late only.
constexpr uint32_t kLateMask =
    gofer::kSetMode | gofer::kSetUid | gofer::kSetGid | gofer::kSetAtime | gofer::kSetMtime;

}  // namespace

// The sentry has checked that the change is allowed, and the gofer could make such changes before.
// So its host call fails for want of room or quota alone, and takes none where the file has been
// opened for writing (which also makes overlayfs copy it) and does not get another owner.
bool GoferInode::MayBeLate(const gofer::SetAttrRequest& r) const {
  if ((r.mask & ~kLateMask) != 0 || (r.mask & late_mask_) != 0) return false;
  if (opens_ == 0 || !write_fd_) return false;
  if ((r.mask & (gofer::kSetUid | gofer::kSetGid)) == 0) return true;
  // A change of owner, even to the same, may take set-id bits away.
  return ((r.mask | late_mask_) & gofer::kSetMode) == 0 &&
         (attr_.mode & (S_ISUID | S_ISGID)) == 0 &&
         ((r.mask & gofer::kSetUid) == 0 || r.uid == attr_.uid) &&
         ((r.mask & gofer::kSetGid) == 0 || r.gid == attr_.gid);
}

bool GoferInode::ChangeLate(const gofer::SetAttrRequest& r) {
  GoferConnection& connection = gofer_fs().connection();
  if (!gofer_fs().exclusive() || !IsReg() || connection.late_calls() >= kMaxLate) return false;
  uint32_t owner;
  {
    absl::MutexLock l(&mutex_);
    owner = attr_.uid;
  }
  if (!gofer_fs().CanChange(host_dev_, owner, r.mask)) return false;
  auto late = base::MakeRef<GoferLateCall>();
  {
    absl::MutexLock l(&mutex_);
    if (!MayBeLate(r)) return false;
    late_changes_.push_back(late);
    late_mask_ |= r.mask;
    unsettled_.store(true, std::memory_order_release);
    atime_due_.store(true, std::memory_order_relaxed);  // the status changes, if not more
    if ((r.mask & gofer::kSetMode) != 0) {
      attr_.mode = (attr_.mode & S_IFMT) | r.mode;
      CachePerm(attr_.mode, attr_.uid, attr_.gid);
    }
  }
  connection.CallLate(late, gofer::MakeSetAttr(r));
  MarkStale();
  return true;
}

void GoferInode::NoteChange(uint32_t mask, bool done) {
  uint32_t owner;
  {
    absl::MutexLock l(&mutex_);
    owner = attr_.uid;
  }
  gofer_fs().NoteChange(host_dev_, owner, mask, done);
}

void GoferInode::SettleSlow() {
  std::vector<base::Ref<GoferLateCall>> late;
  {
    absl::MutexLock l(&mutex_);
    late = late_changes_;
  }
  for (const auto& call : late) {
    gofer_fs().connection().Await(*call);
    if (call->error() == 0) continue;
    LOG_LIMITED(base::LogLevel::kWarning,
                "a file's attributes could not be changed after the change was confirmed: errno %d",
                call->error());
  }
  absl::MutexLock l(&mutex_);
  std::erase_if(late_changes_, [](const auto& call) { return call->done(); });
  if (!late_changes_.empty()) return;
  late_mask_ = 0;
  unsettled_.store(false, std::memory_order_release);
}

std::vector<base::Ref<GoferLateCall>> GoferInode::TakeLateChanges() {
  absl::MutexLock l(&mutex_);
  return std::move(late_changes_);
}

}  // namespace sentry
