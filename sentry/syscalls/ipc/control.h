// What msgctl, semctl and shmctl share: commands that tell of objects.
#pragma once

#include <sys/ipc.h>

#include <cstdint>

#include "sentry/kernel/ipc/ipc.h"
#include "sentry/kernel/task.h"

namespace sentry {

// IPC_INFO and its sisters: what `fill` tells in an Info goes to `to`, and its result, the highest
// place in use, is the call's. EFAULT.
template <typename Info, typename Fill>
base::Result<uint64_t> TellInfo(Task& t, uint64_t to, Fill fill) {
  Info info;
  int highest = fill(&info);
  TRY(base::UserPtr<Info>(to).CopyOut(t.memory(), info));
  return static_cast<uint64_t>(highest);
}

// IPC_STAT; `by_index`, the kind's own command that names an object by its place; or that one
// without asking for the right to read. The Ds that `find` returns, beside the call's result, goes
// to `to`. EFAULT, and the errors of `find`.
template <typename Ds, typename Find>
base::Result<uint64_t> TellStat(Task& t, int command, int by_index, uint64_t to, Find find) {
  const IpcStat how = command == IPC_STAT   ? IpcStat::kById
                      : command == by_index ? IpcStat::kByIndex
                                            : IpcStat::kAny;
  auto [value, ds] = TRY(find(how));
  TRY(base::UserPtr<Ds>(to).CopyOut(t.memory(), ds));
  return value;
}

}  // namespace sentry
