#include "sentry/vfs/lanes/lane_ends.h"

#include "sentry/vfs/file_description.h"

namespace sentry {

LaneEnds::Patience LaneEnds::PatienceBy(bool nonblock, bool reader_limit, bool writer_limit) {
  using platform::kAsks, platform::kLeaves, platform::kWaits;
  if (nonblock) return {kLeaves, kLeaves};
  return {reader_limit ? kAsks : kWaits, writer_limit ? kAsks : kWaits};
}

void LaneEnds::Tell(FileDescription& file) {
  auto* ends = dynamic_cast<LaneEnds*>(&file);
  if (ends == nullptr) return;
  // Who is told last is told what holds then.
  Patience told, now = ends->LanePatience();
  do {
    told = now;
    ends->SetLanePatience(told);
    now = ends->LanePatience();
  } while (now != told);
}

}  // namespace sentry
