#include "sentry/net/inet/raw.h"

#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>

#include <algorithm>
#include <cstring>

#include "sentry/base/random.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

constexpr size_t kIcmpHeader = 8, kIpHeader = sizeof(iphdr);
constexpr size_t kMaxPayload = 65535 - kIpHeader - kIcmpHeader;
constexpr PortTable::Range kIdentifiers = {1, 65535};

// The payload of `src` behind the room for a header.
Result<base::Ref<PacketData>> ReadBehind(IoSource& src, size_t room) {
  size_t length = src.remaining();
  auto data = base::MakeRef<PacketData>(room + length);
  if (length > 0 && TRY(src.Get(data->bytes().subspan(room))) != length) return Error(EFAULT);
  return data;
}

}  // namespace

// --- raw ---

RawEndpoint::RawEndpoint(base::Ref<InetStack> stack, int family, int protocol)
    : DatagramEndpoint(std::move(stack), family), protocol_(protocol) {
  local.ip = IpAddress::Any(!v6());
  if (protocol == IPPROTO_RAW && !v6()) ip().SetFlag(IPPROTO_IP, IP_HDRINCL, true);
  if (Task* t = Task::Current()) uid = t->creds().euid;
  this->stack().AddRaw(this);
}

InetAddress RawEndpoint::LocalName() {
  absl::MutexLock lock(&mutex_);
  InetAddress name = local;
  name.port = static_cast<uint16_t>(v6() ? 0 : protocol_);
  return name;
}

Status RawEndpoint::Bind(Task&, const InetAddress& address) {
  if (connected()) return Error(EINVAL);
  TRY(stack().CheckBind(address.ip));
  absl::MutexLock lock(&mutex_);
  local.ip = address.ip;
  bound_address_ = !address.ip.IsAny();
  return base::Ok();
}

Status RawEndpoint::Connect(InetAddress to) {
  IpAddress source;
  absl::MutexLock lock(&mutex_);
  TRY(Resolve(&to, &source));
  if (local.ip.IsAny()) local.ip = source;
  remote = to;
  connected_ = true;
  return base::Ok();
}

void RawEndpoint::Disconnect() {
  absl::MutexLock lock(&mutex_);
  connected_ = false;
  remote = InetAddress();
  if (!bound_address_) local.ip = IpAddress::Any(!v6());
}

bool RawEndpoint::Accepts(const Packet& packet, int type) {
  absl::MutexLock lock(&mutex_);
  if (!local.ip.IsAny() && !packet.to.ip.IsMulticast() && local.ip != packet.to.ip) return false;
  if (connected() && remote.ip != packet.from.ip) return false;
  if (type < 0) return true;
  auto bit = static_cast<size_t>(type);
  if (packet.to.ip.v4() && bit >= 32) return true;
  return (filter_[bit / 32] >> (bit % 32) & 1) == 0;
}

std::array<uint32_t, 8> RawEndpoint::filter() {
  absl::MutexLock lock(&mutex_);
  return filter_;
}

void RawEndpoint::SetFilter(const std::array<uint32_t, 8>& filter) {
  absl::MutexLock lock(&mutex_);
  filter_ = filter;
}

// IP_HDRINCL: the application's own header; what it left at zero is filled in.
Result<Packet> RawEndpoint::WithHeader(IoSource& src, const InetAddress& to, int* protocol) {
  Packet p;
  p.data = TRY(PacketData::From(src));
  iphdr header;
  if (p.data->size() < sizeof(header)) return Error(EINVAL);
  memcpy(&header, p.data->bytes().data(), sizeof(header));
  size_t length = header.ihl * size_t{4};
  if (length < sizeof(header) || length > p.data->size()) return Error(EINVAL);
  if (header.saddr == 0) header.saddr = IpAddress::Loopback(true).ToV4().s_addr;
  header.tot_len = htons(static_cast<uint16_t>(p.data->size()));
  header.check = 0;
  memcpy(p.data->bytes().data(), &header, sizeof(header));
  header.check = InternetChecksum(p.data->bytes().first(length));
  memcpy(p.data->bytes().data(), &header, sizeof(header));
  p.from.ip = IpAddress::FromV4({header.saddr});
  p.to = to;
  p.hops = header.ttl;
  p.traffic_class = header.tos;
  p.skip = length;
  *protocol = header.protocol;
  return p;
}

Result<size_t> RawEndpoint::Send(IoSource& src, const SendArgs& args) {
  size_t length = src.remaining();
  if (length > 0xffff) return Error(EMSGSIZE);
  if (args.flags & MSG_OOB) return Error(EOPNOTSUPP);
  SendOptions ask = TRY(ParseControl(args));
  InetAddress to;
  IpAddress source;
  TRY(Destination(args, ask, &to, &source));
  if (to.ip.v4() == v6()) return Error(EINVAL);
  if (v6() && args.to.length > 0 && to.port != 0 && to.port != protocol_) return Error(EINVAL);
  to.port = 0;
  if (int error = TakeError()) return Error(error);
  if (protocol_ == IcmpOf(!v6()) && length < 2) return Error(EFAULT);  // its type is looked at
  int protocol = protocol_;
  Packet p;
  if (!v6() && (protocol_ == IPPROTO_RAW || ip().flag(IPPROTO_IP, IP_HDRINCL))) {
    p = TRY(WithHeader(src, to, &protocol));
  } else {
    size_t room = HeaderSize(to.ip);
    if (length + room > 0xffff) return Error(EMSGSIZE);
    p = MakePacket(TRY(ReadBehind(src, room)), source, to, ask);
    p.skip = room;
    FillHeader(&p, protocol);
    auto message = p.data->bytes().subspan(room);
    int at = protocol_ == IPPROTO_ICMPV6 ? 2 : checksum_offset.load();
    if (v6() && at >= 0) {
      if (message.size() < static_cast<size_t>(at) + 2) return Error(EINVAL);
      SetChecksum(message, static_cast<size_t>(at), PseudoHeader(p, message.size(), protocol));
    }
  }
  PacketInput(stack(), p, protocol);
  return length;
}

void RawEndpoint::Release() {
  LeaveAll();
  stack().RemoveRaw(this);
}

// --- ping ---

bool PingEndpoint::Allowed(Task& t, const InetStack& stack) {
  uint32_t first = stack.ping_first.load(), last = stack.ping_last.load();
  auto inside = [&](gid_t gid) { return gid >= first && gid <= last; };
  const Credentials& creds = t.creds();
  return inside(creds.egid) || std::any_of(creds.groups.begin(), creds.groups.end(), inside);
}

Status PingEndpoint::AutoBind() {
  if (local.port != 0) return base::Ok();
  SetPortUser();
  return table().Bind(*this, kIdentifiers);
}

Status PingEndpoint::Bind(Task&, const InetAddress& address) {
  TRY(stack().CheckBind(address.ip));
  return BindTo(address, kIdentifiers);
}

Status PingEndpoint::Connect(InetAddress to) {
  IpAddress source;
  absl::MutexLock lock(&mutex_);
  TRY(Resolve(&to, &source));
  TRY(AutoBind());
  to.port = 0;
  table().SetRemote(*this, local.ip.IsAny() ? source : local.ip, to);
  connected_ = true;
  return base::Ok();
}

void PingEndpoint::Disconnect() {
  absl::MutexLock lock(&mutex_);
  connected_ = false;
  table().SetRemote(*this, bound_address_ ? local.ip : IpAddress::Any(!v6()), InetAddress());
}

Result<size_t> PingEndpoint::Send(IoSource& src, const SendArgs& args) {
  size_t length = src.remaining();
  if (length > kMaxPayload + kIcmpHeader) return Error(EMSGSIZE);
  if (length < kIcmpHeader) return Error(EINVAL);
  if (args.flags & MSG_OOB) return Error(EOPNOTSUPP);
  SendOptions ask = TRY(ParseControl(args));
  InetAddress to;
  IpAddress source;
  TRY(Destination(args, ask, &to, &source));
  bool v4 = to.ip.v4();
  if (v4 == v6()) return Error(EINVAL);
  to.port = 0;
  TRY(CheckSend());
  size_t room = HeaderSize(to.ip);
  Packet p = MakePacket(TRY(ReadBehind(src, room)), source, to, ask);
  p.skip = room;
  auto message = p.data->bytes().subspan(room);
  auto type = static_cast<int>(message[0]), code = static_cast<int>(message[1]);
  if (type != (v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST) || code != 0) return Error(EINVAL);
  {
    absl::MutexLock lock(&mutex_);
    TRY(AutoBind());
    uint16_t identifier = htons(local.port);
    memcpy(message.data() + 4, &identifier, sizeof(identifier));
  }
  SetIcmpChecksum(p, message);
  int protocol = IcmpOf(v4);
  FillHeader(&p, protocol);
  stack().counters.icmp_out.fetch_add(1, std::memory_order_relaxed);
  PacketInput(stack(), p, protocol);
  return length;
}

void PingEndpoint::Release() {
  LeaveAll();
  absl::MutexLock lock(&mutex_);
  table().Release(*this);
}

}  // namespace sentry
