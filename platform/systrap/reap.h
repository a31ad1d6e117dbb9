// The end of children, some of which may be traced.
#pragma once

#include <sys/wait.h>

namespace platform {

// Reaps one of these children that has ended, without waiting. False: there are none. Nothing has
// ended so far: `info->si_pid` is 0. (A plain waitid(2) would also take the stops of children that
// a thread of this process traces, and their tracer would wait for them in vain.)
bool ReapEnded(idtype_t type, id_t id, siginfo_t* info);

// Waits for all of them.
void ReapAll(idtype_t type, id_t id);

}  // namespace platform
