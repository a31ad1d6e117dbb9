// The ports of one protocol in one network namespace: who is bound to what (Linux:
// net/ipv4/inet_hashtables.c, inet_connection_sock.c).
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/net/inet/address.h"

namespace sentry {

// Who may hold a port. What is here is guarded by the table's lock while it is bound; its owner may
// read `local` and `remote` after it has bound or connected.
class PortUser : public base::RefCounted {
 public:
  InetAddress local, remote;  // remote.port 0: not connected
  bool v6only = false;        // of ::, does not take IPv4
  bool reuse_address = false, reuse_port = false;
  uid_t uid = 0;
  // Receives what comes to the port: a TCP listener, a UDP socket.
  bool receiver = false;
  bool chosen = false;  // by bind(2), not by connect

 protected:
  ~PortUser() override = default;

 private:
  friend class PortTable;
  bool bound_ = false, has_tuple_ = false;
  uint64_t order_ = 0;  // of binding; later ones are asked first
};

// Thread-safe; its lock is a leaf.
class PortTable {
 public:
  struct Range {
    uint16_t low, high;
  };
  // A connection that waits for its last packets holds its port for so long (TCP_TIMEWAIT_LEN).
  static constexpr int64_t kTimeWaitNs = 60'000'000'000;
  static constexpr size_t kMaxTimeWaits = 16384;

  // `datagrams`: users receive once they are bound.
  explicit PortTable(bool datagrams) : datagrams_(datagrams) {}

  // Binds `user` (whose fields tell to what; local.port 0: a free one of `range`). EADDRINUSE.
  base::Status Bind(PortUser& user, Range range);
  // A bound user begins to listen. EADDRINUSE if another one listens there.
  base::Status Listen(PortUser& user);
  void Unlisten(PortUser& user);
  // Sets `remote`, after Bind or with a port of `range` that is chosen here. EADDRNOTAVAIL if all
  // are in use for this destination, or this connection exists.
  base::Status Connect(PortUser& user, const IpAddress& source, const InetAddress& remote,
                       Range range);
  // Of datagrams: where a bound user is connected to (port 0: nowhere), and its own address then.
  void SetRemote(PortUser& user, const IpAddress& ip, const InetAddress& remote);
  // SO_REUSEADDR and SO_REUSEPORT count from the moment that they are set.
  void SetReuse(PortUser& user, bool address, bool port);
  // Gives up `remote`, and the port unless bind(2) chose it; local.ip becomes `ip`.
  void Disconnect(PortUser& user, const IpAddress& ip);
  // The other end of a connection that a listener accepts.
  void AddAccepted(PortUser& user);
  // Not bound any more. `time_wait`: its connection's addresses stay in use for a minute.
  void Release(PortUser& user, bool time_wait = false);

  // The receiver for a packet from `from` to `to`: the best match, of several with SO_REUSEPORT one
  // by hash. Null: none.
  base::Ref<PortUser> Find(const InetAddress& to, const InetAddress& from);
  // All receivers of a multicast or broadcast packet.
  std::vector<base::Ref<PortUser>> FindAll(const InetAddress& to, const InetAddress& from);
  // All users, for /proc.
  std::vector<base::Ref<PortUser>> Users();
  // Connections in TIME_WAIT: addresses and the time left.
  struct TimeWait {
    InetAddress local, remote;
    int64_t left_ns;
  };
  std::vector<TimeWait> TimeWaits();

 private:
  struct Bucket {
    absl::flat_hash_set<PortUser*> users;
    std::vector<PortUser*> receivers;  // in order of binding
    size_t chosen = 0;                 // users by bind(2) and what was accepted from them
  };
  using Tuple = std::pair<InetAddress, InetAddress>;  // local, remote
  struct Waiting {
    base::Ref<PortUser> user;
    int64_t begin_ns;
  };

  bool Conflicts(const PortUser& user, uint16_t port) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Enter(PortUser& user) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Leave(PortUser& user) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropTuple(PortUser& user) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TakeTuple(PortUser& user) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends of TIME_WAIT.
  void Expire() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndWait(const PortUser* user) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int Score(const PortUser& user, const InetAddress& to, const InetAddress& from) const;

  const bool datagrams_;
  absl::Mutex mutex_;
  absl::flat_hash_map<uint16_t, Bucket> buckets_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Tuple, PortUser*> tuples_ ABSL_GUARDED_BY(mutex_);  // of connections
  absl::flat_hash_map<const PortUser*, Waiting> waits_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::pair<int64_t, const PortUser*>> wait_order_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_order_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace sentry
