// Data of host sockets: one host call for each send and receive that need not wait.
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>

#include "sentry/kernel/task.h"
#include "sentry/net/host/host_socket.h"
#include "sentry/net/host/options.h"
#include "sentry/net/host/repeat.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

// What one host call moves of a stream; and more than the longest datagram.
constexpr size_t kChunk = 256 << 10;
constexpr size_t kMaxDatagram = 128 << 10;
constexpr size_t kMaxControl = 1024;

constexpr int kSendFlags = MSG_OOB | MSG_DONTROUTE | MSG_EOR | MSG_MORE | MSG_CONFIRM;
constexpr int kReceiveFlags = MSG_PEEK | MSG_OOB | MSG_ERRQUEUE;
constexpr int kOutFlags = MSG_TRUNC | MSG_CTRUNC | MSG_OOB | MSG_ERRQUEUE | MSG_EOR;

// Bytes on the way between the guest and the host: small ones on the stack.
class Transfer {
 public:
  std::span<std::byte> Get(size_t size) {
    if (size <= small_.size()) return std::span(small_).first(size);
    if (size > large_size_) {
      large_ = std::make_unique_for_overwrite<std::byte[]>(size);
      large_size_ = size;
    }
    return {large_.get(), size};
  }
  // Gives a large buffer back, with what is in it.
  void DropLarge() {
    large_.reset();
    large_size_ = 0;
  }

 private:
  static constexpr size_t kSmall = 4096;

  std::array<std::byte, kSmall> small_;
  std::unique_ptr<std::byte[]> large_;
  size_t large_size_ = 0;
};

Error HostError() { return base::LastError(); }

}  // namespace

// A msghdr with what it points to.
struct HostSocket::Message {
  msghdr header{};
  iovec iov{};
  sockaddr_storage name;
  alignas(cmsghdr) std::array<std::byte, kMaxControl> control;

  void SetBytes(std::span<std::byte> bytes) {
    iov = {bytes.data(), bytes.size()};
    header.msg_iov = &iov;
    header.msg_iovlen = 1;
  }
  // For a receive: everything that the host has to say.
  void SetRoom(bool with_name) {
    if (with_name) {
      header.msg_name = &name;
      header.msg_namelen = sizeof(name);
    }
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    header.msg_flags = 0;
  }
  // For a send. EINVAL for what may not go to the host, as for what the protocol does not know.
  Status SetControl(const std::vector<ControlMessage>& messages);
  void TakeControl(RecvArgs* args);
};

Status HostSocket::Message::SetControl(const std::vector<ControlMessage>& messages) {
  size_t used = 0;
  for (const ControlMessage& m : messages) {
    if (!HostControlAllowed(kHostSendControl, m.level, m.type)) return Error(EINVAL);
    const size_t space = CMSG_SPACE(m.data.size());
    if (m.data.size() > kMaxControl || space > control.size() - used) return Error(ENOBUFS);
    cmsghdr h{};
    h.cmsg_len = CMSG_LEN(m.data.size());
    h.cmsg_level = m.level;
    h.cmsg_type = m.type;
    memset(control.data() + used, 0, space);
    memcpy(control.data() + used, &h, sizeof(h));
    if (!m.data.empty()) {
      memcpy(control.data() + used + CMSG_LEN(0), m.data.data(), m.data.size());
    }
    used += space;
  }
  if (used > 0) {
    header.msg_control = control.data();
    header.msg_controllen = used;
  }
  return base::Ok();
}

void HostSocket::Message::TakeControl(RecvArgs* args) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (!HostControlAllowed(kHostReceiveControl, c->cmsg_level, c->cmsg_type)) continue;
    const auto* data = reinterpret_cast<const std::byte*>(CMSG_DATA(c));
    args->control.push_back(
        {c->cmsg_level, c->cmsg_type, {data, data + c->cmsg_len - CMSG_LEN(0)}});
  }
  args->out_flags |= header.msg_flags & kOutFlags;
}

// --- sending ---

Result<size_t> HostSocket::Send(IoSource& src, SendArgs args) {
  if (int error = pending_error_.exchange(0)) return Error(error);
  Message message;
  TRY(message.SetControl(args.control));
  if ((args.flags & MSG_FASTOPEN) != 0 && stream() && !PeerAddress().ok()) {
    Task* t = Task::Current();
    if (args.to.length == 0 || t == nullptr) return Error(EINVAL);
    TRY(Connect(*t, args.to, args.nonblock));
    args.to.length = 0;
  }
  if (args.to.length > 0) {
    message.header.msg_name = args.to.bytes.data();
    message.header.msg_namelen = args.to.length;
  }
  Result<size_t> n = stream() ? SendStream(src, args, &message) : SendDatagram(src, args, &message);
  if (!n.ok()) {
    const bool quiet = (args.flags & MSG_NOSIGNAL) != 0 || !stream();
    if (n.error().code() == EPIPE && !quiet) RaiseSocketSigpipe();
    return n;
  }
  if ((args.flags & MSG_ZEROCOPY) != 0 && *n > 0 && options().flag(SO_ZEROCOPY)) {
    zero_copy_.Complete();
    queue_.WakeAll(EPOLLERR);
  }
  return n;
}

Result<size_t> HostSocket::SendDatagram(IoSource& src, const SendArgs& args, Message* message) {
  const size_t length = src.remaining();
  if (length > kMaxDatagram) return Error(EMSGSIZE);
  Transfer transfer;
  std::span<std::byte> bytes = transfer.Get(length);
  if (length > 0 && TRY(src.Get(bytes)) != length) return Error(EFAULT);
  message->SetBytes(bytes);
  const int flags = (args.flags & kSendFlags) | MSG_DONTWAIT | MSG_NOSIGNAL;
  return Repeat(EPOLLOUT, args.nonblock, SendDeadline(), /*exclusive=*/false,
                [&]() -> Result<size_t> {
                  ssize_t n = sendmsg(fd(), &message->header, flags);
                  if (n < 0) return HostError();
                  return static_cast<size_t>(n);
                });
}

Result<size_t> HostSocket::SendStream(IoSource& src, const SendArgs& args, Message* message) {
  Transfer transfer;
  const int64_t deadline = SendDeadline();
  size_t total = 0;
  auto end = [&](Error error) -> Result<size_t> {
    if (total == 0) return error;
    const int code = error.code();
    const bool again = code == EAGAIN || code == EPIPE || code == EINTR || code == EFAULT;
    if (!again && code != base::kERESTARTSYS) pending_error_ = code;
    return total;
  };
  do {
    const size_t want = std::min(src.remaining(), kChunk);
    std::span<std::byte> bytes = transfer.Get(want);
    if (want > 0) {
      Result<size_t> got = src.Get(bytes);
      if (!got.ok()) return end(got.error());
      bytes = bytes.first(*got);
    }
    const bool last = src.remaining() == 0 || bytes.size() < want;
    int flags = (args.flags & kSendFlags) | MSG_DONTWAIT | MSG_NOSIGNAL;
    if (!last) flags = (flags | MSG_MORE) & ~MSG_OOB;
    do {
      message->SetBytes(bytes);
      Result<size_t> n =
          Repeat(EPOLLOUT, args.nonblock, deadline, /*exclusive=*/false, [&]() -> Result<size_t> {
            ssize_t sent = sendmsg(fd(), &message->header, flags);
            if (sent >= 0) return static_cast<size_t>(sent);
            Error error = HostError();
            // TCP_FASTOPEN_CONNECT: the connection comes first.
            const bool waits = error.code() == EINPROGRESS && !args.nonblock;
            return waits ? Error(EAGAIN) : error;
          });
      if (!n.ok()) return end(n.error());
      total += *n;
      bytes = bytes.subspan(*n);
    } while (!bytes.empty());
    if (last) break;
  } while (src.remaining() > 0);
  return total;
}

// --- receiving ---

Result<size_t> HostSocket::Receive(IoDest& dst, RecvArgs* args) {
  if (int error = pending_error_.exchange(0)) return Error(error);
  if ((args->flags & MSG_ERRQUEUE) != 0) {
    if (zero_copy_.pending()) return zero_copy_.Take(domain() == AF_INET6, args);
    args->nonblock = true;  // it never waits
  }
  return stream() ? ReceiveStream(dst, args) : ReceiveDatagram(dst, args);
}

Result<size_t> HostSocket::ReceiveDatagram(IoDest& dst, RecvArgs* args) {
  const size_t room = std::min(dst.remaining(), kMaxDatagram);
  Transfer transfer;
  Message message;
  // MSG_TRUNC has the host say how long the datagram was.
  const int flags = (args->flags & kReceiveFlags) | MSG_DONTWAIT | MSG_TRUNC;
  std::span<std::byte> bytes = transfer.Get(room);
  const size_t length = TRY(Repeat(EPOLLIN, args->nonblock, ReceiveDeadline(), /*exclusive=*/false,
                                   [&]() -> Result<size_t> {
                                     message.SetBytes(bytes);
                                     message.SetRoom(/*with_name=*/true);
                                     ssize_t n = recvmsg(fd(), &message.header, flags);
                                     if (n >= 0) return static_cast<size_t>(n);
                                     Error error = HostError();
                                     if (error.code() != EAGAIN || args->nonblock || !read_shut_)
                                       return error;
                                     message.header.msg_namelen = 0;
                                     message.header.msg_controllen = 0;
                                     return size_t{0};
                                   }));
  message.TakeControl(args);
  args->full_length = length;
  args->from.length = std::min<uint32_t>(message.header.msg_namelen, sizeof(message.name));
  memcpy(args->from.bytes.data(), &message.name, args->from.length);
  const size_t n = std::min(length, room);
  return n > 0 ? dst.Put(bytes.first(n)) : Result<size_t>(n);
}

Result<size_t> HostSocket::ReceiveStream(IoDest& dst, RecvArgs* args) {
  const int64_t deadline = ReceiveDeadline();
  const bool out_of_band = (args->flags & (MSG_OOB | MSG_ERRQUEUE)) != 0;
  const bool peek = (args->flags & MSG_PEEK) != 0;
  const bool discard = (args->flags & MSG_TRUNC) != 0 && !out_of_band;
  const size_t length = dst.remaining();
  // What a receive that waits waits for.
  size_t target = (args->flags & MSG_WAITALL) != 0
                      ? length
                      : std::min(length, static_cast<size_t>(options().receive_low.load()));
  if (out_of_band) target = 0;
  const int flags = (args->flags & kReceiveFlags) | MSG_DONTWAIT | (discard ? MSG_TRUNC : 0);
  Transfer transfer;
  Message message;
  size_t total = 0;
  for (;;) {
    const size_t want = std::min(length - total, kChunk);
    // A large buffer is not kept while nothing comes.
    const bool wait = !args->nonblock && !out_of_band && total < std::max<size_t>(target, 1);
    Result<size_t> n =
        Repeat(EPOLLIN | EPOLLRDHUP, !wait, deadline, /*exclusive=*/false, [&]() -> Result<size_t> {
          std::span<std::byte> bytes = transfer.Get(want);
          message.SetBytes(bytes);
          message.SetRoom(/*with_name=*/out_of_band);
          ssize_t got = recvmsg(fd(), &message.header, flags);
          if (got < 0) {
            Error error = HostError();
            if (error.code() == EAGAIN && wait) transfer.DropLarge();
            return error;
          }
          return static_cast<size_t>(got);
        });
    if (!n.ok()) {
      if (total == 0) return n.error();
      const int code = n.error().code();
      if (code != EAGAIN && code != EINTR && code != base::kERESTARTSYS) pending_error_ = code;
      return total;
    }
    message.TakeControl(args);
    if (*n == 0) return total;
    if (discard) {
      total += *n;
    } else {
      Result<size_t> put = dst.Put(transfer.Get(want).first(*n));
      if (!put.ok()) return total > 0 ? Result<size_t>(total) : put.error();
      total += *put;
      if (*put < *n) return total;
    }
    if (peek || total == length) return total;
    if (*n < want && total >= target) return total;
  }
}

}  // namespace sentry
