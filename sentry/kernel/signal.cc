#include "sentry/kernel/signal.h"

#include <bit>
#include <utility>

#include "platform/platform.h"
#include "sentry/base/checked.h"
#include "sentry/kernel/task.h"

namespace sentry {

SigDefault DefaultAction(int signo) {
  switch (signo) {
    case SIGCHLD:
    case SIGURG:
    case SIGWINCH:
      return SigDefault::kIgnore;
    case SIGCONT:
      return SigDefault::kContinue;
    case SIGSTOP:
    case SIGTSTP:
    case SIGTTIN:
    case SIGTTOU:
      return SigDefault::kStop;
    case SIGQUIT:
    case SIGILL:
    case SIGTRAP:
    case SIGABRT:
    case SIGBUS:
    case SIGFPE:
    case SIGSEGV:
    case SIGXCPU:
    case SIGXFSZ:
    case SIGSYS:
      return SigDefault::kCore;
    default:
      return SigDefault::kTerminate;
  }
}

siginfo_t MakeSiginfo(int signo, int code) {
  siginfo_t info{};
  info.si_signo = signo;
  info.si_code = code;
  return info;
}

void SetSender(siginfo_t* info, const Task& sender, const Task& receiver) {
  info->si_pid = sender.thread_group().PidIn(receiver.pid_namespace());
  info->si_uid = receiver.credentials()->user_ns->MapUidOut(sender.credentials()->ruid);
}

void SignalHandlers::Open(platform::Context& context) {
  absl::MutexLock l(&mutex_);
  StayClosed();
  if (open_) return;
  platform::Context::SignalAction actions[platform::Context::kSignals];
  static_assert(platform::Context::kSignals == kNumSignals);
  for (int i = 0; i < kNumSignals; ++i) {
    const SigAction& a = actions_[i + 1];
    actions[i] = {a.handler, a.flags, a.restorer, a.mask};
  }
  context.OpenSignalActions(actions);
  open_ = &context;
}

void SignalHandlers::Close() const {
  absl::MutexLock l(&mutex_);
  CloseLocked();
}

void SignalHandlers::CloseLocked() const {
  if (!open_) return;
  platform::Context::SignalAction actions[platform::Context::kSignals];
  const bool changed = std::exchange(open_, nullptr)->CloseSignalActions(actions);
  wants_open_.store(true, std::memory_order_relaxed);
  for (int i = 0; changed && i < kNumSignals; ++i) {
    if (SigBit(i + 1) & kUnblockable) continue;
    const platform::Context::SignalAction& a = actions[i];
    actions_[i + 1] = {a.handler, a.flags & kKnownSaFlags, a.restorer, a.mask & ~kUnblockable};
  }
}

base::Ref<SignalHandlers> SignalHandlers::Fork() const {
  auto copy = base::MakeRef<SignalHandlers>();
  absl::MutexLock l(&mutex_);
  CloseLocked();
  absl::MutexLock l2(&copy->mutex_);
  for (int i = 1; i <= kNumSignals; ++i) copy->actions_[i] = actions_[i];
  copy->wants_open_.store(WantsOpen(), std::memory_order_relaxed);
  return copy;
}

SigAction SignalHandlers::Get(int signo) const {
  absl::MutexLock l(&mutex_);
  CloseLocked();
  return actions_[signo];
}

SigAction SignalHandlers::Set(int signo, const SigAction& action) {
  absl::MutexLock l(&mutex_);
  CloseLocked();
  return std::exchange(actions_[signo], action);
}

void SignalHandlers::ResetForExec() {
  absl::MutexLock l(&mutex_);
  CloseLocked();
  StayClosed();
  for (SigAction& a : actions_) {
    a = SigAction{.handler = a.handler == kSigIgn ? kSigIgn : kSigDfl};
  }
}

bool SignalHandlers::IsIgnored(int signo) const {
  absl::MutexLock l(&mutex_);
  CloseLocked();
  uint64_t handler = actions_[signo].handler;
  return handler == kSigIgn || (handler == kSigDfl && DefaultAction(signo) == SigDefault::kIgnore);
}

void SignalHandlers::Sets(SigSet* ignored, SigSet* caught) const {
  absl::MutexLock l(&mutex_);
  CloseLocked();
  *ignored = *caught = 0;
  for (int i = 1; i <= kNumSignals; ++i) {
    if (actions_[i].handler == kSigIgn) {
      *ignored |= SigBit(i);
    } else if (actions_[i].handler != kSigDfl) {
      *caught |= SigBit(i);
    }
  }
}

bool PendingSignals::Add(const siginfo_t& info, base::Ref<UserCount> user) {
  int signo = info.si_signo;
  if (signo < kFirstRealTime && (set_ & SigBit(signo))) return false;
  set_ |= SigBit(signo);
  if (user) user->pending_signals.fetch_add(1, std::memory_order_relaxed);
  queue_.push_back({info, std::move(user)});
  return true;
}

void PendingSignals::AddBare(int signo) { set_ |= SigBit(signo); }

std::optional<siginfo_t> PendingSignals::Take(SigSet allowed) {
  SigSet ready = set_ & allowed;
  if (ready == 0) return std::nullopt;
  if (ready & kSynchronous) ready &= kSynchronous;
  int signo = std::countr_zero(ready) + 1;
  std::optional<siginfo_t> result;
  bool more = false;
  for (auto it = queue_.begin(); it != queue_.end();) {
    if (it->info.si_signo != signo) {
      ++it;
    } else if (!result) {
      result = it->info;
      if (it->user) it->user->pending_signals.fetch_sub(1, std::memory_order_relaxed);
      it = queue_.erase(it);
    } else {
      more = true;
      break;
    }
  }
  if (!more) set_ &= ~SigBit(signo);
  if (!result) result = MakeSiginfo(signo, SI_USER);
  return result;
}

bool PendingSignals::AddOverrun(int timer_id, int count) {
  for (Queued& q : queue_) {
    if (q.info.si_code != SI_TIMER || q.info.si_timerid != timer_id) continue;
    q.info.si_overrun = base::SaturatingAdd(q.info.si_overrun, count);
    return true;
  }
  return false;
}

std::vector<siginfo_t> PendingSignals::Peek(uint64_t offset, size_t count) const {
  std::vector<siginfo_t> found;
  for (const Queued& queued : queue_) {
    if (offset > 0) {
      offset--;
    } else if (found.size() < count) {
      found.push_back(queued.info);
    }
  }
  return found;
}

void PendingSignals::Flush(SigSet signals) {
  if ((set_ & signals) == 0) return;
  set_ &= ~signals;
  for (auto it = queue_.begin(); it != queue_.end();) {
    if (SigBit(it->info.si_signo) & signals) {
      if (it->user) it->user->pending_signals.fetch_sub(1, std::memory_order_relaxed);
      it = queue_.erase(it);
    } else {
      ++it;
    }
  }
}

}  // namespace sentry
