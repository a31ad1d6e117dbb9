// The console of a process that runsc starts with a terminal: a pseudo-terminal of the sandbox
// whose master end is pumped to and from a terminal of the host. The host's terminal is put into
// raw mode and only carries bytes; line editing, job control and signals are the sandbox's own.
#pragma once

#include <atomic>
#include <cstdint>

#include "sentry/auth/credentials.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fs/devpts/terminal.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Cgroup;
class Kernel;
class Vfs;

class Console : public base::RefCounted {
 public:
  // `devpts` is the root of a devpts mount of the container; without one (null mount) an instance
  // that no path leads to is made. `host` is one end of a host terminal with an open description of
  // its own. Errors are the host's (ENOTTY).
  static base::Result<base::Ref<Console>> New(Kernel& kernel, Vfs& vfs, const Path& devpts,
                                              base::UniqueFd host, const Credentials& creds);

  // A new description of the terminal, for reading and writing.
  base::Result<base::Ref<FileDescription>> OpenSlave(const Credentials& creds);
  const base::Ref<Terminal>& terminal() const { return terminal_; }
  // 0, 0: takes the size of the host's terminal. SIGWINCH to the foreground group on a change.
  base::Status SetWindowSize(uint16_t rows, uint16_t cols);
  // Lets /dev/console (5, 1) open it for the processes of this group.
  void RegisterAsSystemConsole(Cgroup& cgroup);
  // Parks until everything written so far has reached the host's terminal, or the host's end is
  // gone, or two seconds passed. Called before the end of the container is reported.
  void Flush();

 private:
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  Console(Path slave, base::Ref<Terminal> terminal, base::UniqueFd host)
      : slave_(std::move(slave)), terminal_(std::move(terminal)), host_(std::move(host)) {}
  ~Console() override = default;
  void PumpIn();   // keyboard to terminal
  void PumpOut();  // terminal to display

  const Path slave_;
  const base::Ref<Terminal> terminal_;
  const base::UniqueFd host_;
  std::atomic<bool> writing_{false}, gone_{false};
};

}  // namespace sentry
