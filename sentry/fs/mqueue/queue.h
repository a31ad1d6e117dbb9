// A POSIX message queue.
#pragma once

#include <mqueue.h>
#include <signal.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/namespaces.h"

namespace sentry {

class Task;

inline constexpr uint32_t kMaxMqPriority = 32768;  // MQ_PRIO_MAX

// Thread-safe.
class MessageQueue {
 public:
  struct Message {
    uint32_t priority = 0;
    std::vector<std::byte> data;
  };
  // What mq_notify(2) asks for.
  struct Notification {
    int kind = SIGEV_NONE;  // SIGEV_SIGNAL, SIGEV_THREAD
    int signo = 0;
    sigval value{};
    // SIGEV_THREAD: tells libc's thread that a message has come, or that none will.
    std::function<void(bool message_came)> deliver;
    base::Ref<Pid> owner;  // of the process
    base::Ref<UserNamespace> user_ns;
  };

  MessageQueue(int64_t max_messages, int64_t message_size)
      : max_messages_(max_messages), message_size_(message_size) {}
  ~MessageQueue();

  int64_t max_messages() const { return max_messages_; }
  int64_t message_size() const { return message_size_; }
  int64_t count() const;

  // EMSGSIZE is the caller's check. EAGAIN, ETIMEDOUT, ENOMEM, ERESTARTSYS.
  base::Status Send(Message message, bool nonblock, int64_t deadline_ns);
  base::Result<Message> Receive(bool nonblock, int64_t deadline_ns);
  // EBUSY if somebody else is registered.
  base::Status Register(Notification notification);
  // If `owner` is registered: it no longer is (mq_notify with null, close).
  void Unregister(const base::Ref<Pid>& owner);

  uint32_t Readiness() const;
  fiber::WaitQueue& wait_queue() { return poll_queue_; }
  // What read(2) of the file shows.
  std::string StatusText() const;

 private:
  struct Waiter {
    Message message;  // to be sent, or received
    bool done = false;
    fiber::WaitQueue queue;
  };
  void Push(Message message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Message Pop() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status Wait(std::list<Waiter*>* line, Waiter* waiter, int64_t deadline_ns);
  static void Notify(const Notification& notification, bool message_came);

  const int64_t max_messages_, message_size_;
  mutable absl::Mutex mutex_;
  // By priority, the highest first.
  std::map<uint32_t, std::deque<Message>, std::greater<>> messages_ ABSL_GUARDED_BY(mutex_);
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::list<Waiter*> senders_ ABSL_GUARDED_BY(mutex_), receivers_ ABSL_GUARDED_BY(mutex_);
  std::optional<Notification> notification_ ABSL_GUARDED_BY(mutex_);
  fiber::WaitQueue poll_queue_;
};

}  // namespace sentry
