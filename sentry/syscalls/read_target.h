// Where the bytes of a read are to be copied, so that a fault loses none of a stream.
#pragma once

#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/mm/memory_manager.h"

namespace sentry {

// The task's own view of guest memory leaves small copies for later, and tells of a fault when what
// was read is gone. It is for buffers that surely take all; others are written at once, and tell.
inline base::UserMemory& ReadTarget(Task& t, uint64_t addr, uint64_t length) {
  if (length == 0 || t.mm().IsWritableAnonymous(addr, length)) return t.memory();
  return t.mm().address_space();
}
inline base::UserMemory& ReadTarget(Task& t, const UserIovec& iovec) {
  for (const struct iovec& part : iovec.parts) {
    const auto addr = reinterpret_cast<uint64_t>(part.iov_base);
    if (part.iov_len > 0 && !t.mm().IsWritableAnonymous(addr, part.iov_len)) {
      return t.mm().address_space();
    }
  }
  return t.memory();
}

}  // namespace sentry
