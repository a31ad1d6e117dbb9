// What TCP, UDP and raw endpoints have in common: where they are bound, and the options of
// IPPROTO_IP and IPPROTO_IPV6.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/net/inet/port_table.h"
#include "sentry/net/inet/stack.h"
#include "sentry/net/inet/zero_copy.h"
#include "sentry/net/socket.h"

namespace sentry {

// Options of the two levels. Each value is atomic by itself.
class IpOptions {
 public:
  IpOptions();
  // On or off, by level and name of the option.
  bool flag(int level, int name) const;
  void SetFlag(int level, int name, bool on);
  void CopyFrom(const IpOptions& other);

  base::Result<std::vector<std::byte>> Get(int level, int name) const;
  // What changes no membership. ENOPROTOOPT, EINVAL, EPERM.
  // `type`: of the socket.
  base::Status Set(Task& t, InetStack& stack, int level, int name, std::span<const std::byte> value,
                   int type);

  std::atomic<int> ttl{-1}, tos{0}, mtu_discover{1}, multicast_ttl{1};               // IPv4
  std::atomic<int> hops{-1}, traffic_class{0}, mtu_discover6{1}, multicast_hops{1};  // IPv6
  std::atomic<int> multicast_device{0}, multicast_device6{0};  // an interface's index, 0: none
  std::atomic<uint32_t> multicast_address{0};              // IP_MULTICAST_IF's, in network order
  std::atomic<int> unicast_device{0}, unicast_device6{0};  // in network order, as they are given
  std::atomic<int> min_ttl{0}, min_hops{0}, port_range{0}, address_preferences{0};

 private:
  base::Status SetOther4(int name, int number, std::span<const std::byte> value, int type);
  base::Status SetPreferences(int number);
  // IP_UNICAST_IF and its like.
  static base::Status SetDevice(std::atomic<int>* to, std::span<const std::byte> value);

  std::atomic<uint64_t> flags_;
};

class InetEndpoint : public PortUser {
 public:
  InetEndpoint(base::Ref<InetStack> stack, int family)
      : family_(family), stack_(std::move(stack)), options_(base::MakeRef<SocketOptions>()) {
    if (!v6()) return;
    ip_.SetFlag(IPPROTO_IP, IP_MULTICAST_ALL, false);
    if (stack_->bindv6only.load() != 0) ip_.SetFlag(IPPROTO_IPV6, IPV6_V6ONLY, true);
  }

  int family() const { return family_; }
  bool v6() const { return family_ == AF_INET6; }
  InetStack& stack() const { return *stack_; }
  const base::Ref<InetStack>& stack_ref() const { return stack_; }
  SocketOptions& options() const { return *options_; }
  const base::Ref<SocketOptions>& options_ref() const { return options_; }
  IpOptions& ip() { return ip_; }
  fiber::WaitQueue& wait_queue() { return queue_; }
  virtual PortTable& table() = 0;
  virtual InetAddress LocalName() = 0;
  // See ZeroCopyNotices.
  void CompleteZeroCopy();
  bool zero_copy_pending() const { return zero_copy_.pending(); }
  // The answer to MSG_ERRQUEUE. EAGAIN.
  base::Result<size_t> TakeZeroCopy(RecvArgs* args) { return zero_copy_.Take(v6(), args); }
  // SIGURG to who owns the description (F_SETOWN).
  void SendSigurg();
  // The description that signals are for; null when it is closed.
  void SetDescription(FileDescription* file);
  uint64_t ino() const { return ino_.load(std::memory_order_relaxed); }
  void set_ino(uint64_t ino) { ino_.store(ino, std::memory_order_relaxed); }

 protected:
  ~InetEndpoint() override = default;
  // What bind(2) checks before a port is taken: fills local.ip and local.port. `stream`: no
  // multicast. EADDRNOTAVAIL, EACCES, EINVAL.
  base::Status CheckBind(Task& t, const InetAddress& address, bool stream);
  // Fills in what the port table asks for, from the options.
  void SetPortUser();
  // Where the socket sends to: EAFNOSUPPORT, EINVAL, ENETUNREACH. `*source` its address then.
  base::Status Resolve(InetAddress* to, IpAddress* source) const;

 private:
  const int family_;
  const base::Ref<InetStack> stack_;
  const base::Ref<SocketOptions> options_;
  IpOptions ip_;
  fiber::WaitQueue queue_;
  std::atomic<uint64_t> ino_{0};  // of the description
  ZeroCopyNotices zero_copy_;
  absl::Mutex description_mutex_;  // before the description's owner
  FileDescription* description_ ABSL_GUARDED_BY(description_mutex_) = nullptr;
};

// The base of the descriptions. `endpoint` outlives it.
class InetSocket : public Socket {
 public:
  InetSocket(Vfs& vfs, InetEndpoint& endpoint, int type, int protocol, uint32_t flags);
  static InetSocket* From(FileDescription& file) { return dynamic_cast<InetSocket*>(&file); }

  base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name) override;
  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;
  base::Result<SockAddr> LocalAddress() override;
  fiber::WaitQueue* wait_queue() override { return &base_.wait_queue(); }

 protected:
  ~InetSocket() override = default;
  Vfs& vfs() const { return vfs_; }
  // After a send that succeeded.
  void AfterSend(const SendArgs& args, size_t n) {
    if ((args.flags & MSG_ZEROCOPY) != 0 && n > 0 && options().flag(SO_ZEROCOPY)) {
      base_.CompleteZeroCopy();
    }
  }

  // Has it the options of IPPROTO_IP or IPPROTO_IPV6?
  bool HasIpLevel(int level) const;

 private:
  Vfs& vfs_;
  InetEndpoint& base_;
};

// An int, or a single byte as IPPROTO_IP takes it.
base::Result<int> OptionInt(std::span<const std::byte> value, bool allow_byte = false);

}  // namespace sentry
