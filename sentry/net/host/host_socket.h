// Sockets of AF_INET and AF_INET6 that are the host's, in the container's network namespace.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/fiber/fd_watch.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/net/host/host_network.h"
#include "sentry/net/inet/zero_copy.h"
#include "sentry/net/socket.h"

namespace sentry {

// Every host call is one that does not wait: what would wait is tried again when the host says that
// the descriptor is ready. Thread-safe.
class HostSocket : public Socket {
 public:
  // `fd`: of a kind in kHostSocketKinds, with a place taken in `network`, which outlives it.
  HostSocket(Vfs& vfs, HostNetwork& network, base::UniqueFd fd, int domain, int type, int protocol,
             uint32_t flags);

  base::Status Bind(Task& t, const SockAddr& address) override;
  base::Status Connect(Task& t, const SockAddr& address, bool nonblock) override;
  base::Status Listen(int backlog) override;
  base::Result<base::Ref<FileDescription>> Accept(uint32_t flags, bool nonblock) override;
  base::Status Shutdown(int how) override;
  base::Result<SockAddr> LocalAddress() override;
  base::Result<SockAddr> PeerAddress() override;
  base::Result<SockAddr> AcceptedAddress() override;
  base::Result<size_t> Send(IoSource& src, SendArgs args) override;
  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args) override;
  base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name) override;
  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override;
  fiber::WaitQueue* wait_queue() override;

  // A line of /proc/net/tcp or udp.
  struct Row {
    SockAddr local, remote;
    int state = 0;  // TCP_*
    uint32_t sent = 0, unread = 0;
    uid_t uid = 0;
    uint64_t ino = 0;
  };
  Row ToRow();

 protected:
  int TakeError() override;
  void OnAsyncOwner() override;

 private:
  friend class HostNetwork;
  struct Message;
  ~HostSocket() override;

  int fd() const { return fd_.get(); }
  bool stream() const { return type() == SOCK_STREAM; }
  // Repeats `attempt`, a host call that does not wait, while it says EAGAIN, each time that one of
  // `events` may have come; once only if `nonblock`. EAGAIN at the deadline. In repeat.h.
  template <typename F>
  auto Repeat(uint32_t events, bool nonblock, int64_t deadline_ns, bool exclusive, F attempt)
      -> decltype(attempt());
  base::Result<size_t> SendStream(IoSource& src, const SendArgs& args, Message* message);
  base::Result<size_t> SendDatagram(IoSource& src, const SendArgs& args, Message* message);
  base::Result<size_t> ReceiveStream(IoDest& dst, RecvArgs* args);
  base::Result<size_t> ReceiveDatagram(IoDest& dst, RecvArgs* args);
  base::Status SetLinger(std::span<const std::byte> value);
  base::Status SetSocketLevel(Task& t, int name, std::span<const std::byte> value);
  void OnEvents(uint32_t events);

  Vfs& vfs_;
  HostNetwork& network_;
  const base::UniqueFd fd_;
  const uid_t uid_;
  SockAddr accepted_;  // from accept(2); set before anybody else sees the socket
  // An error that came after a part of the data was sent.
  std::atomic<int> pending_error_{0};
  ZeroCopyNotices zero_copy_;
  std::atomic<bool> read_shut_{false};  // of a datagram socket
  fiber::WaitQueue queue_;
  absl::Mutex watch_mutex_;
  std::atomic<bool> watched_{false};
  fiber::FdWatch watch_ ABSL_GUARDED_BY(watch_mutex_);
  uint32_t at_start_ = 0;          // readiness when the watch began; then of the epoll thread alone
  bool had_event_ = false;         // of the epoll thread
  std::atomic<bool> used_{false};  // data was moved, or a connection taken, or tried to
  HostSocket *next_ = nullptr, *previous_ = nullptr;  // in the network's list, under its lock
};

// socket(2) of AF_INET or AF_INET6 where the network is the host's. ESOCKTNOSUPPORT,
// EPROTONOSUPPORT, EPERM, EACCES, ENFILE.
base::Result<base::Ref<FileDescription>> NewHostSocket(Task& t, Vfs& vfs, HostNetwork& network,
                                                       int domain, int type, int protocol,
                                                       uint32_t flags);

}  // namespace sentry
