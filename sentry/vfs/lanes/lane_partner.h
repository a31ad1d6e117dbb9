// Streams between processes that need not be equals.
#pragma once

#include <cstdint>

#include "sentry/lanes/arena.h"

namespace sentry {

// A description of one end of such a stream is one besides. Thread-safe.
class LanePartner {
 public:
  // Its streams are in lanes of `arena`.
  virtual bool IsInLanesOf(const LaneArena& arena) = 0;
  // A process of the domain with this number uses this end. True: so does one the other; or it has
  // been asked so often that nobody will.
  virtual bool MeetsEqual(uint64_t domain) = 0;

 protected:
  ~LanePartner() = default;
};

}  // namespace sentry
