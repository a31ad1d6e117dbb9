// TCP and UDP sockets for NETLINK_SOCK_DIAG.
#include <arpa/inet.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <cstring>

#include "sentry/auth/credentials.h"
#include "sentry/net/inet/tcp.h"
#include "sentry/net/netlink/inet_rows.h"
#include "sentry/net/netlink/sock_diag.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

bool Extends(const inet_diag_req_v2& request, int extension) {
  return (request.idiag_ext >> (extension - 1) & 1) != 0;
}

// ENOENT for what there is no protocol of.
Result<std::vector<InetRow>> RowsOf(const DiagScope& scope, uint32_t protocol, bool v6) {
  if (protocol == IPPROTO_UDPLITE) return std::vector<InetRow>();
  if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) return Error(ENOENT);
  if (scope.host != nullptr) return HostInetRows(*scope.host, static_cast<int>(protocol), v6);
  return protocol == IPPROTO_TCP ? TcpRows(scope.stack, v6) : UdpRows(scope.stack, v6);
}

void PutAddress(const IpAddress& ip, bool v6, uint32_t (&words)[4]) {
  memset(words, 0, sizeof(words));
  if (v6) {
    memcpy(words, ip.ToV6().s6_addr, sizeof(words));
  } else if (ip.v4()) {
    words[0] = ip.ToV4().s_addr;
  }
}

DiagEntry EntryOf(const InetRow& row, bool v6) {
  DiagEntry e{};
  PutAddress(row.local.ip, v6, e.source);
  PutAddress(row.remote.ip, v6, e.destination);
  e.source_port = row.local.port;
  e.destination_port = row.remote.port;
  e.family = v6 ? AF_INET6 : AF_INET;
  e.port_chosen = row.chosen;
  if (row.end != nullptr) {
    e.device = static_cast<uint32_t>(row.end->options().device.load());
    e.mark = row.end->options().mark.load();
  }
  return e;
}

// inet_diag_msg_attrs_fill() and what follows it.
void WriteAttributes(const DiagRequest& r, const inet_diag_req_v2& request, const InetRow& row,
                     bool v6) {
  r.out.Attribute(INET_DIAG_SHUTDOWN, static_cast<uint8_t>(row.shutdown));
  if (row.end == nullptr) return;
  InetEndpoint& end = *row.end;
  const SocketOptions& options = end.options();
  if (Extends(request, INET_DIAG_TOS)) {
    r.out.Attribute(INET_DIAG_TOS, static_cast<uint8_t>(end.ip().tos.load()));
  }
  if (v6 && Extends(request, INET_DIAG_TCLASS)) {
    r.out.Attribute(INET_DIAG_TCLASS, static_cast<uint8_t>(end.ip().traffic_class.load()));
  }
  if (v6 && (row.state == TCP_LISTEN || row.state == TCP_CLOSE)) {
    r.out.Attribute(INET_DIAG_SKV6ONLY,
                    static_cast<uint8_t>(end.ip().flag(IPPROTO_IPV6, IPV6_V6ONLY)));
  }
  if (r.scope.admin) r.out.Attribute(INET_DIAG_MARK, options.mark.load());
  const bool listens = row.state == TCP_LISTEN;
  const auto unread = static_cast<uint32_t>(listens ? 0 : row.unread);
  const auto sent = static_cast<uint32_t>(listens ? 0 : row.sent);
  if (Extends(request, INET_DIAG_MEMINFO)) {
    r.out.Attribute(INET_DIAG_MEMINFO, inet_diag_meminfo{unread, sent, 0, sent});
  }
  if (Extends(request, INET_DIAG_SKMEMINFO)) {
    uint32_t memory[SK_MEMINFO_VARS] = {};
    memory[SK_MEMINFO_RMEM_ALLOC] = unread;
    memory[SK_MEMINFO_RCVBUF] = static_cast<uint32_t>(options.receive_buffer.load());
    memory[SK_MEMINFO_WMEM_ALLOC] = memory[SK_MEMINFO_WMEM_QUEUED] = sent;
    memory[SK_MEMINFO_SNDBUF] = static_cast<uint32_t>(options.send_buffer.load());
    memory[SK_MEMINFO_DROPS] = static_cast<uint32_t>(row.drops);
    r.out.Attribute(INET_DIAG_SKMEMINFO, memory);
  }
  if (request.sdiag_protocol != IPPROTO_TCP) return;
  auto& tcp = static_cast<TcpEndpoint&>(end);
  if (Extends(request, INET_DIAG_INFO)) r.out.Attribute(INET_DIAG_INFO, tcp.Info());
  if (Extends(request, INET_DIAG_CONG)) {
    r.out.Attribute(INET_DIAG_CONG,
                    std::string_view(tcp.tcp_options().reno.load() ? "reno" : "cubic"));
  }
}

void WriteRow(const DiagRequest& r, const inet_diag_req_v2& request, const InetRow& row, bool v6) {
  inet_diag_msg m{};
  m.idiag_family = v6 ? AF_INET6 : AF_INET;
  m.idiag_state = static_cast<uint8_t>(row.state);
  const DiagEntry e = EntryOf(row, v6);
  memcpy(m.id.idiag_src, e.source, sizeof(e.source));
  memcpy(m.id.idiag_dst, e.destination, sizeof(e.destination));
  m.id.idiag_sport = htons(row.local.port);
  m.id.idiag_dport = htons(row.remote.port);
  m.id.idiag_if = e.device;
  SetCookie(m.id.idiag_cookie, row.ino);
  const bool waits = row.time_wait_ns >= 0;
  if (waits) {
    m.idiag_timer = 3;
    m.idiag_expires = static_cast<uint32_t>(row.time_wait_ns / 1'000'000);
  } else {
    m.idiag_rqueue = static_cast<uint32_t>(row.unread);
    m.idiag_wqueue = static_cast<uint32_t>(row.sent);
    m.idiag_uid = r.scope.user_ns.MapUidOut(row.uid);
    m.idiag_inode = static_cast<uint32_t>(row.ino);
  }
  r.out.Begin(r.Header(SOCK_DIAG_BY_FAMILY), m);
  if (!waits) WriteAttributes(r, request, row, v6);
  r.EndMessage();
}

// The one socket that a packet from the request's destination to its source would reach.
Status AnswerExact(const DiagRequest& r, const inet_diag_req_v2& request,
                   const std::vector<InetRow>& rows, bool v6) {
  const InetRow* found = nullptr;
  for (const InetRow& row : rows) {
    const DiagEntry e = EntryOf(row, v6);
    if (e.source_port != ntohs(request.id.idiag_sport)) continue;
    const size_t size = v6 ? sizeof(e.source) : sizeof(e.source[0]);
    const bool here = memcmp(e.source, request.id.idiag_src, size) == 0;
    if (e.destination_port != 0) {
      if (!here || e.destination_port != ntohs(request.id.idiag_dport)) continue;
      if (memcmp(e.destination, request.id.idiag_dst, size) != 0) continue;
      found = &row;
      break;
    }
    if (here || (row.local.ip.IsAny() && found == nullptr)) found = &row;
  }
  if (found == nullptr || !CookieMatches(request.id.idiag_cookie, found->ino)) {
    return Error(ENOENT);
  }
  WriteRow(r, request, *found, v6);
  return base::Ok();
}

}  // namespace

// inet_diag_handler_cmd().
Status DiagInet(const DiagRequest& r) {
  if (r.message.payload.size() < sizeof(inet_diag_req_v2)) return Error(EINVAL);
  NetlinkBytes rest;
  const auto request = FixedHeader<inet_diag_req_v2>(r.message.payload, &rest);
  const bool v6 = request.sdiag_family == AF_INET6;
  const auto filter = NetlinkAttributes(rest).Find(INET_DIAG_REQ_BYTECODE);
  if (r.dump() && filter && !DiagFilterIsValid(*filter, r.scope.admin)) return Error(EINVAL);
  // One that does not fit into the header.
  const uint32_t protocol = NetlinkAttributes(rest)
                                .Get<uint32_t>(INET_DIAG_REQ_PROTOCOL)
                                .value_or(request.sdiag_protocol);
  const std::vector<InetRow> rows = TRY(RowsOf(r.scope, protocol, v6));
  if (!r.dump()) return AnswerExact(r, request, rows, v6);
  for (const InetRow& row : rows) {
    if ((request.idiag_states >> row.state & 1) == 0) continue;
    const uint16_t source = htons(row.local.port), destination = htons(row.remote.port);
    if (request.id.idiag_sport != 0 && request.id.idiag_sport != source) continue;
    if (request.id.idiag_dport != 0 && request.id.idiag_dport != destination) continue;
    if (filter && !DiagFilterMatches(*filter, EntryOf(row, v6))) continue;
    WriteRow(r, request, row, v6);
  }
  return base::Ok();
}

}  // namespace sentry
