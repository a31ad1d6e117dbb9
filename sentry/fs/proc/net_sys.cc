// /proc/sys/net. What can be set here takes effect.
#include <fmt/format.h>
#include <linux/capability.h>

#include <vector>

#include "sentry/fs/proc/sysctl.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/net/host/host_network.h"
#include "sentry/net/inet/stack.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

base::Ref<InetStack> CurrentStack() {
  return InetStack::Of(*Kernel::Get().CurrentNamespaces().net);
}

// The writer's namespace, if it may change it. EPERM. What a host network does is the host's
// affair: there, once the sandbox runs, only who may bind low ports can be changed, since the
// sentry sees to that.
Result<base::Ref<InetStack>> StackToChange(std::atomic<int> InetStack::*value = nullptr) {
  base::Ref<InetStack> stack = CurrentStack();
  Task* t = Task::Current();
  if (t == nullptr) return stack;
  if (!stack->HasCap(*t, CAP_NET_ADMIN)) return Error(EPERM);
  if (HostNetwork::Current(*t) != nullptr && value != &InetStack::unprivileged_port_start) {
    return Error(EPERM);
  }
  return stack;
}

// An int of the stack within bounds.
void Int(SysctlBuilder& dir, const char* name, std::atomic<int> InetStack::*value, int low,
         int high) {
  dir.ReadWrite(
      name, [value] { return fmt::format("{}\n", ((*CurrentStack()).*value).load()); },
      [value, low, high](std::string_view data) -> Status {
        base::Ref<InetStack> stack = TRY(StackToChange(value));
        int number = TRY(ParseSysctl<int>(data));
        if (number < low || number > high) return Error(EINVAL);
        ((*stack).*value).store(number);
        return base::Ok();
      });
}

// Two numbers with blanks between them.
Result<std::pair<int64_t, int64_t>> ParsePair(std::string_view data) {
  data = TrimSysctl(data);
  size_t blank = data.find_first_of(" \t");
  if (blank == std::string_view::npos) return Error(EINVAL);
  size_t second = data.find_first_not_of(" \t", blank);
  return std::pair(TRY(ParseSysctl<int64_t>(data.substr(0, blank))),
                   TRY(ParseSysctl<int64_t>(data.substr(second))));
}

void AddPortRange(SysctlBuilder& dir) {
  dir.ReadWrite(
      "ip_local_port_range",
      [] {
        PortTable::Range range = CurrentStack()->port_range();
        return fmt::format("{}\t{}\n", range.low, range.high);
      },
      [](std::string_view data) -> Status {
        base::Ref<InetStack> stack = TRY(StackToChange());
        auto [low, high] = TRY(ParsePair(data));
        if (low < 1 || high > 65535) return Error(EINVAL);
        return stack->SetPortRange(static_cast<int>(low), static_cast<int>(high));
      });
}

void AddPingRange(SysctlBuilder& dir) {
  dir.ReadWrite(
      "ping_group_range",
      [] {
        base::Ref<InetStack> stack = CurrentStack();
        return fmt::format("{}\t{}\n", stack->ping_first.load(), stack->ping_last.load());
      },
      [](std::string_view data) -> Status {
        base::Ref<InetStack> stack = TRY(StackToChange());
        auto [low, high] = TRY(ParsePair(data));
        if (low < 0 || high < 0 || low > UINT32_MAX || high > UINT32_MAX) return Error(EINVAL);
        bool empty = low > high;
        stack->ping_first = empty ? 1 : static_cast<uint32_t>(low);
        stack->ping_last = empty ? 0 : static_cast<uint32_t>(high);
        return base::Ok();
      });
}

void AddIpv4(SysctlBuilder dir) {
  AddPortRange(dir);
  AddPingRange(dir);
  Int(dir, "ip_unprivileged_port_start", &InetStack::unprivileged_port_start, 0, 65536);
  Int(dir, "ip_nonlocal_bind", &InetStack::ip_nonlocal_bind, 0, 1);
  Int(dir, "ip_default_ttl", &InetStack::default_ttl, 1, 255);
  // With no device but the loopback one there is nothing to forward between.
  Int(dir, "ip_forward", &InetStack::ip_forward, 0, 1);
  dir.Value("ip_no_pmtu_disc", 0);
  dir.Value("ip_dynaddr", 0);
  dir.Value("tcp_rmem", "4096\t131072\t6291456");
  dir.Value("tcp_wmem", "4096\t16384\t4194304");
  dir.Value("tcp_keepalive_time", 7200);
  dir.Value("tcp_keepalive_intvl", 75);
  dir.Value("tcp_keepalive_probes", 9);
  dir.Value("tcp_fin_timeout", 60);
  dir.Value("tcp_syn_retries", 6);
  dir.Value("tcp_synack_retries", 5);
  dir.Value("tcp_retries1", 3);
  dir.Value("tcp_retries2", 15);
  dir.Value("tcp_syncookies", 1);
  dir.Value("tcp_max_syn_backlog", 4096);
  dir.Value("tcp_max_tw_buckets", static_cast<int64_t>(PortTable::kMaxTimeWaits));
  dir.Value("tcp_tw_reuse", 2);
  dir.Value("tcp_timestamps", 1);
  dir.Value("tcp_sack", 1);
  dir.Value("tcp_window_scaling", 1);
  dir.Value("tcp_fastopen", 1);
  dir.Value("tcp_congestion_control", "cubic");
  dir.Value("tcp_available_congestion_control", "reno cubic");
  dir.Value("tcp_allowed_congestion_control", "reno cubic");
  dir.Value("tcp_abort_on_overflow", 0);
  dir.Value("tcp_mtu_probing", 0);
  dir.Value("tcp_notsent_lowat", int64_t{UINT32_MAX});
  dir.Value("tcp_rto_max_ms", 120000);
  dir.Value("icmp_echo_ignore_all", 0);
  dir.Value("icmp_echo_ignore_broadcasts", 1);
  dir.Value("igmp_max_memberships", 20);
  SysctlBuilder conf = dir.Dir("conf");
  SysctlBuilder all = conf.Dir("all"), lo = conf.Dir("lo"), first = conf.Dir("default");
  Int(all, "route_localnet", &InetStack::route_localnet_all, 0, INT32_MAX);
  Int(lo, "route_localnet", &InetStack::route_localnet_lo, 0, INT32_MAX);
  Int(all, "accept_local", &InetStack::accept_local_all, 0, INT32_MAX);
  Int(lo, "accept_local", &InetStack::accept_local_lo, 0, INT32_MAX);
  Int(all, "rp_filter", &InetStack::rp_filter_all, 0, 2);
  Int(lo, "rp_filter", &InetStack::rp_filter_lo, 0, 2);
  for (const char* name : {"route_localnet", "accept_local", "rp_filter"}) first.Value(name, 0);
  for (SysctlBuilder* device : {&all, &lo, &first}) device->Value("forwarding", 0);
}

void AddIpv6(SysctlBuilder dir) {
  Int(dir, "bindv6only", &InetStack::bindv6only, 0, 1);
  dir.Value("ip_nonlocal_bind", 0);
  SysctlBuilder conf = dir.Dir("conf");
  for (const char* name : {"all", "default", "lo"}) {
    SysctlBuilder device = conf.Dir(name);
    device.Value("disable_ipv6", 0);
    device.Value("forwarding", 0);
    device.Value("hop_limit", 64);
  }
}

}  // namespace

void AddNetSysctls(SysctlBuilder dir) {
  SysctlBuilder core = dir.Dir("core");
  Int(core, "somaxconn", &InetStack::somaxconn, 0, INT32_MAX);
  core.Value("rmem_max", 212992);
  core.Value("wmem_max", 212992);
  core.Value("rmem_default", 212992);
  core.Value("wmem_default", 212992);
  core.Value("optmem_max", 131072);
  core.Value("netdev_max_backlog", 1000);
  dir.Dir("unix").Value("max_dgram_qlen", 10);
  AddIpv4(dir.Dir("ipv4"));
  AddIpv6(dir.Dir("ipv6"));
}

}  // namespace sentry
