// The caller's side of the control socket.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"
#include "sentry/boot/sandbox.h"
#include "sentry/control/protocol.h"

namespace sentry {

// One connection. Not thread-safe. Every call fails with EPIPE once the sandbox is gone and with
// ETIMEDOUT if it does not answer in time. On error, `why` (where given) is one line for the user.
class ControlClient {
 public:
  // Connects to the socket `name` in the directory open as `dir_fd`.
  static base::Result<ControlClient> Connect(int dir_fd, const std::string& name);
  explicit ControlClient(base::UniqueFd socket) : socket_(std::move(socket)) {}

  base::Status Start(std::string* why);
  // `fds` become the process's descriptors 0 and up; they stay the caller's.
  base::Result<int32_t> Exec(const ProcessSpec& process, bool owned, const std::vector<int>& fds,
                             std::string* why);
  // `timeout_ms`: how long a sandbox may take to answer.
  base::Status Signal(int32_t pid, int signo, bool all, int timeout_ms = 10'000);
  base::Result<std::vector<ProcessInfo>> Processes();
  // The JSON object of sentry/trace/times/call_times.h, as the sandbox sent it.
  base::Result<std::string> SyscallTimes();
  // 0: none, -1: as it is.
  base::Status SetLimits(int64_t pids, int64_t memory);
  base::Status SetFrozen(bool frozen);
  // The descriptors of ControlOp::kJoin; they stay the caller's. The container ends with this
  // connection until Keep.
  base::Status Join(const ContainerSpec& container, const std::vector<int>& fds, std::string* why);
  base::Status Keep();
  base::Status SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols);

  // Asks for the end of a process; the answer makes socket() readable, then FinishWait returns the
  // wait status. Nothing else may be called in between.
  base::Status BeginWait(int32_t pid);
  base::Result<int> FinishWait();
  int socket() const { return socket_.get(); }

 private:
  base::Status Send(ControlOp op, std::string payload, const std::vector<int>& fds);
  base::Result<std::string> Receive(int timeout_ms, std::string* why);
  base::Result<std::string> Call(ControlOp op, std::string payload, const std::vector<int>& fds,
                                 int timeout_ms, std::string* why);

  base::UniqueFd socket_;
  uint32_t last_id_ = 0;
};

}  // namespace sentry
