// The ioctls about network devices, where the network is the host's: answered from what the host
// says about its devices by netlink; no ioctl reaches it.
#pragma once

#include "sentry/net/host/host_network.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

// SIOCGIF* of any socket. ENOTTY for what is not one of them, ENODEV, EPERM for changes.
base::Result<uint64_t> HostInterfaceIoctl(HostNetwork& network, const IoctlArgs& args);

}  // namespace sentry
