// Sockets as files, whatever their family (Linux: net/socket.c, struct socket and struct sock).
#pragma once

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

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/namespaces.h"
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
  friend bool operator==(const SenderCreds& a, const SenderCreds& b) {
    return a.pid == b.pid && a.uid == b.uid && a.gid == b.gid;
  }
};
// Of the current task: its process and effective ids (SO_PEERCRED), or real ids (SCM_CREDENTIALS).
SenderCreds CurrentCreds();
SenderCreds CurrentRealCreds();

// What sendmsg(2) and its kin pass down.
struct SendArgs {
  int flags = 0;          // MSG_*
  bool nonblock = false;  // by MSG_DONTWAIT or O_NONBLOCK
  SockAddr to;
  std::vector<base::Ref<FileDescription>> files;  // SCM_RIGHTS
  std::optional<SenderCreds> creds;               // SCM_CREDENTIALS, checked
};

// What recvmsg(2) and its kin pass down and get.
struct RecvArgs {
  int flags = 0;
  bool nonblock = false;
  // Results.
  int out_flags = 0;       // MSG_TRUNC, ...
  size_t full_length = 0;  // of the message, for MSG_TRUNC
  SockAddr from;
  std::vector<base::Ref<FileDescription>> files;
  bool has_creds = false;  // SO_PASSCRED
  SenderCreds creds;
};

// Base of all sockets. Default answers are Linux's sock_no_*: EOPNOTSUPP.
class Socket : public FileDescription {
 public:
  // type: SOCK_STREAM, ... without flags; `flags`: O_NONBLOCK.
  Socket(Vfs& vfs, int domain, int type, int protocol, uint32_t flags);
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

  bool pass_creds() const { return pass_creds_.load(std::memory_order_relaxed); }
  // Deadlines for a wait that begins now; fiber::kNoDeadline.
  int64_t ReceiveDeadline() const { return DeadlineOf(receive_timeout_ns_.load()); }
  int64_t SendDeadline() const { return DeadlineOf(send_timeout_ns_.load()); }

 protected:
  ~Socket() override = default;
  // What SOL_SOCKET options need from the family.
  virtual int TakeError() { return 0; }
  virtual bool listening() const { return false; }
  virtual int send_buffer() const { return 0; }
  virtual void set_send_buffer(int) {}
  virtual std::optional<SenderCreds> peer_creds() const { return std::nullopt; }
  // An interrupted wait: restarted only if it has no time limit (sock_intr_errno).
  static base::Error Interrupted(int64_t deadline_ns);

 private:
  static int64_t DeadlineOf(int64_t timeout_ns);
  base::Result<std::vector<std::byte>> GetSocketOption(Task& t, int name);
  base::Status SetSocketOption(Task& t, int name, std::span<const std::byte> value);

  const int domain_, type_, protocol_;
  std::atomic<bool> pass_creds_{false};
  std::atomic<int64_t> receive_timeout_ns_{0}, send_timeout_ns_{0};  // 0: none
  std::atomic<int> receive_buffer_{212992};
  std::atomic<int> receive_low_{1}, priority_{0};
  // Options that are kept and read back, and mean nothing inside of one machine.
  std::atomic<uint32_t> kept_flags_{0};
  std::atomic<uint64_t> linger_{0};
};

// SIGPIPE to the current task.
void RaiseSocketSigpipe();

}  // namespace sentry
