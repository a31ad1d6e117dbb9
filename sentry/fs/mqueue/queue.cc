#include "sentry/fs/mqueue/queue.h"

#include <fmt/format.h>

#include <utility>

#include "sentry/kernel/ipc/ipc.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

uint64_t BytesOf(const MessageQueue::Message& message) { return message.data.size() + 128; }

}  // namespace

MessageQueue::~MessageQueue() {
  for (const auto& [priority, line] : messages_) {
    for (const Message& m : line) UnchargeIpcMemory(BytesOf(m));
  }
}

int64_t MessageQueue::count() const {
  absl::MutexLock l(&mutex_);
  return count_;
}

void MessageQueue::Push(Message message) {
  bytes_ += message.data.size();
  ++count_;
  messages_[message.priority].push_back(std::move(message));
}

// The oldest of the highest priority; then the first who waits to send gets the room.
MessageQueue::Message MessageQueue::Pop() {
  auto it = messages_.begin();
  Message message = std::move(it->second.front());
  it->second.pop_front();
  if (it->second.empty()) messages_.erase(it);
  bytes_ -= message.data.size();
  --count_;
  UnchargeIpcMemory(BytesOf(message));
  if (!senders_.empty()) {
    Waiter* sender = senders_.front();
    senders_.pop_front();
    Push(std::move(sender->message));
    sender->done = true;
    sender->queue.WakeAll(EPOLLOUT);
  } else {
    poll_queue_.WakeAll(EPOLLOUT);
  }
  return message;
}

Status MessageQueue::Wait(std::list<Waiter*>* line, Waiter* waiter, int64_t deadline_ns) {
  auto reason = fiber::WaitUntil(waiter->queue, EPOLLIN | EPOLLOUT,
                                 [&] {
                                   absl::MutexLock l(&mutex_);
                                   return waiter->done;
                                 },
                                 {.interruptible = true, .deadline_ns = deadline_ns});
  absl::MutexLock l(&mutex_);
  if (waiter->done) return base::Ok();
  line->remove(waiter);
  return Error(reason == fiber::WakeReason::kTimeout ? ETIMEDOUT : base::kERESTARTSYS);
}

Status MessageQueue::Send(Message message, bool nonblock, int64_t deadline_ns) {
  const uint64_t cost = BytesOf(message);
  if (!ChargeIpcMemory(cost)) return Error(ENOMEM);
  Waiter waiter;
  std::optional<Notification> notify;
  bool waits = false;
  {
    absl::MutexLock l(&mutex_);
    if (!receivers_.empty()) {
      // Straight to who waits: nobody is notified of it.
      Waiter* receiver = receivers_.front();
      receivers_.pop_front();
      receiver->message = std::move(message);
      receiver->done = true;
      receiver->queue.WakeAll(EPOLLIN);
      UnchargeIpcMemory(cost);
      return base::Ok();
    }
    if (count_ < max_messages_) {
      Push(std::move(message));
      if (count_ == 1) notify = std::exchange(notification_, std::nullopt);
      poll_queue_.WakeAll(EPOLLIN);
    } else if (nonblock) {
      UnchargeIpcMemory(cost);
      return Error(EAGAIN);
    } else {
      waiter.message = std::move(message);
      senders_.push_back(&waiter);
      waits = true;
    }
  }
  if (notify) Notify(*notify, true);
  if (!waits) return base::Ok();
  Status sent = Wait(&senders_, &waiter, deadline_ns);
  if (!sent.ok()) UnchargeIpcMemory(cost);
  return sent;
}

Result<MessageQueue::Message> MessageQueue::Receive(bool nonblock, int64_t deadline_ns) {
  Waiter waiter;
  {
    absl::MutexLock l(&mutex_);
    if (count_ > 0) return Pop();
    if (nonblock) return Error(EAGAIN);
    receivers_.push_back(&waiter);
  }
  TRY(Wait(&receivers_, &waiter, deadline_ns));
  return std::move(waiter.message);
}

Status MessageQueue::Register(Notification notification) {
  absl::MutexLock l(&mutex_);
  if (notification_) return Error(EBUSY);
  notification_ = std::move(notification);
  return base::Ok();
}

void MessageQueue::Unregister(const base::Ref<Pid>& owner) {
  std::optional<Notification> removed;
  {
    absl::MutexLock l(&mutex_);
    if (!notification_ || notification_->owner != owner) return;
    removed = std::exchange(notification_, std::nullopt);
  }
  Notify(*removed, false);
}

// A message has come to the empty queue, or the registration ends without one.
void MessageQueue::Notify(const Notification& n, bool message_came) {
  if (n.kind == SIGEV_THREAD) {
    n.deliver(message_came);
    return;
  }
  if (n.kind != SIGEV_SIGNAL || n.signo == 0 || !message_came) return;
  base::Ref<ThreadGroup> group = Kernel::Get().GroupOf(*n.owner);
  Task* sender = Task::Current();
  if (!group || sender == nullptr) return;
  siginfo_t info = MakeSiginfo(n.signo, SI_MESGQ);
  info.si_value = n.value;
  info.si_pid = sender->thread_group().PidIn(*n.owner->ns());
  info.si_uid = n.user_ns->MapUidOut(sender->creds().ruid);
  group->SendSignal(info);
}

uint32_t MessageQueue::Readiness() const {
  absl::MutexLock l(&mutex_);
  uint32_t ready = 0;
  if (count_ > 0) ready |= EPOLLIN | EPOLLRDNORM;
  if (count_ < max_messages_) ready |= EPOLLOUT | EPOLLWRNORM;
  return ready;
}

std::string MessageQueue::StatusText() const {
  absl::MutexLock l(&mutex_);
  int kind = 0, signo = 0, pid = 0;
  if (notification_) {
    kind = notification_->kind;
    if (kind == SIGEV_SIGNAL) signo = notification_->signo;
    pid = ShownPid(notification_->owner);
  }
  return fmt::format("QSIZE:{:<10} NOTIFY:{:<5} SIGNO:{:<5} NOTIFY_PID:{:<6}\n", bytes_, kind,
                     signo, pid);
}

}  // namespace sentry
