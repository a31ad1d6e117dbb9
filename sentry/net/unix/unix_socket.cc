#include "sentry/net/unix/unix_socket.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr size_t kFamilySize = offsetof(sockaddr_un, sun_path);
constexpr size_t kPathSize = sizeof(sockaddr_un::sun_path);

// The name in an address: a path, or NUL and an abstract name (unix_validate_addr, unix_mkname).
Result<std::string> NameOf(const SockAddr& a) {
  if (a.length <= kFamilySize || a.length > sizeof(sockaddr_un)) return Error(EINVAL);
  if (a.family() != AF_UNIX) return Error(EINVAL);
  std::string_view text(reinterpret_cast<const char*>(a.bytes.data()) + kFamilySize,
                        a.length - kFamilySize);
  if (text[0] == '\0') return std::string(text);
  return std::string(text.substr(0, text.find('\0')));
}

SockAddr AddressOf(const std::string& name) {
  SockAddr a;
  sa_family_t family = AF_UNIX;
  memcpy(a.bytes.data(), &family, sizeof(family));
  size_t n = std::min(name.size(), kPathSize);
  memcpy(a.bytes.data() + kFamilySize, name.data(), n);
  bool path = !name.empty() && name[0] != '\0';
  a.length = static_cast<uint32_t>(kFamilySize + n + (path ? 1 : 0));
  return a;
}

}  // namespace

void UnixSocket::Enter() {
  endpoint_->SetDescription(this);
  Task* t = Task::Current();
  base::Ref<NetNamespace> ns = t != nullptr ? t->net_namespace_ref() : nullptr;
  if (ns == nullptr) return;
  sockets_ = UnixSockets::Of(*ns);
  sockets_->Add(endpoint_.get());
}

void UnixSocket::Leave() {
  if (sockets_ != nullptr) sockets_->Remove(endpoint_.get());
  endpoint_->SetDescription(nullptr);
}

Status UnixSocket::Bind(Task& t, const SockAddr& address) {
  base::Ref<AbstractNames> names = AbstractNames::Current(t);
  if (address.length == kFamilySize && address.family() == AF_UNIX) {
    return endpoint_->BindAbstract(*names, "");
  }
  std::string name = TRY(NameOf(address));
  if (name[0] == '\0') return endpoint_->BindAbstract(*names, std::move(name));
  WalkContext ctx = t.WalkFromCwd();
  InodeAttr attr = TRY(GetAttr());
  Result<Path> made = vfs_.MknodAt(ctx, name, S_IFSOCK | (attr.mode & 0777), 0);
  if (!made.ok()) return Error(made.error().code() == EEXIST ? EADDRINUSE : made.error().code());
  Status bound = endpoint_->BindPath(name, *made);
  if (!bound.ok()) (void)vfs_.Unlink(ctx, name);  // as unix_bind_bsd
  return bound;
}

Result<base::Ref<UnixEndpoint>> UnixSocket::Find(Task& t, const SockAddr& address) {
  std::string name = TRY(NameOf(address));
  base::Ref<UnixEndpoint> found;
  if (name[0] == '\0') {
    found = AbstractNames::Current(t)->Find(name, type());
    if (found == nullptr) return Error(ECONNREFUSED);
    return found;
  }
  Path path = TRY(vfs_.Walk(t.WalkFromCwd(), name, {}));
  TRY(vfs_.Access(t.creds(), path, kMayWrite));
  base::Ref<Inode> inode = path.dentry->inode();
  if (inode == nullptr || !S_ISSOCK(inode->type())) return Error(ECONNREFUSED);
  base::Ref<Inode::Special> special = inode->special();
  auto* bound = dynamic_cast<BoundSocket*>(special.get());
  if (bound != nullptr) found = bound->endpoint();
  if (found == nullptr) return Error(ECONNREFUSED);
  if (found->type() != type()) return Error(EPROTOTYPE);
  return found;
}

void UnixSocket::AutoBind(Task& t) {
  if ((pass_creds() || pass_pidfd()) && endpoint_->name().empty()) {
    (void)endpoint_->BindAbstract(*AbstractNames::Current(t), "");  // goes without a name then
  }
}

Status UnixSocket::Connect(Task& t, const SockAddr& address, bool nonblock) {
  if (endpoint_->datagram()) {
    if (address.length >= sizeof(sa_family_t) && address.family() == AF_UNSPEC) {
      return endpoint_->SetPeer(nullptr);
    }
    base::Ref<UnixEndpoint> to = TRY(Find(t, address));
    AutoBind(t);
    return endpoint_->SetPeer(std::move(to));
  }
  base::Ref<UnixEndpoint> listener = TRY(Find(t, address));
  AutoBind(t);
  return endpoint_->ConnectTo(*listener, CurrentCreds(), nonblock, SendDeadline());
}

Result<base::Ref<FileDescription>> UnixSocket::Accept(uint32_t flags, bool nonblock) {
  base::Ref<UnixEndpoint> end = TRY(endpoint_->Accept(nonblock, ReceiveDeadline()));
  return base::Ref<FileDescription>(base::MakeRef<UnixSocket>(vfs_, std::move(end), flags));
}

Result<SockAddr> UnixSocket::LocalAddress() { return AddressOf(endpoint_->name()); }

Result<SockAddr> UnixSocket::PeerAddress() {
  base::Ref<UnixEndpoint> peer = endpoint_->peer();
  if (peer == nullptr) return Error(ENOTCONN);
  return AddressOf(peer->name());
}

Result<size_t> UnixSocket::Send(IoSource& src, SendArgs args) {
  Task* t = Task::Current();
  const bool connected = endpoint_->state() == UnixEndpoint::State::kConnected;
  if (type() == SOCK_SEQPACKET && !connected) return Error(ENOTCONN);
  // Its last byte is urgent, if it has one.
  if ((args.flags & MSG_OOB) && (!endpoint_->stream() || src.remaining() == 0)) {
    return Error(EOPNOTSUPP);
  }
  if (endpoint_->datagram()) TRY(endpoint_->CheckSendShut());
  if (!args.creds) args.creds = CurrentRealCreds();
  base::Ref<UnixEndpoint> to;
  if (endpoint_->stream()) {
    if (args.to.length > 0) {
      return Error(connected ? EISCONN : EOPNOTSUPP);
    }
  } else if (endpoint_->datagram() && args.to.length > 0) {
    if (t == nullptr) return Error(EINVAL);
    to = TRY(Find(*t, args.to));
    base::Ref<UnixEndpoint> theirs = to->peer();
    if (theirs != nullptr && theirs != endpoint_) return Error(EPERM);
  } else {
    to = endpoint_->peer();
    if (to == nullptr) return Error(ENOTCONN);
  }
  if (t != nullptr) AutoBind(*t);
  uid_t uid = args.creds->uid;
  FileList files = args.files;  // to give up their count if nothing is sent
  if (!files.empty()) {
    bool privileged = t != nullptr && (t->HasCap(CAP_SYS_RESOURCE) || t->HasCap(CAP_SYS_ADMIN));
    uint64_t limit = t != nullptr ? t->Rlimit(RLIMIT_NOFILE) : 1024;
    TRY(AddInflight(files, uid, limit, privileged));
  }
  Result<size_t> n = endpoint_->stream() ? endpoint_->SendStream(src, args, SendDeadline())
                                         : endpoint_->SendMessage(*to, src, args, SendDeadline());
  // Append takes the files over.
  if (!args.files.empty()) RemoveInflight(files, uid);
  if (!n.ok() && n.error().code() == EPIPE && endpoint_->stream() && !(args.flags & MSG_NOSIGNAL)) {
    RaiseSocketSigpipe();
  }
  if (!n.ok() && n.error().code() == ECONNREFUSED && endpoint_->datagram() && args.to.length == 0) {
    (void)endpoint_->SetPeer(nullptr);  // the other one is closed: unix_dgram_sendmsg disconnects
  }
  return n;
}

Result<size_t> UnixSocket::Receive(IoDest& dst, RecvArgs* args) {
  const bool in_line = options().flag(SO_OOBINLINE);
  if (args->flags & MSG_OOB) {
    if (endpoint_->stream()) return endpoint_->ReceiveUrgent(dst, args, in_line);
    const bool connected = endpoint_->state() == UnixEndpoint::State::kConnected;
    return Error(type() == SOCK_SEQPACKET && !connected ? ENOTCONN : EOPNOTSUPP);
  }
  args->has_creds = pass_creds();
  args->has_pidfd = pass_pidfd();
  args->options = &options();
  if (endpoint_->stream()) return endpoint_->ReceiveStream(dst, args, ReceiveDeadline(), in_line);
  return endpoint_->ReceiveMessage(dst, args, ReceiveDeadline());
}

Status UnixSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  TRY(Socket::SetOption(t, level, name, value));
  // Whose bytes these are is of interest from now on, or how many are taken.
  if (pass_creds() || pass_pidfd() || options().peek_offset.load() >= 0) endpoint_->LeaveLanes();
  return base::Ok();
}

Socket::Queued UnixSocket::queued() {
  const Result<size_t> in = endpoint_->BytesReadable();
  return {.in = in.ok() ? *in : 0, .out = endpoint_->BytesUnread()};
}

Result<uint64_t> UnixSocket::Ioctl(const IoctlArgs& args) {
  size_t n;
  switch (args.cmd) {
    case SIOCINQ:
      n = TRY(endpoint_->BytesReadable());
      break;
    case SIOCOUTQ:
      n = endpoint_->BytesUnread();
      break;
    case SIOCATMARK:
      if (!endpoint_->stream()) return Error(EOPNOTSUPP);
      n = endpoint_->AtMark() ? 1 : 0;
      break;
    default:
      return Error(ENOTTY);
  }
  auto value = static_cast<int>(std::min<size_t>(n, std::numeric_limits<int>::max()));
  TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, value));
  return uint64_t{0};
}

namespace {

Result<int> CheckType(int type, int protocol) {
  if (protocol != 0 && protocol != PF_UNIX) return Error(EPROTONOSUPPORT);
  switch (type) {
    case SOCK_STREAM:
    case SOCK_DGRAM:
    case SOCK_SEQPACKET:
      return type;
    case SOCK_RAW:
      return SOCK_DGRAM;  // as BSD had it
    default:
      return Error(ESOCKTNOSUPPORT);
  }
}

}  // namespace

Result<base::Ref<FileDescription>> NewUnixSocket(Vfs& vfs, int type, int protocol, uint32_t flags) {
  type = TRY(CheckType(type, protocol));
  return base::Ref<FileDescription>(
      base::MakeRef<UnixSocket>(vfs, base::MakeRef<UnixEndpoint>(type), flags));
}

Result<std::pair<base::Ref<FileDescription>, base::Ref<FileDescription>>> NewUnixPair(
    Vfs& vfs, int type, int protocol, uint32_t flags) {
  type = TRY(CheckType(type, protocol));
  auto a = base::MakeRef<UnixEndpoint>(type), b = base::MakeRef<UnixEndpoint>(type);
  UnixEndpoint::ConnectPair(*a, *b);
  base::Ref<FileDescription> first = base::MakeRef<UnixSocket>(vfs, std::move(a), flags);
  base::Ref<FileDescription> second = base::MakeRef<UnixSocket>(vfs, std::move(b), flags);
  return std::pair(std::move(first), std::move(second));
}

}  // namespace sentry
