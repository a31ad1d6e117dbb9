// sched_setattr(2)'s flags.
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "guest_util.h"

namespace {

struct Attributes {
  uint32_t size = 48, policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime = 0, deadline = 0, period = 0;
  uint32_t util_min = 0, util_max = 0;
};
constexpr uint64_t kReset = 1, kKeepPolicy = 8, kKeepParams = 0x10;

int Set(const Attributes& a) { return static_cast<int>(syscall(SYS_sched_setattr, 0, &a, 0)); }

TEST(SchedSetattr, WhatIsKept) {
  EXPECT_EQ(0, ExitStatus([] {
              if (Set({.policy = SCHED_BATCH, .nice = 3}) != 0) return 1;
              // The policy stays, whatever is named.
              if (Set({.policy = SCHED_IDLE, .flags = kKeepPolicy, .nice = 5}) != 0) return 2;
              if (sched_getscheduler(0) != SCHED_BATCH || getpriority(PRIO_PROCESS, 0) != 5)
                return 3;
              // With the parameters it stays as well.
              if (Set({.policy = SCHED_OTHER, .flags = kKeepParams, .nice = 9}) != 0) return 4;
              if (sched_getscheduler(0) != SCHED_BATCH || getpriority(PRIO_PROCESS, 0) != 5)
                return 5;
              if (Set({.flags = kReset, .nice = 5}) != 0) return 6;
              if (Set({.policy = SCHED_BATCH, .flags = kKeepPolicy | kKeepParams}) != 0) return 7;
              if (getpriority(PRIO_PROCESS, 0) != 5) return 8;
              return sched_getscheduler(0) == (SCHED_OTHER | SCHED_RESET_ON_FORK) ? 0 : 9;
            }));
}

TEST(SchedSetattr, Refused) {
  EXPECT_ERRNO(Set({.flags = 0x80}), EINVAL);
  EXPECT_ERRNO(Set({.flags = 0x20}), EINVAL);  // more than the size says
  EXPECT_ERRNO(Set({.policy = 0x80000000u, .flags = kKeepPolicy}), EINVAL);
  EXPECT_ERRNO(Set({.policy = 99}), EINVAL);
}

}  // namespace
