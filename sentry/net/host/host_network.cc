#include "sentry/net/host/host_network.h"

#include <linux/rtnetlink.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "sentry/base/host_io.h"
#include "sentry/fiber/blocking.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/net/host/host_socket.h"
#include "sentry/net/host/options.h"
#include "sentry/net/netlink_message.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr size_t kMaxAnswer = 8 << 20;
constexpr size_t kDatagram = 64 << 10;  // Linux makes a dump's datagrams of 32 KiB at most
constexpr size_t kMaxProcFile = 4 << 20;
// Of the descriptors that the sentry may have, a quarter stays for its files.
constexpr size_t kDefaultDescriptors = 1024;

HostNetwork* g_network = nullptr;  // set before the kernel runs anything

size_t MaxSockets() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kDefaultDescriptors * 3 / 4;
  return limit.rlim_cur / 4 * 3;
}

// Reads `attributes` of one RTM_NEWLINK.
HostInterface ParseLink(NetlinkBytes payload) {
  HostInterface out;
  NetlinkBytes rest;
  auto m = FixedHeader<ifinfomsg>(payload, &rest);
  NetlinkAttributes a(rest);
  out.index = m.ifi_index;
  out.type = m.ifi_type;
  out.flags = m.ifi_flags;
  if (auto name = a.Find(IFLA_IFNAME)) {
    std::string_view text(reinterpret_cast<const char*>(name->data()), name->size());
    out.name = text.substr(0, text.find('\0'));
  }
  out.mtu = a.Get<uint32_t>(IFLA_MTU).value_or(0);
  out.queue_length = a.Get<uint32_t>(IFLA_TXQLEN).value_or(0);
  out.link = static_cast<int>(a.Get<uint32_t>(IFLA_LINK).value_or(m.ifi_index));
  out.operstate = a.Get<uint8_t>(IFLA_OPERSTATE).value_or(0);
  out.carrier = a.Get<uint8_t>(IFLA_CARRIER).value_or(0);
  auto bytes = [&](uint16_t type) {
    std::vector<uint8_t> v;
    if (auto found = a.Find(type)) {
      const auto* p = reinterpret_cast<const uint8_t*>(found->data());
      v.assign(p, p + found->size());
    }
    return v;
  };
  out.hardware = bytes(IFLA_ADDRESS);
  out.hardware_broadcast = bytes(IFLA_BROADCAST);
  if (auto stats = a.Find(IFLA_STATS64)) {
    // struct rtnl_link_stats64 begins with them, in this order.
    memcpy(out.statistics.data(), stats->data(), std::min(stats->size(), sizeof(out.statistics)));
  }
  return out;
}

void AddAddress(NetlinkBytes payload, std::vector<HostInterface>* interfaces) {
  NetlinkBytes rest;
  auto m = FixedHeader<ifaddrmsg>(payload, &rest);
  NetlinkAttributes a(rest);
  auto it = std::find_if(interfaces->begin(), interfaces->end(), [&](const HostInterface& i) {
    return i.index == static_cast<int>(m.ifa_index);
  });
  if (it == interfaces->end() || m.ifa_family != AF_INET) return;
  HostInterface::Address address;
  auto own = a.Get<uint32_t>(IFA_LOCAL);
  if (!own) own = a.Get<uint32_t>(IFA_ADDRESS);
  if (!own) return;
  address.ip = ntohl(*own);
  address.broadcast = ntohl(a.Get<uint32_t>(IFA_BROADCAST).value_or(0));
  address.prefix = std::min<int>(m.ifa_prefixlen, 32);
  if (auto label = a.Find(IFA_LABEL)) {
    std::string_view text(reinterpret_cast<const char*>(label->data()), label->size());
    address.label = text.substr(0, text.find('\0'));
  }
  it->addresses.push_back(std::move(address));
}

}  // namespace

HostNetwork::HostNetwork(base::UniqueFd route, ProcFiles files)
    : route_(std::move(route)), files_(std::move(files)), max_sockets_(MaxSockets()) {}

void HostNetwork::Install(base::UniqueFd route, ProcFiles files) {
  g_network = new HostNetwork(std::move(route), std::move(files));  // never destroyed
}

HostNetwork* HostNetwork::Of(const NetNamespace& ns) {
  return g_network != nullptr && &ns == Kernel::Get().root_net_ns().get() ? g_network : nullptr;
}

HostNetwork* HostNetwork::Current(Task& t) {
  return g_network != nullptr ? Of(*t.net_namespace_ref()) : nullptr;
}

// --- what the host says ---

Result<std::vector<HostNetwork::RouteMessage>> HostNetwork::Query(uint16_t type, bool dump,
                                                                  std::span<const std::byte> body) {
  NetlinkWriter writer;
  fiber::MutexLock lock(&route_mutex_);
  nlmsghdr header{};
  header.nlmsg_type = type;
  header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | (dump ? NLM_F_DUMP : 0));
  header.nlmsg_seq = ++sequence_;
  header.nlmsg_len = static_cast<uint32_t>(sizeof(header) + body.size());
  std::vector<std::byte> request(NLMSG_ALIGN(header.nlmsg_len));
  memcpy(request.data(), &header, sizeof(header));
  if (!body.empty()) memcpy(request.data() + sizeof(header), body.data(), body.size());
  const uint32_t sequence = sequence_;
  // The host may make us wait for its lock of network devices.
  return fiber::BlockingCall([&] { return Exchange(request, sequence); });
}

// Linux answers within the call that asks, or that reads the part of a dump before.
Result<std::vector<HostNetwork::RouteMessage>> HostNetwork::Exchange(
    std::span<const std::byte> request, uint32_t sequence) {
  auto call = [&](bool out, void* data, size_t size) -> Result<size_t> {
    iovec iov{data, size};
    msghdr m{};
    m.msg_iov = &iov;
    m.msg_iovlen = 1;
    ssize_t n = out ? sendmsg(route_.get(), &m, MSG_DONTWAIT | MSG_NOSIGNAL)
                    : recvmsg(route_.get(), &m, MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0) return base::LastError();
    if (static_cast<size_t>(n) > size) return Error(ENOBUFS);
    return static_cast<size_t>(n);
  };
  auto buffer = std::make_unique_for_overwrite<std::byte[]>(kDatagram);
  // What an exchange that failed has left.
  while (call(false, buffer.get(), kDatagram).ok()) {
  }
  TRY(call(true, const_cast<std::byte*>(request.data()), request.size()));
  std::vector<RouteMessage> out;
  size_t total = 0;
  for (;;) {
    size_t n = TRY(call(false, buffer.get(), kDatagram));
    NetlinkBytes datagram(buffer.get(), n);
    bool multi = false;
    while (auto m = NextMessage(&datagram)) {
      if (m->header.nlmsg_seq != sequence) continue;
      if (m->header.nlmsg_type == NLMSG_DONE) return out;
      if (m->header.nlmsg_type == NLMSG_ERROR) {
        NetlinkBytes rest;
        int error = -FixedHeader<nlmsgerr>(m->payload, &rest).error;
        if (error != 0) return Error(error);
        return out;
      }
      multi = (m->header.nlmsg_flags & NLM_F_MULTI) != 0;
      total += m->payload.size();
      if (total > kMaxAnswer) return Error(ENOBUFS);
      out.push_back(
          {m->header.nlmsg_type, m->header.nlmsg_flags, {m->payload.begin(), m->payload.end()}});
    }
    if (!multi) return out;
  }
}

Result<std::vector<HostInterface>> HostNetwork::Interfaces() {
  std::vector<HostInterface> interfaces;
  ifinfomsg link{};
  for (const RouteMessage& m : TRY(Query(RTM_GETLINK, true, std::as_bytes(std::span(&link, 1))))) {
    if (m.type == RTM_NEWLINK) interfaces.push_back(ParseLink(m.payload));
  }
  ifaddrmsg address{};
  address.ifa_family = AF_INET;
  for (const RouteMessage& m :
       TRY(Query(RTM_GETADDR, true, std::as_bytes(std::span(&address, 1))))) {
    if (m.type == RTM_NEWADDR) AddAddress(m.payload, &interfaces);
  }
  return interfaces;
}

Result<std::string> HostNetwork::ProcNet(std::string_view name) {
  auto it = std::find_if(files_.begin(), files_.end(), [&](auto& f) { return f.first == name; });
  if (it == files_.end()) return Error(ENOENT);
  const int fd = it->second.get();
  return fiber::BlockingCall([fd]() -> Result<std::string> {
    std::string text;
    constexpr size_t kStep = 16 << 10;
    while (text.size() < kMaxProcFile) {
      const size_t at = text.size();
      text.resize(at + kStep);
      ssize_t n = base::HostReadAt(fd, text.data() + at, kStep, static_cast<off_t>(at));
      if (n < 0) return base::LastError();
      text.resize(at + static_cast<size_t>(n));
      if (n == 0) break;
    }
    return text;
  });
}

// --- sockets ---

bool HostNetwork::TakePlace() {
  absl::MutexLock lock(&mutex_);
  if (count_ >= max_sockets_) return false;
  ++count_;
  return true;
}

Result<base::UniqueFd> HostNetwork::NewSocket(int family, int type, int protocol) {
  if (!TakePlace()) return Error(ENFILE);
  base::UniqueFd fd(socket(family, type | kHostSocketFlags, protocol));
  if (fd.valid()) return fd;
  Error error = base::LastError();
  DropPlace();
  // The sentry's own limit is not the guest's.
  return error.code() == EMFILE ? Error(ENFILE) : error;
}

void HostNetwork::DropPlace() {
  absl::MutexLock lock(&mutex_);
  --count_;
}

void HostNetwork::Add(HostSocket* socket) {
  absl::MutexLock lock(&mutex_);
  socket->next_ = first_;
  if (first_ != nullptr) first_->previous_ = socket;
  first_ = socket;
}

void HostNetwork::Remove(HostSocket* socket) {
  absl::MutexLock lock(&mutex_);
  (socket->previous_ != nullptr ? socket->previous_->next_ : first_) = socket->next_;
  if (socket->next_ != nullptr) socket->next_->previous_ = socket->previous_;
  --count_;
}

std::vector<base::Ref<HostSocket>> HostNetwork::Sockets() {
  absl::MutexLock lock(&mutex_);
  std::vector<base::Ref<HostSocket>> out;
  for (HostSocket* s = first_; s != nullptr; s = s->next_) {
    if (s->TryIncRef()) out.push_back(base::Ref<HostSocket>::Adopt(s));
  }
  return out;
}

}  // namespace sentry
