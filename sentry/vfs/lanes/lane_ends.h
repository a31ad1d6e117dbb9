// What stubs do at the ends of a description's lanes when they find nothing there.
#pragma once

#include "platform/stream_lane.h"

namespace sentry {

class FileDescription;

// A description that has lanes tells them so: wait, fail, or ask. Thread-safe.
class LaneEnds {
 public:
  // After its EnterLanes, and whenever what decides it has changed.
  static void Tell(FileDescription& file);

 protected:
  struct Patience {
    platform::LanePatience reader, writer;
    friend bool operator==(const Patience&, const Patience&) = default;
  };
  // Of a description that is to be waited for, or not; one that has time limits asks.
  static Patience PatienceBy(bool nonblock, bool reader_limit = false, bool writer_limit = false);
  virtual Patience LanePatience() const = 0;
  virtual void SetLanePatience(const Patience& patience) = 0;
  ~LaneEnds() = default;
};

}  // namespace sentry
