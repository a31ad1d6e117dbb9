// How threads wait for several lanes in their stubs (stream_lane.h), as both sides know it.
#pragma once

#include <cstdint>

namespace platform {

// Who waits for several lanes sleeps on a word that all who share them may change, also one who
// may do less than the sleeper (sentry/lanes/domain.h). So nobody relies on it for long: what has
// not come by then is waited for in the sentry.
inline constexpr int64_t kMostLaneSleepNs = 100'000'000;

// The last sleepers of an arena are everybody's: who waits without an instance of epoll takes one
// by its thread's number. Those that share one are woken together, and look again.
inline constexpr uint32_t kCommonLaneSleepers = 64;

}  // namespace platform
