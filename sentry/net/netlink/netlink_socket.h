// AF_NETLINK sockets as files (Linux: net/netlink/af_netlink.c): NETLINK_ROUTE, NETLINK_SOCK_DIAG,
// NETLINK_GENERIC, and NETLINK_KOBJECT_UEVENT, which tells nothing: no devices come and go.
#pragma once

#include <linux/netlink.h>

#include <atomic>
#include <deque>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/net/host/host_network.h"
#include "sentry/net/inet/stack.h"
#include "sentry/net/socket.h"
#include "sentry/net/unix/unix_sockets.h"

namespace sentry {

class NetlinkSocket : public Socket, private NetworkListener {
 public:
  // `host`: where the network is the host's; null otherwise.
  NetlinkSocket(Vfs& vfs, base::Ref<InetStack> stack, HostNetwork* host,
                base::Ref<UnixSockets> unix_sockets, int type, int protocol, uint32_t flags)
      : Socket(vfs, AF_NETLINK, type, protocol, flags),
        stack_(std::move(stack)),
        host_(host),
        unix_sockets_(std::move(unix_sockets)) {
    if (protocol == NETLINK_ROUTE) stack_->AddListener(this);
  }

  base::Status Bind(Task& t, const SockAddr& address) override;
  base::Status Connect(Task& t, const SockAddr& address, bool nonblock) override;
  base::Result<SockAddr> LocalAddress() override;
  base::Result<SockAddr> PeerAddress() override;
  base::Result<size_t> Send(IoSource& src, SendArgs args) override;
  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args) override;
  base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name) override;
  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;
  uint32_t Readiness() override;
  fiber::WaitQueue* wait_queue() override { return &queue_; }
  // A message of the kernel's own that is no answer (mq_notify).
  void Deliver(std::vector<std::byte> message) { Push({{std::move(message), 0}}); }

 protected:
  int TakeError() override { return error_.exchange(0); }

 private:
  ~NetlinkSocket() override;
  // A port id, chosen now if there is none: the process's id if it is free.
  base::Status AutoBind(Task& t);
  // A message and the multicast group that it is for; 0: for this socket alone.
  struct Message {
    std::vector<std::byte> bytes;
    uint32_t group = 0, sender = 0;  // a port; 0: the kernel
  };
  // paced: a dump, which Linux makes as it is read, and which may be longer than the queue.
  void Push(std::vector<Message> messages, bool paced = false);
  void Answer(Task& t, std::span<const std::byte> request);
  void OnNews(InetStack& stack, const NetworkNews& news) override;
  base::Status SetMembership(int name, uint32_t group);

  const base::Ref<InetStack> stack_;
  HostNetwork* const host_;
  const base::Ref<UnixSockets> unix_sockets_;
  fiber::WaitQueue queue_;
  std::atomic<int> error_{0};
  std::atomic<uint32_t> port_{0}, kept_{0};
  std::atomic<uint32_t> peer_port_{0}, peer_groups_{0};  // by connect(2)
  std::atomic<uint64_t> groups_{0};                      // bit n - 1 for group n
  absl::Mutex mutex_;
  std::deque<Message> messages_ ABSL_GUARDED_BY(mutex_);
  size_t queued_ ABSL_GUARDED_BY(mutex_) = 0;
};

// socket(2) of AF_NETLINK. ESOCKTNOSUPPORT, EPROTONOSUPPORT.
base::Result<base::Ref<FileDescription>> NewNetlinkSocket(Task& t, Vfs& vfs, int type, int protocol,
                                                          uint32_t flags);

}  // namespace sentry
