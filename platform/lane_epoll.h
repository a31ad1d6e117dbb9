// What a process knows of an epoll instance whose watched connections have lanes (stream_lane.h):
// so much that it adds, changes and removes them, and finds those that are ready, without the
// sentry. Only level-triggered watches of descriptors with lanes are served; a call about anything
// else, or that has to wait, is the sentry's. In the mailbox: written by the process and the
// sentry, who takes over what has changed before it looks at the instance. Compiled into both;
// freestanding.
#pragma once

#include <cstdint>

#include "platform/stream_lane.h"

namespace platform {

inline constexpr uint32_t kLaneEpolls = 4;
inline constexpr uint32_t kLaneEpollFds = 1024;

enum LaneWatchState : uint32_t {
  kWatchNone = 0,
  kWatchLane = 1,    // served here
  kWatchSentry = 2,  // watched, and the sentry's business
};

struct LaneWatch {
  uint32_t events;
  uint16_t state;    // LaneWatchState
  uint16_t changed;  // stands in LaneEpoll::changes
  uint64_t data;
};

struct LaneEpoll {
  uint32_t lock;          // as of a lane
  uint32_t fd_plus_one;   // the instance's descriptor; 0: there is none
  uint32_t busy;          // only the sentry serves: somebody waits, or watches the instance
  uint32_t sentry_ready;  // something is ready that only the sentry knows of
  uint32_t end;           // descriptors that are watched are below
  uint32_t next;          // where the last look for what is ready has stopped
  uint32_t change_count;
  uint32_t pad;
  uint16_t changes[kLaneEpollFds];
  LaneWatch watches[kLaneEpollFds];
};

// EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP and their forms: what a watch here may ask for.
inline constexpr uint32_t kLaneEpollEvents =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000;
inline constexpr uint32_t kLaneIn = 0x1 | 0x40, kLaneOut = 0x4 | 0x100;

// Which of kLaneIn and kLaneOut are true of a descriptor whose lanes are these; `*known`: false if
// only the sentry can tell.
inline uint32_t LaneReadiness(const StreamLane* in, uint32_t in_generation, const StreamLane* out,
                              uint32_t out_generation, bool* known) {
  *known = LaneServes(in, in_generation) && LaneServes(out, out_generation);
  const uint64_t unread = LaneUsed(in), used = LaneUsed(out), limit = LaneLoad(&out->limit);
  if (unread > kLaneRing || used > kLaneRing || limit > kLaneRing) *known = false;
  const uint64_t room = used < limit ? limit - used : 0;
  return (unread != 0 ? kLaneIn : 0) | (room != 0 && room * 2 >= used ? kLaneOut : 0);
}

}  // namespace platform
