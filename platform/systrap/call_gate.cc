#include "platform/systrap/call_gate.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "platform/systrap/stub_process.h"
#include "sentry/base/host_io.h"
#include "sentry/base/log.h"

namespace platform {
namespace {

// How often a thread may begin anew.
constexpr uint32_t kRepeats = 100;

size_t ArgumentCount(uint32_t nr) {
  switch (nr) {
    case SYS_mmap:
      return 6;
    case SYS_mremap:
    case SYS_clone:
      return 5;
    case SYS_mprotect:
    case SYS_madvise:
      return 3;
    default:
      return 2;  // munmap
  }
}

bool Matches(const OrderedCall& call, const seccomp_data& data) {
  return call.nr == static_cast<uint32_t>(data.nr) &&
         std::equal(data.args, data.args + ArgumentCount(call.nr), call.args.begin());
}

OrderedCall MailboxMap(int fd) {
  return {.nr = SYS_mmap,
          .args = {kMailboxBase, kMailboxSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                   static_cast<uint64_t>(fd), 0}};
}

OrderedCall Clone(uint64_t flags, uint64_t stack, uint32_t index) {
  return {.nr = SYS_clone,
          .args = {flags, stack, 0, SlotAddress(index) + offsetof(Slot, host_tid), 0}};
}

// The call that carries out an order about memory; nr 0: it is none.
OrderedCall MemoryCall(const OrderEntry& e) {
  switch (e.op) {
    case OrderOp::kMmap:
      return {.nr = SYS_mmap, .args = {e.a, e.b, e.c, e.d, ~0ull, e.e}};
    case OrderOp::kMunmap:
      return {.nr = SYS_munmap, .args = {e.a, e.b}};
    case OrderOp::kMprotect:
      return {.nr = SYS_mprotect, .args = {e.a, e.b, e.c}};
    case OrderOp::kMadvise:
      return {.nr = SYS_madvise, .args = {e.a, e.b, e.c}};
    case OrderOp::kMremap:
      if (e.a == e.c) return {.nr = SYS_mremap, .args = {e.a, e.b, e.d}};
      return {.nr = SYS_mremap, .args = {e.a, e.b, e.d, MREMAP_MAYMOVE | MREMAP_FIXED, e.c}};
    default:
      return {.nr = 0};
  }
}

}  // namespace

void AppendOrderedCalls(const OrderEntry& e, uint32_t index, bool strict,
                        base::Ref<base::HostFd> file, std::vector<OrderedCall>* calls) {
  if (e.op == OrderOp::kCloneThread) {
    uint32_t thread = static_cast<uint32_t>(e.a);
    calls->push_back(Clone(kThreadCloneFlags, SlotAddress(thread) + kSlotStackEnd, thread));
    return;
  }
  if (e.op == OrderOp::kFork) {
    calls->push_back(Clone(kForkCloneFlags, 0, index));
  } else if (!strict) {
    return;
  } else if (e.op == OrderOp::kPatch) {
    uint64_t first = e.a & ~(kPageSize - 1);
    uint64_t length = ((e.a + e.c - 1) & ~(kPageSize - 1)) + kPageSize - first;
    for (uint64_t prot : {PROT_READ | PROT_WRITE | PROT_EXEC, PROT_READ | PROT_EXEC}) {
      calls->push_back({.nr = SYS_mprotect, .args = {first, length, prot}});
    }
  } else if (OrderedCall call = MemoryCall(e); call.nr != 0) {
    calls->push_back(std::move(call));
  }
  if (!strict || e.fd < 0) return;
  OrderedCall& call = calls->back();
  call.file = std::move(file);
  call.fd = OrderedFd(index);
  if (call.nr == SYS_mmap) call.args[4] = static_cast<uint64_t>(call.fd);
}

void CallGate::Start(int listener) {
  listener_ = listener;
  stop_fd_.reset(eventfd(0, EFD_CLOEXEC));
#ifdef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
  // A hint only: the two threads take turns, so they may share a core.
  ioctl(listener_, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
#endif
  thread_ = std::thread([this] { Run(); });
}

void CallGate::Stop() {
  if (!thread_.joinable()) return;
  uint64_t one = 1;
  if (write(stop_fd_.get(), &one, sizeof(one)) == sizeof(one)) thread_.join();
}

void CallGate::Expect(int tid, int process, std::vector<OrderedCall> calls) {
  uint32_t clones = 0;
  for (const OrderedCall& call : calls) clones += call.nr == SYS_clone;
  absl::MutexLock lock(&mu_);
  allowed_[tid] = {.process = process, .calls = std::move(calls), .clones_expected = clones};
}

uint32_t CallGate::Forget(int tid) {
  absl::MutexLock lock(&mu_);
  auto found = allowed_.find(tid);
  if (found == allowed_.end()) return 0;
  const Allowance& a = found->second;
  const uint32_t more = a.clones_asked - std::min(a.clones_asked, a.clones_expected);
  allowed_.erase(found);
  return more;
}

void CallGate::ExpectBirth(int parent, int fd) {
  absl::MutexLock lock(&mu_);
  births_[parent].fds.push_back(fd);
}

void CallGate::CancelBirth(int parent, int fd) {
  absl::MutexLock lock(&mu_);
  auto found = births_.find(parent);
  if (found == births_.end()) return;
  std::vector<int>& fds = found->second.fds;
  if (auto at = std::find(fds.begin(), fds.end(), fd); at != fds.end()) fds.erase(at);
}

base::Status CallGate::Claim(int pid, int parent, int fd) {
  // Held while the child changes groups, by which TakeBirth knows it.
  absl::MutexLock lock(&mu_);
  base::Status claimed = StubProcess::Claim(pid, parent);
  auto found = births_.find(parent);
  if (found == births_.end()) return claimed;
  Births& births = found->second;
  if (auto at = std::find(births.born.begin(), births.born.end(), pid); at != births.born.end()) {
    births.born.erase(at);
    return claimed;
  }
  if (auto at = std::find(births.fds.begin(), births.fds.end(), fd); at != births.fds.end()) {
    births.fds.erase(at);
    if (claimed.ok()) unborn_[pid] = fd;
  }
  return claimed;
}

void CallGate::ForgetProcess(int pid) {
  absl::MutexLock lock(&mu_);
  births_.erase(pid);
  unborn_.erase(pid);
  allowed_.erase(pid);
}

bool CallGate::Take(int tid, const seccomp_data& data, OrderedCall* call) {
  absl::MutexLock lock(&mu_);
  return TakeOrdered(tid, data, call) || TakeBirth(tid, data);
}

bool CallGate::Admit(int tid, const seccomp_data& data) {
  OrderedCall call;
  return Take(tid, data, &call);
}

bool CallGate::TakeOrdered(int tid, const seccomp_data& data, OrderedCall* call) {
  auto found = allowed_.find(tid);
  if (found == allowed_.end()) return false;
  Allowance& a = found->second;
  for (size_t i = a.next; i < a.calls.size(); i++) {
    if (!Matches(a.calls[i], data)) continue;
    // The thread that was meant may have ended by itself, and its number be another process's.
    if (syscall(SYS_tgkill, a.process, tid, 0) != 0) return false;
    a.next = i;
    if (a.calls[i].nr != SYS_clone) {
      a.next++;
    } else if (a.clones_asked++ >= a.clones_expected + kRepeats) {
      return false;
    }
    *call = a.calls[i];
    return true;
  }
  return false;
}

// Who asks is a child of a process that has been ordered to fork (or of the zygote), and none of
// its threads. If it has not been claimed yet, it is in its parent's group.
bool CallGate::TakeBirth(int pid, const seccomp_data& data) {
  if (auto unborn = unborn_.find(pid); unborn != unborn_.end()) {
    if (!Matches(MailboxMap(unborn->second), data)) return false;
    unborn_.erase(unborn);
    return true;
  }
  if (births_.empty()) return false;
  const int parent = getpgid(pid);
  auto found = births_.find(parent);
  if (found == births_.end() || syscall(SYS_tgkill, parent, pid, 0) == 0) return false;
  std::vector<int>& fds = found->second.fds;
  auto at =
      std::find_if(fds.begin(), fds.end(), [&](int fd) { return Matches(MailboxMap(fd), data); });
  if (at == fds.end()) return false;
  fds.erase(at);
  found->second.born.push_back(pid);
  return true;
}

void CallGate::AnswerOne() {
  seccomp_notif request{};
  if (ioctl(listener_, SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) return;  // the asker is gone
  seccomp_notif_resp answer{};
  answer.id = request.id;
  OrderedCall call{.nr = 0};
  if (!Take(static_cast<int>(request.pid), request.data, &call)) {
    LOG_LIMITED(base::LogLevel::kWarning, "a stub's thread %u is refused call %d: not ordered",
                request.pid, request.data.nr);
    answer.error = -EPERM;
  } else if (call.file && !Install(request.id, call)) {
    answer.error = -ENOMEM;
  } else {
    answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
  }
  ioctl(listener_, SECCOMP_IOCTL_NOTIF_SEND, &answer);
}

// Opens the call's file in the asker, as descriptor call.fd in place of what was there.
bool CallGate::Install(uint64_t id, const OrderedCall& call) {
  seccomp_notif_addfd add{};
  add.id = id;
  add.flags = SECCOMP_ADDFD_FLAG_SETFD;
  add.srcfd = static_cast<uint32_t>(call.file->get());
  add.newfd = static_cast<uint32_t>(call.fd);
  return ioctl(listener_, SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0;
}

void CallGate::Run() {
  pthread_setname_np(pthread_self(), "call-gate");
  pollfd fds[2] = {{listener_, POLLIN, 0}, {stop_fd_.get(), POLLIN, 0}};
  for (;;) {
    if (base::HostPoll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    if (fds[0].revents & POLLIN) {
      AnswerOne();
    } else if (fds[0].revents & (POLLHUP | POLLERR)) {
      fds[0].fd = -1;  // the zygote and all stubs have ended
    }
  }
}

}  // namespace platform
