// Streams between processes that need not be equals.
#pragma once

#include <cstdint>

#include "absl/hash/hash.h"
#include "sentry/auth/credentials.h"
#include "sentry/lanes/arena.h"

namespace sentry {

// A description of one end of such a stream is one besides. Thread-safe.
class LanePartner {
 public:
  // Its streams are in lanes of `arena`.
  virtual bool IsInLanesOf(const LaneArena& arena) = 0;
  // A process with the credentials of this number uses this end. True: so does one the other; or it
  // has been asked so often that nobody will. Whoever connects or accepts uses it too.
  virtual bool MeetsEqual(uint64_t creds) = 0;
  static uint64_t NumberOf(const Credentials& c) {
    return absl::HashOf(c.ruid, c.rgid, c.permitted, c.effective);
  }

 protected:
  ~LanePartner() = default;
};

// A description of what watches others (epoll). Thread-safe.
class LaneObserver {
 public:
  // One of them is a LanePartner.
  virtual bool WatchesPartners() = 0;

 protected:
  ~LaneObserver() = default;
};

}  // namespace sentry
