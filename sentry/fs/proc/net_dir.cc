// /proc/net: of the network namespace of the process that it is shown for (Linux:
// fs/proc/proc_net.c and the files' owners in net/).
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "sentry/fs/proc/pid_dir.h"
#include "sentry/fs/proc/proc.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/net/inet/raw.h"
#include "sentry/net/netlink/inet_rows.h"
#include "sentry/net/unix/endpoint.h"
#include "sentry/net/unix/unix_sockets.h"

namespace sentry {
namespace {

using base::Result;

constexpr int64_t kTickNs = 10'000'000;

// 0100007F:1F90, in the host's order of each word.
std::string Name(const InetAddress& a, bool v6) {
  std::string text;
  in6_addr six = a.ip.ToV6();
  if (!v6) return fmt::format("{:08X}:{:04X}", a.ip.v4() ? a.ip.ToV4().s_addr : 0, a.port);
  for (uint32_t word : six.s6_addr32) text += fmt::format("{:08X}", word);
  return text + fmt::format(":{:04X}", a.port);
}

// Lines of /proc/net/tcp are padded to 149 characters, of udp to 127.
std::string Padded(std::string line, size_t width) {
  if (line.size() < width) line.resize(width, ' ');
  return line + "\n";
}

constexpr char kHead4[] =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout "
    "inode";
constexpr char kHead6[] =
    "  sl  local_address                         remote_address                        st tx_queue "
    "rx_queue tr tm->when retrnsmt   uid  timeout inode";

std::string TcpText(const std::vector<InetRow>& rows, bool v6) {
  std::string text = v6 ? fmt::format("{}\n", kHead6) : Padded(kHead4, 149);
  int slot = 0;
  for (const InetRow& r : rows) {
    const bool waits = r.state == TCP_TIME_WAIT;
    std::string s = fmt::format(
        "{:4d}: {} {} {:02X} {:08X}:{:08X} {:02X}:{:08X} 00000000 {:5d} "
        "{:8d} {} {} 0000000000000000",
        slot++, Name(r.local, v6), Name(r.remote, v6), r.state, r.state == TCP_LISTEN ? 0 : r.sent,
        r.unread, waits ? 3 : 0, waits ? r.time_wait_ns / kTickNs : 0, r.uid, 0, r.ino,
        waits ? 3 : 1);
    if (!waits) s += r.state == TCP_LISTEN ? " 100 0 0 10 0" : " 20 4 30 10 -1";
    text += v6 ? s + "\n" : Padded(std::move(s), 149);
  }
  return text;
}

// The files about datagrams differ in little.
struct DatagramForm {
  const char* head4;  // what comes before the common head
  int slot;           // width of the first column; of IPv6 always 5
  size_t width;       // of lines of IPv4
};
constexpr DatagramForm kUdpForm = {" ", 5, 127}, kPingForm = {"", 5, 127}, kRawForm = {"", 4, 0};

std::string DatagramText(const std::vector<InetRow>& rows, bool v6, const DatagramForm& form) {
  const size_t width = v6 ? 0 : form.width;
  std::string text = Padded(
      fmt::format("{}{} ref pointer drops", v6 ? "" : form.head4, v6 ? kHead6 : kHead4), width);
  for (const InetRow& r : rows) {
    text +=
        Padded(fmt::format("{:{}d}: {} {} {:02X} {:08X}:{:08X} 00:00000000 00000000 {:5d} "
                           "{:8d} {} 2 0000000000000000 {}",
                           r.local.port, v6 ? 5 : form.slot, Name(r.local, v6), Name(r.remote, v6),
                           r.state, r.sent, r.unread, r.uid, 0, r.ino, r.drops),
               width);
  }
  return text;
}

std::string DevText(InetStack& stack) {
  uint64_t bytes = stack.counters.bytes.load(), packets = stack.counters.packets.load();
  return "Inter-|   Receive                                                |  Transmit\n"
         " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets "
         "errs drop fifo colls carrier compressed\n" +
         fmt::format(
             "    lo: {:7} {:7}    0    0    0     0          0         0 {:8} {:7}    0   "
             " 0    0     0       0          0\n",
             bytes, packets, bytes, packets);
}

// Routes through a gateway or a network: there are none of IPv4 but local ones.
std::string RouteText() {
  return Padded(
      "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT", 127);
}

std::string Plain6(const IpAddress& ip) {
  std::string text;
  for (uint8_t byte : ip.bytes) text += fmt::format("{:02x}", byte);
  return text;
}

std::string Addresses6(InetStack& stack) {
  std::string text;
  for (const auto& a : stack.addresses()) {
    if (a.ip.v4()) continue;
    text += fmt::format("{} {:02x} {:02x} {:02x} 80       lo\n", Plain6(a.ip),
                        InetStack::kLoopbackIndex, a.prefix, a.ip.IsLoopback() ? 0x10 : 0);
  }
  return text;
}

std::string Routes6(InetStack& stack) {
  std::string text, none = Plain6(IpAddress());
  for (const auto& a : stack.addresses()) {
    if (a.ip.v4()) continue;
    for (const char* rest : {"00000100 00000001 00000000 00000001",
                             "00000000 00000002 00000000 "
                             "80200001"}) {
      text +=
          fmt::format("{} {:02x} {} 00 {} {}       lo\n", Plain6(a.ip), a.prefix, none, none, rest);
    }
  }
  return text;
}

std::string SnmpText(InetStack& stack) {
  NetCounters& c = stack.counters;
  uint64_t packets = c.packets.load();
  return fmt::format(
      "Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams "
      "InUnknownProtos InDiscards InDelivers OutRequests OutDiscards OutNoRoutes ReasmTimeout "
      "ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates OutTransmits\n"
      "Ip: 2 {} {} 0 0 0 0 0 {} {} 0 0 0 0 0 0 0 0 0 {}\n"
      "Icmp: InMsgs InErrors InCsumErrors OutMsgs OutErrors\n"
      "Icmp: {} 0 0 {} 0\n"
      "Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets "
      "CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors\n"
      "Tcp: 1 200 120000 -1 {} {} {} {} 0 {} {} 0 0 {} 0\n"
      "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors "
      "IgnoredMulti MemErrors\n"
      "Udp: {} {} {} {} {} 0 0 0 0\n"
      "UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors "
      "IgnoredMulti MemErrors\n"
      "UdpLite: 0 0 0 0 0 0 0 0 0\n",
      stack.default_ttl.load(), packets, packets, packets, packets, c.icmp_in.load(),
      c.icmp_out.load(), c.tcp_active.load(), c.tcp_passive.load(), c.tcp_failed.load(),
      c.tcp_resets.load(), packets, packets, c.tcp_out_resets.load(), c.udp_in.load(),
      c.udp_no_port.load(), c.udp_full.load(), c.udp_out.load(), c.udp_full.load());
}

// How many of them are of the family.
template <typename T>
size_t InUse(const std::vector<base::Ref<T>>& users, bool v6) {
  return static_cast<size_t>(std::count_if(users.begin(), users.end(), [v6](const auto& user) {
    return static_cast<const InetEndpoint&>(*user).v6() == v6;
  }));
}

// What happens to TCP here, where no packet is lost and none comes from elsewhere; bytes of lo.
std::string NetstatText(InetStack& stack) {
  const uint64_t overflows = stack.counters.listen_overflows.load();
  const uint64_t bytes = stack.counters.bytes.load();
  return fmt::format(
      "TcpExt: SyncookiesSent SyncookiesRecv SyncookiesFailed EmbryonicRsts ListenOverflows "
      "ListenDrops TCPLostRetransmit TCPFastRetrans TCPSlowStartRetrans TCPTimeouts "
      "TCPSynRetrans\n"
      "TcpExt: 0 0 0 0 {} {} 0 0 0 0 0\n"
      "IpExt: InNoRoutes InTruncatedPkts InOctets OutOctets InCsumErrors\n"
      "IpExt: 0 0 {} {} 0\n",
      overflows, overflows, bytes, bytes);
}

std::string SockstatText(InetStack& stack) {
  return fmt::format(
      "TCP: inuse {} orphan 0 tw {} alloc {} mem 0\nUDP: inuse {} mem 0\nUDPLITE: inuse 0\n"
      "RAW: inuse {}\nFRAG: inuse 0 memory 0\n",
      InUse(stack.tcp().Users(), false), stack.tcp().TimeWaits().size(), stack.tcp().Users().size(),
      InUse(stack.udp().Users(), false), InUse(stack.RawSockets(), false));
}

std::string Sockstat6Text(InetStack& stack) {
  return fmt::format(
      "TCP6: inuse {}\nUDP6: inuse {}\nUDPLITE6: inuse 0\nRAW6: inuse {}\n"
      "FRAG6: inuse 0 memory 0\n",
      InUse(stack.tcp().Users(), true), InUse(stack.udp().Users(), true),
      InUse(stack.RawSockets(), true));
}

// Neighbours: lo has none.
std::string ArpText() {
  return "IP address       HW type     Flags       HW address            Mask     Device\n";
}

// unix_seq_show().
std::string UnixText(UnixSockets& sockets) {
  std::string text = "Num       RefCount Protocol Flags    Type St Inode Path\n";
  for (const base::Ref<UnixEndpoint>& end : sockets.All()) {
    const UnixEndpoint::Row row = end->Describe();
    constexpr unsigned kAcceptCon = 1 << 16, kUnconnected = 1, kConnected = 3;
    text += fmt::format("{:016}: {:08X} {:08X} {:08X} {:04X} {:02X} {:5}", 0, row.has_peer ? 3 : 2,
                        0, row.state == TCP_LISTEN ? kAcceptCon : 0, row.type,
                        row.state == TCP_ESTABLISHED ? kConnected : kUnconnected, row.ino);
    if (!row.name.empty()) {
      std::string name = row.name;
      std::replace(name.begin(), name.end(), '\0', '@');
      text += " " + name;
    }
    text += "\n";
  }
  return text;
}

}  // namespace

base::Ref<Inode> NewNetDir(ProcFs* fs, base::Ref<Pid> pid) {
  auto dir = base::MakeRef<PseudoDir>(fs, 0555);
  // EINVAL once the process is gone.
  auto find = [pid]() -> Result<base::Ref<NetNamespace>> {
    base::Ref<Task> task = TaskOf(Kernel::Get(), *pid);
    base::Ref<NetNamespace> ns = task != nullptr ? task->net_namespace_ref() : nullptr;
    if (ns == nullptr) return base::Error(EINVAL);
    return ns;
  };
  auto add = [&](const char* name, std::function<Result<std::string>(HostNetwork&)> host_text,
                 std::function<std::string(InetStack&)> text) {
    dir->Add(name, base::MakeRef<FuncFile>(fs, 0444, [=]() -> Result<std::string> {
               base::Ref<NetNamespace> ns = TRY(find());
               if (HostNetwork* host = HostNetwork::Of(*ns)) return host_text(*host);
               return text(*InetStack::Of(*ns));
             }));
  };
  for (bool v6 : {false, true}) {
    add(
        v6 ? "tcp6" : "tcp",
        [v6](HostNetwork& h) { return TcpText(HostInetRows(h, IPPROTO_TCP, v6), v6); },
        [v6](InetStack& s) { return TcpText(TcpRows(s, v6), v6); });
    add(
        v6 ? "udp6" : "udp",
        [v6](HostNetwork& h) {
          return DatagramText(HostInetRows(h, IPPROTO_UDP, v6), v6, kUdpForm);
        },
        [v6](InetStack& s) { return DatagramText(UdpRows(s, v6), v6, kUdpForm); });
    add(
        v6 ? "icmp6" : "icmp",
        [v6](HostNetwork& h) {
          const int protocol = v6 ? int{IPPROTO_ICMPV6} : int{IPPROTO_ICMP};
          return DatagramText(HostInetRows(h, protocol, v6), v6, kPingForm);
        },
        [v6](InetStack& s) { return DatagramText(PingRows(s, v6), v6, kPingForm); });
    add(
        v6 ? "raw6" : "raw", [v6](HostNetwork&) { return DatagramText({}, v6, kRawForm); },
        [v6](InetStack& s) { return DatagramText(RawRows(s, v6), v6, kRawForm); });
  }
  auto same = [&](const char* name, std::function<std::string(InetStack&)> text) {
    add(
        name, [name](HostNetwork& h) { return h.ProcNet(name); }, std::move(text));
  };
  dir->Add("unix", base::MakeRef<FuncFile>(fs, 0444, [find]() -> Result<std::string> {
             base::Ref<NetNamespace> ns = TRY(find());
             return UnixText(*UnixSockets::Of(*ns));
           }));
  same("dev", DevText);
  same("route", [](InetStack&) { return RouteText(); });
  same("if_inet6", Addresses6);
  same("ipv6_route", Routes6);
  same("snmp", SnmpText);
  same("sockstat", SockstatText);
  same("sockstat6", Sockstat6Text);
  same("netstat", NetstatText);
  same("arp", [](InetStack&) { return ArpText(); });
  return dir;
}

}  // namespace sentry
