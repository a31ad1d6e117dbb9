// pidfd_open(2)'s files: a process as a descriptor.
#pragma once

#include "sentry/base/ref.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Kernel;

// flags: 0 or O_NONBLOCK.
base::Ref<FileDescription> NewPidFd(Kernel& kernel, base::Ref<Pid> pid, uint32_t flags);
// The Pid of a description from NewPidFd; null for any other.
base::Ref<Pid> PidOfFile(const FileDescription& file);

}  // namespace sentry
