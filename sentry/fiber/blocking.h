// Host calls that may block, away from the workers.
#pragma once

#include <atomic>
#include <optional>
#include <type_traits>
#include <utility>

#include "sentry/fiber/fiber.h"

namespace fiber {

namespace internal {
// A job on the caller's stack.
struct BlockingJob {
  void (*run)(BlockingJob*) = nullptr;
  BlockingJob* next = nullptr;
  Fiber* fiber = nullptr;
  std::atomic<bool> done{false};
};
// Runs `job` on a helper thread and parks until it is done (on a thread that is no fiber: runs it
// there).
void RunBlocking(BlockingJob* job);
}  // namespace internal

// Runs fn() on a helper thread while the fiber is parked, and returns its result. Not
// interruptible. At most kMaxHelpers calls run at once, others queue; idle helpers end after some
// seconds. errno does not cross: have fn return it.
inline constexpr int kMaxHelpers = 64;

template <typename Fn>
auto BlockingCall(Fn&& fn) -> std::invoke_result_t<Fn&> {
  using R = std::invoke_result_t<Fn&>;
  if constexpr (std::is_void_v<R>) {
    BlockingCall([&fn] { return fn(), true; });
  } else {
    struct Job : internal::BlockingJob {
      std::remove_reference_t<Fn>* fn;
      std::optional<R> result;
    } job;
    job.fn = &fn;
    job.run = [](internal::BlockingJob* j) {
      auto* self = static_cast<Job*>(j);
      self->result.emplace((*self->fn)());
    };
    internal::RunBlocking(&job);
    return *std::move(job.result);
  }
}

}  // namespace fiber
