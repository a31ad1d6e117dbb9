#include "sentry/net/netlink/netlink_socket.h"

#include <linux/netlink.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "sentry/base/random.h"
#include "sentry/kernel/task.h"
#include "sentry/net/netlink/generic.h"
#include "sentry/net/netlink/route.h"
#include "sentry/net/netlink/sock_diag.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;
constexpr size_t kMaxRequest = 64 * 1024;
constexpr size_t kOverhead = 256;  // of a queued message
constexpr uint32_t kMaxGroup = 64;

Result<sockaddr_nl> Parse(const SockAddr& address) {
  sockaddr_nl a;
  if (address.length < sizeof(a)) return Error(EINVAL);
  memcpy(&a, address.bytes.data(), sizeof(a));
  if (a.nl_family != AF_NETLINK) return Error(EINVAL);
  return a;
}

SockAddr Name(uint32_t port, uint32_t groups) {
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK;
  a.nl_pid = port;
  a.nl_groups = groups;
  SockAddr out;
  memcpy(out.bytes.data(), &a, sizeof(a));
  out.length = sizeof(a);
  return out;
}

bool IsFlag(int name) {
  switch (name) {
    case NETLINK_PKTINFO:
    case NETLINK_BROADCAST_ERROR:
    case NETLINK_NO_ENOBUFS:
    case NETLINK_CAP_ACK:
    case NETLINK_EXT_ACK:
    case NETLINK_GET_STRICT_CHK:
    case NETLINK_LISTEN_ALL_NSID:
      return true;
    default:
      return false;
  }
}

}  // namespace

NetlinkSocket::~NetlinkSocket() {
  if (protocol() == NETLINK_ROUTE) stack_->RemoveListener(this);
  if (uint32_t port = port_.load()) stack_->DropNetlinkPort(port);
}

Status NetlinkSocket::AutoBind(Task& t) {
  if (port_.load() != 0) return base::Ok();
  auto port = static_cast<uint32_t>(t.Pid_());
  while (!stack_->TakeNetlinkPort(port)) {
    port = static_cast<uint32_t>(-4096 - static_cast<int64_t>(base::RandomBelow(1 << 30)));
  }
  uint32_t none = 0;
  if (!port_.compare_exchange_strong(none, port)) stack_->DropNetlinkPort(port);
  return base::Ok();
}

Status NetlinkSocket::Bind(Task& t, const SockAddr& address) {
  sockaddr_nl a = TRY(Parse(address));
  uint32_t port = port_.load();
  if (port != 0 && a.nl_pid != port) return Error(EINVAL);
  if (port == 0 && a.nl_pid != 0) {
    if (!stack_->TakeNetlinkPort(a.nl_pid)) return Error(EADDRINUSE);
    port_ = a.nl_pid;
  } else {
    TRY(AutoBind(t));
  }
  // The first 32 of them; the others are left alone.
  groups_ = (groups_.load() & ~uint64_t{0xffffffff}) | a.nl_groups;
  return base::Ok();
}

Status NetlinkSocket::Connect(Task& t, const SockAddr& address, bool) {
  if (address.length < sizeof(sa_family_t)) return Error(EINVAL);
  if (address.family() == AF_UNSPEC) {
    peer_port_ = peer_groups_ = 0;
    return base::Ok();
  }
  sockaddr_nl a = TRY(Parse(address));
  if ((a.nl_pid != 0 || a.nl_groups != 0) && !stack_->HasCap(t, CAP_NET_ADMIN)) {
    return Error(EPERM);
  }
  TRY(AutoBind(t));
  peer_port_ = a.nl_pid;
  peer_groups_ = a.nl_groups;
  return base::Ok();
}

Result<SockAddr> NetlinkSocket::LocalAddress() {
  return Name(port_.load(), static_cast<uint32_t>(groups_.load()));
}
Result<SockAddr> NetlinkSocket::PeerAddress() {
  return Name(peer_port_.load(), peer_groups_.load());
}

void NetlinkSocket::OnNews(InetStack& stack, const NetworkNews& news) {
  const uint64_t groups = groups_.load();
  if (groups == 0 || host_ != nullptr) return;
  std::vector<Message> messages;
  for (RouteNews& one : TellNews(stack, news)) {
    if ((groups >> (one.group - 1) & 1) != 0) messages.push_back({std::move(one.bytes), one.group});
  }
  Push(std::move(messages));
}

void NetlinkSocket::Push(std::vector<Message> answers, bool paced) {
  if (answers.empty()) return;
  bool lost = false;
  {
    absl::MutexLock lock(&mutex_);
    const bool all = paced && queued_ <= static_cast<size_t>(options().receive_buffer.load());
    for (auto& answer : answers) {
      if (!all && queued_ > static_cast<size_t>(options().receive_buffer.load())) {
        lost = true;
        break;
      }
      queued_ += answer.bytes.size() + kOverhead;
      messages_.push_back(std::move(answer));
    }
  }
  if (lost) error_ = ENOBUFS;
  queue_.Wake(lost ? kIn | EPOLLERR : kIn);
}

Result<size_t> NetlinkSocket::Send(IoSource& src, SendArgs args) {
  Task* t = Task::Current();
  if (t == nullptr) return Error(EINVAL);
  if (args.flags & MSG_OOB) return Error(EOPNOTSUPP);
  size_t length = src.remaining();
  if (length == 0) return Error(ENODATA);
  uint32_t to_port = peer_port_.load();
  if (args.to.length > 0) {
    sockaddr_nl to = TRY(Parse(args.to));
    // To other processes, or to groups, which nobody but the kernel fills.
    if ((to.nl_pid != 0 || to.nl_groups != 0) && !stack_->HasCap(*t, CAP_NET_ADMIN)) {
      return Error(EPERM);
    }
    to_port = to.nl_pid;
  }
  TRY(AutoBind(*t));
  if (length > static_cast<size_t>(options().send_buffer.load()) - 32 || length > kMaxRequest) {
    return Error(EMSGSIZE);
  }
  std::vector<std::byte> request(length);
  if (TRY(src.Get(request)) != length) return Error(EFAULT);
  if (to_port != 0 && to_port == port_.load()) {
    Push({{std::move(request), 0, to_port}});
    return length;
  }
  if (to_port != 0 || protocol() == NETLINK_KOBJECT_UEVENT) {
    return Error(ECONNREFUSED);  // nobody is there
  }
  Answer(*t, request);
  return length;
}

void NetlinkSocket::Answer(Task& t, std::span<const std::byte> request) {
  const bool admin = stack_->HasCap(t, CAP_NET_ADMIN);
  const bool cap_ack = (kept_.load() >> NETLINK_CAP_ACK & 1) != 0;
  const bool diag = protocol() == NETLINK_SOCK_DIAG;
  std::vector<std::vector<std::byte>> datagrams;
  if (diag) {
    const DiagScope scope{*stack_, host_, *unix_sockets_, t.user_ns(), admin, port_.load()};
    datagrams = AnswerDiag(scope, cap_ack, request);
  } else if (protocol() == NETLINK_GENERIC) {
    datagrams = AnswerGeneric(port_.load(), cap_ack, request);
  } else {
    datagrams = AnswerRoute(*stack_, host_, admin, cap_ack, port_.load(), request);
  }
  std::vector<Message> answers;
  for (auto& datagram : datagrams) answers.push_back({std::move(datagram), 0});
  Push(std::move(answers), /*paced=*/diag);
}

Result<size_t> NetlinkSocket::Receive(IoDest& dst, RecvArgs* args) {
  if (args->flags & MSG_OOB) return Error(EOPNOTSUPP);
  int64_t deadline = ReceiveDeadline();
  Message message;
  while (true) {
    if (int error = TakeError()) return Error(error);
    {
      absl::MutexLock lock(&mutex_);
      if (!messages_.empty()) {
        if (args->flags & MSG_PEEK) {
          message = messages_.front();
        } else {
          message = std::move(messages_.front());
          messages_.pop_front();
          queued_ -= message.bytes.size() + kOverhead;
        }
        break;
      }
    }
    if (args->nonblock) return Error(EAGAIN);
    auto reason = fiber::WaitUntil(queue_, EPOLLIN,
                                   [this] {
                                     absl::MutexLock lock(&mutex_);
                                     return !messages_.empty() || error_.load() != 0;
                                   },
                                   {.interruptible = true, .deadline_ns = deadline});
    if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
    if (reason == fiber::WakeReason::kInterrupted) return Interrupted(deadline);
  }
  size_t n = std::min(message.bytes.size(), dst.remaining());
  if (n < message.bytes.size()) args->out_flags |= MSG_TRUNC;
  args->full_length = message.bytes.size();
  args->from = Name(message.sender,
                    message.group >= 1 && message.group <= 32 ? 1u << (message.group - 1) : 0);
  args->has_creds = pass_creds();
  args->creds.uid = args->creds.gid = 0;
  if (kept_.load() & 1u << NETLINK_PKTINFO) {
    nl_pktinfo info{message.group};
    args->control.push_back({SOL_NETLINK, NETLINK_PKTINFO, OptionBytes(info)});
  }
  if (n > 0 && TRY(dst.Put(std::span(message.bytes).first(n))) != n) return Error(EFAULT);
  return n;
}

uint32_t NetlinkSocket::Readiness() {
  uint32_t mask = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
  if (error_.load() != 0) mask |= EPOLLERR;
  absl::MutexLock lock(&mutex_);
  return messages_.empty() ? mask : mask | kIn;
}

Result<std::vector<std::byte>> NetlinkSocket::GetOption(Task& t, int level, int name) {
  if (level == SOL_SOCKET) return Socket::GetOption(t, level, name);
  if (level != SOL_NETLINK) return Error(ENOPROTOOPT);
  if (name == NETLINK_LIST_MEMBERSHIPS) {
    const uint64_t groups = groups_.load();
    return groups != 0 ? OptionBytes(groups) : std::vector<std::byte>();
  }
  if (!IsFlag(name)) return Error(ENOPROTOOPT);
  return OptionBytes<int>(static_cast<int>(kept_.load() >> name & 1));
}

Status NetlinkSocket::SetMembership(int name, uint32_t group) {
  if (group < 1 || group > kMaxGroup) return Error(EINVAL);
  const uint64_t bit = uint64_t{1} << (group - 1);
  if (name == NETLINK_ADD_MEMBERSHIP) {
    groups_.fetch_or(bit);
  } else {
    groups_.fetch_and(~bit);
  }
  return base::Ok();
}

Status NetlinkSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  if (level == SOL_SOCKET) return Socket::SetOption(t, level, name, value);
  if (level != SOL_NETLINK) return Error(ENOPROTOOPT);
  uint32_t number = 0;  // of what is too short
  if (value.size() >= sizeof(number)) memcpy(&number, value.data(), sizeof(number));
  if (name == NETLINK_ADD_MEMBERSHIP || name == NETLINK_DROP_MEMBERSHIP) {
    return SetMembership(name, number);
  }
  if (!IsFlag(name)) return Error(ENOPROTOOPT);
  const bool all = name == NETLINK_LISTEN_ALL_NSID;
  if (all && !stack_->HasCap(t, CAP_NET_BROADCAST)) return Error(EPERM);
  if (number != 0) {
    kept_.fetch_or(1u << name);
  } else {
    kept_.fetch_and(~(1u << name));
  }
  return base::Ok();
}

Result<base::Ref<FileDescription>> NewNetlinkSocket(Task& t, Vfs& vfs, int type, int protocol,
                                                    uint32_t flags) {
  if (type != SOCK_RAW && type != SOCK_DGRAM) return Error(ESOCKTNOSUPPORT);
  if (protocol != NETLINK_ROUTE && protocol != NETLINK_KOBJECT_UEVENT &&
      protocol != NETLINK_SOCK_DIAG && protocol != NETLINK_GENERIC) {
    return Error(EPROTONOSUPPORT);
  }
  return base::Ref<FileDescription>(
      base::MakeRef<NetlinkSocket>(vfs, InetStack::Current(t), HostNetwork::Current(t),
                                   UnixSockets::Of(*t.net_namespace_ref()), type, protocol, flags));
}

}  // namespace sentry
