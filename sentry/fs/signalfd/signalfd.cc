#include "sentry/fs/signalfd/signalfd.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {
namespace {

// signalfd_copyinfo().
signalfd_siginfo Convert(const siginfo_t& info) {
  signalfd_siginfo out{};
  out.ssi_signo = static_cast<uint32_t>(info.si_signo);
  out.ssi_errno = info.si_errno;
  out.ssi_code = info.si_code;
  switch (info.si_code) {
    case SI_TIMER:
      out.ssi_tid = static_cast<uint32_t>(info.si_timerid);
      out.ssi_overrun = static_cast<uint32_t>(info.si_overrun);
      out.ssi_ptr = reinterpret_cast<uint64_t>(info.si_ptr);
      out.ssi_int = info.si_int;
      return out;
    case SI_QUEUE:
    case SI_MESGQ:
    case SI_ASYNCIO:
      out.ssi_pid = static_cast<uint32_t>(info.si_pid);
      out.ssi_uid = info.si_uid;
      out.ssi_ptr = reinterpret_cast<uint64_t>(info.si_ptr);
      out.ssi_int = info.si_int;
      return out;
    default:
      break;
  }
  if (info.si_code > 0 && info.si_code != SI_KERNEL) {
    switch (info.si_signo) {
      case SIGCHLD:
        out.ssi_pid = static_cast<uint32_t>(info.si_pid);
        out.ssi_uid = info.si_uid;
        out.ssi_status = info.si_status;
        out.ssi_utime = static_cast<uint64_t>(info.si_utime);
        out.ssi_stime = static_cast<uint64_t>(info.si_stime);
        return out;
      case SIGSEGV:
      case SIGBUS:
      case SIGILL:
      case SIGFPE:
      case SIGTRAP:
        out.ssi_addr = reinterpret_cast<uint64_t>(info.si_addr);
        return out;
      case SIGPOLL:
        out.ssi_band = static_cast<uint32_t>(info.si_band);
        out.ssi_fd = info.si_fd;
        return out;
      default:
        break;
    }
  }
  out.ssi_pid = static_cast<uint32_t>(info.si_pid);
  out.ssi_uid = info.si_uid;
  return out;
}

}  // namespace

SignalFile::SignalFile(Vfs& vfs, SigSet mask, uint32_t flags)
    : AnonFile(vfs, "[signalfd]", O_RDWR | (flags & SFD_NONBLOCK)), mask_(mask & ~kUnblockable) {}

SignalFile::~SignalFile() = default;

void SignalFile::SetMask(SigSet mask) {
  mask_.store(mask & ~kUnblockable);
  if (Task* t = Task::Current()) t->thread_group().signal_queue().WakeAll(EPOLLIN);
}

base::Result<size_t> SignalFile::Read(IoDest& dst, bool nonblock) {
  Task* t = Task::Current();
  if (t == nullptr || dst.remaining() < sizeof(signalfd_siginfo)) return base::Error(EINVAL);
  size_t total = 0;
  while (dst.remaining() >= sizeof(signalfd_siginfo)) {
    std::optional<siginfo_t> info = t->DequeueSignal(mask_.load());
    if (!info && (total > 0 || nonblock)) break;
    if (!info) {
      auto reason =
          fiber::WaitUntil(t->thread_group().signal_queue(), EPOLLIN,
                           [&] { return (info = t->DequeueSignal(mask_.load())).has_value(); },
                           {.interruptible = true});
      if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
    }
    signalfd_siginfo out = Convert(*info);
    base::Result<size_t> n = dst.Put(std::as_bytes(std::span(&out, 1)));
    if (!n.ok() || *n != sizeof(out)) {
      if (total > 0) break;
      return base::Error(EFAULT);
    }
    total += sizeof(out);
  }
  if (total == 0) return base::Error(EAGAIN);
  return total;
}

uint32_t SignalFile::Readiness() {
  Task* t = Task::Current();
  return t != nullptr && (t->PendingSignalSet() & mask_.load()) != 0 ? uint32_t{EPOLLIN} : 0;
}

fiber::WaitQueue* SignalFile::wait_queue() {
  Task* t = Task::Current();
  absl::MutexLock lock(&mutex_);
  if (t == nullptr) return groups_.empty() ? nullptr : &groups_.front()->signal_queue();
  base::Ref<ThreadGroup> group = t->thread_group_ref();
  if (std::find(groups_.begin(), groups_.end(), group) == groups_.end()) groups_.push_back(group);
  return &group->signal_queue();
}

std::string SignalFile::FdInfo() const {
  char line[64];
  snprintf(line, sizeof(line), "sigmask:\t%016llx\n",
           static_cast<unsigned long long>(mask_.load()));
  return line;
}

}  // namespace sentry
