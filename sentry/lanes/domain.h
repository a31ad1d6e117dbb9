// Who shares the memory of lanes with whom, and who sleeps there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "platform/lane_waits.h"
#include "sentry/lanes/arena.h"

namespace sentry {

// What the processes of a domain have in common, so that each may trace the others. Namespaces are
// told apart by their addresses.
struct LaneRights {
  uint32_t uid, gid;
  uint64_t permitted, effective, inheritable;
  uintptr_t user_ns, pid_ns, mount_ns;

  // The name of the domain (LaneArena::OfDomain), and back.
  std::string Name() const;
  static std::optional<LaneRights> FromName(const std::string& name);

  // A process with these rights may take those on by calls that it would be granted (setresuid(2),
  // setresgid(2), capset(2)), and so may do now what a process of that domain may: use its lanes
  // too. That domain gains what any peer of a stream has: it sends, or does not. So such a guest
  // has no other streams in lanes there than those that it shares with that domain, and sleeps
  // there for a short time only when it waits for more than one (platform/lane_waits.h).
  bool MayBecome(const LaneRights& other) const;
};

// The arenas that there are, with the names of their domains.
std::vector<std::pair<std::string, base::Ref<LaneArena>>> LaneArenas();
// Empty: it is none of them any more.
std::string DomainOf(const LaneArena& arena);

// Stubs that sleep on words that are everybody's look again: of what changes in a lane without
// a stub they are told by nobody else.
inline void WakeCommonSleepers(LaneArena& arena) {
  for (uint32_t i = platform::kLaneSleepers - platform::kCommonLaneSleepers;
       i < platform::kLaneSleepers; ++i) {
    arena.WakeSleeper(static_cast<int>(i));
  }
}

}  // namespace sentry
