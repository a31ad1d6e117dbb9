#include "sentry/net/packet/packet_socket.h"

#include <asm/socket.h>
#include <linux/if_ether.h>
#include <linux/net_tstamp.h>
#include <linux/sockios.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>

#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr size_t kAddressHead = offsetof(sockaddr_ll, sll_addr);
constexpr size_t kMaxMemberships = 64;
constexpr int kIgnoreOutgoing = 23;  // PACKET_IGNORE_OUTGOING

template <typename T>
Result<T> As(std::span<const std::byte> value) {
  T out;
  if (value.size() < sizeof(out)) return Error(EINVAL);
  memcpy(&out, value.data(), sizeof(out));
  return out;
}

SockAddr ToSockAddr(const sockaddr_ll& a, size_t length) {
  SockAddr out;
  memcpy(out.bytes.data(), &a, sizeof(a));
  out.length = static_cast<uint32_t>(length);
  return out;
}

bool IsFlag(int name) {
  return name == PACKET_AUXDATA || name == PACKET_ORIGDEV || name == PACKET_LOSS ||
         name == PACKET_TX_HAS_OFF || name == PACKET_QDISC_BYPASS;
}

}  // namespace

PacketSocket::PacketSocket(Vfs& vfs, base::Ref<InetStack> stack, int type, int protocol,
                           uint32_t flags)
    : Socket(vfs, AF_PACKET, type, /*protocol=*/0, flags),  // sk_protocol stays 0
      endpoint_(base::MakeRef<PacketEndpoint>(
          std::move(stack), base::Ref<SocketOptions>(&options()), type == SOCK_RAW)) {
  endpoint_->Attach(ntohs(static_cast<uint16_t>(protocol)), 0);
}

// packet_bind().
Status PacketSocket::Bind(Task&, const SockAddr& address) {
  sockaddr_ll a;
  if (address.length < sizeof(a)) return Error(EINVAL);
  memcpy(&a, address.bytes.data(), sizeof(a));
  if (a.sll_family != AF_PACKET) return Error(EINVAL);
  if (a.sll_ifindex != 0 && a.sll_ifindex != InetStack::kLoopbackIndex) return Error(ENODEV);
  const int protocol = a.sll_protocol != 0 ? ntohs(a.sll_protocol) : endpoint_->protocol();
  endpoint_->Attach(protocol, a.sll_ifindex);
  if (a.sll_ifindex != 0 && !endpoint_->stack().up()) endpoint_->SetError(ENETDOWN);
  return base::Ok();
}

Result<SockAddr> PacketSocket::LocalAddress() {
  sockaddr_ll a{};
  a.sll_family = AF_PACKET;
  a.sll_ifindex = endpoint_->device();
  a.sll_protocol = htons(static_cast<uint16_t>(endpoint_->protocol()));
  if (a.sll_ifindex != 0) {
    a.sll_hatype = ARPHRD_LOOPBACK;
    a.sll_halen = ETH_ALEN;
  }
  return ToSockAddr(a, kAddressHead + a.sll_halen);
}

// packet_snd().
Result<size_t> PacketSocket::Send(IoSource& src, SendArgs args) {
  int device = endpoint_->device();
  auto protocol = static_cast<uint16_t>(endpoint_->protocol());
  if (args.to.length > 0) {
    sockaddr_ll to{};
    if (args.to.length < sizeof(to)) return Error(EINVAL);
    memcpy(&to, args.to.bytes.data(), sizeof(to));
    if (args.to.length < to.sll_halen + kAddressHead) return Error(EINVAL);
    device = to.sll_ifindex;
    protocol = ntohs(to.sll_protocol);
  }
  if (device != InetStack::kLoopbackIndex) return Error(ENXIO);
  if (!endpoint_->stack().up()) return Error(ENETDOWN);
  const size_t length = src.remaining();
  const size_t head = endpoint_->raw() ? PacketEndpoint::kLinkHeader : 0;
  if (length > InetStack::kMtu + head) return Error(EMSGSIZE);
  if (length < head) return Error(EINVAL);
  std::array<std::byte, PacketEndpoint::kLinkHeader> link;
  if (head > 0 && TRY(src.Get(link)) != head) return Error(EFAULT);
  LinkFrame frame;
  frame.data = TRY(PacketData::From(src));
  // The receiving side goes by the link's header, which says what was asked for.
  if (head > 0) {
    uint16_t type;
    memcpy(&type, link.data() + 2 * ETH_ALEN, sizeof(type));
    protocol = ntohs(type);
  }
  frame.protocol = protocol;
  frame.mark = options().mark.load();
  frame.priority = options().priority.load();
  FrameInput(endpoint_->stack(), frame, endpoint_.get());
  return length;
}

void PacketSocket::AddControl(const ReceivedFrame& frame, RecvArgs* args) {
  auto put = [&](int level, int type, const auto& value) {
    args->control.push_back({level, type, OptionBytes(value)});
  };
  const timeval tv{frame.time.tv_sec, frame.time.tv_nsec / 1000};
  for (int name : {SO_TIMESTAMP_OLD, SO_TIMESTAMP_NEW}) {
    if (options().flag(name)) put(SOL_SOCKET, name, tv);
  }
  for (int name : {SO_TIMESTAMPNS_OLD, SO_TIMESTAMPNS_NEW}) {
    if (options().flag(name)) put(SOL_SOCKET, name, frame.time);
  }
  if (options().flag(SO_RXQ_OVFL) && endpoint_->drops() > 0) {
    put(SOL_SOCKET, SO_RXQ_OVFL, endpoint_->drops());
  }
  if ((flags_.load() >> PACKET_AUXDATA & 1) != 0) {
    tpacket_auxdata aux{};
    aux.tp_status = TP_STATUS_USER;
    aux.tp_len = static_cast<uint32_t>(frame.data->size());
    aux.tp_snaplen = static_cast<uint32_t>(frame.length);
    aux.tp_net = static_cast<uint16_t>(frame.network_offset);
    put(SOL_PACKET, PACKET_AUXDATA, aux);
  }
}

// packet_recvmsg().
Result<size_t> PacketSocket::Receive(IoDest& dst, RecvArgs* args) {
  constexpr int kKnown = MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_ERRQUEUE | MSG_CMSG_CLOEXEC;
  if ((args->flags & ~kKnown) != 0) return Error(EINVAL);
  if ((args->flags & MSG_ERRQUEUE) != 0) return Error(EAGAIN);
  const bool peek = (args->flags & MSG_PEEK) != 0;
  const ReceivedFrame frame = TRY(endpoint_->Take(peek, args->nonblock, ReceiveDeadline()));
  const auto bytes = frame.data->bytes().first(frame.length);
  const size_t n = std::min(bytes.size(), dst.remaining());
  if (n < bytes.size()) args->out_flags |= MSG_TRUNC;
  args->full_length = bytes.size();
  if (n > 0 && TRY(dst.Put(bytes.first(n))) != n) return Error(EFAULT);
  sockaddr_ll from{};
  from.sll_family = AF_PACKET;
  from.sll_protocol = htons(frame.protocol);
  from.sll_ifindex = InetStack::kLoopbackIndex;
  from.sll_hatype = ARPHRD_LOOPBACK;
  from.sll_pkttype = frame.outgoing ? PACKET_OUTGOING : PACKET_HOST;
  from.sll_halen = ETH_ALEN;
  args->from = ToSockAddr(from, sizeof(from));
  AddControl(frame, args);
  return n;
}

Result<std::vector<std::byte>> PacketSocket::GetOption(Task& t, int level, int name) {
  if (level == SOL_SOCKET) return Socket::GetOption(t, level, name);
  if (level != SOL_PACKET) return Error(ENOPROTOOPT);
  if (IsFlag(name)) return OptionBytes<int>(static_cast<int>(flags_.load() >> name & 1));
  switch (name) {
    case PACKET_STATISTICS:
      return OptionBytes(endpoint_->TakeStatistics());
    case PACKET_VERSION:
      return OptionBytes(version_.load());
    case PACKET_RESERVE:
      return OptionBytes(reserve_.load());
    case PACKET_TIMESTAMP:
      return OptionBytes(timestamp_.load());
    case PACKET_COPY_THRESH:
      return OptionBytes(copy_threshold_.load());
    case PACKET_FANOUT:
      return OptionBytes(0);
    case kIgnoreOutgoing:
      return OptionBytes<int>(endpoint_->ignore_outgoing.load() ? 1 : 0);
    default:
      return Error(ENOPROTOOPT);
  }
}

// packet_mc_add() and packet_mc_drop(): there is nothing that the loopback device would not show.
Status PacketSocket::SetMembership(int name, std::span<const std::byte> value) {
  const auto request = TRY(As<packet_mreq>(value));
  if (value.size() < offsetof(packet_mreq, mr_address) + request.mr_alen) return Error(EINVAL);
  const auto* bytes = reinterpret_cast<const std::byte*>(request.mr_address);
  const size_t size = std::min<size_t>(request.mr_alen, sizeof(request.mr_address));
  Membership wanted{request.mr_ifindex, request.mr_type, {bytes, bytes + size}, 1};
  absl::MutexLock lock(&mutex_);
  auto found = std::find_if(memberships_.begin(), memberships_.end(), [&](const Membership& m) {
    return m.device == wanted.device && m.type == wanted.type && m.address == wanted.address;
  });
  if (name == PACKET_DROP_MEMBERSHIP) {  // what is not there is no error
    if (found != memberships_.end() && --found->count == 0) memberships_.erase(found);
    return base::Ok();
  }
  if (request.mr_ifindex != InetStack::kLoopbackIndex) return Error(ENODEV);
  if (request.mr_alen > ETH_ALEN) return Error(EINVAL);
  if (request.mr_type > PACKET_MR_UNICAST) return Error(EINVAL);
  const bool addressed =
      request.mr_type == PACKET_MR_MULTICAST || request.mr_type == PACKET_MR_UNICAST;
  if (addressed && request.mr_alen != ETH_ALEN) return Error(EINVAL);
  if (found != memberships_.end()) {
    ++found->count;
    return base::Ok();
  }
  if (memberships_.size() >= kMaxMemberships) return Error(ENOBUFS);
  memberships_.push_back(std::move(wanted));
  return base::Ok();
}

Status PacketSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  if (level == SOL_SOCKET) return Socket::SetOption(t, level, name, value);
  if (level != SOL_PACKET) return Error(ENOPROTOOPT);
  if (name == PACKET_ADD_MEMBERSHIP || name == PACKET_DROP_MEMBERSHIP) {
    return SetMembership(name, value);
  }
  auto number = [&] { return As<int>(value); };
  auto exact = [&]() -> Result<int> {
    if (value.size() != sizeof(int)) return Error(EINVAL);
    return As<int>(value);
  };
  if (IsFlag(name)) {
    const bool on = TRY(name == PACKET_AUXDATA || name == PACKET_ORIGDEV ? number() : exact()) != 0;
    if (on) {
      flags_.fetch_or(1u << name);
    } else {
      flags_.fetch_and(~(1u << name));
    }
    return base::Ok();
  }
  switch (name) {
    case PACKET_VERSION: {
      const int version = TRY(exact());
      if (version < TPACKET_V1 || version > TPACKET_V3) return Error(EINVAL);
      version_ = version;
      return base::Ok();
    }
    case PACKET_RESERVE: {
      const int reserve = TRY(exact());
      if (reserve < 0) return Error(EINVAL);
      reserve_ = reserve;
      return base::Ok();
    }
    case PACKET_TIMESTAMP:
      timestamp_ = TRY(exact());
      return base::Ok();
    case PACKET_COPY_THRESH:
      copy_threshold_ = TRY(exact());
      return base::Ok();
    case kIgnoreOutgoing: {
      const int on = TRY(exact());
      if (on != 0 && on != 1) return Error(EINVAL);
      endpoint_->ignore_outgoing = on != 0;
      return base::Ok();
    }
    default:
      return Error(ENOPROTOOPT);
  }
}

Result<uint64_t> PacketSocket::Ioctl(const IoctlArgs& args) {
  switch (args.cmd) {
    case SIOCINQ:
      TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory,
                                               static_cast<int>(endpoint_->FirstLength())));
      return uint64_t{0};
    case SIOCOUTQ:
      TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, 0));
      return uint64_t{0};
    case SIOCGSTAMP_OLD: {
      const timespec time = TRY(endpoint_->LastTime());
      TRY(base::UserPtr<timeval>(args.arg).CopyOut(args.memory,
                                                   {time.tv_sec, time.tv_nsec / 1000}));
      return uint64_t{0};
    }
    case SIOCGSTAMPNS_OLD:
      TRY(base::UserPtr<timespec>(args.arg).CopyOut(args.memory, TRY(endpoint_->LastTime())));
      return uint64_t{0};
    default:
      return Socket::Ioctl(args);
  }
}

Result<base::Ref<FileDescription>> NewPacketSocket(Task& t, Vfs& vfs, int type, int protocol,
                                                   uint32_t flags) {
  base::Ref<InetStack> stack = InetStack::Current(t);
  if (!stack->HasCap(t, CAP_NET_RAW)) return Error(EPERM);
  if (type != SOCK_RAW && type != SOCK_DGRAM) return Error(ESOCKTNOSUPPORT);
  return base::Ref<FileDescription>(
      base::MakeRef<PacketSocket>(vfs, std::move(stack), type, protocol, flags));
}

}  // namespace sentry
