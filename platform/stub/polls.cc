// poll(2) of descriptors that all lead to lanes (platform/stream_lane.h). All else is the sentry's.
#include "platform/lane_epoll.h"
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr uint64_t kMostFds = 64;         // of one call
constexpr uint32_t kAlways = 0x8 | 0x10;  // POLLERR, POLLHUP
constexpr int64_t kNsPerMs = 1'000'000;

struct PollFd {  // struct pollfd
  int32_t fd;
  uint16_t events, revents;
};
static_assert(sizeof(PollFd) == 8);

class Poll {
 public:
  // False: not all of them lead to lanes.
  bool Take(uint64_t guest, uint64_t count) {
    if (count == 0 || count > kMostFds || guest >= kRegionBase) return false;
    guest_ = guest;
    count_ = count;
    if (StubCopy(fds_, reinterpret_cast<const void*>(guest), count * sizeof(PollFd)) != 0) {
      return false;
    }
    for (uint64_t i = 0; i < count; i++) {
      if (fds_[i].fd < 0) continue;
      if (static_cast<uint32_t>(fds_[i].fd) >= kLaneFds) return false;
      names_[i] = NameOfFd(static_cast<uint32_t>(fds_[i].fd));
      if (names_[i] == 0) return false;
    }
    return true;
  }

  // How many are ready; -1: only the sentry can tell.
  int Look() {
    int ready = 0;
    for (uint64_t i = 0; i < count_; i++) {
      found_[i] = 0;
      if (fds_[i].fd < 0) continue;
      const LaneState state = LookAtFd(static_cast<uint32_t>(fds_[i].fd), names_[i]);
      if (!state.known) return -1;
      found_[i] = static_cast<uint16_t>(state.ready & (fds_[i].events | kAlways));
      if (found_[i] != 0) ready++;
    }
    return ready;
  }

  int Wait(Slot* s, int64_t timeout_ns, int64_t* remaining_ns) {
    const uint32_t sleeper =
        kLaneSleepers - 1 - static_cast<uint32_t>(s->tid) % kCommonLaneSleepers;
    const auto arm = [&] {
      for (uint64_t i = 0; i < count_; i++) {
        const uint32_t events = fds_[i].events;
        if (fds_[i].fd < 0) continue;
        ArmFd(static_cast<uint32_t>(fds_[i].fd), (events & kLaneIn) != 0,
              (events & (kLaneOut | kEpollWriteBand)) != 0, kFirstSleeper + sleeper);
      }
      return true;
    };
    return WaitForTouch(s, &StubWaker().sleepers[sleeper], timeout_ns, remaining_ns, arm,
                        [&] { return Look(); });
  }

  // Stores what Look has found, where it is something else. False at a fault.
  bool Give() {
    for (uint64_t i = 0; i < count_; i++) {
      if (found_[i] == fds_[i].revents) continue;
      void* at = reinterpret_cast<void*>(guest_ + i * sizeof(PollFd) + offsetof(PollFd, revents));
      if (StubCopy(at, &found_[i], sizeof(found_[i])) != 0) return false;
    }
    return true;
  }

 private:
  uint64_t guest_, count_;
  PollFd fds_[kMostFds];
  uint64_t names_[kMostFds];
  uint16_t found_[kMostFds];
};

bool Run(Slot* s, int64_t timeout_ns) {
  Poll poll;
  if (!poll.Take(s->rdi, static_cast<uint32_t>(s->rsi))) return false;
  int n = poll.Look();
  if (n == 0 && timeout_ns != 0) {
    int64_t remaining_ns;
    n = poll.Wait(s, timeout_ns, &remaining_ns);
    if (n < 0) return LeaveLaneWait(s, remaining_ns);
  }
  if (n < 0 || !poll.Give()) return false;
  s->rax = static_cast<uint64_t>(n);
  return true;
}

}  // namespace

bool StreamPoll(Slot* s) {
  const int64_t ms = static_cast<int32_t>(s->rdx);
  return s->lane_owner != 0 && Run(s, ms < 0 ? -1 : ms * kNsPerMs);
}

// What is left of a time is told by the sentry, which also waits with another mask.
bool StreamPpoll(Slot* s) {
  if (s->lane_owner == 0 || s->r10 != 0) return false;
  if (s->rdx == 0) return Run(s, -1);
  uint64_t timeout[2];  // struct timespec
  return StubCopy(timeout, reinterpret_cast<const void*>(s->rdx), sizeof(timeout)) == 0 &&
         timeout[0] == 0 && timeout[1] == 0 && Run(s, 0);
}

}  // namespace platform::stub
