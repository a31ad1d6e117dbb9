// Terminals: making one for a container, handing its master out, and being the terminal between the
// caller's and the container's.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sentry/base/host_fd.h"

namespace runsc {

struct Console {
  base::UniqueFd master;
  base::UniqueFd slave;
  std::string name;  // of the slave
};

// A new pseudoterminal; with its size set if rows or cols is not 0.
absl::StatusOr<Console> NewConsole(uint16_t rows, uint16_t cols);

// Sends the master to the unix socket at `path`, as runc does: one message with the terminal's name
// and the descriptor.
absl::Status SendConsole(const std::string& path, const Console& console);

// While a process runs in the foreground: forwards signals, and with a console the bytes and the
// window size between the caller's terminal (descriptors 0 and 1) and `master`.
struct ForegroundOptions {
  int master = -1;  // -1: no console; the process has the caller's descriptors
  // Becomes readable when the process has ended.
  int ended = -1;
  std::function<void(int signo)> on_signal;  // a signal for the process
  std::function<void()> on_resize;           // SIGWINCH; the master's size is changed already
};
// Returns when `ended` is readable and the console is drained. Restores the caller's terminal.
// Block signals with BlockForwardedSignals first, before the process is started.
absl::Status RunForeground(const ForegroundOptions& options);

// Blocks the signals that RunForeground reads from a signalfd.
void BlockForwardedSignals();

}  // namespace runsc
