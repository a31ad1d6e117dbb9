#include "sentry/net/packet/endpoint.h"

#include <linux/if_ether.h>
#include <net/if_arp.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;

}  // namespace

void PacketEndpoint::Attach(int protocol, int device) {
  protocol_ = protocol;
  device_ = device;
  bool add = false, remove = false;
  {
    absl::MutexLock lock(&mutex_);
    const bool wanted = protocol != 0 && !released_;
    add = wanted && !attached_;
    remove = !wanted && attached_;
    attached_ = wanted;
  }
  if (add) stack_->AddTap(this);
  if (remove) stack_->RemoveTap(this);
}

void PacketEndpoint::Release() {
  {
    absl::MutexLock lock(&mutex_);
    released_ = true;
  }
  Attach(0, 0);
}

// packet_rcv().
void PacketEndpoint::OnFrame(const LinkFrame& frame, bool outgoing) {
  const int protocol = protocol_.load(), device = device_.load();
  if (protocol != ETH_P_ALL && (outgoing || protocol != frame.protocol)) return;
  if (device != 0 && device != InetStack::kLoopbackIndex) return;
  if (outgoing && ignore_outgoing.load()) return;
  ReceivedFrame received;
  received.protocol = frame.protocol;
  received.outgoing = outgoing;
  received.data = frame.data;
  if (raw_) {
    received.network_offset = kLinkHeader;
    received.data = base::MakeRef<PacketData>(kLinkHeader + frame.data->size());
    auto bytes = received.data->bytes();
    std::fill_n(bytes.begin(), kLinkHeader, std::byte{0});  // addresses of the loopback device
    const uint16_t type = htons(frame.protocol);
    memcpy(bytes.data() + 2 * ETH_ALEN, &type, sizeof(type));
    std::copy(frame.data->bytes().begin(), frame.data->bytes().end(), bytes.begin() + kLinkHeader);
  }
  received.length = received.data->size();
  if (base::Ref<const SocketFilter> filter = options_->filter()) {
    const uint32_t kept = filter->Run(
        {.bytes = received.data->bytes(),
         .network_offset = static_cast<int>(received.network_offset),
         .link_offset = static_cast<int>(received.network_offset) - static_cast<int>(kLinkHeader),
         .protocol = frame.protocol,
         .packet_type = static_cast<uint32_t>(outgoing ? PACKET_OUTGOING : PACKET_HOST),
         .device = InetStack::kLoopbackIndex,
         .hardware_type = ARPHRD_LOOPBACK,
         .mark = frame.mark});
    if (kept == 0) return;
    received.length = std::min<size_t>(received.length, kept);
  }
  clock_gettime(CLOCK_REALTIME, &received.time);
  {
    absl::MutexLock lock(&mutex_);
    if (released_) return;
    if (charge_ > static_cast<size_t>(options_->receive_buffer.load())) {
      ++drops_;
      all_drops_.fetch_add(1);
      return;
    }
    ++packets_;
    charge_ += received.data->size() + kOverhead;
    frames_.push_back(std::move(received));
  }
  queue_.Wake(kIn);
}

Result<ReceivedFrame> PacketEndpoint::Take(bool peek, bool nonblock, int64_t deadline_ns) {
  while (true) {
    if (int error = TakeError()) return Error(error);
    {
      absl::MutexLock lock(&mutex_);
      if (!frames_.empty()) {
        ReceivedFrame frame = frames_.front();
        if (!peek) {
          charge_ -= frame.data->size() + kOverhead;
          last_time_ = frame.time;
          frames_.pop_front();
        }
        return frame;
      }
    }
    if (nonblock) return Error(EAGAIN);
    auto reason = fiber::WaitUntil(
        queue_, EPOLLIN,
        [this] {
          absl::MutexLock lock(&mutex_);
          return !frames_.empty() || error_.load() != 0;
        },
        {.interruptible = true, .deadline_ns = deadline_ns}, /*exclusive=*/true);
    if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
    if (reason == fiber::WakeReason::kInterrupted) {
      return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
    }
  }
}

uint32_t PacketEndpoint::Readiness() {
  uint32_t mask = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
  if (error_.load() != 0) mask |= EPOLLERR;
  absl::MutexLock lock(&mutex_);
  return frames_.empty() ? mask : mask | kIn;
}

size_t PacketEndpoint::FirstLength() {
  absl::MutexLock lock(&mutex_);
  return frames_.empty() ? 0 : frames_.front().length;
}

void PacketEndpoint::SetError(int error) {
  error_ = error;
  queue_.WakeAll(EPOLLERR | kIn);
}

tpacket_stats PacketEndpoint::TakeStatistics() {
  absl::MutexLock lock(&mutex_);
  const tpacket_stats stats{packets_ + drops_, drops_};
  packets_ = drops_ = 0;
  return stats;
}

Result<timespec> PacketEndpoint::LastTime() {
  absl::MutexLock lock(&mutex_);
  if (last_time_.tv_sec == 0) return Error(ENOENT);
  return last_time_;
}

}  // namespace sentry
