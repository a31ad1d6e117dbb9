// The process of which every stub is a clone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/mailbox.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"

namespace platform {

// Takes all capabilities from the calling thread. They are each thread's own: who gives up his
// later leaves them to those that he has started before.
base::Status DropThreadCapabilities();

class Zygote {
 public:
  Zygote() = default;
  ~Zygote();  // kills it
  Zygote(const Zygote&) = delete;
  Zygote& operator=(const Zygote&) = delete;

  // Starts it from the embedded image with `shared_fd` (the sealed shared file). The host kills it
  // and its clones when the calling thread ends. With `strict` it is an error if the host grants no
  // listener. On an error `why` says which step failed.
  base::Status Start(int shared_fd, bool strict, std::string* why);

  // Makes a stub with the given mailbox and socket, which become its only descriptors; returns its
  // process id. It is a child of this process. Thread-safe; takes about a hundred microseconds.
  base::Result<int> MakeStub(int mailbox_fd, int socket_fd);

  // Where stubs have the vDSO; 0: nowhere.
  uint64_t vdso_base() const { return vdso_base_; }
  int pid() const { return pid_; }
  uint64_t traced_entry() const { return traced_entry_; }
  // The call gate's listener; -1 without one.
  int listener() const { return listener_.get(); }
  // Descriptors that a stub may have: its numbers are below this.
  uint32_t max_fds() const { return max_fds_; }

 private:
  ssize_t ReceiveHello(int socket, ZygoteHello* hello);
  base::Status StartOnce(int exe_fd, int shared_fd, bool strict, std::string* why);

  absl::Mutex mu_;
  base::UniqueFd socket_;  // set by Start; used under mu_
  base::UniqueFd pidfd_, listener_;
  int pid_ = -1;
  uint32_t max_fds_ = 0;
  uint64_t vdso_base_ = 0, traced_entry_ = 0;
};

}  // namespace platform
