// The lock of the gofer's threads.
#pragma once

#include <mutex>

#include "absl/base/thread_annotations.h"

namespace gofer {

// std::mutex with annotations. absl::Mutex, when contended, asks the host for the number and clock
// rate of its processors and the thread's priority: files and calls that the confined gofer does
// not have. This one knows the futex alone.
class ABSL_LOCKABLE HostMutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE HostMutexLock {
 public:
  explicit HostMutexLock(HostMutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  ~HostMutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  HostMutexLock(const HostMutexLock&) = delete;
  HostMutexLock& operator=(const HostMutexLock&) = delete;

 private:
  HostMutex* const mutex_;
};

}  // namespace gofer
