// Groups that a datagram socket is in, and the sources that it takes packets to them from (Linux:
// net/ipv4/igmp.c, net/ipv6/mcast.c).
#include <algorithm>

#include "sentry/net/inet/datagram.h"

namespace sentry {

using base::Error;
using base::Status;

DatagramEndpoint::Membership* DatagramEndpoint::FindGroup(const IpAddress& group, int device) {
  auto it = std::find_if(groups_.begin(), groups_.end(), [&](const Membership& m) {
    return m.group == group && (device == 0 || m.device == device);
  });
  return it == groups_.end() ? nullptr : &*it;
}

Status DatagramEndpoint::Join(const IpAddress& group, int device, bool include) {
  if (!group.IsMulticast()) return Error(EINVAL);
  if (device != InetStack::kLoopbackIndex) return Error(ENODEV);
  absl::MutexLock lock(&mutex_);
  if (FindGroup(group, device) != nullptr) return Error(EADDRINUSE);
  if (groups_.size() >= kMaxGroups) return Error(ENOBUFS);
  groups_.push_back({group, device, include, {}});
  stack().JoinGroup(group);
  return base::Ok();
}

Status DatagramEndpoint::Leave(const IpAddress& group, int device) {
  absl::MutexLock lock(&mutex_);
  Membership* found = FindGroup(group, device);
  if (found == nullptr) return Error(EADDRNOTAVAIL);
  groups_.erase(groups_.begin() + (found - groups_.data()));
  stack().LeaveGroup(group);
  return base::Ok();
}

// ip_mc_source().
Status DatagramEndpoint::ChangeSource(const IpAddress& group, int device, const IpAddress& source,
                                      bool include, bool add) {
  if (!group.IsMulticast()) return Error(EINVAL);
  if (device != InetStack::kLoopbackIndex) return Error(ENODEV);
  absl::MutexLock lock(&mutex_);
  Membership* m = FindGroup(group, device);
  if (m == nullptr) return Error(EINVAL);
  if (m->include != include && !m->sources.empty()) return Error(EINVAL);
  m->include = include;
  auto it = std::find(m->sources.begin(), m->sources.end(), source);
  if ((it == m->sources.end()) != add) return Error(EADDRNOTAVAIL);
  if (add) {
    if (m->sources.size() >= kMaxSources) return Error(ENOBUFS);
    m->sources.push_back(source);
    return base::Ok();
  }
  m->sources.erase(it);
  // Who takes packets from nobody has left.
  if (include && m->sources.empty()) {
    groups_.erase(groups_.begin() + (m - groups_.data()));
    stack().LeaveGroup(group);
  }
  return base::Ok();
}

void DatagramEndpoint::LeaveAll() {
  absl::MutexLock lock(&mutex_);
  for (const Membership& m : groups_) stack().LeaveGroup(m.group);
  groups_.clear();
}

// ip_mc_sf_allow().
bool DatagramEndpoint::Wants(const IpAddress& group, const IpAddress& source) {
  absl::MutexLock lock(&mutex_);
  if (const Membership* m = FindGroup(group, 0)) {
    const bool listed = std::find(m->sources.begin(), m->sources.end(), source) != m->sources.end();
    return listed == m->include;
  }
  // What others of the machine have joined comes too, unless that was turned off.
  return group.v4() ? ip().flag(IPPROTO_IP, IP_MULTICAST_ALL)
                    : ip().flag(IPPROTO_IPV6, IPV6_MULTICAST_ALL);
}

}  // namespace sentry
