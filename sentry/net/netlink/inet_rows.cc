#include "sentry/net/netlink/inet_rows.h"

#include <netinet/tcp.h>

#include <algorithm>

#include "sentry/net/inet/raw.h"
#include "sentry/net/inet/tcp.h"
#include "sentry/net/inet/udp.h"

namespace sentry {
namespace {

// `chosen`: its port, by bind(2).
InetRow DatagramRow(DatagramEndpoint& end, bool chosen) {
  const DatagramEndpoint::Row row = end.Describe();
  return {.local = row.local,
          .remote = row.remote,
          .state = row.connected ? TCP_ESTABLISHED : TCP_CLOSE,
          .unread = row.queued,
          .drops = row.drops,
          .uid = row.uid,
          .ino = row.ino,
          .shutdown = end.shut(),
          .chosen = chosen,
          .end = base::Ref<InetEndpoint>(&end)};
}

}  // namespace

std::vector<InetRow> TcpRows(InetStack& stack, bool v6) {
  std::vector<InetRow> rows;
  for (auto& user : stack.tcp().Users()) {
    auto& tcp = static_cast<TcpEndpoint&>(*user);
    if (tcp.v6() != v6) continue;
    const TcpEndpoint::Row row = tcp.Describe();
    if (row.state == TCP_CLOSE) continue;  // bound alone
    rows.push_back({.local = row.local,
                    .remote = row.remote,
                    .state = row.state,
                    .unread = row.unread,
                    .sent = row.sent,
                    .uid = row.uid,
                    .ino = row.ino,
                    .shutdown = tcp.shut(),
                    .chosen = user->chosen,
                    .end = base::Ref<InetEndpoint>(&tcp)});
  }
  for (const PortTable::TimeWait& w : stack.tcp().TimeWaits()) {
    if (w.local.ip.v4() == v6) continue;
    rows.push_back({.local = w.local,
                    .remote = w.remote,
                    .state = TCP_TIME_WAIT,
                    .time_wait_ns = std::max<int64_t>(w.left_ns, 0)});
  }
  return rows;
}

std::vector<InetRow> UdpRows(InetStack& stack, bool v6) {
  std::vector<InetRow> rows;
  for (auto& user : stack.udp().Users()) {
    auto& udp = static_cast<UdpEndpoint&>(*user);
    if (udp.v6() == v6) rows.push_back(DatagramRow(udp, user->chosen));
  }
  return rows;
}

std::vector<InetRow> PingRows(InetStack& stack, bool v6) {
  std::vector<InetRow> rows;
  for (auto& user : stack.ping().Users()) {
    auto& ping = static_cast<PingEndpoint&>(*user);
    if (ping.v6() == v6) rows.push_back(DatagramRow(ping, user->chosen));
  }
  return rows;
}

std::vector<InetRow> RawRows(InetStack& stack, bool v6) {
  std::vector<InetRow> rows;
  for (const base::Ref<RawEndpoint>& raw : stack.RawSockets()) {
    if (raw->v6() != v6) continue;
    InetRow row = DatagramRow(*raw, /*chosen=*/false);
    row.local.port = static_cast<uint16_t>(raw->protocol());
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<InetRow> HostInetRows(HostNetwork& host, int protocol, bool v6) {
  std::vector<InetRow> rows;
  const int family = v6 ? AF_INET6 : AF_INET;
  for (const auto& socket : host.Sockets()) {
    if (socket->protocol() != protocol || socket->domain() != family) continue;
    const HostSocket::Row row = socket->ToRow();
    auto local = ParseInetAddress(row.local, family);
    if (!local.ok() || local->port == 0) continue;                    // not bound
    if (protocol == IPPROTO_TCP && row.state == TCP_CLOSE) continue;  // bound alone
    auto remote = ParseInetAddress(row.remote, family);
    rows.push_back({.local = *local,
                    .remote = remote.ok() ? *remote : InetAddress{.ip = IpAddress::Any(!v6)},
                    .state = row.state,
                    .unread = row.unread,
                    .sent = row.sent,
                    .uid = row.uid,
                    .ino = row.ino});
  }
  return rows;
}

}  // namespace sentry
