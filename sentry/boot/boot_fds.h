// The descriptors with which `runsc boot` starts, by number. Everything above the guest's files is
// closed.
#pragma once

namespace sentry {

enum BootFd : int {
  // 0: /dev/null; 1 and 2: the debug log, or /dev/null.
  kBootSpecFd = 3,     // sealed memory file with the BootSpec
  kBootSyncFd = 4,     // seqpacket socket to the runsc that starts us, see boot.h
  kBootControlFd = 5,  // listening control socket
  kBootGoferFd = 6,    // connection to the gofer
  kBootExitFd = 7,     // file that receives the wait status of init, as decimal digits
  kBootFirstFile = 8,  // the guest's descriptor 0, and so on
};

}  // namespace sentry
