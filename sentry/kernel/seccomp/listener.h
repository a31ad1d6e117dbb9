// Calls that a filter leaves to a supervisor (SECCOMP_RET_USER_NOTIF), and the file by which it
// hears of them (Linux: kernel/seccomp.c, struct notification).
#pragma once

#include <linux/seccomp.h>

#include <cstdint>
#include <list>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/seccomp/filter.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Task;

// What a filter and the file have in common. Thread-safe.
class SeccompListener : public SeccompWatcher {
 public:
  // `killable`: a call that the supervisor has taken is ended by fatal signals alone
  // (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV).
  explicit SeccompListener(bool killable) : killable_(killable) {}

  // The answer for the current task's call: parks until there is one. ENOSYS once the file is
  // closed, kERESTARTSYS.
  struct Answer {
    int64_t value = 0;
    int32_t error = 0;  // as the supervisor gave it: negative
    bool goes_on = false;
  };
  base::Result<Answer> Ask(Task& t, const seccomp_data& data);
  // No task has the filter any more.
  void OnFilterGone() override;

 private:
  friend class SeccompFile;
  enum class State { kNew, kTaken, kAnswered };
  struct Call {
    uint64_t id = 0;
    Task* task = nullptr;  // which waits
    seccomp_data data{};
    State state = State::kNew;
    Answer answer;
    fiber::WaitQueue queue;
  };
  ~SeccompListener() override = default;
  Call* Find(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasNew();
  void Close();

  const bool killable_;
  fiber::WaitQueue queue_;  // of the file
  absl::Mutex mutex_;
  std::list<Call*> calls_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;  // set when it is made
  bool closed_ ABSL_GUARDED_BY(mutex_) = false, orphaned_ ABSL_GUARDED_BY(mutex_) = false;
};

// The file of a listener.
base::Ref<FileDescription> NewSeccompFile(Task& t, base::Ref<SeccompListener> listener);

}  // namespace sentry
