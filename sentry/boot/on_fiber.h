// Running something on a fiber from a host thread that is no worker.
#pragma once

#include <optional>
#include <utility>

#include "absl/synchronization/notification.h"
#include "sentry/fiber/fiber.h"

namespace sentry {

// Runs `f` on a fiber while this thread waits; what `f` returns.
template <typename F>
auto OnFiber(const char* name, F f) -> decltype(f()) {
  std::optional<decltype(f())> result;
  absl::Notification done;
  fiber::Spawn(
      name,
      [&] {
        result.emplace(f());
        done.Notify();
      },
      nullptr);
  done.WaitForNotification();
  return std::move(*result);
}

}  // namespace sentry
