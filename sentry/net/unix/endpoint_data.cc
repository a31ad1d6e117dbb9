// How messages and bytes move between AF_UNIX ends.
#include <sys/epoll.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "sentry/net/unix/endpoint.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kOut = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
constexpr size_t kMessageOverhead = 32;  // unix_dgram_sendmsg: len > sk_sndbuf - 32 is EMSGSIZE

// What a message of `length` bytes takes of the sender's buffer, so that small ones are bounded
// too: as Linux counts it (SKB_TRUESIZE), the header and data in a power of two, or pages.
size_t TrueSize(size_t length) {
  constexpr size_t kHeader = 256, kShared = 320, kPage = 4096;
  if (length + kShared <= 2 * kPage) return kHeader + std::bit_ceil(length + kShared);
  return kHeader + 2 * kHeader + (length + kPage - 1) / kPage * kPage;
}

// The address of a sender; one without a name has none at all.
SockAddr AddressOf(const std::string& name) {
  SockAddr a;
  if (name.empty()) return a;
  sa_family_t family = AF_UNIX;
  memcpy(a.bytes.data(), &family, sizeof(family));
  size_t n = std::min(name.size(), sizeof(sockaddr_un::sun_path));
  memcpy(a.bytes.data() + sizeof(family), name.data(), n);
  a.length = static_cast<uint32_t>(sizeof(family) + n + (name[0] != '\0' ? 1 : 0));
  return a;
}

Error Interrupted(int64_t deadline_ns) {
  return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
}

}  // namespace

void UnixEndpoint::Append(UnixEndpoint& from, size_t length, SendArgs& args, bool urgent) {
  bytes_.Produced(length);
  queued_.fetch_add(length);
  absl::MutexLock lock(&mutex_);
  if (stream() && !urgent && args.files.empty() && !records_.empty()) {
    UnixRecord& last = records_.back();
    if (last.files.empty() && !last.mark && last.creds == *args.creds && last.from.get() == &from) {
      last.length += length;
      last.charge += length;
      from.charged_.fetch_add(length);
      return;
    }
  }
  UnixRecord record;
  record.length = length;
  record.charge = TrueSize(length);
  from.charged_.fetch_add(record.charge);
  record.creds = *args.creds;
  record.files_uid = record.creds.uid;
  record.files = std::move(args.files);
  record.from = base::Ref<UnixEndpoint>(&from);
  args.files.clear();
  if (urgent) {
    // What was urgent before is so no longer.
    for (UnixRecord& r : records_) r.urgent = false;
    record.mark = record.urgent = has_urgent_ = true;
  }
  records_.push_back(std::move(record));
}

void UnixEndpoint::Uncharge(size_t n) {
  charged_.fetch_sub(n);
  if (Writable()) queue_.Wake(kOut);
}

void UnixEndpoint::Consume(size_t n, bool whole) {
  base::Ref<UnixEndpoint> from;
  size_t charge;
  {
    absl::MutexLock lock(&mutex_);
    if (records_.empty()) return;  // closed meanwhile
    UnixRecord& r = records_.front();
    if (whole) n = r.length;
    r.length -= n;
    charge = r.length == 0 ? r.charge : n;
    r.charge -= charge;
    from = r.from;
    if (r.length == 0) records_.pop_front();
  }
  bytes_.ConsumedTo(bytes_.read() + n);
  if (queued_.fetch_sub(n) == n) bytes_.Rewind();
  from->Uncharge(charge);
}

bool UnixEndpoint::Look(size_t index, Glance* glance) const {
  absl::MutexLock lock(&mutex_);
  if (index >= records_.size()) return false;
  const UnixRecord& r = records_[index];
  *glance = {r.length, r.creds, !r.files.empty(), r.from};
  return true;
}

bool UnixEndpoint::LookFrom(size_t from, Glance* glance, Reading* r) const {
  r->index = r->skip = 0;
  r->from = from;
  for (r->offset = from; Look(r->index, glance); PassPeeked(glance->length, r)) {
    if (r->offset == 0 || r->offset < glance->length) return true;
    r->offset -= glance->length;
  }
  return false;
}

void UnixEndpoint::PassPeeked(size_t length, Reading* r) {
  r->skip += length;
  ++r->index;
}

void UnixEndpoint::TakeFilesOf(size_t index, bool peek, RecvArgs* args) {
  uid_t uid;
  {
    absl::MutexLock lock(&mutex_);
    if (index >= records_.size() || records_[index].files.empty()) return;
    UnixRecord& r = records_[index];
    uid = r.files_uid;
    if (peek) {
      args->files = r.files;
      return;
    }
    args->files = std::move(r.files);
    r.files.clear();
  }
  RemoveInflight(args->files, uid);
}

// --- sending ---

Status UnixEndpoint::CheckSendShut() {
  absl::MutexLock lock(&mutex_);
  return (shutdown_ & kSendShut) != 0 ? Status(Error(EPIPE)) : base::Ok();
}

Status UnixEndpoint::CheckSend(UnixEndpoint& to) {
  {
    absl::MutexLock lock(&mutex_);
    if (shutdown_ & kSendShut) return Error(EPIPE);
  }
  absl::MutexLock lock(&to.mutex_);
  if (to.dead_) return Error(datagram() ? ECONNREFUSED : EPIPE);
  if (to.shutdown_ & kReceiveShut) return Error(EPIPE);
  return base::Ok();
}

Result<size_t> UnixEndpoint::SendSome(UnixEndpoint& to, IoSource& src, SendArgs& args) {
  TRY(CheckSend(to));
  const bool out_of_band = (args.flags & MSG_OOB) != 0;
  const bool urgent = out_of_band && src.remaining() == 1;  // the last byte
  if (to.plain_.load() && (urgent || !args.files.empty())) to.MakeRecords(*this);
  if (to.plain_.load()) return to.FillPlain(src, out_of_band ? 1 : 0);
  TRY(to.bytes_.Ensure());
  const size_t limit = static_cast<size_t>(send_buffer()), charged = charged_.load();
  const size_t room = std::min(to.bytes_.Room(), limit > charged ? limit - charged : 0);
  if (room == 0) return size_t{0};
  const size_t want = src.remaining() - (out_of_band && !urgent ? 1 : 0);
  const size_t n = TRY(to.bytes_.Fill(src, std::min(room, want)));
  if (n == 0) return Error(EFAULT);
  to.Append(*this, n, args, urgent);
  if (urgent) to.SendSigurg();
  return n;
}

Result<size_t> UnixEndpoint::SendStream(IoSource& src, SendArgs& args, int64_t deadline_ns) {
  base::Ref<UnixEndpoint> to = peer();
  if (to == nullptr) return Error(ENOTCONN);
  TRY(CheckSendShut());  // also of nothing
  size_t total = 0;
  VainRounds rounds;
  while (src.remaining() > 0) {
    Result<size_t> n = size_t{0};
    {
      fiber::MutexLock lock(&to->io_mutex_);
      n = SendSome(*to, src, args);
    }
    if (n.ok() && *n > 0) {
      total += *n;
      rounds = VainRounds();
      to->queue_.Wake((args.flags & MSG_OOB) != 0 && src.remaining() == 0 ? kIn | EPOLLPRI : kIn);
      continue;
    }
    Status status = n.ok() ? base::Ok() : Status(n.error());
    if (status.ok() && args.nonblock) status = Error(EAGAIN);
    if (status.ok()) {
      auto reason =
          fiber::WaitUntil(queue_, EPOLLOUT | EPOLLHUP,
                           [&] { return WritableTo(*to, platform::kWish) || !CheckSend(*to).ok(); },
                           {.interruptible = true, .deadline_ns = deadline_ns});
      if (reason == fiber::WakeReason::kTimeout) status = Error(EAGAIN);
      if (reason == fiber::WakeReason::kInterrupted || !rounds.Note()) {
        status = Interrupted(deadline_ns);
      }
    }
    if (!status.ok()) return total > 0 ? Result<size_t>(total) : status.error();
  }
  return total;
}

bool UnixEndpoint::QueueFull() const {
  absl::MutexLock lock(&mutex_);
  return records_.size() > kMaxQueuedMessages;
}

bool UnixEndpoint::HasRoomFor(UnixEndpoint& to, size_t n) {
  // As sock_alloc_send_pskb: the last message may go beyond the limit.
  if (charged_.load() >= static_cast<size_t>(send_buffer())) return false;
  if (ByteStream::kSize - std::min(to.queued_.load(), ByteStream::kSize) < n) return false;
  return to.peer().get() == this || !to.QueueFull();
}

Result<size_t> UnixEndpoint::SendMessage(UnixEndpoint& to, IoSource& src, SendArgs& args,
                                         int64_t deadline_ns) {
  size_t length = src.remaining();
  if (length + kMessageOverhead > static_cast<size_t>(send_buffer()) ||
      length > ByteStream::kSize) {
    return Error(EMSGSIZE);
  }
  while (true) {
    {
      fiber::MutexLock lock(&to.io_mutex_);
      TRY(CheckSend(to));
      TRY(to.bytes_.Ensure());
      if (HasRoomFor(to, length) && to.bytes_.Room() >= length) {
        if (length > 0 && TRY(to.bytes_.Fill(src, length)) != length) return Error(EFAULT);
        to.Append(*this, length, args);
        break;
      }
    }
    if (args.nonblock) return Error(EAGAIN);
    auto has_room = [&] { return !CheckSend(to).ok() || HasRoomFor(to, length); };
    // Room comes when the receiver reads; what others sent counts too.
    auto reason = fiber::WaitUntil(to.room_queue_, EPOLLOUT, has_room,
                                   {.interruptible = true, .deadline_ns = deadline_ns});
    if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
    if (reason == fiber::WakeReason::kInterrupted) return Interrupted(deadline_ns);
  }
  to.queue_.Wake(kIn);
  return length;
}

// --- receiving ---

// Parks, with io_mutex_ given up, until there is a record or a reason why none will come. *end: the
// other side sends no more.
Status UnixEndpoint::WaitForData(int64_t deadline_ns, bool nonblock, bool* end, const Reading* r) {
  {
    absl::MutexLock lock(&mutex_);
    if (error_ != 0) return Error(std::exchange(error_, 0));
    if (shutdown_ & kReceiveShut) {
      *end = true;
      return base::Ok();
    }
  }
  if (nonblock) return Error(EAGAIN);
  io_mutex_.Unlock();
  auto reason = fiber::WaitUntil(queue_, EPOLLIN | EPOLLHUP,
                                 [&] {
                                   if (HasBytes(platform::kWish) || HasRecord(r)) return true;
                                   absl::MutexLock lock(&mutex_);
                                   return error_ != 0 || (shutdown_ & kReceiveShut) != 0;
                                 },
                                 {.interruptible = true, .deadline_ns = deadline_ns});
  io_mutex_.Lock();
  if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
  if (reason == fiber::WakeReason::kInterrupted) return Interrupted(deadline_ns);
  return base::Ok();
}

Result<size_t> UnixEndpoint::ReceiveStream(IoDest& dst, RecvArgs* args, int64_t deadline_ns,
                                           bool in_line) {
  if (state() != State::kConnected) return Error(EINVAL);
  Reading r{.peek = (args->flags & MSG_PEEK) != 0, .in_line = in_line};
  r.from = r.offset = args->options->PeekFrom(args->flags);
  Result<size_t> n = size_t{0};
  {
    fiber::MutexLock lock(&io_mutex_);
    n = ReadStream(dst, args, deadline_ns, &r);
  }
  if (!r.dropped.empty()) DropFiles(std::move(r.dropped));
  return n;
}

Result<size_t> UnixEndpoint::ReadStream(IoDest& dst, RecvArgs* args, int64_t deadline_ns,
                                        Reading* r) {
  const bool all = (args->flags & MSG_WAITALL) != 0;
  bool have_creds = false, end = false;
  Status status;
  VainRounds rounds;
  while (dst.remaining() > 0) {
    if (plain_.load()) {
      Result<size_t> n = TakePlain(dst, r->peek ? r->total : 0, r->peek);
      if (!n.ok()) {
        status = n.error();
        break;
      }
      r->total += *n;
      if (*n > 0) continue;
    }
    if (!PassUrgent(r)) break;
    Glance record;
    if (!Look(r->index, &record)) {
      if (r->total > 0 && (!all || r->peek)) break;
      status = WaitForData(deadline_ns, args->nonblock, &end, r);
      if (status.ok() && !end && !rounds.Note()) status = Interrupted(deadline_ns);
      if (!status.ok() || end) break;
      // What was passed over while peeking may have gone meanwhile.
      if (r->total == 0) {
        r->index = r->skip = 0;
        r->from = r->offset = args->options->PeekFrom(args->flags);
      }
      continue;
    }
    if (r->offset > 0 && r->offset >= record.length) {
      r->offset -= record.length;
      PassPeeked(record.length, r);
      continue;
    }
    // Messages of different senders are not glued together.
    if (have_creds && (args->has_creds || args->has_pidfd) && !(args->creds == record.creds)) break;
    args->creds = record.creds;
    have_creds = true;
    record.length -= r->offset;
    r->skip += r->offset;
    r->offset = 0;
    size_t want = std::min(record.length, dst.remaining());
    Result<size_t> n = bytes_.Copy(bytes_.read() + r->skip, want, dst);
    if (!n.ok() || *n < want) {
      // What cannot be stored as a whole stays.
      status = Error(EFAULT);
      break;
    }
    r->total += *n;
    args->options->NoteReceived(args->flags, *n);
    if (record.has_files) TakeFilesOf(r->index, r->peek, args);
    if (r->peek) {
      PassPeeked(record.length, r);
    } else {
      Consume(*n, false);
    }
    if (*n < record.length || record.has_files) break;
  }
  if (r->total > 0 || status.ok()) return r->total;
  return status.error();
}

void UnixEndpoint::WakeSenders() {
  std::vector<base::Ref<UnixEndpoint>> pollers;
  {
    absl::MutexLock lock(&mutex_);
    pollers.swap(full_pollers_);
  }
  room_queue_.WakeAll(EPOLLOUT);
  for (auto& sender : pollers) sender->queue_.WakeAll(kOut);
}

Result<size_t> UnixEndpoint::ReceiveMessage(IoDest& dst, RecvArgs* args, int64_t deadline_ns) {
  if (!datagram() && state() != State::kConnected) return Error(ENOTCONN);
  bool peek = (args->flags & MSG_PEEK) != 0;
  size_t total;
  {
    fiber::MutexLock lock(&io_mutex_);
    Glance record;
    Reading r{.peek = peek, .in_line = true};
    while (!LookFrom(args->options->PeekFrom(args->flags), &record, &r)) {
      bool end = false;
      TRY(WaitForData(deadline_ns, args->nonblock, &end, &r));
      // No message comes any more; only who would wait is told by an end.
      if (end && datagram() && args->nonblock) return Error(EAGAIN);
      if (end) return size_t{0};
    }
    record.length -= r.offset;
    size_t want = std::min(record.length, dst.remaining());
    if (want < record.length) args->out_flags |= MSG_TRUNC;
    args->full_length = record.length;
    args->creds = record.creds;
    args->from = AddressOf(record.from->name());
    Result<size_t> n = bytes_.Copy(bytes_.read() + r.skip + r.offset, want, dst);
    TakeFilesOf(r.index, peek, args);
    if (!peek) Consume(0, /*whole=*/true);
    args->options->NoteReceived(args->flags, peek ? want : record.length);
    if (!n.ok() || *n < want) return Error(EFAULT);  // and the message is gone
    total = *n;
  }
  if (!peek) WakeSenders();
  return total;
}

Result<size_t> UnixEndpoint::BytesReadable() const {
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kListening) return Error(EINVAL);
  if (datagram()) return records_.empty() ? size_t{0} : records_.front().length;
  if (plain_.load()) return bytes_.Used();
  size_t n = 0;
  for (const UnixRecord& r : records_) n += r.length;
  return n;
}

size_t UnixEndpoint::BytesUnread() const {
  const size_t charged = charged_.load(std::memory_order_relaxed);
  base::Ref<UnixEndpoint> to = stream() ? peer() : nullptr;
  return to != nullptr && to->plain_.load() ? charged + to->bytes_.Used() : charged;
}

void UnixEndpoint::VisitFiles(const std::function<void(FileDescription*)>& f) {
  absl::MutexLock lock(&mutex_);
  for (UnixRecord& r : records_) {
    for (auto& file : r.files) f(file.get());
  }
  for (auto& end : waiting_) end->VisitFiles(f);
}

void UnixEndpoint::TakeFiles(std::vector<std::pair<FileList, uid_t>>* out) {
  absl::MutexLock lock(&mutex_);
  for (UnixRecord& r : records_) {
    if (!r.files.empty()) out->emplace_back(std::move(r.files), r.files_uid);
    r.files.clear();
  }
  for (auto& end : waiting_) end->TakeFiles(out);
}

}  // namespace sentry
