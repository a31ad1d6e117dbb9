// Executing a program in the host process of the one before, instead of in a fresh one. An address
// space whose platform can do that implements this class besides.
#pragma once

#include <memory>

#include "platform/platform.h"

namespace platform {

class ExecInPlace {
 public:
  virtual ~ExecInPlace() = default;
  // An address space in the same host process for what its only thread executes next, to which
  // that thread goes by TakeThread. Null where the process may not be what it was when it began
  // (another thread has been made in it, credentials have changed, its text was given up, ...), or
  // each program is to have a fresh one. The caller sees to it that who has run here so far could
  // do to the new program whatever it likes by system calls too.
  virtual std::unique_ptr<AddressSpace> PrepareExec() = 0;
  // On what PrepareExec has made: `thread`, which is stopped, leaves the address space that it had,
  // which has no memory any more and may be destroyed, for this one. What is mapped stays until the
  // next Resume, whose first orders are to unmap it: all but ReservedRanges.
  virtual void TakeThread(Context& thread) = 0;
};

}  // namespace platform
