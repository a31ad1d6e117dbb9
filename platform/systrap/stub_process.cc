#include "platform/systrap/stub_process.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "platform/systrap/context.h"
#include "platform/systrap/fds.h"
#include "platform/systrap/platform.h"
#include "platform/systrap/reap.h"
#include "sentry/base/log.h"

namespace platform {
namespace {

constexpr int kPlentyOfDescriptors = 1024;
// As a program that makes one thread after the other uses again, and a host can spare.
constexpr uint32_t kMaxParked = 4;

// The kernel's clock id for a process's CPU time (include/linux/posix-timers_types.h).
clockid_t ProcessCpuClock(int pid) {
  return static_cast<clockid_t>(~static_cast<unsigned>(pid) << 3 | 2);
}

}  // namespace

StubProcess::StubProcess(SystrapPlatform* platform, StubShell shell, base::Ref<SpareShells> home)
    : platform_(platform),
      shell_(std::move(shell)),
      home_(std::move(home)),
      patcher_(this, &platform->texts(), platform->patching()) {}

base::Result<base::Ref<StubProcess>> StubProcess::CreateIn(SystrapPlatform* platform,
                                                           StubShell shell,
                                                           base::Ref<SpareShells> home) {
  auto p =
      base::Ref<StubProcess>::Adopt(new StubProcess(platform, std::move(shell), std::move(home)));
  if (getrandom(p->nonce_, sizeof(p->nonce_), 0) != sizeof(p->nonce_)) return base::Error(EIO);
  memcpy(p->header()->nonce, p->nonce_, sizeof(p->nonce_));
  p->windows_.ShowIn(p->header()->windows);
  return p;
}

base::Result<base::Ref<StubProcess>> StubProcess::Create(SystrapPlatform* platform,
                                                         base::Ref<SpareShells> home) {
  std::optional<StubShell> spare = home ? home->Take() : std::nullopt;
  StubShell shell = spare ? *std::move(spare) : TRY(StubShell::Create());
  return CreateIn(platform, std::move(shell), std::move(home));
}

base::Result<base::Ref<StubProcess>> StubProcess::CreateChild() {
  base::Ref<SpareShells> home;
  // In strict mode what a stub's descriptor stands for goes with the call that maps it.
  if (!platform_->strict()) {
    absl::MutexLock lock(&group_mu_);
    if (!nursery_) nursery_ = base::MakeRef<SpareShells>();
    home = nursery_;
  }
  if (std::optional<StubShell> spare = home ? home->Take() : std::nullopt) {
    return CreateIn(platform_, *std::move(spare), std::move(home));
  }
  base::Ref<StubProcess> child = TRY(platform_->chores().TakeMailbox());
  child->home_ = std::move(home);
  return child;
}

bool StubProcess::MayPassOnShell() {
  absl::MutexLock lock(&group_mu_);
  return home_ && left_alone_ && !has_forked_;
}

StubProcess::~StubProcess() {
  {
    absl::MutexLock lock(&slot_mu_);
    platform_->EndParks(parks_);
  }
  base::Ref<SpareShells> nursery;
  {
    absl::MutexLock lock(&group_mu_);
    nursery = std::move(nursery_);
  }
  if (nursery) {
    for (StubShell& shell : nursery->Close()) platform_->chores().Bury({std::move(shell), {}});
  }
  if (MayPassOnShell() && shell_.Clean(slot_limit()) && home_->Put(&shell_)) return;
  platform_->chores().Bury({std::move(shell_), std::move(pidfd_)});
}

base::Status StubProcess::Attach(int pid) {
  pid_.store(pid, std::memory_order_release);
  pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd_.valid()) {
    base::Error error = base::LastError();
    dead_.store(true, std::memory_order_seq_cst);
    return error;
  }
  // With many processes, descriptors are needed for more of them.
  if (!home_ || pidfd_.get() > kPlentyOfDescriptors) shell_.CloseStubsPart();
  AddThread(pid);
  return {};
}

// The number cannot become another process's meanwhile: an unclaimed child is reaped by the keeper
// alone, together with its parent's group.
base::Status StubProcess::Claim(int pid, int group) {
  if (pid <= 0 || pid == group || getpgid(pid) != group || setpgid(pid, pid) != 0) {
    return base::Error(ESRCH);
  }
  return {};
}

base::Status StubProcess::ClaimFork(int pid, uint32_t index) {
  absl::MutexLock lock(&group_mu_);
  return platform_->gate().Claim(pid, this->pid(), OrderedFd(index));
}

void StubProcess::BeginFork() {
  absl::MutexLock lock(&group_mu_);
  forks_++;
  has_forked_ = true;
}

void StubProcess::EndFork() {
  absl::MutexLock lock(&group_mu_);
  forks_--;
}

StubProcess::Children StubProcess::FindUnclaimed(int refuge, bool hold) {
  absl::MutexLock lock(&group_mu_);
  hold_forks_ = hold && forks_ != 0;
  if (forks_ != 0) return Children::kMaybe;
  // No fork begins while we are here: the process can be away from its group.
  if (setpgid(pid(), refuge) != 0) return Children::kNone;
  bool found = kill(-pid(), 0) == 0;
  setpgid(pid(), pid());
  return found ? Children::kUnclaimed : Children::kNone;
}

// While the process has not been reaped, or others are in its group, its number is nobody else's.
void StubProcess::KillGroup() {
  absl::MutexLock lock(&group_mu_);
  if (pid() > 1) kill(-pid(), SIGKILL);
}

bool StubProcess::ReapGroup() {
  absl::MutexLock lock(&group_mu_);
  for (;;) {
    siginfo_t info;
    if (!ReapEnded(P_PGID, static_cast<id_t>(pid()), &info)) {
      left_alone_ = true;
      return true;
    }
    if (info.si_pid == 0) return false;
  }
}

bool StubProcess::OwnsMailbox() {
  uint64_t seen[2] = {};
  base::Result<size_t> n = ReadMemory(kMailboxBase + offsetof(MailboxHeader, nonce),
                                      std::as_writable_bytes(std::span(seen)));
  return n.ok() && *n == sizeof(seen) && memcmp(seen, nonce_, sizeof(seen)) == 0;
}

void StubProcess::Kill() {
  if (pidfd_.valid()) syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
}

void StubProcess::Reap() {
  absl::MutexLock lock(&pid_mu_);
  tids_.clear();
  siginfo_t info;
  ReapEnded(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd_.get()), &info);
  const bool reaped = info.si_pid != 0;
  if (reaped && info.si_code != CLD_EXITED) {
    death_signal_.store(info.si_status, std::memory_order_relaxed);
  }
  // Who sees that it is dead knows of what.
  dead_.store(true, std::memory_order_seq_cst);
  if (!reaped) return;
  if (info.si_code != CLD_EXITED && info.si_status == SIGSYS) {
    LOG_LIMITED(base::LogLevel::kWarning, "stub %d has made a host call outside its list and ended",
                pid());
  } else if (info.si_code != CLD_EXITED && info.si_status != SIGKILL) {
    LOG_LIMITED(base::LogLevel::kWarning, "stub %d has died of signal %d", pid(), info.si_status);
  }
}

uint32_t StubProcess::BeginProgram() {
  windows_.DropAll();
  patcher_.Reset();
  absl::MutexLock lock(&pid_mu_);
  return program_.fetch_add(1, std::memory_order_acq_rel) + 1;
}

bool StubProcess::MayExecute() {
  return !platform_->strict() && !dead() && !had_threads_.load(std::memory_order_relaxed) &&
         !barriers_.load(std::memory_order_relaxed) && !others_.load(std::memory_order_relaxed) &&
         doubt.load(std::memory_order_relaxed) == 0 && patcher_.enabled() == platform_->patching();
}

base::Result<size_t> StubProcess::ReadMemory(uint64_t addr, std::span<std::byte> dst,
                                             uint32_t program) {
  if (dst.empty()) return size_t{0};
  absl::ReaderMutexLock lock(&pid_mu_);
  if (program != 0 && program != this->program()) return base::Error(EFAULT);
  iovec local{dst.data(), dst.size()};
  iovec remote{reinterpret_cast<void*>(addr), dst.size()};
  for (int tid : tids_) {
    if (!HasThreadLocked(tid)) continue;
    ssize_t n = process_vm_readv(tid, &local, 1, &remote, 1, 0);
    if (n > 0) return static_cast<size_t>(n);
    if (n == 0 || errno != ESRCH) break;
  }
  return base::Error(EFAULT);
}

base::Result<size_t> StubProcess::WriteMemory(uint64_t addr, std::span<const std::byte> src,
                                              uint32_t program) {
  if (src.empty()) return size_t{0};
  absl::ReaderMutexLock lock(&pid_mu_);
  if (program != 0 && program != this->program()) return base::Error(EFAULT);
  iovec local{const_cast<std::byte*>(src.data()), src.size()};
  iovec remote{reinterpret_cast<void*>(addr), src.size()};
  for (int tid : tids_) {
    if (!HasThreadLocked(tid)) continue;
    ssize_t n = process_vm_writev(tid, &local, 1, &remote, 1, 0);
    if (n > 0) return static_cast<size_t>(n);
    if (n == 0 || errno != ESRCH) break;
  }
  return base::Error(EFAULT);
}

base::Status StubProcess::Signal(int tid) {
  absl::ReaderMutexLock lock(&pid_mu_);
  if (dead()) return base::Error(ESRCH);
  if (syscall(SYS_tgkill, pid(), tid, kInterruptSignal) != 0) return base::LastError();
  return {};
}

bool StubProcess::AvoidCpu(int tid, int cpu) {
  cpu_set_t cpus = platform_->machine().cpus;
  if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_CLR(cpu, &cpus);
  absl::ReaderMutexLock lock(&pid_mu_);
  return tid > 0 && !dead() && sched_setaffinity(tid, sizeof(cpus), &cpus) == 0;
}

bool StubProcess::HasThread(int tid) {
  absl::ReaderMutexLock lock(&pid_mu_);
  return tid > 0 && !dead() && HasThreadLocked(tid);
}

// The number of the process itself is ours until it is reaped. That of another thread, which may
// have ended on its own, could be anybody's by now.
bool StubProcess::HasThreadLocked(int tid) {
  return tid == pid() || syscall(SYS_tgkill, pid(), tid, 0) == 0;
}

int64_t StubProcess::CpuTimeNs() const {
  timespec t;
  if (dead() || clock_gettime(ProcessCpuClock(pid()), &t) != 0) return 0;
  return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

base::Result<uint32_t> StubProcess::SendBatchFds(std::span<const int> fds) {
  absl::MutexLock lock(&fd_mu_);
  char byte = 0;
  TRY(SendWithFds(shell_.socket(), &byte, 1, fds));
  return next_ticket_++;
}

uint32_t StubProcess::TakeBatchTurn() {
  absl::MutexLock lock(&fd_mu_);
  return next_ticket_++;
}

base::Result<uint32_t> StubProcess::AllocateSlot() {
  had_threads_.store(true, std::memory_order_relaxed);
  absl::MutexLock lock(&slot_mu_);
  for (size_t i = 0; i < zombie_slots_.size();) {
    if (__atomic_load_n(&slot(zombie_slots_[i])->host_tid, __ATOMIC_ACQUIRE) == 0) {
      free_slots_.push_back(zombie_slots_[i]);
      zombie_slots_[i] = zombie_slots_.back();
      zombie_slots_.pop_back();
    } else {
      i++;
    }
  }
  uint32_t index;
  if (!free_slots_.empty()) {
    index = free_slots_.back();
    free_slots_.pop_back();
    memset(static_cast<void*>(slot(index)), 0, kPageSize);
  } else if (next_slot_ < kMaxSlots) {
    index = next_slot_++;
    ClearSlot(index);
    slot_limit_.store(next_slot_, std::memory_order_release);
  } else {
    return base::Error(EAGAIN);
  }
  return index;
}

void StubProcess::ReserveSlot(uint32_t index) {
  absl::MutexLock lock(&slot_mu_);
  while (next_slot_ <= index) {
    if (next_slot_ != index) free_slots_.push_back(next_slot_);
    next_slot_++;
  }
  slot_limit_.store(next_slot_, std::memory_order_release);
}

void StubProcess::ReleaseSlot(uint32_t index, bool started) {
  absl::MutexLock lock(&slot_mu_);
  (started ? zombie_slots_ : free_slots_).push_back(index);
}

bool StubProcess::ReservePark() {
  absl::MutexLock lock(&slot_mu_);
  if (parks_ == kMaxParked || !platform_->ReservePark()) return false;
  parks_++;
  return true;
}

void StubProcess::Park(ParkedThread thread) {
  absl::MutexLock lock(&slot_mu_);
  parked_.push_back(thread);
}

std::optional<StubProcess::ParkedThread> StubProcess::TakeParked() {
  absl::MutexLock lock(&slot_mu_);
  for (size_t i = 0; i < parked_.size(); i++) {
    const ParkedThread thread = parked_[i];
    Slot* s = slot(thread.slot);
    const bool waits = __atomic_load_n(&s->parked, __ATOMIC_ACQUIRE) == kParked;
    // One that cannot stay has ended as any other.
    const bool gone = !HasThread(thread.tid);
    if (!waits && !gone) continue;
    parked_.erase(parked_.begin() + static_cast<ptrdiff_t>(i));
    parks_--;
    platform_->EndParks(1);
    if (gone) {
      zombie_slots_.push_back(thread.slot);
      return std::nullopt;
    }
    // All but the two words of the host's thread.
    constexpr size_t kBegin = offsetof(Slot, host_tid);
    constexpr size_t kEnd = offsetof(Slot, parked) + sizeof(s->parked);
    static_assert(kEnd - kBegin == 2 * sizeof(uint32_t));
    char* bytes = reinterpret_cast<char*>(s);
    memset(bytes, 0, kBegin);
    memset(bytes + kEnd, 0, kPageSize - kEnd);
    return thread;
  }
  return std::nullopt;
}

void StubProcess::set_context(uint32_t index, ThreadContext* context) {
  if (index >= contexts_.size()) contexts_.resize(std::max<size_t>(index + 1, 8));
  if (contexts_[index]) context_count_--;
  if (context) context_count_++;
  contexts_[index] = context;
}

void StubProcess::RefreshMayRun() {
  may_run_.store(false, std::memory_order_seq_cst);
  for (ThreadContext* context : contexts_) {
    if (context && context->expected()) return NoteRunning();
  }
}

void StubProcess::AddThread(int tid) {
  absl::MutexLock lock(&pid_mu_);
  if (!dead()) tids_.push_back(tid);
}

size_t StubProcess::thread_count() {
  absl::ReaderMutexLock lock(&pid_mu_);
  return tids_.size();
}

void StubProcess::RemoveThread(int tid) {
  absl::MutexLock lock(&pid_mu_);
  tids_.erase(std::remove(tids_.begin(), tids_.end(), tid), tids_.end());
}

}  // namespace platform
