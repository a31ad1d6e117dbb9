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
  // It goes on once it is resumed and order::CloneThread{&maker}, the maker's own context, is done
  // by `maker`, whose FPU state it gets. That order never fails, and nobody has to wait for it. The
  // maker begins no other thread until then.
  virtual bool WakenBy(Context& maker) = 0;
};

}  // namespace platform
