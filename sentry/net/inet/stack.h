// The IPv4 and IPv6 stack of one network namespace: its loopback device, addresses, ports and
// settings. Packets exist only where somebody looks at them (raw sockets).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/call_once.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/net/inet/port_table.h"

namespace sentry {

class PacketTap;
class RawEndpoint;
class Task;

// Counters of /proc/net/snmp and its kin.
struct NetCounters {
  std::atomic<uint64_t> packets{0}, bytes{0};  // of lo, each way
  std::atomic<uint64_t> tcp_active{0}, tcp_passive{0}, tcp_failed{0}, tcp_resets{0};
  std::atomic<uint64_t> tcp_out_resets{0}, tcp_segments{0}, listen_overflows{0};
  std::atomic<uint64_t> udp_in{0}, udp_out{0}, udp_no_port{0}, udp_full{0};
  std::atomic<uint64_t> icmp_in{0}, icmp_out{0};
};

class NetworkListener;
struct NetworkNews;

// Who has asked for a change over netlink; zeros: nobody has.
struct NetworkAsker {
  uint32_t port = 0, sequence = 0;
};

// Thread-safe.
class InetStack : public base::RefCounted {
 public:
  static constexpr int kLoopbackIndex = 1;
  static constexpr uint32_t kMtu = 65536;

  struct Address {
    IpAddress ip;
    int prefix = 0;
  };

  // May `t` do in this namespace what needs `cap`?
  bool HasCap(Task& t, int cap) const;

  // Of a namespace. The first one of the sandbox has its loopback device up.
  static base::Ref<InetStack> Of(NetNamespace& ns);
  static base::Ref<InetStack> Current(Task& t);

  // --- the loopback device ---
  bool up() const { return up_.load(std::memory_order_relaxed); }
  // Going up adds 127.0.0.1/8 and ::1/128, as Linux does.
  void SetUp(bool up, NetworkAsker asker = {});
  std::vector<Address> addresses() const;
  // EEXIST; ENOBUFS beyond a bound.
  base::Status AddAddress(const Address& a, NetworkAsker asker = {});
  // EADDRNOTAVAIL.
  base::Status RemoveAddress(const Address& a, NetworkAsker asker = {});

  // --- who is told of changes, until it takes itself out ---
  void AddListener(NetworkListener* listener);
  void RemoveListener(NetworkListener* listener);

  // --- routes: what is an address of this machine is reached, nothing else ---
  bool IsLocal(const IpAddress& ip) const;
  bool IsBroadcast(const IpAddress& ip) const;
  // May a socket be bound to it? EADDRNOTAVAIL.
  base::Status CheckBind(const IpAddress& ip) const;
  // The source address for packets to `to`, which must be local: ENETUNREACH. `to` any becomes
  // loopback.
  base::Result<IpAddress> Route(IpAddress* to) const;

  // --- ports ---
  PortTable& tcp() { return tcp_; }
  PortTable& udp() { return udp_; }
  PortTable& ping() { return ping_; }  // identifiers of ICMP echo
  PortTable::Range port_range() const;
  // EINVAL.
  base::Status SetPortRange(int low, int high);

  // --- who sees packets: raw and packet sockets, which take themselves out before they go ---
  void AddRaw(RawEndpoint* raw);
  void RemoveRaw(RawEndpoint* raw);
  std::vector<base::Ref<RawEndpoint>> RawSockets();
  void AddTap(PacketTap* tap);
  void RemoveTap(PacketTap* tap);
  std::vector<base::Ref<PacketTap>> Taps();
  // Is there anybody?
  bool watched() const { return watchers_.load(std::memory_order_relaxed) != 0; }

  // --- multicast groups that somebody has joined; all hosts are members of one ---
  void JoinGroup(const IpAddress& group);
  void LeaveGroup(const IpAddress& group);
  bool InGroup(const IpAddress& group) const;

  // --- port ids of netlink sockets ---
  bool TakeNetlinkPort(uint32_t port);
  void DropNetlinkPort(uint32_t port);

  // --- /proc/sys/net ---
  std::atomic<int> unprivileged_port_start{1024};
  std::atomic<uint32_t> ping_first{1}, ping_last{0};  // kernel group ids
  std::atomic<int> somaxconn{4096};
  std::atomic<int> ip_nonlocal_bind{0}, bindv6only{0}, default_ttl{64}, ip_forward{0};
  // ipv4/conf/{all,lo}: of packets that come in over the device from outside of this stack.
  std::atomic<int> route_localnet_all{0}, route_localnet_lo{0}, accept_local_all{0};
  std::atomic<int> accept_local_lo{0}, rp_filter_all{0}, rp_filter_lo{0};

  NetCounters counters;

 private:
  static constexpr size_t kMaxAddresses = 256;

  absl::once_flag started_;
  base::Ref<UserNamespace> user_ns_;  // set once
  std::atomic<bool> up_{false};
  std::atomic<uint32_t> port_range_{32768u << 16 | 60999};
  PortTable tcp_{/*datagrams=*/false}, udp_{/*datagrams=*/true};
  PortTable ping_{/*datagrams=*/true};
  mutable absl::Mutex mutex_;  // leaf
  std::vector<Address> addresses_ ABSL_GUARDED_BY(mutex_);
  std::vector<RawEndpoint*> raw_ ABSL_GUARDED_BY(mutex_);
  std::vector<PacketTap*> taps_ ABSL_GUARDED_BY(mutex_);
  std::atomic<size_t> watchers_{0};  // raw_ and taps_
  void Tell(const NetworkNews& news);

  absl::Mutex listeners_mutex_;  // before what a listener takes
  std::vector<NetworkListener*> listeners_ ABSL_GUARDED_BY(listeners_mutex_);
  absl::flat_hash_map<IpAddress, int> groups_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<uint32_t> netlink_ports_ ABSL_GUARDED_BY(mutex_);
};

// What has changed.
struct NetworkNews {
  enum class Kind { kLink, kAddress } kind = Kind::kLink;
  bool added = true;           // the address
  InetStack::Address address;  // of kAddress
  NetworkAsker asker;
};

class NetworkListener {
 public:
  virtual ~NetworkListener() = default;
  // Must not park, nor change the network.
  virtual void OnNews(InetStack& stack, const NetworkNews& news) = 0;
};

}  // namespace sentry
