// Memory files for shared memory without a file of the guest's.
#pragma once

#include <cstdint>

#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace sentry {

// Memory for a shared anonymous mapping or a System V segment (Linux: shmem_zero_setup,
// shmem_kernel_file_setup). Pages come when they are touched. ENOMEM, ENFILE.
struct SharedMemory {
  base::Ref<base::HostFd> file;
  uint64_t id = 0;
};
base::Result<SharedMemory> NewSharedMemory(uint64_t length);

}  // namespace sentry
