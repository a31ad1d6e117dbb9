// Sockets as files, whatever their family (Linux: net/socket.c, struct socket and struct sock).
#pragma once

#include <linux/sock_diag.h>
#include <signal.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/net/socket_filter.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Task;
class Vfs;

// A socket address as the guest gave it or gets it.
struct SockAddr {
  uint32_t length = 0;  // valid bytes; 0: none
  std::array<std::byte, sizeof(sockaddr_storage)> bytes{};
  sa_family_t family() const;  // AF_UNSPEC if it is too short to tell
  std::span<const std::byte> data() const { return std::span(bytes).first(length); }
};

// Who sent a message (struct ucred in kernel ids).
struct SenderCreds {
  base::Ref<Pid> pid;
  uid_t uid = 65534;
  gid_t gid = 65534;
  base::Ref<const Credentials> all{};  // of a peer, for its groups; null where nobody asks
  friend bool operator==(const SenderCreds& a, const SenderCreds& b) {
    return a.pid == b.pid && a.uid == b.uid && a.gid == b.gid;
  }
};
// Of the current task: its process and effective ids (SO_PEERCRED), or real ids (SCM_CREDENTIALS).
SenderCreds CurrentCreds();
SenderCreds CurrentRealCreds();

// A control message of the family's own.
struct ControlMessage {
  int level, type;
  std::vector<std::byte> data;
};

// What sendmsg(2) and its kin pass down.
struct SendArgs {
  int flags = 0;          // MSG_*
  bool nonblock = false;  // by MSG_DONTWAIT or O_NONBLOCK
  SockAddr to;
  std::vector<base::Ref<FileDescription>> files;  // SCM_RIGHTS
  std::optional<SenderCreds> creds;               // SCM_CREDENTIALS, checked
  std::vector<ControlMessage> control;            // of levels other than SOL_SOCKET
};

class SocketOptions;

// What recvmsg(2) and its kin pass down and get.
struct RecvArgs {
  int flags = 0;
  bool nonblock = false;
  SocketOptions* options = nullptr;  // of the socket, where its endpoint has none (SO_PEEK_OFF)
  // Results.
  int out_flags = 0;       // MSG_TRUNC, ...
  size_t full_length = 0;  // of the message, for MSG_TRUNC
  SockAddr from;
  std::vector<base::Ref<FileDescription>> files;
  bool has_creds = false;  // SO_PASSCRED
  bool has_pidfd = false;  // SO_PASSPIDFD
  SenderCreds creds;
  std::vector<ControlMessage> control;
};

// What SOL_SOCKET options set, and what a socket that is accepted takes over from its listener. The
// endpoint behind a description may share it. Each value is atomic by itself.
class SocketOptions : public base::RefCounted {
 public:
  static constexpr int kDefaultBuffer = 212992;  // net.core.{r,w}mem_default
  // Of the options that are on or off: SO_REUSEADDR and its kin; see SocketOptions::Bit.
  bool flag(int name) const {
    return (flags.load(std::memory_order_relaxed) >> Bit(name) & 1) != 0;
  }
  void SetFlag(int name, bool on);
  // -1: it is not one of them.
  static int Bit(int name);
  void CopyFrom(const SocketOptions& other);
  // SO_ATTACH_FILTER; null: none.
  base::Ref<const SocketFilter> filter() const;
  void SetFilter(base::Ref<const SocketFilter> filter);
  bool has_filter() const { return has_filter_.load(std::memory_order_relaxed); }
  // SO_PEEK_OFF: where a receive with these MSG_* flags begins, and what it has looked at, or taken
  // (sk_peek_offset and its kin).
  size_t PeekFrom(int recv_flags) const {
    const int from = peek_offset.load(std::memory_order_relaxed);
    return (recv_flags & MSG_PEEK) != 0 && from > 0 ? static_cast<size_t>(from) : 0;
  }
  void NoteReceived(int recv_flags, size_t n) {
    if (peek_offset.load(std::memory_order_relaxed) >= 0) MovePeek(recv_flags, n);
  }
  // SO_TXTIME.
  struct TransmitTime {
    int clock = 0;
    uint32_t flags = 0;
  };
  // SO_TIMESTAMPING: SOF_TIMESTAMPING_* flags and the clock that they are bound to.
  struct Timestamping {
    int flags = 0, bind_phc = 0;
  };

  std::atomic<uint64_t> flags{0};
  std::atomic<int64_t> receive_timeout_ns{0}, send_timeout_ns{0};  // 0: none
  std::atomic<int> receive_buffer{kDefaultBuffer}, send_buffer{kDefaultBuffer};
  // Set by the application, which ends the adjustment by the protocol (SOCK_RCVBUF_LOCK).
  std::atomic<bool> receive_buffer_locked{false}, send_buffer_locked{false};
  std::atomic<int> receive_low{1}, priority{0}, device{0};  // device: an interface's index
  std::atomic<uint32_t> mark{0};
  std::atomic<int> linger_seconds{-1};  // -1: off
  std::atomic<int> busy_poll_us{0}, incoming_cpu{-1}, transmit_rehash{1};
  std::atomic<uint64_t> max_pacing_rate{~uint64_t{0}};
  std::atomic<Timestamping> timestamping{Timestamping()};
  std::atomic<int> peek_offset{-1};  // -1: not asked for
  std::atomic<int> busy_poll_budget{8};
  std::atomic<TransmitTime> transmit_time{TransmitTime()};

 private:
  void MovePeek(int recv_flags, size_t n);

  mutable absl::Mutex filter_mutex_;  // leaf
  std::atomic<bool> has_filter_{false};
  base::Ref<const SocketFilter> filter_ ABSL_GUARDED_BY(filter_mutex_);
};

// Base of all sockets. Default answers are Linux's sock_no_*: EOPNOTSUPP.
class Socket : public FileDescription {
 public:
  // type: SOCK_STREAM, ... without flags; `flags`: O_NONBLOCK; `options`: null for ones of its own.
  Socket(Vfs& vfs, int domain, int type, int protocol, uint32_t flags,
         base::Ref<SocketOptions> options = nullptr);
  static Socket* From(FileDescription& file) { return dynamic_cast<Socket*>(&file); }

  int domain() const { return domain_; }
  int type() const { return type_; }
  int protocol() const { return protocol_; }

  virtual base::Status Bind(Task& t, const SockAddr& address);
  virtual base::Status Connect(Task& t, const SockAddr& address, bool nonblock);
  virtual base::Status Listen(int backlog);
  // `flags` of the new description: O_NONBLOCK.
  virtual base::Result<base::Ref<FileDescription>> Accept(uint32_t flags, bool nonblock);
  virtual base::Status Shutdown(int how);  // SHUT_*
  virtual base::Result<SockAddr> LocalAddress();
  virtual base::Result<SockAddr> PeerAddress();  // ENOTCONN
  // Of a socket that accept(2) has just made; it may have ended already.
  virtual base::Result<SockAddr> AcceptedAddress() { return PeerAddress(); }
  // SIGPIPE is sent by them as Linux does, unless MSG_NOSIGNAL.
  virtual base::Result<size_t> Send(IoSource& src, SendArgs args);
  virtual base::Result<size_t> Receive(IoDest& dst, RecvArgs* args);

  // getsockopt and setsockopt; the caller cuts the value to the length that was asked for.
  // ENOPROTOOPT, EINVAL.
  virtual base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name);
  virtual base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value);

  // --- FileDescription ---
  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<size_t> Write(IoSource& src, bool nonblock) override;
  int AsyncBand(uint32_t events) const override;
  // A send found no room, or a connection is on its way: the next POLL_OUT is news
  // (SOCKWQ_ASYNC_NOSPACE).
  void NoteNoSpace(const base::Error& error) {
    if (error.code() == EAGAIN || error.code() == EINPROGRESS) no_space_.store(true);
  }

  SocketOptions& options() const { return *options_; }
  bool pass_creds() const { return options_->flag(SO_PASSCRED); }
  bool pass_pidfd() const;
  // Deadlines for a wait that begins now; fiber::kNoDeadline.
  int64_t ReceiveDeadline() const { return DeadlineOf(options_->receive_timeout_ns.load()); }
  int64_t SendDeadline() const { return DeadlineOf(options_->send_timeout_ns.load()); }

 protected:
  ~Socket() override = default;
  // What SOL_SOCKET options need from the family.
  virtual int TakeError() { return 0; }
  virtual bool listening() const { return false; }
  virtual int send_buffer() const { return options_->send_buffer.load(); }
  virtual void set_send_buffer(int bytes) { options_->send_buffer.store(bytes); }
  // A value of `options` has changed that matters to who waits (SO_RCVLOWAT, buffers).
  virtual void OnOptionChange() {}
  virtual std::optional<SenderCreds> peer_creds() const { return std::nullopt; }
  virtual bool has_peek_offset() const { return false; }
  // Bytes that wait to be received, and that others have not received yet (SO_MEMINFO).
  struct Queued {
    uint64_t in = 0, out = 0;
  };
  virtual Queued queued() { return {}; }
  // SO_BINDTODEVICE, SO_BINDTOIFINDEX: all there is goes over lo, so to be bound to it excludes
  // nothing. `privileged`: CAP_NET_RAW where the network is.
  base::Status BindToDevice(int name, std::span<const std::byte> value, bool privileged);
  std::vector<std::byte> BoundDevice(int name) const;
  // An interrupted wait: restarted only if it has no time limit (sock_intr_errno).
  static base::Error Interrupted(int64_t deadline_ns);
  // SO_RCVTIMEO, SO_SNDTIMEO.
  bool has_receive_limit() const { return options_->receive_timeout_ns.load() != 0; }
  bool has_send_limit() const { return options_->send_timeout_ns.load() != 0; }

 private:
  static int64_t DeadlineOf(int64_t timeout_ns);
  base::Result<std::vector<std::byte>> GetSocketOption(Task& t, int name);
  base::Result<std::vector<std::byte>> GetPeerOption(Task& t, int name);
  std::array<uint32_t, SK_MEMINFO_VARS> MemoryInfo();
  base::Status SetBuffer(Task& t, int name, int number);
  base::Status SetFlagOption(Task& t, int name, int number);
  base::Status SetTimestamping(std::span<const std::byte> value);
  base::Status SetFilterOption(Task& t, int name, std::span<const std::byte> value);
  base::Status SetTransmitTime(Task& t, std::span<const std::byte> value);
  base::Status SetBusyPoll(Task& t, int name, int number);
  base::Status SetSocketOption(Task& t, int name, std::span<const std::byte> value);
  // Are there no such options for sockets of this kind?
  bool Lacks(int name) const;

  const int domain_, type_, protocol_;
  const base::Ref<SocketOptions> options_;
  mutable std::atomic<bool> no_space_{false};
};

// The value of an option.
template <typename T>
std::vector<std::byte> OptionBytes(const T& value) {
  auto b = std::as_bytes(std::span(&value, 1));
  return {b.begin(), b.end()};
}
// SIGPIPE to the current task.
void RaiseSocketSigpipe();

}  // namespace sentry
