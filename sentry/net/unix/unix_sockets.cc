#include "sentry/net/unix/unix_sockets.h"

#include <netinet/tcp.h>

#include <algorithm>

#include "sentry/net/unix/endpoint.h"

namespace sentry {

base::Ref<UnixSockets> UnixSockets::Of(NetNamespace& ns) {
  static const char key = 0;
  base::Ref<base::RefCounted> part = ns.GetOrMake(
      &key, []() -> base::Ref<base::RefCounted> { return base::MakeRef<UnixSockets>(); });
  return base::Ref<UnixSockets>(static_cast<UnixSockets*>(part.get()));
}

void UnixSockets::Add(UnixEndpoint* endpoint) {
  absl::MutexLock lock(&mutex_);
  sockets_.insert(endpoint);
}

void UnixSockets::Remove(UnixEndpoint* endpoint) {
  absl::MutexLock lock(&mutex_);
  sockets_.erase(endpoint);
}

std::vector<base::Ref<UnixEndpoint>> UnixSockets::All() {
  std::vector<base::Ref<UnixEndpoint>> all;
  {
    absl::MutexLock lock(&mutex_);
    all.reserve(sockets_.size());
    for (UnixEndpoint* endpoint : sockets_) all.emplace_back(endpoint);
  }
  std::sort(all.begin(), all.end(),
            [](const auto& a, const auto& b) { return a->ino() < b->ino(); });
  return all;
}

UnixEndpoint::Row UnixEndpoint::Describe() {
  Row row;
  row.type = type_;
  row.ino = ino_.load();
  row.uid = uid_.load();
  row.send_buffer = send_buffer();
  base::Ref<UnixEndpoint> other;
  std::vector<base::Ref<UnixEndpoint>> waiting;
  {
    absl::MutexLock lock(&mutex_);
    const bool connected = state_ == State::kConnected || (datagram() && peer_ != nullptr);
    row.state = state_ == State::kListening ? TCP_LISTEN : connected ? TCP_ESTABLISHED : TCP_CLOSE;
    row.name = name_;
    row.shutdown = shutdown_;
    if (place_) {
      row.place_ino = place_.dentry->inode()->ino();
      row.place_dev = place_.dentry->inode()->fs().dev();
    }
    other = peer_;
    if (state_ == State::kListening) {
      row.unread = waiting_.size();
      row.sent = static_cast<size_t>(backlog_);
      waiting.assign(waiting_.begin(), waiting_.end());
    }
  }
  for (auto& end : waiting) {
    base::Ref<UnixEndpoint> client = end->peer();
    row.waiting.push_back(client != nullptr ? static_cast<uint32_t>(client->ino()) : 0);
  }
  row.has_peer = other != nullptr;
  if (other != nullptr) row.peer_ino = other->ino();
  if (row.state != TCP_LISTEN) {
    row.unread = BytesReadable().value_or(0);
    row.sent = BytesUnread();
  }
  return row;
}

}  // namespace sentry
