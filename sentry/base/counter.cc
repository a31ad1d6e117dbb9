#include "sentry/base/counter.h"

namespace base {

namespace {
// Constant-initialised, so constructors of counters in other files may run before anything here.
std::atomic<const Counter*> g_first{nullptr};
}  // namespace

Counter::Counter(const char* name, const char* help)
    : name_(name), help_(help), next_(g_first.load(std::memory_order_relaxed)) {
  while (!g_first.compare_exchange_weak(next_, this, std::memory_order_release,
                                        std::memory_order_relaxed)) {
  }
}

const Counter* Counter::First() { return g_first.load(std::memory_order_acquire); }

}  // namespace base
