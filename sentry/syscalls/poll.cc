// poll, ppoll, select, pselect6, and the epoll family. Follows fs/select.c and fs/eventpoll.c.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/personality.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <memory>
#include <vector>

#include "sentry/fiber/fiber.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/fs/epoll/epoll.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

constexpr int64_t kSecond = 1'000'000'000;

int64_t MonotonicNs() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * kSecond + ts.tv_nsec;
}

// now + delay; 0 stands for "do not wait".
int64_t DeadlineAfter(int64_t delay_ns) {
  if (delay_ns == 0) return 0;
  int64_t deadline;
  if (__builtin_add_overflow(MonotonicNs(), delay_ns, &deadline)) return fiber::kNoDeadline;
  return deadline;
}

Result<int64_t> DeadlineFromTimespec(int64_t sec, int64_t nsec) {
  if (sec < 0 || nsec < 0 || nsec >= kSecond) return Error(EINVAL);
  if (sec >= std::numeric_limits<int64_t>::max() / kSecond) return fiber::kNoDeadline;
  return DeadlineAfter(sec * kSecond + nsec);
}

int64_t DeadlineFromMs(int ms) {
  return ms < 0 ? fiber::kNoDeadline : DeadlineAfter(int64_t{ms} * 1'000'000);
}

// A part of the time has passed in the stub already.
int64_t AfterLaneWait(Task& t, int64_t deadline_ns) {
  const platform::Trap& trap = t.context().trap();
  if (!trap.lane_waited || trap.remaining_ns < 0) return deadline_ns;
  return std::min(deadline_ns, DeadlineAfter(trap.remaining_ns));
}

timespec Remaining(int64_t deadline_ns) {
  int64_t left = deadline_ns == 0 ? 0 : std::max<int64_t>(deadline_ns - MonotonicNs(), 0);
  return {left / kSecond, left % kSecond};
}

// One file of a poll or select.
struct PollEntry {
  base::Ref<FileDescription> file;  // null: nothing to wait for
  uint32_t wanted = 0;
  uint32_t ready = 0;
};

class PollWaiter : public fiber::Waiter {
 public:
  PollWaiter(fiber::Fiber* fiber, std::atomic<bool>* woken) : fiber_(fiber), woken_(woken) {}
  void OnEvent(uint32_t) override {
    woken_->store(true);
    fiber_->Unpark();
  }

 private:
  fiber::Fiber* const fiber_;
  std::atomic<bool>* const woken_;
};

size_t CheckAll(std::vector<PollEntry>& entries) {
  size_t count = 0;
  for (PollEntry& e : entries) {
    if (e.file == nullptr) continue;
    e.ready = e.file->Readiness() & e.wanted;
    if (e.ready != 0) ++count;
  }
  return count;
}

// Fills `ready` of each entry once one of them is ready (do_poll, do_select). Returns their number,
// 0 at the deadline; `already` is the number of results that do not come from files. EINTR if a
// signal came first.
Result<size_t> PollFiles(std::vector<PollEntry>& entries, int64_t deadline_ns, size_t already = 0) {
  size_t count = CheckAll(entries) + already;
  if (count > 0 || deadline_ns == 0) return count;
  std::vector<std::pair<std::unique_ptr<PollWaiter>, fiber::WaitQueue*>> waiters;
  fiber::Fiber* self = fiber::Current();
  // Looking at a file may park for its lock and so swallow an Unpark: the flag keeps the wake.
  std::atomic<bool> woken{false};
  for (PollEntry& e : entries) {
    fiber::WaitQueue* queue = e.file != nullptr ? e.file->wait_queue() : nullptr;
    if (queue == nullptr) continue;
    waiters.emplace_back(std::make_unique<PollWaiter>(self, &woken), queue);
    queue->Register(waiters.back().first.get(), e.wanted | EPOLLERR | EPOLLHUP);
  }
  auto reason = fiber::WakeReason::kWoken;
  while ((count = CheckAll(entries)) == 0 && reason == fiber::WakeReason::kWoken) {
    if (woken.exchange(false)) continue;
    reason = fiber::Park({.interruptible = true, .deadline_ns = deadline_ns});
  }
  for (auto& [waiter, queue] : waiters) queue->Unregister(waiter.get());
  if (count == 0 && reason == fiber::WakeReason::kInterrupted) return Error(EINTR);
  return count;
}

// --- poll ---

Result<uint64_t> DoPoll(Task& t, uint64_t addr, uint32_t count, int64_t deadline_ns) {
  if (count > t.Rlimit(RLIMIT_NOFILE)) return Error(EINVAL);
  std::vector<pollfd> fds(count);
  TRY(t.memory().Read(addr, std::as_writable_bytes(std::span(fds))));
  std::vector<PollEntry> entries(count);
  size_t invalid = 0;
  for (size_t i = 0; i < count; ++i) {
    if (fds[i].fd < 0) continue;
    auto file = GetOpenFile(t, fds[i].fd);
    if (!file.ok()) {
      entries[i].ready = POLLNVAL;
      ++invalid;
      continue;
    }
    entries[i].file = *std::move(file);
    entries[i].wanted = static_cast<uint16_t>(fds[i].events) | EPOLLERR | EPOLLHUP;
  }
  size_t ready = TRY(PollFiles(entries, deadline_ns, invalid));
  // Linux looks a descriptor up whenever it looks at the file.
  for (size_t i = 0; i < count; ++i) {
    if (entries[i].ready != 0 && !GetOpenFile(t, fds[i].fd).ok()) entries[i].ready = POLLNVAL;
  }
  // Only `revents` is written, and only where it changes.
  for (size_t i = 0; i < count; ++i) {
    auto revents = static_cast<short>(entries[i].ready);
    if (revents == fds[i].revents) continue;
    uint64_t at = addr + i * sizeof(pollfd) + offsetof(pollfd, revents);
    TRY(UserPtr<short>(at).CopyOut(t.memory(), revents));
  }
  return uint64_t{ready};
}

Result<uint64_t> PollWithRestart(Task& t, uint64_t addr, uint32_t count, int64_t deadline_ns) {
  Result<uint64_t> r = DoPoll(t, addr, count, deadline_ns);
  if (r.ok() || r.error().code() != EINTR) return r;
  t.SetRestartBlock([=](Task& task) { return PollWithRestart(task, addr, count, deadline_ns); });
  return Error(base::kERESTART_RESTARTBLOCK);
}

// poll_select_finish(): what is left of the time goes back to the caller; a call that cannot tell
// is not restarted.
Result<uint64_t> Finish(Task& t, Result<uint64_t> r, uint64_t timeout_addr, bool timeval_form,
                        int64_t deadline_ns) {
  bool interrupted = !r.ok() && r.error().code() == EINTR;
  const bool sticky = (t.personality & STICKY_TIMEOUTS) != 0;
  if (timeout_addr != 0 && !sticky && (r.ok() || interrupted)) {
    timespec left = Remaining(deadline_ns);
    if (timeval_form) left.tv_nsec /= 1000;
    if (!UserPtr<timespec>(timeout_addr).CopyOut(t.memory(), left).ok()) return r;
  }
  if (interrupted) return Error(base::kERESTARTNOHAND);
  return r;
}

base::Status ApplyMask(Task& t, uint64_t mask_addr, uint64_t size) {
  if (mask_addr == 0) return base::Ok();
  if (size != sizeof(SigSet)) return Error(EINVAL);
  t.SetTemporaryMask(TRY(UserPtr<SigSet>(mask_addr).CopyIn(t.memory())));
  return base::Ok();
}

// --- select ---

using FdBits = std::vector<uint64_t>;

Result<FdBits> ReadFdSet(Task& t, uint64_t addr, size_t words) {
  FdBits bits(words);
  if (addr != 0) TRY(t.memory().Read(addr, std::as_writable_bytes(std::span(bits))));
  return bits;
}

// As many descriptors as Linux's table would have room for.
size_t TableRoom(size_t size) {
  return size <= 64 ? 64 : std::bit_ceil(std::max<size_t>(size, 256));
}

constexpr uint32_t kIn = EPOLLRDNORM | EPOLLRDBAND | EPOLLIN | EPOLLHUP | EPOLLERR;
constexpr uint32_t kOut = EPOLLWRBAND | EPOLLWRNORM | EPOLLOUT | EPOLLERR;
constexpr uint32_t kEx = EPOLLPRI;

Result<uint64_t> DoSelect(Task& t, int nfds, const uint64_t (&addrs)[3], int64_t deadline_ns) {
  if (nfds < 0) return Error(EINVAL);
  size_t n = std::min(static_cast<size_t>(nfds), TableRoom(t.fd_table().size()));
  size_t words = (n + 63) / 64;
  FdBits in[3], out[3];
  for (int k = 0; k < 3; ++k) {
    in[k] = TRY(ReadFdSet(t, addrs[k], words));
    out[k].resize(words);
  }
  constexpr uint32_t kMasks[3] = {kIn, kOut, kEx};
  std::vector<PollEntry> entries;
  std::vector<size_t> fds;
  for (size_t fd = 0; fd < n; ++fd) {
    uint32_t wanted = 0;
    for (int k = 0; k < 3; ++k) {
      if (in[k][fd / 64] >> (fd % 64) & 1) wanted |= kMasks[k];
    }
    if (wanted == 0) continue;
    PollEntry entry;
    entry.file = TRY(GetOpenFile(t, static_cast<int>(fd)));
    entry.wanted = wanted;
    entries.push_back(std::move(entry));
    fds.push_back(fd);
  }
  TRY(PollFiles(entries, deadline_ns));
  uint64_t count = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    for (int k = 0; k < 3; ++k) {
      uint64_t bit = uint64_t{1} << (fds[i] % 64);
      if ((in[k][fds[i] / 64] & bit) && (entries[i].ready & kMasks[k])) {
        out[k][fds[i] / 64] |= bit;
        ++count;
      }
    }
  }
  for (int k = 0; k < 3; ++k) {
    if (addrs[k] == 0) continue;
    TRY(t.memory().Write(addrs[k], std::as_bytes(std::span(out[k]))));
  }
  return count;
}

// --- epoll ---

Result<base::Ref<FileDescription>> GetEpoll(Task& t, int fd) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  if (EventPoll::From(*file) == nullptr) return Error(EINVAL);
  return file;
}

Result<uint64_t> MakeEpoll(Task& t, uint32_t flags) {
  if (flags & ~static_cast<uint32_t>(EPOLL_CLOEXEC)) return Error(EINVAL);
  auto file = base::MakeRef<EventPoll>(t.kernel().vfs(), 0);
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), (flags & EPOLL_CLOEXEC) != 0)));
}

Result<uint64_t> DoEpollWait(Task& t, const SyscallArgs& a, int64_t deadline_ns) {
  int max = a.Int(2);
  uint64_t addr = a[1];
  TRY(GetOpenFile(t, a.Int(0)));
  if (max <= 0 || max > std::numeric_limits<int>::max() / static_cast<int>(sizeof(EpollEvent))) {
    return Error(EINVAL);
  }
  TRY(CheckUserRange(addr, static_cast<uint64_t>(max) * sizeof(EpollEvent)));
  base::Ref<FileDescription> file = TRY(GetEpoll(t, a.Int(0)));
  if (file->WantsLanes(t.HasLanes())) [[unlikely]]
    t.ConsiderLanes(a.Int(0), *file);
  deadline_ns = AfterLaneWait(t, deadline_ns);
  auto emit = [&](std::span<const EpollEvent> events) {
    return t.memory().Write(addr, std::as_bytes(events));
  };
  EventPoll& poll = *EventPoll::From(*file);
  const size_t n = TRY(poll.Wait(static_cast<size_t>(max), deadline_ns, emit));
  if (const int fd = poll.TakeWanting(); fd >= 0) [[unlikely]] {
    if (base::Ref<FileDescription> ready = t.FileOf(fd)) t.ConsiderLanes(fd, *ready);
  }
  return uint64_t{n};
}

}  // namespace

Result<uint64_t> SysPoll(Task& t, const SyscallArgs& a) {
  return PollWithRestart(t, a[0], a.Uint(1), AfterLaneWait(t, DeadlineFromMs(a.Int(2))));
}

Result<uint64_t> SysPpoll(Task& t, const SyscallArgs& a) {
  int64_t deadline = fiber::kNoDeadline;
  if (a[2] != 0) {
    timespec ts = TRY(UserPtr<timespec>(a[2]).CopyIn(t.memory()));
    deadline = TRY(DeadlineFromTimespec(ts.tv_sec, ts.tv_nsec));
  }
  TRY(ApplyMask(t, a[3], a[4]));
  return Finish(t, DoPoll(t, a[0], a.Uint(1), deadline), a[2], false, deadline);
}

Result<uint64_t> SysSelect(Task& t, const SyscallArgs& a) {
  int64_t deadline = fiber::kNoDeadline;
  if (a[4] != 0) {
    timespec tv = TRY(UserPtr<timespec>(a[4]).CopyIn(t.memory()));  // a timeval: microseconds
    int64_t sec;
    if (__builtin_add_overflow(tv.tv_sec, tv.tv_nsec / 1'000'000, &sec)) return Error(EINVAL);
    deadline = TRY(DeadlineFromTimespec(sec, tv.tv_nsec % 1'000'000 * 1000));
  }
  const uint64_t addrs[3] = {a[1], a[2], a[3]};
  return Finish(t, DoSelect(t, a.Int(0), addrs, deadline), a[4], true, deadline);
}

Result<uint64_t> SysPselect6(Task& t, const SyscallArgs& a) {
  int64_t deadline = fiber::kNoDeadline;
  struct {
    uint64_t mask, size;
  } sig = {0, 0};
  if (a[5] != 0) sig = TRY(UserPtr<decltype(sig)>(a[5]).CopyIn(t.memory()));
  if (a[4] != 0) {
    timespec ts = TRY(UserPtr<timespec>(a[4]).CopyIn(t.memory()));
    deadline = TRY(DeadlineFromTimespec(ts.tv_sec, ts.tv_nsec));
  }
  TRY(ApplyMask(t, sig.mask, sig.size));
  const uint64_t addrs[3] = {a[1], a[2], a[3]};
  return Finish(t, DoSelect(t, a.Int(0), addrs, deadline), a[4], false, deadline);
}

Result<uint64_t> SysEpollCreate(Task& t, const SyscallArgs& a) {
  if (a.Int(0) <= 0) return Error(EINVAL);
  return MakeEpoll(t, 0);
}
Result<uint64_t> SysEpollCreate1(Task& t, const SyscallArgs& a) { return MakeEpoll(t, a.Uint(0)); }

Result<uint64_t> SysEpollCtl(Task& t, const SyscallArgs& a) {
  int op = a.Int(1), fd = a.Int(2);
  EpollEvent event{};
  if (op != EPOLL_CTL_DEL) event = TRY(UserPtr<EpollEvent>(a[3]).CopyIn(t.memory()));
  base::Ref<FileDescription> epoll_file = TRY(GetOpenFile(t, a.Int(0)));
  if (epoll_file->WantsLanes(t.HasLanes())) [[unlikely]]
    t.ConsiderLanes(a.Int(0), *epoll_file);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  if (!file->CanPoll()) return Error(EPERM);
  EventPoll* epoll = EventPoll::From(*epoll_file);
  if (epoll == nullptr || file == epoll_file) return Error(EINVAL);
  switch (op) {
    case EPOLL_CTL_ADD:
      TRY(epoll->Add(fd, file, event));
      break;
    case EPOLL_CTL_MOD:
      TRY(epoll->Modify(fd, *file, event));
      break;
    case EPOLL_CTL_DEL:
      TRY(epoll->Remove(fd, *file));
      break;
    default:
      return Error(EINVAL);
  }
  return uint64_t{0};
}

Result<uint64_t> SysEpollWait(Task& t, const SyscallArgs& a) {
  return DoEpollWait(t, a, DeadlineFromMs(a.Int(3)));
}

Result<uint64_t> SysEpollPwait(Task& t, const SyscallArgs& a) {
  TRY(ApplyMask(t, a[4], a[5]));
  return DoEpollWait(t, a, DeadlineFromMs(a.Int(3)));
}

Result<uint64_t> SysEpollPwait2(Task& t, const SyscallArgs& a) {
  int64_t deadline = fiber::kNoDeadline;
  if (a[3] != 0) {
    timespec ts = TRY(UserPtr<timespec>(a[3]).CopyIn(t.memory()));
    deadline = TRY(DeadlineFromTimespec(ts.tv_sec, ts.tv_nsec));
  }
  TRY(ApplyMask(t, a[4], a[5]));
  return DoEpollWait(t, a, deadline);
}

}  // namespace sentry
