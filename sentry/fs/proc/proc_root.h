// Parts of the root directory that live in files of their own.
#pragma once

#include "sentry/fs/proc/proc.h"

namespace sentry {

// /proc/sys. `dir` is empty.
void AddSysctls(ProcFs* fs, PseudoDir& dir);
// pressure.cc: /proc/pressure, where the host has it.
void AddPressure(ProcFs* fs, PseudoDir& root);
// proc_ipc.cc: /proc/sysvipc.
void AddSysvIpc(ProcFs* fs, PseudoDir& root);
// proc_locks.cc: /proc/locks.
void AddLocks(ProcFs* fs, PseudoDir& root);
// proc_keys.cc: /proc/keys, /proc/key-users.
void AddKeys(ProcFs* fs, PseudoDir& root);

}  // namespace sentry
