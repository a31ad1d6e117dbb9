// The network of the host that --network=host gives to the sandbox's first network namespace. The
// sentry lives in that namespace of the host, without capabilities: it makes sockets there
// (host_socket.h), asks what devices, addresses and routes there are, and changes nothing.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/mutex.h"
#include "sentry/kernel/namespaces.h"

namespace sentry {

class HostSocket;
class Task;

// A network device, as RTM_NEWLINK and RTM_NEWADDR describe it.
struct HostInterface {
  struct Address {
    uint32_t ip = 0, broadcast = 0;  // IPv4, in host order
    int prefix = 0;
    std::string label;
  };
  int index = 0, link = 0;
  std::string name;
  unsigned flags = 0, mtu = 0, queue_length = 0;
  uint16_t type = 0;  // ARPHRD_*
  uint8_t operstate = 0, carrier = 0;
  std::vector<uint8_t> hardware, hardware_broadcast;
  std::array<uint64_t, 8>
      statistics{};  // rx and tx packets, rx and tx bytes, rx and tx errors, dropped
  std::vector<Address> addresses;
};

// Thread-safe. Methods that ask the host may park the fiber.
class HostNetwork {
 public:
  // A message of an answer, without its header.
  struct RouteMessage {
    uint16_t type;
    uint16_t flags;
    std::vector<std::byte> payload;
  };
  using ProcFiles = std::vector<std::pair<std::string, base::UniqueFd>>;

  // Once, before anything runs. `route`: a NETLINK_ROUTE socket of the host's namespace. `files`:
  // open files of its /proc/net, by name.
  static void Install(base::UniqueFd route, ProcFiles files);
  // Of a namespace; null if its network is the sentry's own.
  static HostNetwork* Of(const NetNamespace& ns);
  static HostNetwork* Current(Task& t);

  // Sends an RTM_GET* with this body, which the caller has made itself, and returns the answers.
  // What the host says, and ENOBUFS for an answer beyond 8 MiB.
  base::Result<std::vector<RouteMessage>> Query(uint16_t type, bool dump,
                                                std::span<const std::byte> body);
  base::Result<std::vector<HostInterface>> Interfaces();

  // The text of a file of /proc/net as it is now; ENOENT if the host has no such file.
  base::Result<std::string> ProcNet(std::string_view name);
  const ProcFiles& proc_files() const { return files_; }

  // A descriptor for a new socket of a kind in kHostSocketKinds. ENFILE when there are so many that
  // the sentry's other descriptors would suffer.
  base::Result<base::UniqueFd> NewSocket(int family, int type, int protocol);
  // A place for one more socket, which Remove gives back, or DropPlace if none was made.
  bool TakePlace();
  void DropPlace();

  void Add(HostSocket* socket);
  void Remove(HostSocket* socket);
  std::vector<base::Ref<HostSocket>> Sockets();

 private:
  HostNetwork(base::UniqueFd route, ProcFiles files);
  base::Result<std::vector<RouteMessage>> Exchange(std::span<const std::byte> request,
                                                   uint32_t sequence);

  const base::UniqueFd route_;
  const ProcFiles files_;
  const size_t max_sockets_;
  fiber::Mutex route_mutex_;
  uint32_t sequence_ ABSL_GUARDED_BY(route_mutex_) = 0;
  absl::Mutex mutex_;  // leaf
  HostSocket* first_ ABSL_GUARDED_BY(mutex_) = nullptr;
  size_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace sentry
