// NETLINK_ROUTE where the network is the host's: what the host says now, and no changes.
#pragma once

#include "sentry/base/result.h"
#include "sentry/net/host/host_network.h"
#include "sentry/net/netlink/request.h"

namespace sentry {

// The questions are put to the host anew, from checked values; bytes of the guest's request never
// reach it. EPERM for what would change something, EOPNOTSUPP, and what the host says.
base::Status AnswerFromHost(HostNetwork& host, const RouteRequest& r);

}  // namespace sentry
