// Tells ThreadSanitizer of Abseil's mutexes and notifications. Debian's Abseil is not instrumented,
// so the order that they make would not be seen; the linker (--wrap, see Flags.cmake) has every
// call of the functions below come here first. Await and LockWhen, whose conditions other threads
// evaluate, are not among them: our code waits by CondVar and by fiber::WaitQueue.
#include <sanitizer/tsan_interface.h>

#include <cstdint>

// absl::Time and absl::Duration, as they are passed. (In no unnamed namespace: the functions below
// would not be seen outside.)
struct Span {
  int64_t high;
  uint32_t low;
};

// NAME: the wrapped function's mangled name.
#define WRAPPED_SYMBOL(result, function, name, ...)           \
  result Real##function(__VA_ARGS__) __asm__("__real_" name); \
  result Wrap##function(__VA_ARGS__) __asm__("__wrap_" name); \
  result Wrap##function(__VA_ARGS__)
// The same, of a function below absl's namespace; of one that is const.
#define WRAPPED(result, function, name, ...) \
  WRAPPED_SYMBOL(result, function, ABSL_SYMBOL name, __VA_ARGS__)
#define WRAPPED_CONST(result, function, name, ...) \
  WRAPPED_SYMBOL(result, function, ABSL_CONST_SYMBOL name, __VA_ARGS__)

WRAPPED(void, Lock, "5Mutex4LockEv", void* mu) {
  RealLock(mu);
  __tsan_acquire(mu);
}
WRAPPED(void, Unlock, "5Mutex6UnlockEv", void* mu) {
  __tsan_release(mu);
  RealUnlock(mu);
}
WRAPPED(bool, TryLock, "5Mutex7TryLockEv", void* mu) {
  const bool locked = RealTryLock(mu);
  if (locked) __tsan_acquire(mu);
  return locked;
}
WRAPPED(void, ReaderLock, "5Mutex10ReaderLockEv", void* mu) {
  RealReaderLock(mu);
  __tsan_acquire(mu);
}
WRAPPED(void, ReaderUnlock, "5Mutex12ReaderUnlockEv", void* mu) {
  __tsan_release(mu);
  RealReaderUnlock(mu);
}
WRAPPED(void, Wait, "7CondVar4WaitEPNS0_5MutexE", void* cv, void* mu) {
  __tsan_release(mu);
  RealWait(cv, mu);
  __tsan_acquire(mu);
}
WRAPPED(bool, WaitWithTimeout, "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE", void* cv,
        void* mu, Span timeout) {
  __tsan_release(mu);
  const bool timed_out = RealWaitWithTimeout(cv, mu, timeout);
  __tsan_acquire(mu);
  return timed_out;
}
WRAPPED(bool, WaitWithDeadline, "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE", void* cv,
        void* mu, Span deadline) {
  __tsan_release(mu);
  const bool timed_out = RealWaitWithDeadline(cv, mu, deadline);
  __tsan_acquire(mu);
  return timed_out;
}
WRAPPED(void, Notify, "12Notification6NotifyEv", void* notification) {
  __tsan_release(notification);
  RealNotify(notification);
}
WRAPPED_CONST(void, WaitForNotification, "12Notification19WaitForNotificationEv",
              void* notification) {
  RealWaitForNotification(notification);
  __tsan_acquire(notification);
}
