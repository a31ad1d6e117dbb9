#include "sentry/net/netlink/sock_diag.h"

#include <linux/unix_diag.h>
#include <netinet/tcp.h>

#include <cstring>

#include "sentry/auth/credentials.h"
#include "sentry/net/unix/endpoint.h"

namespace sentry {
namespace {

using base::Error;
using base::Status;

constexpr size_t kMaxRequests = 64;  // of one datagram
constexpr size_t kDatagram = 8192;

void WriteUnix(const DiagRequest& r, const unix_diag_req& request, const UnixEndpoint::Row& row) {
  unix_diag_msg m{};
  m.udiag_family = AF_UNIX;
  m.udiag_type = static_cast<uint8_t>(row.type);
  m.udiag_state = static_cast<uint8_t>(row.state);
  m.udiag_ino = static_cast<uint32_t>(row.ino);
  SetCookie(m.udiag_cookie, row.ino);
  r.out.Begin(r.Header(SOCK_DIAG_BY_FAMILY), m);
  const uint32_t show = request.udiag_show;
  if ((show & UDIAG_SHOW_NAME) != 0 && !row.name.empty()) {
    std::string name = row.name;
    if (name[0] != '\0') name += '\0';
    r.out.Attribute(UNIX_DIAG_NAME, std::as_bytes(std::span(name)));
  }
  if ((show & UDIAG_SHOW_VFS) != 0 && row.place_ino != 0) {
    r.out.Attribute(UNIX_DIAG_VFS, unix_diag_vfs{static_cast<uint32_t>(row.place_ino),
                                                 static_cast<uint32_t>(row.place_dev)});
  }
  if ((show & UDIAG_SHOW_PEER) != 0 && row.has_peer) {
    r.out.Attribute(UNIX_DIAG_PEER, static_cast<uint32_t>(row.peer_ino));
  }
  if ((show & UDIAG_SHOW_ICONS) != 0 && row.state == TCP_LISTEN) {
    r.out.Attribute(UNIX_DIAG_ICONS, std::as_bytes(std::span(row.waiting)));
  }
  if ((show & UDIAG_SHOW_RQLEN) != 0) {
    r.out.Attribute(UNIX_DIAG_RQLEN, unix_diag_rqlen{static_cast<uint32_t>(row.unread),
                                                     static_cast<uint32_t>(row.sent)});
  }
  if ((show & UDIAG_SHOW_MEMINFO) != 0) {
    uint32_t memory[SK_MEMINFO_VARS] = {};
    memory[SK_MEMINFO_RCVBUF] = SocketOptions::kDefaultBuffer;
    memory[SK_MEMINFO_SNDBUF] = static_cast<uint32_t>(row.send_buffer);
    memory[SK_MEMINFO_WMEM_ALLOC] = row.state == TCP_LISTEN ? 0 : static_cast<uint32_t>(row.sent);
    r.out.Attribute(UNIX_DIAG_MEMINFO, memory);
  }
  r.out.Attribute(UNIX_DIAG_SHUTDOWN, static_cast<uint8_t>(row.shutdown));
  if ((show & UDIAG_SHOW_UID) != 0) {
    r.out.Attribute(UNIX_DIAG_UID, r.scope.user_ns.MapUidOut(row.uid));
  }
  r.EndMessage();
}

// __sock_diag_cmd().
Status Answer(const DiagRequest& r) {
  const uint16_t type = r.message.header.nlmsg_type;
  // The form of requests from before there were other families.
  if (type == TCPDIAG_GETSOCK || type == DCCPDIAG_GETSOCK) return Error(EOPNOTSUPP);
  if (type != SOCK_DIAG_BY_FAMILY && type != SOCK_DESTROY) return Error(EINVAL);
  if (r.message.payload.size() < sizeof(sock_diag_req)) return Error(EINVAL);
  const auto family = static_cast<int>(r.message.payload[0]);
  if (family >= AF_MAX) return Error(EINVAL);
  const bool inet = family == AF_INET || family == AF_INET6;
  if (!inet && family != AF_UNIX) return Error(ENOENT);
  if (type == SOCK_DESTROY) return Error(r.scope.admin ? EOPNOTSUPP : EPERM);
  return inet ? DiagInet(r) : DiagUnix(r);
}

}  // namespace

nlmsghdr DiagRequest::Header(uint16_t type) const {
  nlmsghdr h{};
  h.nlmsg_type = type;
  h.nlmsg_flags = static_cast<uint16_t>(dump() ? NLM_F_MULTI : 0);
  h.nlmsg_seq = message.header.nlmsg_seq;
  h.nlmsg_pid = scope.port;
  return h;
}

void DiagRequest::EndMessage() const {
  out.End();
  if (out.size() >= kDatagram) answers.push_back(out.Take());
}

bool CookieMatches(const uint32_t (&cookie)[2], uint64_t number) {
  if (cookie[0] == INET_DIAG_NOCOOKIE && cookie[1] == INET_DIAG_NOCOOKIE) return true;
  return cookie[0] == static_cast<uint32_t>(number) &&
         cookie[1] == static_cast<uint32_t>(number >> 32);
}

void SetCookie(uint32_t (&cookie)[2], uint64_t number) {
  cookie[0] = static_cast<uint32_t>(number);
  cookie[1] = static_cast<uint32_t>(number >> 32);
}

Status DiagUnix(const DiagRequest& r) {
  if (r.message.payload.size() < sizeof(unix_diag_req)) return Error(EINVAL);
  unix_diag_req request;
  memcpy(&request, r.message.payload.data(), sizeof(request));
  if (!r.dump() && request.udiag_ino == 0) return Error(EINVAL);
  for (const base::Ref<UnixEndpoint>& end : r.scope.unix_sockets.All()) {
    if (!r.dump() && end->ino() != request.udiag_ino) continue;
    const UnixEndpoint::Row row = end->Describe();
    if (r.dump()) {
      if (row.ino != 0 && (request.udiag_states >> row.state & 1) != 0) WriteUnix(r, request, row);
      continue;
    }
    if (!CookieMatches(request.udiag_cookie, row.ino)) return Error(ESTALE);
    WriteUnix(r, request, row);
    return base::Ok();
  }
  return r.dump() ? base::Ok() : Status(Error(ENOENT));
}

std::vector<std::vector<std::byte>> AnswerDiag(const DiagScope& scope, bool cap_ack,
                                               NetlinkBytes request) {
  std::vector<std::vector<std::byte>> answers;
  for (size_t i = 0; i < kMaxRequests; ++i) {
    std::optional<NetlinkMessage> message = NextMessage(&request);
    if (!message) break;
    NetlinkWriter out;
    const DiagRequest r{scope, *message, out, answers};
    const nlmsghdr& header = message->header;
    const bool asks =
        (header.nlmsg_flags & NLM_F_REQUEST) != 0 && header.nlmsg_type >= NLMSG_MIN_TYPE;
    const Status status = asks ? Answer(r) : base::Ok();
    if (!out.empty()) answers.push_back(out.Take());
    if (asks && r.dump() && status.ok()) {
      out.Begin(r.Header(NLMSG_DONE), int32_t{0});
      answers.push_back(out.Take());
      continue;
    }
    if (status.ok() && (header.nlmsg_flags & NLM_F_ACK) == 0) continue;
    out.Error(r.Header(NLMSG_ERROR), *message, status.ok() ? 0 : status.error().code(), cap_ack);
    answers.push_back(out.Take());
  }
  return answers;
}

}  // namespace sentry
