#include "gofer/client.h"

#include <sys/socket.h>

#include <cstring>

namespace gofer {

Client::Client(base::UniqueFd connection, absl::AnyInvocable<void()> on_broken)
    : connection_(std::move(connection)), on_broken_(std::move(on_broken)) {}

Client::~Client() = default;

void Client::Submit(Request request, Callback callback) {
  {
    absl::MutexLock lock(&mutex_);
    if (!broken()) {
      RequestHeader header = {static_cast<uint32_t>(request.packet.size()), request.op, 0,
                              next_id_++};
      memcpy(request.packet.data(), &header, sizeof(header));
      pending_.emplace(header.id, Pending{request.op, std::move(callback)});
      queue_.push_back(std::move(request.packet));
      if (FlushLocked()) return;
      // The peer is gone. Receive finds that too, but perhaps nobody calls it again.
      callback = nullptr;
    }
  }
  if (callback != nullptr) {
    callback(Reply{});
  } else {
    Break();
  }
}

bool Client::FlushLocked() {
  while (!queue_.empty()) {
    const std::string& packet = queue_.front();
    iovec iov = {const_cast<char*>(packet.data()), packet.size()};
    msghdr msg = {};  // sendmsg, and not send: the sentry's filter has the one
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    const ssize_t n = sendmsg(connection_.get(), &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      // The socket is full of packets that the gofer will answer: the queue goes on when a reply
      // arrives, as every packet gets one.
      return errno == EAGAIN || errno == ENOBUFS;
    }
    queue_.pop_front();
  }
  return true;
}

bool Client::Receive() {
  if (broken()) return false;
  bool again = true;
  while (again) {
    if (!ReceiveOne(&again)) {
      Break();
      return false;
    }
  }
  absl::MutexLock lock(&mutex_);
  return FlushLocked();
}

bool Client::ReceiveOne(bool* again) {
  // One more than any packet, so that a longer one is seen.
  thread_local const auto buffer = std::make_unique_for_overwrite<char[]>(kMaxMessage + 1);
  iovec iov = {buffer.get(), kMaxMessage + 1};
  // Room for all descriptors that one message may hold (SCM_MAX_FD): none may be lost and left
  // open.
  constexpr size_t kMaxRights = 253;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxRights * sizeof(int))];
  msghdr msg = {};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = recvmsg(connection_.get(), &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) {
    *again = false;
    return true;
  }
  if (n <= 0) return false;

  Reply reply;
  bool strange = (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&msg); c != nullptr; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
      strange = true;
      continue;
    }
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      reply.fds.emplace_back(fd);
    }
  }
  ReplyHeader header;
  Reader in(std::string_view(buffer.get(), static_cast<size_t>(n)));
  if (strange || !in.Read(&header) || header.length != static_cast<size_t>(n) ||
      header.fds != reply.fds.size() ||
      reply.fds.size() > (header.op == Op::kOpenMany ? kMaxOpenMany : 1) || header.error > 4095 ||
      (header.error != 0 && !in.empty())) {
    return false;
  }
  Callback callback;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = pending_.find(header.id);
    if (it == pending_.end() || it->second.op != header.op) return false;
    callback = std::move(it->second.callback);
    pending_.erase(it);
  }
  reply.error = static_cast<int>(header.error);
  reply.body.assign(buffer.get() + sizeof(header), static_cast<size_t>(n) - sizeof(header));
  callback(std::move(reply));
  return true;
}

void Client::Break() {
  absl::flat_hash_map<uint64_t, Pending> pending;
  absl::AnyInvocable<void()> on_broken;
  {
    absl::MutexLock lock(&mutex_);
    broken_.store(true, std::memory_order_release);
    pending.swap(pending_);
    queue_.clear();
    on_broken = std::exchange(on_broken_, nullptr);
  }
  shutdown(connection_.get(), SHUT_RDWR);
  for (auto& [id, p] : pending) p.callback(Reply{});
  if (on_broken) on_broken();
}

}  // namespace gofer
