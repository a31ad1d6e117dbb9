// The messages between runsc and the sentry's control server.
//
// Each container has a listening socket of its own: what comes over its connections is about it.
// One message is one datagram of a seqpacket socket: a Header, then `size` bytes of a JSON object,
// or, if kPayloadInFile is set, a sealed memory file with them as the first descriptor. Replies
// carry the id of their request and may come in another order.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"

namespace sentry {

enum class ControlOp : uint32_t {
  kReply = 0,       // error: 0 or an errno; {"why": text} or the operation's result
  kStart = 1,       // {} -> {}
  kExec = 2,        // {"process": ProcessSpec, "owned": bool}, fds: the guest's 0.. -> {"pid": n}
                    // owned: the process is killed if this connection ends before it does
  kWait = 3,        // {"pid": n} (0: init) -> {"status": wait status}, when the process has ended
  kSignal = 4,      // {"pid": n (0: init), "signo": n, "all": bool} -> {}
  kProcesses = 5,   // {} -> {"processes": [...]}
  kWindowSize = 6,  // {"pid": n, "rows": n, "cols": n} -> {}
  kSyscalls = 7,    // {} -> the object of sentry/trace/times/call_times.h
  kLimits = 8,      // {"pids": n, "memory": bytes} (0: none, -1: as it is) -> {}
  kFreeze = 9,      // {"frozen": bool} -> {}
  // {"container": ContainerSpec} -> {}; fds: its listening control socket, the file for its exit
  // status, the connection to its gofer, then the guest's 0.. The container ends with this
  // connection until that has sent kKeep. Asked of the sandbox's first container alone.
  kJoin = 10,
  kKeep = 11,  // {} -> {}
  kLast = kKeep,
};

struct ControlHeader {
  static constexpr uint32_t kMagic = 0x72756e73;
  static constexpr uint32_t kPayloadInFile = 1;
  uint32_t magic = kMagic;
  uint32_t op = 0;
  uint32_t id = 0;
  uint32_t error = 0;
  uint32_t flags = 0;
  uint32_t size = 0;
};

struct ControlMessage {
  ControlOp op = ControlOp::kReply;
  uint32_t id = 0;
  int error = 0;
  std::string payload;
  std::vector<base::UniqueFd> fds;
};

inline constexpr size_t kMaxControlInline = 32 << 10;
inline constexpr size_t kMaxControlPayload = 33 << 20;
inline constexpr size_t kMaxControlFds = 128;

// Sends one message; `fds` stay the caller's. `flags` are those of sendmsg(2).
base::Status SendControl(int socket, const ControlMessage& message, const std::vector<int>& fds,
                         int flags);
// Receives one message, checked. EPIPE at the end of the connection, EPROTO for what is no message.
base::Result<ControlMessage> RecvControl(int socket, int flags);

// A memory file with these bytes, sealed against every change, its offset at 0.
base::Result<base::UniqueFd> SealedFile(const char* name, std::string_view bytes);
// The bytes of such a file; EPROTO if it is not sealed or larger than `max`.
base::Result<std::string> ReadSealedFile(int fd, size_t max);

}  // namespace sentry
