// The platform as the fiber scheduler polls it.
#pragma once

#include "platform/platform.h"
#include "sentry/fiber/scheduler.h"

namespace sentry {

class PlatformPoller : public fiber::Poller {
 public:
  explicit PlatformPoller(platform::Platform& platform) : platform_(platform) {}
  size_t Poll() override { return platform_.Poll(); }
  bool ShouldSpin() override { return platform_.ShouldSpin(); }
  void Wait(int64_t deadline_ns) override { platform_.Wait(deadline_ns); }
  void Wake() override { platform_.Wake(); }

 private:
  platform::Platform& platform_;
};

}  // namespace sentry
