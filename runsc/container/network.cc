#include "runsc/container/network.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "runsc/container/state.h"
#include "runsc/log/log.h"

namespace runsc {

using base::UniqueFd;

namespace {

constexpr char kLowPorts[] = "net.ipv4.ip_unprivileged_port_start";
constexpr char kPingGroups[] = "net.ipv4.ping_group_range";
// To Linux the same as 0. Whoever finds it knows that a sandbox was here first, and that the rule
// of the namespace is Linux's own.
constexpr char kEveryPort[] = "1", kDefaultLowPorts[] = "1024";
// What the sentry's /proc/sys/net shows as it is on the host. In this order: the range of ports
// must begin above the privileged ones.
constexpr const char* kShown[] = {kLowPorts,
                                  kPingGroups,
                                  "net.ipv4.ip_local_port_range",
                                  "net.ipv4.ip_nonlocal_bind",
                                  "net.ipv4.ip_default_ttl",
                                  "net.ipv4.ip_forward",
                                  "net.ipv6.bindv6only",
                                  "net.core.somaxconn"};

absl::StatusOr<UniqueFd> OpenOwnNamespace() {
  UniqueFd fd(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open /proc/self/ns/net");
  return fd;
}

// Back to where the caller was, at the end of the scope.
class InNamespace {
 public:
  absl::Status Enter(int ns) {
    auto here = OpenOwnNamespace();
    if (!here.ok()) return here.status();
    back_ = std::move(*here);
    if (setns(ns, CLONE_NEWNET) != 0) return ErrnoStatus("join the network namespace");
    return absl::OkStatus();
  }
  ~InNamespace() {
    // To be somewhere else than one thinks must not happen.
    if (back_.valid() && setns(back_.get(), CLONE_NEWNET) != 0) abort();
  }

 private:
  UniqueFd back_;
};

bool IsNetworkSysctl(const std::string& name) { return name.rfind("net.", 0) == 0; }

absl::StatusOr<UniqueFd> OpenSysctl(const std::string& name, int flags) {
  if (name.find('/') != std::string::npos || name.find("..") != std::string::npos) {
    return absl::InvalidArgumentError("sysctl " + name + ": bad name");
  }
  std::string path = "/proc/sys/" + name;
  std::replace(path.begin() + strlen("/proc/sys/"), path.end(), '.', '/');
  UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("sysctl " + name);
  return fd;
}

absl::Status WriteSysctl(const std::string& name, const std::string& value) {
  auto fd = OpenSysctl(name, O_WRONLY);
  if (!fd.ok()) return fd.status();
  if (write(fd->get(), value.data(), value.size()) != static_cast<ssize_t>(value.size())) {
    return ErrnoStatus("sysctl " + name);
  }
  return absl::OkStatus();
}

// Empty if there is no such.
std::string ReadSysctl(const std::string& name) {
  auto fd = OpenSysctl(name, O_RDONLY);
  char text[256];
  const ssize_t n = fd.ok() ? read(fd->get(), text, sizeof(text)) : 0;
  std::string value(text, static_cast<size_t>(std::max<ssize_t>(n, 0)));
  while (!value.empty() && value.back() == '\n') value.pop_back();
  return value;
}

absl::Status BringLoopbackUp() {
  UniqueFd s(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq r{};
  memcpy(r.ifr_name, "lo", sizeof("lo"));
  if (!s.valid() || ioctl(s.get(), SIOCGIFFLAGS, &r) != 0) return ErrnoStatus("loopback device");
  r.ifr_flags |= IFF_UP;
  if (ioctl(s.get(), SIOCSIFFLAGS, &r) != 0) return ErrnoStatus("loopback device: bring it up");
  return absl::OkStatus();
}

bool SameFile(int a, int b) {
  struct stat x, y;
  return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

absl::StatusOr<UniqueFd> NewNamespace() {
  InNamespace scope;  // for the way back
  auto here = OpenOwnNamespace();
  if (!here.ok()) return here.status();
  if (auto s = scope.Enter(here->get()); !s.ok()) return s;
  if (unshare(CLONE_NEWNET) != 0) return ErrnoStatus("create a network namespace");
  if (auto s = BringLoopbackUp(); !s.ok()) return s;
  return OpenOwnNamespace();
}

// Where it fails (a read-only /proc/sys) the host's own rule stays: what nobody may do there, the
// container may not either.
void OpenToNobody(const char* name, const char* value) {
  if (auto s = WriteSysctl(name, value); !s.ok()) Log(LogLevel::kWarning, std::string(s.message()));
}

bool HasCapability(const oci::Spec& spec, int cap) {
  return (spec.process->capabilities.bounding >> cap & 1) != 0;
}

}  // namespace

absl::StatusOr<ContainerNetwork> PrepareNetwork(const oci::Spec& spec) {
  ContainerNetwork out;
  auto here = OpenOwnNamespace();
  if (!here.ok()) return here.status();
  bool own = false;
  for (const oci::Namespace& ns : spec.linux_.namespaces) {
    if (ns.type != "network") continue;
    own = true;
    if (ns.path.empty()) {
      auto made = NewNamespace();
      if (!made.ok()) return made.status();
      out.ns = std::move(*made);
    } else {
      out.ns.reset(open(ns.path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!out.ns.valid()) return ErrnoStatus("network namespace " + ns.path);
      own = !SameFile(out.ns.get(), here->get());
    }
  }
  if (!out.ns.valid()) out.ns = std::move(*here);

  InNamespace scope;
  if (own) {
    if (auto s = scope.Enter(out.ns.get()); !s.ok()) return s;
  }
  bool sets_low_ports = false;
  for (const auto& [name, value] : spec.linux_.sysctl) {
    if (!IsNetworkSysctl(name)) continue;
    if (!own) {
      return absl::InvalidArgumentError("sysctl " + name +
                                        " is not allowed in the host's network namespace");
    }
    if (auto s = WriteSysctl(name, value); !s.ok()) return s;
    sets_low_ports |= name == kLowPorts;
  }
  for (const char* name : kShown) {
    std::string value = ReadSysctl(name);
    if (value.empty()) continue;
    if (std::string_view(name) == kLowPorts && value == kEveryPort && own && !sets_low_ports) {
      value = kDefaultLowPorts;
    }
    out.sysctls.push_back({name, std::move(value)});
  }
  if (own) {
    if (HasCapability(spec, CAP_NET_BIND_SERVICE)) OpenToNobody(kLowPorts, kEveryPort);
    // An empty range, as it is at first, stays one.
    unsigned long first = 1, last = 0;
    if (sscanf(ReadSysctl(kPingGroups).c_str(), "%lu %lu", &first, &last) == 2 && first <= last) {
      OpenToNobody(kPingGroups, "0 2147483647");
    }
  }
  return out;
}

}  // namespace runsc
