#include "platform/systrap/clone_gate.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "platform/mailbox.h"

namespace platform {
namespace {

// How often a thread may begin anew.
constexpr uint32_t kRepeats = 100;

}  // namespace

void CloneGate::Start(int listener) {
  listener_ = listener;
  stop_fd_.reset(eventfd(0, EFD_CLOEXEC));
#ifdef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
  // A hint only: the two threads take turns, so they may share a core.
  ioctl(listener_, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
#endif
  thread_ = std::thread([this] { Run(); });
}

void CloneGate::Stop() {
  if (!thread_.joinable()) return;
  uint64_t one = 1;
  if (write(stop_fd_.get(), &one, sizeof(one)) == sizeof(one)) thread_.join();
}

void CloneGate::Expect(int tid, uint64_t flags) {
  absl::MutexLock lock(&mu_);
  Allowance& a = allowed_[tid];
  (flags == kForkCloneFlags ? a.forks : a.threads) = true;
  a.expected++;
}

bool CloneGate::Forget(int tid) {
  absl::MutexLock lock(&mu_);
  auto found = allowed_.find(tid);
  if (found == allowed_.end()) return false;
  const bool repeated = found->second.asked > found->second.expected;
  allowed_.erase(found);
  return repeated;
}

bool CloneGate::Take(int tid, uint64_t flags) {
  absl::MutexLock lock(&mu_);
  auto found = allowed_.find(tid);
  if (found == allowed_.end()) return false;
  Allowance& a = found->second;
  if (!(flags == kForkCloneFlags ? a.forks : flags == kThreadCloneFlags && a.threads)) return false;
  return a.asked++ < a.expected + kRepeats;
}

void CloneGate::AnswerOne() {
  seccomp_notif request{};
  if (ioctl(listener_, SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) return;  // the asker is gone
  seccomp_notif_resp answer{};
  answer.id = request.id;
  if (Take(static_cast<int>(request.pid), request.data.args[0])) {
    answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
  } else {
    answer.error = -EPERM;
  }
  ioctl(listener_, SECCOMP_IOCTL_NOTIF_SEND, &answer);
}

void CloneGate::Run() {
  pthread_setname_np(pthread_self(), "clone-gate");
  pollfd fds[2] = {{listener_, POLLIN, 0}, {stop_fd_.get(), POLLIN, 0}};
  for (;;) {
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    if (fds[0].revents & POLLIN) {
      AnswerOne();
    } else if (fds[0].revents & (POLLHUP | POLLERR)) {
      fds[0].fd = -1;  // the zygote and all stubs have ended
    }
  }
}

}  // namespace platform
