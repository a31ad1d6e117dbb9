// The urgent byte of AF_UNIX streams (MSG_OOB; Linux: CONFIG_AF_UNIX_OOB).
#include <cstddef>
#include <utility>

#include "sentry/kernel/async/sigio.h"
#include "sentry/net/unix/endpoint.h"

namespace sentry {

using base::Error;
using base::Result;

void UnixEndpoint::SetDescription(FileDescription* file) {
  if (file != nullptr) {
    ino_.store(file->inode()->ino());
    if (auto perm = file->inode()->GetPerm(); perm.ok()) uid_.store(perm->uid);
  }
  absl::MutexLock lock(&description_mutex_);
  description_ = file;
}

void UnixEndpoint::SendSigurg() {
  FileDescription::AsyncOwner owner;
  {
    absl::MutexLock lock(&description_mutex_);
    if (description_ == nullptr) return;
    owner = description_->async_owner();
  }
  sentry::SendSigurg(owner);
}

bool UnixEndpoint::AtMark() const {
  absl::MutexLock lock(&mutex_);
  if (records_.empty()) return false;
  if (records_.front().urgent) return true;
  if (records_.front().gone == 0) return false;
  return !has_urgent_ || (records_.size() > 1 && records_[1].urgent);
}

bool UnixEndpoint::HasRecord(const Reading* r) const {
  absl::MutexLock lock(&mutex_);
  if (r == nullptr || !r->peek) return !records_.empty();
  // What is passed over by SO_PEEK_OFF is no reason to look again.
  size_t offset = r->from;
  for (const UnixRecord& record : records_) {
    if ((stream() && record.length == 0) || (record.urgent && !r->in_line)) continue;
    if (offset == 0 || offset < record.length) return true;
    offset -= record.length;
  }
  return false;
}

void UnixEndpoint::PassRecord(Reading* r, std::vector<UnixRecord>* passed) {
  UnixRecord& record = records_[r->index];
  if (r->peek) {
    r->skip += record.gone + record.length;
    ++r->index;
    return;
  }
  passed->push_back(std::move(record));
  records_.pop_front();
}

bool UnixEndpoint::PassUrgent(Reading* r) {
  std::vector<UnixRecord> passed;
  const bool more = PassUrgent(r, &passed);
  for (UnixRecord& record : passed) {
    const size_t n = record.gone + record.length;
    bytes_.ConsumedTo(bytes_.read() + n);
    if (queued_.fetch_sub(n) == n) bytes_.Rewind();
    record.from->Uncharge(record.charge);
    if (!record.files.empty()) RemoveInflight(record.files, record.files_uid);
    for (auto& file : record.files) r->dropped.push_back(std::move(file));
  }
  return more;
}

bool UnixEndpoint::PassUrgent(Reading* r, std::vector<UnixRecord>* passed) {
  absl::MutexLock lock(&mutex_);
  if (r->index < records_.size() && records_[r->index].gone > 0) {
    // Bytes from before and after it are not glued together, unless another one is ahead.
    if (r->total > 0 && !has_urgent_) return false;
    PassRecord(r, passed);
  }
  if (r->index >= records_.size() || !records_[r->index].urgent) return true;
  if (r->total > 0) return false;
  if (!r->peek) records_[r->index].urgent = has_urgent_ = false;
  if (!r->in_line) PassRecord(r, passed);
  return true;
}

Result<size_t> UnixEndpoint::ReceiveUrgent(IoDest& dst, RecvArgs* args, bool in_line) {
  if (state() != State::kConnected) return Error(EINVAL);
  fiber::MutexLock io(&io_mutex_);
  uint64_t at = bytes_.read();
  {
    absl::MutexLock lock(&mutex_);
    if (in_line || !has_urgent_) return Error(EINVAL);
    size_t i = 0;
    for (; !records_[i].urgent; ++i) at += records_[i].gone + records_[i].length;
    if ((args->flags & MSG_PEEK) == 0) {
      UnixRecord& r = records_[i];
      r.urgent = has_urgent_ = false;
      r.gone = std::exchange(r.length, 0);
      // Two in succession are one place.
      if (i > 0 && records_[i - 1].gone > 0 && records_[i - 1].files.empty()) {
        r.gone += records_[i - 1].gone;
        r.charge += records_[i - 1].charge;
        records_.erase(records_.begin() + static_cast<ptrdiff_t>(i) - 1);
      }
    }
  }
  // Whether it can be stored or not, it has been received.
  if (dst.remaining() > 0 && TRY(bytes_.Copy(at, 1, dst)) == 0) return Error(EFAULT);
  args->out_flags |= MSG_OOB;
  return size_t{1};
}

}  // namespace sentry
