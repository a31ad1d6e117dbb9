#include "sentry/lanes/domain.h"

#include <linux/capability.h>

#include <cinttypes>
#include <cstdio>

#include "fmt/format.h"

namespace sentry {
namespace {

constexpr uint64_t Bit(int cap) { return uint64_t{1} << cap; }

}  // namespace

std::string LaneRights::Name() const {
  return fmt::format("{} {} {:x} {:x} {:x} {:x} {:x} {:x}", uid, gid, permitted, effective,
                     inheritable, user_ns, pid_ns, mount_ns);
}

std::optional<LaneRights> LaneRights::FromName(const std::string& name) {
  LaneRights r{};
  const int n = sscanf(name.c_str(),
                       "%" SCNu32 " %" SCNu32 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNxPTR
                       " %" SCNxPTR " %" SCNxPTR,
                       &r.uid, &r.gid, &r.permitted, &r.effective, &r.inheritable, &r.user_ns,
                       &r.pid_ns, &r.mount_ns);
  if (n != 8) return std::nullopt;
  return r;
}

bool LaneRights::MayBecome(const LaneRights& other) const {
  constexpr uint64_t kNeeded = Bit(CAP_SETUID) | Bit(CAP_SETGID);
  return user_ns == other.user_ns && pid_ns == other.pid_ns && mount_ns == other.mount_ns &&
         (effective & kNeeded) == kNeeded && (other.permitted & ~permitted) == 0 &&
         (other.effective & ~permitted) == 0 &&
         (other.inheritable & ~(permitted | inheritable)) == 0;
}

}  // namespace sentry
