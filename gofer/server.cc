#include "gofer/server.h"

#include <sys/socket.h>

#include <latch>
#include <thread>

#include "gofer/session.h"

namespace gofer {
namespace {

using Handler = base::Status (*)(Session&, Reader, ReplyBuilder);
constexpr Handler kHandlers[] = {
    nullptr,   DoHello,  DoAttach,   DoWalk,     DoStatAt,    DoGetAttr,     DoSetAttr, DoOpen,
    DoCreate,  DoMkdir,  DoMknod,    DoSymlink,  DoLink,      DoUnlink,      DoRename,  DoReadlink,
    DoReadDir, DoStatFs, DoGetXattr, DoSetXattr, DoListXattr, DoRemoveXattr, DoFsync,   DoConnect,
    DoForget,  DoSyncFs, DoTmpfile,  DoOpenMany, DoEnd,
};
static_assert(std::size(kHandlers) == static_cast<size_t>(Op::kMax) + 1);

}  // namespace

struct Server::Impl {
  explicit Impl(Options o)
      : connection(std::move(o.connection)),
        threads(o.threads),
        session(o.proc_fd, o.max_handles),
        started(o.threads) {
    session.exit_code = o.exit_code;
    for (MountConfig& mount : o.mounts) {
      auto attr = StatFd(mount.fd.get());
      // A mount whose root cannot be looked at keeps its number and answers every request ENOTDIR.
      const mode_t type = attr.ok() ? attr->mode & S_IFMT : 0;
      session.mounts.push_back(
          {base::MakeRef<FsNode>(std::move(mount.fd), static_cast<uint32_t>(session.mounts.size()),
                                 type),
           mount.readonly, mount.allow_connect});
    }
  }

  using Fds = std::vector<base::UniqueFd>;

  std::string Handle(std::string_view packet, Fds* fds);
  void Serve();
  // False if the connection must end. A peer that has gone gets no reply, but what it has sent
  // counts: the last of it may be kEnd. If the host sends no descriptors now, the reply is ENFILE.
  bool Send(const std::string& reply, const Fds& fds);

  const base::UniqueFd connection;
  const uint32_t threads;
  Session session;
  std::latch started;
  std::latch released{1};
  std::vector<std::thread> pool;
};

std::string Server::Impl::Handle(std::string_view packet, Fds* fds) {
  RequestHeader header;
  Reader in(packet);
  if (!in.Read(&header) || header.length != packet.size() || header.reserved != 0) return "";
  const auto op = static_cast<uint16_t>(header.op);
  if (op == 0 || op > static_cast<uint16_t>(Op::kMax)) return "";
  std::string out(sizeof(ReplyHeader), '\0');
  base::Status status;
  if (header.op != Op::kHello && !session.greeted.load(std::memory_order_acquire)) {
    status = base::Error(EPROTO);
  } else {
    status = kHandlers[op](session, in, ReplyBuilder{&out, fds});
  }
  ReplyHeader reply = {};
  if (!status.ok()) {
    out.resize(sizeof(ReplyHeader));
    fds->clear();
    reply.error = static_cast<uint32_t>(status.error().code());
  }
  reply.length = static_cast<uint32_t>(out.size());
  reply.op = header.op;
  reply.fds = static_cast<uint16_t>(fds->size());
  reply.id = header.id;
  memcpy(out.data(), &reply, sizeof(reply));
  return out;
}

// What says that this reply cannot be given.
std::string ErrorReply(const std::string& reply, uint32_t error) {
  ReplyHeader header;
  memcpy(&header, reply.data(), sizeof(header));
  header.length = sizeof(header);
  header.fds = 0;
  header.error = error;
  return std::string(reinterpret_cast<const char*>(&header), sizeof(header));
}

bool Server::Impl::Send(const std::string& reply, const Fds& fds) {
  iovec iov = {const_cast<char*>(reply.data()), reply.size()};
  msghdr msg = {};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxOpenMany * sizeof(int))] = {};
  if (!fds.empty()) {
    const size_t size = fds.size() * sizeof(int);
    msg.msg_control = control;
    msg.msg_controllen = CMSG_SPACE(size);
    cmsghdr* c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(size);
    for (size_t i = 0; i < fds.size(); ++i) {
      const int fd = fds[i].get();
      memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(int));
    }
  }
  for (;;) {
    if (sendmsg(connection.get(), &msg, MSG_NOSIGNAL) >= 0) return true;
    // Our user has more descriptors in flight, anywhere on the host, than our limit is.
    if (errno == ETOOMANYREFS) return Send(ErrorReply(reply, ENFILE), {});
    if (errno == EPIPE || errno == ECONNRESET) return true;
    if (errno != EINTR) return false;
  }
}

// Several threads receive from the one socket: a packet goes to exactly one of them, so that a slow
// request holds up one thread and not the connection.
void Server::Impl::Serve() {
  started.count_down();
  released.wait();
  const auto buffer = std::make_unique_for_overwrite<char[]>(kMaxMessage);
  for (;;) {
    iovec iov = {buffer.get(), kMaxMessage};
    msghdr msg = {};  // no room for control data: descriptors that the sentry sends are dropped
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    const ssize_t n = recvmsg(connection.get(), &msg, 0);
    // ECONNRESET, told once: the peer went without having read all replies.
    if (n < 0 && (errno == EINTR || errno == ECONNRESET)) continue;
    if (n <= 0 || (msg.msg_flags & MSG_TRUNC) != 0) break;
    Fds fds;
    const std::string reply = Handle(std::string_view(buffer.get(), static_cast<size_t>(n)), &fds);
    if (reply.empty() || !Send(reply, fds)) break;
    if (session.ending.load(std::memory_order_acquire)) break;
  }
  // Ends the other threads and tells the peer.
  shutdown(connection.get(), SHUT_RDWR);
}

Server::Server(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}

Server::~Server() {
  if (!impl_->pool.empty()) {
    if (!impl_->released.try_wait()) impl_->released.count_down();
    shutdown(impl_->connection.get(), SHUT_RDWR);
    Join();
  }
}

void Server::Start() {
  for (uint32_t i = 0; i < impl_->threads; ++i) {
    impl_->pool.emplace_back([impl = impl_.get()] { impl->Serve(); });
  }
  impl_->started.wait();
}

void Server::Release() { impl_->released.count_down(); }

void Server::Join() {
  for (std::thread& t : impl_->pool) t.join();
  impl_->pool.clear();
}

int Server::exit_code() const { return impl_->session.exit_code.load(std::memory_order_relaxed); }

std::string Server::HandlePacket(std::string_view packet, std::vector<base::UniqueFd>* fds) {
  return impl_->Handle(packet, fds);
}

}  // namespace gofer
