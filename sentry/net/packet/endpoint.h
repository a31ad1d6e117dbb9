// What an AF_PACKET socket has received (Linux: net/packet/af_packet.c).
#pragma once

#include <linux/if_packet.h>
#include <time.h>

#include <atomic>
#include <cstdint>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/net/inet/packet_input.h"
#include "sentry/net/socket.h"

namespace sentry {

// A packet as the socket gets it.
struct ReceivedFrame {
  base::Ref<PacketData> data;  // with the link's header, for SOCK_RAW
  size_t length = 0;           // of it, after the filter
  size_t network_offset = 0;
  uint16_t protocol = 0;  // ETH_P_*
  bool outgoing = false;
  timespec time{};
};

// Thread-safe. A tap of its stack while it is open and has a protocol.
class PacketEndpoint : public PacketTap {
 public:
  // Of Ethernet, which the loopback device has too.
  static constexpr size_t kLinkHeader = 14;

  // `raw`: packets have the link's header.
  PacketEndpoint(base::Ref<InetStack> stack, base::Ref<SocketOptions> options, bool raw)
      : stack_(std::move(stack)), options_(std::move(options)), raw_(raw) {}

  InetStack& stack() const { return *stack_; }
  bool raw() const { return raw_; }
  fiber::WaitQueue& wait_queue() { return queue_; }
  // ETH_P_*, 0: nothing; and the device, 0: any.
  int protocol() const { return protocol_.load(); }
  int device() const { return device_.load(); }
  // Receives from now on what is of them.
  void Attach(int protocol, int device);
  void Release();

  void OnFrame(const LinkFrame& frame, bool outgoing) override;

  // The next packet; `peek` leaves it. EAGAIN, EINTR, ...
  base::Result<ReceivedFrame> Take(bool peek, bool nonblock, int64_t deadline_ns);
  uint32_t Readiness();
  // SIOCINQ.
  size_t FirstLength();
  int TakeError() { return error_.exchange(0); }
  void SetError(int error);
  // PACKET_STATISTICS, which begins anew.
  tpacket_stats TakeStatistics();
  uint32_t drops() const { return all_drops_.load(); }
  // SIOCGSTAMP. ENOENT.
  base::Result<timespec> LastTime();

  std::atomic<bool> ignore_outgoing{false};  // PACKET_IGNORE_OUTGOING

 private:
  static constexpr size_t kOverhead = 512;  // of a packet in the queue
  ~PacketEndpoint() override = default;

  const base::Ref<InetStack> stack_;
  const base::Ref<SocketOptions> options_;
  const bool raw_;
  std::atomic<int> protocol_{0}, device_{0}, error_{0};
  std::atomic<uint32_t> all_drops_{0};
  fiber::WaitQueue queue_;
  absl::Mutex mutex_;
  bool attached_ ABSL_GUARDED_BY(mutex_) = false, released_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<ReceivedFrame> frames_ ABSL_GUARDED_BY(mutex_);
  size_t charge_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t packets_ ABSL_GUARDED_BY(mutex_) = 0, drops_ ABSL_GUARDED_BY(mutex_) = 0;
  timespec last_time_ ABSL_GUARDED_BY(mutex_){};
};

}  // namespace sentry
