// What UDP, ICMP and raw endpoints have in common: a bounded queue of packets, an error queue, and
// the control messages that go with them (Linux: net/core/datagram.c, net/ipv4/ip_sockglue.c).
#pragma once

#include <time.h>

// After <time.h>, which it needs.
#include <linux/errqueue.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/net/inet/endpoint.h"

namespace sentry {

// A packet's payload. Shared by those who get the same one.
class PacketData : public base::RefCounted {
 public:
  explicit PacketData(size_t size) : bytes_(new std::byte[size]), size_(size) {}
  std::span<std::byte> bytes() { return {bytes_.get(), size_}; }
  size_t size() const { return size_; }
  // The rest of `src`. EFAULT.
  static base::Result<base::Ref<PacketData>> From(IoSource& src);

 private:
  std::unique_ptr<std::byte[]> bytes_;
  const size_t size_;
};

struct Packet {
  base::Ref<PacketData> data;
  InetAddress from, to;
  int hops = 64, traffic_class = 0;
  uint32_t mark = 0;
  int priority = 0;
  timespec time{};  // when it was queued
  size_t cut = 0;   // bytes at the end that this receiver does not get
  size_t skip = 0;  // bytes at the beginning that this receiver does not get
  std::span<const std::byte> payload() const {
    return data->bytes().subspan(skip, data->size() - skip - cut);
  }
  InetAddress claimed;  // the name that a receiver is told, if it is not `from` (raw: no port)
};

// What control messages of a send ask for.
struct SendOptions {
  int hops = -1, traffic_class = -1;
  int device = 0;
  bool has_source = false;
  IpAddress source;
};

class DatagramEndpoint : public InetEndpoint {
 public:
  using InetEndpoint::InetEndpoint;

  virtual base::Status Bind(Task& t, const InetAddress& address) = 0;
  virtual base::Status Connect(InetAddress to) = 0;
  virtual void Disconnect() = 0;
  virtual base::Result<size_t> Send(IoSource& src, const SendArgs& args) = 0;
  virtual void Release() = 0;
  virtual size_t max_payload() const { return 65535; }

  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args, int64_t deadline_ns);
  base::Status Shutdown(int how);
  uint32_t Readiness();
  int TakeError();
  base::Result<InetAddress> PeerName();
  InetAddress LocalName() override;
  // SIOCINQ: of the first packet.
  size_t FirstLength();
  // SIOCGSTAMP: when the last packet that was received had come. ENOENT.
  base::Result<timespec> LastTime();

  // Of a packet that somebody sent. False: there was no room.
  bool Deliver(Packet packet);
  // An ICMP error came back for a packet to `to`. `offender`: who sent it.
  void Fail(int error, const Packet& packet, bool hard);
  // RCV_SHUTDOWN and SEND_SHUTDOWN.
  int shut() const { return shutdown_.load(std::memory_order_relaxed); }
  // Bytes in the queue, for /proc.
  uint64_t queued() const { return charge_.load(); }
  uint64_t drops() const { return drops_.load(); }
  // For /proc/net.
  struct Row {
    InetAddress local, remote;
    bool connected;
    uint64_t queued, drops;
    uid_t uid;
    uint64_t ino;
  };
  Row Describe();

  // Bytes before the data of a packet that a filter sees: the transport's header.
  virtual size_t filter_header() const { return 0; }
  // Is MSG_OOB of a receive an error? UDP does not look at it.
  virtual bool refuses_urgent() const { return true; }

  // --- multicast ---
  // `include`: from no source until one is added; else from all.
  base::Status Join(const IpAddress& group, int device, bool include = false);
  base::Status Leave(const IpAddress& group, int device);
  // Adds to or takes from the sources that are taken alone (`include`) or not at all.
  base::Status ChangeSource(const IpAddress& group, int device, const IpAddress& source,
                            bool include, bool add);
  // Does a multicast packet from `source` to `group` go to it?
  bool Wants(const IpAddress& group, const IpAddress& source);

 protected:
  ~DatagramEndpoint() override = default;
  static constexpr int kReceiveShut = 1, kSendShut = 2;
  // EPIPE after shutdown, or a pending error.
  base::Status CheckSend();
  // EINVAL of bad control messages.
  base::Result<SendOptions> ParseControl(const SendArgs& args) const;
  // Where a packet goes and what its source address is. EDESTADDRREQ, EACCES, ENETUNREACH, ...
  base::Status Destination(const SendArgs& args, const SendOptions& ask, InetAddress* to,
                           IpAddress* source);
  Packet MakePacket(base::Ref<PacketData> data, const IpAddress& source, const InetAddress& to,
                    const SendOptions& ask);
  void LeaveAll();
  // bind(2): `address` becomes the local one, with a port of `ports` if it names none. EINVAL if
  // there is a port already, EADDRINUSE.
  base::Status BindTo(const InetAddress& address, PortTable::Range ports)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool connected() const { return connected_.load(std::memory_order_relaxed); }

  absl::Mutex mutex_;  // before the port tables; never two
  std::atomic<bool> connected_{false};
  bool bound_address_ ABSL_GUARDED_BY(mutex_) = false, bound_port_ ABSL_GUARDED_BY(mutex_) = false;

 private:
  static constexpr size_t kOverhead = 512;  // of a packet in the queue, as struct sk_buff
  static constexpr size_t kMaxErrors = 128, kMaxGroups = 64;
  static constexpr size_t kMaxSources = 10;  // igmp_max_msf
  struct Membership {
    IpAddress group;
    int device;
    bool include;
    std::vector<IpAddress> sources;
  };
  Membership* FindGroup(const IpAddress& group, int device) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  struct ErrorEntry {
    sock_extended_err error;
    InetAddress offender, to;
    base::Ref<PacketData> data;
    size_t skip;
  };

  base::Result<size_t> ReceiveError(IoDest& dst, RecvArgs* args);
  // Of the packet that has the byte after `*skip` ones; that then is what it has before it.
  size_t PacketAt(size_t* skip) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddControl(const Packet& packet, RecvArgs* args);
  void AddControl4(const Packet& packet, RecvArgs* args);
  void AddControl6(const Packet& packet, RecvArgs* args);
  void AddSocketControl(const Packet& packet, RecvArgs* args);
  // Does the filter let it pass? Cuts it to what the filter says.
  bool PassesFilter(Packet* packet) const;
  bool TellsTime() const;
  bool ReceivesErrors(bool v4);

  std::deque<Packet> queue_ ABSL_GUARDED_BY(mutex_);
  std::deque<ErrorEntry> errors_ ABSL_GUARDED_BY(mutex_);
  std::vector<Membership> groups_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> charge_{0}, drops_{0};
  std::atomic<int> error_{0}, shutdown_{0};
  timespec last_time_ ABSL_GUARDED_BY(mutex_){};
};

// The description of all of them.
class DatagramSocket : public InetSocket {
 public:
  DatagramSocket(Vfs& vfs, base::Ref<DatagramEndpoint> endpoint, int type, int protocol,
                 uint32_t flags)
      : InetSocket(vfs, *endpoint, type, protocol, flags), endpoint_(std::move(endpoint)) {}

  base::Status Bind(Task& t, const SockAddr& address) override;
  base::Status Connect(Task& t, const SockAddr& address, bool nonblock) override;
  base::Status Shutdown(int how) override { return endpoint_->Shutdown(how); }
  base::Result<SockAddr> PeerAddress() override;
  base::Result<size_t> Send(IoSource& src, SendArgs args) override;
  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args) override;
  base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name) override;
  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override { return endpoint_->Readiness(); }

 protected:
  ~DatagramSocket() override {
    endpoint_->SetDescription(nullptr);
    endpoint_->Release();
  }
  int TakeError() override { return endpoint_->TakeError(); }
  bool has_peek_offset() const override { return protocol() == IPPROTO_UDP; }
  Queued queued() override { return {.in = endpoint_->queued()}; }

 private:
  base::Status SetMembership(int level, int name, std::span<const std::byte> value);
  static bool IsSourceOption(int level, int name);
  base::Status SetSource(int level, int name, std::span<const std::byte> value);
  base::Status SetMulticastDevice(int level, std::span<const std::byte> value);

  const base::Ref<DatagramEndpoint> endpoint_;
};

}  // namespace sentry
