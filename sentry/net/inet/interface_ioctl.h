// The ioctls about network devices that any socket answers: SIOCGIF* and their kin (Linux:
// net/core/dev_ioctl.c, net/ipv4/devinet.c).
#pragma once

#include "sentry/net/inet/stack.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

// ENOTTY for what is not one of them, ENODEV for another device than lo, EPERM.
base::Result<uint64_t> InterfaceIoctl(Task& t, InetStack& stack, const IoctlArgs& args);

}  // namespace sentry
