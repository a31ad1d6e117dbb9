// State of AF_UNIX ends: names, connections, readiness. Data is in endpoint_data.cc.
#include "sentry/net/unix/endpoint.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cstdio>

#include "sentry/base/random.h"
#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kOut = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;

// Locks two ends in the order of their addresses.
class PairLock {
 public:
  PairLock(absl::Mutex* a, absl::Mutex* b) ABSL_NO_THREAD_SAFETY_ANALYSIS
      : first_(std::min(a, b)),
        second_(std::max(a, b)) {
    first_->Lock();
    if (second_ != first_) second_->Lock();
  }
  ~PairLock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (second_ != first_) second_->Unlock();
    first_->Unlock();
  }

 private:
  absl::Mutex* const first_;
  absl::Mutex* const second_;
};

}  // namespace

UnixEndpoint::~UnixEndpoint() = default;

std::string UnixEndpoint::name() const {
  absl::MutexLock lock(&mutex_);
  return name_;
}
base::Ref<UnixEndpoint> UnixEndpoint::peer() const {
  absl::MutexLock lock(&mutex_);
  return peer_;
}
UnixEndpoint::State UnixEndpoint::state() const {
  absl::MutexLock lock(&mutex_);
  return state_;
}
std::optional<SenderCreds> UnixEndpoint::peer_creds() const {
  absl::MutexLock lock(&mutex_);
  return peer_creds_;
}
int UnixEndpoint::TakeError() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(error_, 0);
}

void UnixEndpoint::ConnectPair(UnixEndpoint& a, UnixEndpoint& b) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  PairLock lock(&a.mutex_, &b.mutex_);
  a.peer_ = base::Ref<UnixEndpoint>(&b);
  b.peer_ = base::Ref<UnixEndpoint>(&a);
  a.peer_creds_ = b.peer_creds_ = CurrentCreds();
  if (!a.datagram()) a.state_ = b.state_ = State::kConnected;
}

Status UnixEndpoint::BindPath(const std::string& path, const Path& place) {
  absl::MutexLock lock(&mutex_);
  if (!name_.empty()) return Error(EINVAL);
  auto special = base::MakeRef<BoundSocket>(this);
  if (place.dentry->inode()->SetSpecialIfNone(special).get() != special.get()) {
    return Error(EADDRINUSE);
  }
  name_ = path;
  place_ = place;
  return base::Ok();
}

Status UnixEndpoint::BindAbstract(AbstractNames& names, std::string name) {
  absl::MutexLock lock(&mutex_);
  if (!name_.empty()) return name.empty() ? base::Ok() : Status(Error(EINVAL));
  if (!name.empty()) {
    TRY(names.Add(name, *this));
  } else {
    // Autobind: five hexadecimal digits.
    int tries = 0;
    do {
      if (++tries > 1 << 16) return Error(ENOSPC);
      char text[8];
      snprintf(text, sizeof(text), "%05x", static_cast<unsigned>(base::RandomBelow(1 << 20)));
      name = std::string(1, '\0') + text;
    } while (!names.Add(name, *this).ok());
  }
  name_ = std::move(name);
  names_ = base::Ref<AbstractNames>(&names);
  return base::Ok();
}

Status UnixEndpoint::Listen(int backlog, const SenderCreds& creds) {
  if (datagram()) return Error(EOPNOTSUPP);
  {
    absl::MutexLock lock(&mutex_);
    if (name_.empty() || state_ == State::kConnected) return Error(EINVAL);
    state_ = State::kListening;
    backlog_ = backlog < 0 || backlog > kSomaxconn ? kSomaxconn : backlog;
    creds_ = creds;
    peer_creds_ = creds;
  }
  room_queue_.WakeAll(EPOLLOUT);
  return base::Ok();
}

Status UnixEndpoint::ConnectTo(UnixEndpoint& listener, const SenderCreds& creds, bool nonblock,
                               int64_t deadline_ns) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (listener.type_ != type_) return Error(EPROTOTYPE);
  while (true) {
    {
      PairLock lock(&mutex_, &listener.mutex_);
      if (state_ == State::kConnected) return Error(EISCONN);
      if (state_ == State::kListening) return Error(EINVAL);
      if (listener.dead_ || listener.state_ != State::kListening ||
          (listener.shutdown_ & kReceiveShut)) {
        return Error(ECONNREFUSED);
      }
      if (listener.waiting_.size() <= static_cast<size_t>(listener.backlog_)) {
        auto server = base::MakeRef<UnixEndpoint>(type_);
        server->state_ = State::kConnected;
        server->embryo_ = true;
        server->peer_ = base::Ref<UnixEndpoint>(this);
        server->name_ = listener.name_;
        server->peer_creds_ = creds;
        server->send_buffer_.store(listener.send_buffer());
        state_ = State::kConnected;
        peer_ = server;
        peer_creds_ = listener.creds_;
        listener.waiting_.push_back(std::move(server));
        break;
      }
    }
    if (nonblock) return Error(EAGAIN);
    auto reason = fiber::WaitUntil(
        listener.room_queue_, EPOLLOUT,
        [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
          absl::MutexLock lock(&listener.mutex_);
          return listener.dead_ || listener.state_ != State::kListening ||
                 listener.waiting_.size() <= static_cast<size_t>(listener.backlog_);
        },
        {.interruptible = true, .deadline_ns = deadline_ns});
    if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
    if (reason == fiber::WakeReason::kInterrupted) {
      return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
    }
  }
  listener.queue_.Wake(kIn);
  return base::Ok();
}

Status UnixEndpoint::SetPeer(base::Ref<UnixEndpoint> peer) {
  if (peer != nullptr) {
    if (peer->type_ != type_) return Error(EPROTOTYPE);
    base::Ref<UnixEndpoint> theirs = peer->peer();
    if (theirs != nullptr && theirs.get() != this) return Error(EPERM);
  }
  base::Ref<UnixEndpoint> old;
  {
    absl::MutexLock lock(&mutex_);
    old = std::move(peer_);
    peer_ = std::move(peer);
  }
  queue_.WakeAll(kOut);
  return base::Ok();
}

Result<base::Ref<UnixEndpoint>> UnixEndpoint::Accept(bool nonblock, int64_t deadline_ns) {
  if (datagram()) return Error(EOPNOTSUPP);
  while (true) {
    base::Ref<UnixEndpoint> found;
    {
      absl::MutexLock lock(&mutex_);
      if (state_ != State::kListening) return Error(EINVAL);
      if (!waiting_.empty()) {
        found = std::move(waiting_.front());
        waiting_.pop_front();
      } else if ((shutdown_ & kReceiveShut) && !nonblock) {
        return Error(EINVAL);
      }
    }
    if (found != nullptr) {
      {
        absl::MutexLock lock(&found->mutex_);
        found->embryo_ = false;
      }
      room_queue_.Wake(EPOLLOUT);
      return found;
    }
    if (nonblock) return Error(EAGAIN);
    auto reason = fiber::WaitUntil(
        queue_, EPOLLIN,
        [this] {
          absl::MutexLock lock(&mutex_);
          return !waiting_.empty() || (shutdown_ & kReceiveShut) != 0;
        },
        {.interruptible = true, .deadline_ns = deadline_ns}, /*exclusive=*/true);
    if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
    if (reason == fiber::WakeReason::kInterrupted) {
      return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
    }
  }
}

Status UnixEndpoint::Shutdown(int how) {
  if (how < SHUT_RD || how > SHUT_RDWR) return Error(EINVAL);
  int mode = how + 1;
  base::Ref<UnixEndpoint> other;
  {
    absl::MutexLock lock(&mutex_);
    shutdown_ |= mode;
    if (!datagram()) other = peer_;
  }
  CloseLanes();
  queue_.WakeAll(kIn | kOut | EPOLLRDHUP | EPOLLHUP | kWakeQuietly);
  room_queue_.WakeAll(EPOLLOUT);
  if (other == nullptr) return base::Ok();
  bool hung_up;
  int theirs = (mode & kReceiveShut ? kSendShut : 0) | (mode & kSendShut ? kReceiveShut : 0);
  {
    absl::MutexLock lock(&other->mutex_);
    other->shutdown_ |= theirs;
    hung_up = other->shutdown_ == kBothShut;
  }
  // The end of both ways is POLL_HUP, that of what it receives POLL_IN.
  uint32_t events =
      EPOLLRDHUP | (theirs & kReceiveShut ? kIn : 0) | (theirs & kSendShut ? kOut : 0);
  if (hung_up) events |= EPOLLHUP;
  other->queue_.WakeAll(events);
  return base::Ok();
}

void UnixEndpoint::PeerGone(bool reset) {
  {
    absl::MutexLock lock(&mutex_);
    shutdown_ = kBothShut;
    if (reset) error_ = ECONNRESET;
  }
  bytes_.OpenLane(false);
  queue_.WakeAll(kIn | kOut | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
}

void UnixEndpoint::Release() {
  base::Ref<UnixEndpoint> other;
  std::deque<UnixRecord> records;
  std::deque<base::Ref<UnixEndpoint>> waiting;
  std::vector<base::Ref<UnixEndpoint>> pollers;
  base::Ref<AbstractNames> names;
  Path place;
  std::string name;
  bool embryo, unread;
  {
    fiber::MutexLock io(&io_mutex_);  // nobody is about to append
    bytes_.OpenLane(false);
    absl::MutexLock lock(&mutex_);
    if (std::exchange(dead_, true)) return;
    other = std::move(peer_);
    records.swap(records_);
    waiting.swap(waiting_);
    pollers.swap(full_pollers_);
    names = std::move(names_);
    place = std::exchange(place_, Path());
    name = name_;
    embryo = embryo_;
    shutdown_ = kBothShut;
    // What was received out of band does not count.
    const size_t taken = !records.empty() && records.front().gone > 0 ? 1 : 0;
    has_urgent_ = false;
    unread = records.size() > taken || (plain_.load() && bytes_.Used() > 0);
    bytes_.Drop();
    queued_.store(0);
  }
  if (names != nullptr) names->Remove(name, *this);
  if (place) {
    base::Ref<Inode> inode = place.dentry->inode();
    if (inode != nullptr) {
      base::Ref<Inode::Special> special = inode->special();
      if (auto* bound = dynamic_cast<BoundSocket*>(special.get())) bound->Clear();
      inode->ClearSpecial();
    }
  }
  if (other != nullptr && !datagram()) other->PeerGone(unread || embryo);
  for (auto& end : waiting) end->Release();
  queue_.WakeAll(kIn | kOut | EPOLLHUP | EPOLLERR | kWakeQuietly);
  room_queue_.WakeAll(EPOLLOUT);
  for (auto& sender : pollers) sender->queue_.WakeAll(kOut);
  FileList dropped;
  for (UnixRecord& r : records) {
    r.from->Uncharge(r.charge);
    if (r.files.empty()) continue;
    RemoveInflight(r.files, r.files_uid);
    for (auto& file : r.files) dropped.push_back(std::move(file));
  }
  if (!dropped.empty()) DropFiles(std::move(dropped));
  CollectUnreachableSockets();
}

uint32_t UnixEndpoint::Readiness(platform::LaneWish wish) {
  uint32_t mask = 0;
  if (HasBytes(wish)) mask |= kIn;
  base::Ref<UnixEndpoint> to;
  {
    absl::MutexLock lock(&mutex_);
    if (error_ != 0) mask |= EPOLLERR;
    if (shutdown_ == kBothShut) mask |= EPOLLHUP;
    if (shutdown_ & kReceiveShut) mask |= EPOLLRDHUP | kIn;
    if (!records_.empty() || !waiting_.empty()) mask |= kIn;
    if (has_urgent_) mask |= EPOLLPRI;
    if (!datagram() && state_ == State::kUnconnected) mask |= EPOLLHUP;
    if (state_ == State::kListening) return mask;
    to = peer_;
  }
  if (!datagram() && to != nullptr) return WritableTo(*to, wish) ? mask | kOut : mask;
  if (!Writable()) return mask;
  if (to != nullptr && to->peer().get() != this) {
    absl::MutexLock lock(&to->mutex_);
    if (!to->dead_ && to->records_.size() > kMaxQueuedMessages) {
      auto& pollers = to->full_pollers_;
      base::Ref<UnixEndpoint> self(this);
      if (std::find(pollers.begin(), pollers.end(), self) == pollers.end()) {
        pollers.push_back(std::move(self));
      }
      return mask;
    }
  }
  return mask | kOut;
}

// --- names ---

base::Ref<AbstractNames> AbstractNames::Current(Task& t) {
  static const char key = 0;
  base::Ref<NetNamespace> ns = t.net_namespace_ref();
  base::Ref<base::RefCounted> part = ns->GetOrMake(
      &key, []() -> base::Ref<base::RefCounted> { return base::MakeRef<AbstractNames>(); });
  return base::Ref<AbstractNames>(static_cast<AbstractNames*>(part.get()));
}

base::Ref<UnixEndpoint> AbstractNames::Find(const std::string& name, int type) {
  absl::MutexLock lock(&mutex_);
  auto it = names_.find({type, name});
  if (it == names_.end() || !it->second->TryIncRef()) return nullptr;
  return base::Ref<UnixEndpoint>::Adopt(it->second);
}

Status AbstractNames::Add(const std::string& name, UnixEndpoint& endpoint) {
  absl::MutexLock lock(&mutex_);
  if (!names_.emplace(std::pair(endpoint.type(), name), &endpoint).second) return Error(EADDRINUSE);
  return base::Ok();
}

void AbstractNames::Remove(const std::string& name, const UnixEndpoint& endpoint) {
  absl::MutexLock lock(&mutex_);
  auto it = names_.find({endpoint.type(), name});
  if (it != names_.end() && it->second == &endpoint) names_.erase(it);
}

base::Ref<UnixEndpoint> BoundSocket::endpoint() const {
  absl::MutexLock lock(&mutex_);
  if (endpoint_ == nullptr || !endpoint_->TryIncRef()) return nullptr;
  return base::Ref<UnixEndpoint>::Adopt(endpoint_);
}

void BoundSocket::Clear() {
  absl::MutexLock lock(&mutex_);
  endpoint_ = nullptr;
}

}  // namespace sentry
