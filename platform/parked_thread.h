// Host threads of guest threads that have ended, which wait to be others: so a program that makes
// one thread after the other does not have the host make each.
#pragma once

#include "platform/platform.h"

namespace platform {

// What a Context may be besides.
class ParkedThread {
 public:
  virtual ~ParkedThread() = default;
  // Whether the context, which comes from AddressSpace::PrepareThread, has its host thread already.
  // Then order::CloneThread only lets it go on, with the FPU state of who carries that out; it
  // never fails, and may be made without waiting for it, as order::CloneThread{&maker}: the maker's
  // own context, which lives until then, whatever becomes of this one. The maker begins no other
  // thread before that is done.
  virtual bool WakenBy(Context& maker) = 0;
};

}  // namespace platform
