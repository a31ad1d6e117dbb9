#include "sentry/net/inet/stack.h"

#include <algorithm>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/net/inet/packet_input.h"
#include "sentry/net/inet/raw.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

base::Ref<InetStack> InetStack::Of(NetNamespace& ns) {
  static const char key = 0;
  base::Ref<base::RefCounted> part = ns.GetOrMake(
      &key, []() -> base::Ref<base::RefCounted> { return base::MakeRef<InetStack>(); });
  base::Ref<InetStack> stack(static_cast<InetStack*>(part.get()));
  absl::call_once(stack->started_, [&] {
    stack->user_ns_ = ns.user_ns();
    if (&ns == Kernel::Get().root_net_ns().get()) stack->SetUp(true);
  });
  return stack;
}

bool InetStack::HasCap(Task& t, int cap) const { return t.creds().HasCapIn(cap, *user_ns_); }

base::Ref<InetStack> InetStack::Current(Task& t) { return Of(*t.net_namespace_ref()); }

void InetStack::SetUp(bool up, NetworkAsker asker) {
  std::vector<NetworkNews> news{{.kind = NetworkNews::Kind::kLink, .asker = asker}};
  auto about = [&](const Address& a) { news.push_back({NetworkNews::Kind::kAddress, up, a, {}}); };
  {
    absl::MutexLock lock(&mutex_);
    if (up_.exchange(up) == up) return;
    if (!up) {
      // IPv6 addresses go with the device, IPv4 ones stay.
      for (const Address& a : addresses_) {
        if (!a.ip.v4()) about(a);
      }
      std::erase_if(addresses_, [](const Address& a) { return !a.ip.v4(); });
    }
    for (bool v4 : {true, false}) {
      IpAddress ip = IpAddress::Loopback(v4);
      bool there = std::any_of(addresses_.begin(), addresses_.end(),
                               [&](const Address& a) { return a.ip == ip; });
      if (!up || there) continue;
      addresses_.push_back({ip, v4 ? 8 : 128});
      about(addresses_.back());
    }
  }
  for (const NetworkNews& one : news) Tell(one);
}

std::vector<InetStack::Address> InetStack::addresses() const {
  absl::MutexLock lock(&mutex_);
  return addresses_;
}

Status InetStack::AddAddress(const Address& a, NetworkAsker asker) {
  {
    absl::MutexLock lock(&mutex_);
    for (const Address& other : addresses_) {
      if (other.ip == a.ip) return Error(EEXIST);
    }
    if (addresses_.size() >= kMaxAddresses) return Error(ENOBUFS);
    addresses_.push_back(a);
  }
  Tell({NetworkNews::Kind::kAddress, true, a, asker});
  return base::Ok();
}

Status InetStack::RemoveAddress(const Address& a, NetworkAsker asker) {
  {
    absl::MutexLock lock(&mutex_);
    auto it = std::find_if(addresses_.begin(), addresses_.end(), [&](const Address& other) {
      return other.ip == a.ip && other.prefix == a.prefix;
    });
    if (it == addresses_.end()) return Error(EADDRNOTAVAIL);
    addresses_.erase(it);
  }
  Tell({NetworkNews::Kind::kAddress, false, a, asker});
  return base::Ok();
}

void InetStack::Tell(const NetworkNews& news) {
  absl::MutexLock lock(&listeners_mutex_);
  for (NetworkListener* listener : listeners_) listener->OnNews(*this, news);
}

void InetStack::AddListener(NetworkListener* listener) {
  absl::MutexLock lock(&listeners_mutex_);
  listeners_.push_back(listener);
}

void InetStack::RemoveListener(NetworkListener* listener) {
  absl::MutexLock lock(&listeners_mutex_);
  std::erase(listeners_, listener);
}

bool InetStack::IsLocal(const IpAddress& ip) const {
  if (!up()) return false;
  absl::MutexLock lock(&mutex_);
  return std::any_of(addresses_.begin(), addresses_.end(), [&](const Address& a) {
    // All of an IPv4 network on the loopback device is local.
    return ip.Matches(a.ip, a.ip.v4() ? a.prefix : 128);
  });
}

bool InetStack::IsBroadcast(const IpAddress& ip) const {
  if (!ip.v4() || !up()) return false;
  absl::MutexLock lock(&mutex_);
  return std::any_of(addresses_.begin(), addresses_.end(), [&](const Address& a) {
    if (!a.ip.v4() || a.prefix > 30) return false;
    uint32_t host = 0xffffffffu >> a.prefix;
    return ip.Matches(a.ip, a.prefix) && (ip.v4_bits() & host) == host;
  });
}

Status InetStack::CheckBind(const IpAddress& ip) const {
  if (ip.IsAny() || ip.IsMulticast() || ip_nonlocal_bind.load() != 0 || IsLocal(ip)) {
    return base::Ok();
  }
  if (ip.v4() && ip.v4_bits() == INADDR_BROADCAST) return base::Ok();
  return Error(EADDRNOTAVAIL);
}

Result<IpAddress> InetStack::Route(IpAddress* to) const {
  if (to->IsAny()) *to = IpAddress::Loopback(to->v4());
  if (!IsLocal(*to)) return Error(ENETUNREACH);
  absl::MutexLock lock(&mutex_);
  IpAddress source = IpAddress::Loopback(to->v4());
  for (const Address& a : addresses_) {
    if (a.ip == *to) return *to;
    if (a.ip.v4() && to->Matches(a.ip, a.prefix)) source = a.ip;
  }
  return source;
}

namespace {

// Those of a list that are not on their way out.
template <typename T>
std::vector<base::Ref<T>> Living(const std::vector<T*>& all) {
  std::vector<base::Ref<T>> out;
  for (T* one : all) {
    if (one->TryIncRef()) out.push_back(base::Ref<T>::Adopt(one));
  }
  return out;
}

}  // namespace

void InetStack::AddRaw(RawEndpoint* raw) {
  absl::MutexLock lock(&mutex_);
  raw_.push_back(raw);
  watchers_ = raw_.size() + taps_.size();
}

void InetStack::RemoveRaw(RawEndpoint* raw) {
  absl::MutexLock lock(&mutex_);
  std::erase(raw_, raw);
  watchers_ = raw_.size() + taps_.size();
}

std::vector<base::Ref<RawEndpoint>> InetStack::RawSockets() {
  absl::MutexLock lock(&mutex_);
  return Living(raw_);
}

void InetStack::AddTap(PacketTap* tap) {
  absl::MutexLock lock(&mutex_);
  taps_.push_back(tap);
  watchers_ = raw_.size() + taps_.size();
}

void InetStack::RemoveTap(PacketTap* tap) {
  absl::MutexLock lock(&mutex_);
  std::erase(taps_, tap);
  watchers_ = raw_.size() + taps_.size();
}

std::vector<base::Ref<PacketTap>> InetStack::Taps() {
  absl::MutexLock lock(&mutex_);
  return Living(taps_);
}

void InetStack::JoinGroup(const IpAddress& group) {
  absl::MutexLock lock(&mutex_);
  ++groups_[group];
}

void InetStack::LeaveGroup(const IpAddress& group) {
  absl::MutexLock lock(&mutex_);
  auto it = groups_.find(group);
  if (it != groups_.end() && --it->second == 0) groups_.erase(it);
}

bool InetStack::InGroup(const IpAddress& group) const {
  static const IpAddress all = [] {
    IpAddress a;
    a.bytes[0] = 0xff;
    a.bytes[1] = 0x02;
    a.bytes[15] = 1;
    return a;
  }();
  if (group == all || (group.v4() && group.v4_bits() == INADDR_ALLHOSTS_GROUP)) return true;
  absl::MutexLock lock(&mutex_);
  return groups_.contains(group);
}

bool InetStack::TakeNetlinkPort(uint32_t port) {
  absl::MutexLock lock(&mutex_);
  return netlink_ports_.insert(port).second;
}

void InetStack::DropNetlinkPort(uint32_t port) {
  absl::MutexLock lock(&mutex_);
  netlink_ports_.erase(port);
}

PortTable::Range InetStack::port_range() const {
  uint32_t packed = port_range_.load(std::memory_order_relaxed);
  return {static_cast<uint16_t>(packed >> 16), static_cast<uint16_t>(packed)};
}

Status InetStack::SetPortRange(int low, int high) {
  if (low < 1 || high > 65535 || low > high || low < unprivileged_port_start.load()) {
    return Error(EINVAL);
  }
  port_range_ = static_cast<uint32_t>(low) << 16 | static_cast<uint32_t>(high);
  return base::Ok();
}

}  // namespace sentry
