// HostSocket::Repeat, for the files of that class.
#pragma once

#include <cerrno>

#include "sentry/fiber/fiber.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/net/host/host_socket.h"

namespace sentry {

namespace internal {
// A function of its own: the address of errno, which the compiler takes for a constant of the
// function, is another one after a park.
template <typename F>
[[gnu::noinline]] auto AttemptOnce(F& attempt) -> decltype(attempt()) {
  return attempt();
}
}  // namespace internal

template <typename F>
auto HostSocket::Repeat(uint32_t events, bool nonblock, int64_t deadline_ns, bool exclusive,
                        F attempt) -> decltype(attempt()) {
  if (!used_.load(std::memory_order_relaxed)) used_.store(true);
  auto result = internal::AttemptOnce(attempt);
  auto again = [&] { return !result.ok() && result.error().code() == EAGAIN; };
  if (nonblock || !again()) return result;
  fiber::WaitQueue& queue = *wait_queue();
  fiber::FiberWaiter waiter;
  queue.Register(&waiter, events, exclusive);
  auto reason = fiber::WakeReason::kWoken;
  for (;;) {
    waiter.Reset();
    result = internal::AttemptOnce(attempt);
    if (!again() || reason != fiber::WakeReason::kWoken) break;
    reason = fiber::Park({.interruptible = true, .deadline_ns = deadline_ns});
  }
  queue.Unregister(&waiter);
  // A wake that came after the last attempt may have been meant for the next one who waits.
  if (exclusive && waiter.signaled()) queue.Wake(events);
  if (again() && reason == fiber::WakeReason::kInterrupted) return Interrupted(deadline_ns);
  return result;
}

}  // namespace sentry
