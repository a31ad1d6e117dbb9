#include "platform/systrap/platform.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "platform/systrap/address_space.h"
#include "platform/systrap/context.h"
#include "platform/systrap/filter.h"
#include "platform/systrap/futex.h"
#include "platform/systrap/reap.h"
#include "sentry/base/host_io.h"
#include "sentry/base/log.h"
#include "sentry/base/time.h"

namespace platform {
namespace {

// Polls between looks at the ready bits of all processes, for what is not among the hot contexts.
constexpr uint32_t kScanEvery = 64;
constexpr uint32_t kPollsPerChore = 256;
constexpr int64_t kChoreDelayNs = 1'000'000;
constexpr int kLooksPerPoll = 16;

// How long after a failed fork the keeper looks for its child: a clone that the gate has let go on
// may still be on its way, when another thread has reported its failure already.
constexpr int64_t kSuspicionNs = 2'000'000'000;
// While forks are under way, it looks again; if that does not help, they are held.
constexpr int64_t kSuspectBusyNs = 50'000'000;
constexpr int kLooksBeforeHold = 20;
// Between attempts to reap what has been killed.
constexpr int64_t kHauntedNs = 10'000'000;

}  // namespace

base::Result<std::unique_ptr<Platform>> CreateSystrap(const Options& options, std::string* why) {
  auto p = std::make_unique<SystrapPlatform>(options, SystrapPlatform::Trapping::kSeccomp);
  TRY(p->Start(why));
  return std::unique_ptr<Platform>(std::move(p));
}

base::Result<std::unique_ptr<Platform>> CreatePtrace(const Options& options, std::string* why) {
  if (options.strict) {
    *why = "strict mode needs seccomp's user notifications";
    return base::Error(ENOSYS);
  }
  auto p = std::make_unique<SystrapPlatform>(options, SystrapPlatform::Trapping::kPtrace);
  TRY(p->Start(why));
  return std::unique_ptr<Platform>(std::move(p));
}

base::Result<std::unique_ptr<Platform>> Create(std::string_view name, const Options& options,
                                               std::string* why) {
  why->clear();
  base::Result<std::unique_ptr<Platform>> made = base::Error(EINVAL);
  for (std::string_view candidate : kPlatforms) {
    if (name != "auto" && name != candidate) continue;
    std::string reason;
    made = candidate == "ptrace" ? CreatePtrace(options, &reason) : CreateSystrap(options, &reason);
    if (made.ok()) return made;
    if (reason.empty()) reason = strerror(made.error().code());
    if (name == candidate) {
      *why = reason;
    } else {
      *why += (why->empty() ? "" : "; ") + std::string(candidate) + ": " + reason;
    }
  }
  return made;
}

// ---- Start and end ------------------------------------------------------------------------------

base::Status SystrapPlatform::MapShared(std::string* why) {
  auto fail = [&](const char* what) {
    *why = std::string(what) + ": " + strerror(errno);
    return base::LastError();
  };
  int fd = memfd_create("runsc-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return fail("memory file for the doorbell");
  shared_fd_.reset(fd);
  if (ftruncate(fd, kSharedSize) != 0) return fail("size of the doorbell's file");
  void* map = mmap(nullptr, kSharedSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return fail("mapping of the doorbell");
  shared_ = static_cast<Shared*>(map);
  // From here on nobody can map it writable; this mapping stays as it is.
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) !=
      0) {
    return fail("seal of the doorbell");
  }
  std::vector<uint64_t> filter = BuildStubFilter(machine_.has_fsgsbase, strict());
  if (filter.size() > kMaxFilter) return base::Error(E2BIG);
  memcpy(shared_->filter, filter.data(), filter.size() * sizeof(uint64_t));
  shared_->filter_length = static_cast<uint32_t>(filter.size());
  const Gated gated = strict() ? Gated::kMemory : Gated::kClone;
  for (bool gate : {false, true}) {
    filter = BuildZygoteFilter(machine_.has_fsgsbase, gate ? gated : Gated::kNothing);
    if (trapping_ == Trapping::kPtrace) filter = BelowTracer(filter);
    if (filter.size() > kMaxZygoteFilter) return base::Error(E2BIG);
    memcpy(shared_->zygote_filter[gate], filter.data(), filter.size() * sizeof(uint64_t));
    shared_->zygote_filter_length = static_cast<uint32_t>(filter.size());
  }
  if (trapping_ == Trapping::kPtrace) {
    tracer_ = std::make_unique<Tracer>(
        std::span(shared_->zygote_filter[1], shared_->zygote_filter_length),
        std::span(shared_->filter, shared_->filter_length), &gate_, &shared_->sleeping);
    shared_->traced = 1;
  }
  shared_->has_fsgsbase = machine_.has_fsgsbase;
  shared_->strict = strict();
  shared_->xsave_size = machine_.xsave_size;
  shared_->xfeatures = machine_.xfeatures;
  shared_->mxcsr_mask = machine_.mxcsr_mask;
  shared_->pkru_offset = machine_.pkru_offset;
  return {};
}

base::Status SystrapPlatform::Start(std::string* why) {
  machine_ = TRY(ProbeMachine(why));
  TRY(MapShared(why));
  epoll_fd_.reset(epoll_create1(EPOLL_CLOEXEC));
  kick_fd_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_fd_.valid() || !kick_fd_.valid()) {
    *why = std::string("epoll for the keeper: ") + strerror(errno);
    return base::LastError();
  }
  epoll_event event{.events = EPOLLIN, .data = {.ptr = nullptr}};
  epoll_ctl(epoll_fd_.get(), EPOLL_CTL_ADD, kick_fd_.get(), &event);
  base::Status started;
  absl::Notification done;
  keeper_ = std::thread([&] { KeeperMain(&started, why, &done); });
  done.WaitForNotification();
  return started;
}

SystrapPlatform::~SystrapPlatform() {
  stopping_ = true;
  if (kick_fd_.valid()) KickKeeper();
  if (keeper_.joinable()) keeper_.join();
  {
    absl::MutexLock lock(&watch_mu_);
    for (const auto& p : watched_) p->KillGroup();
    watched_.insert(watched_.end(), haunted_.begin(), haunted_.end());
    for (const auto& p : watched_) {
      ReapAll(P_PGID, static_cast<id_t>(p->pid()));  // their end is near
    }
    watched_.clear();
    haunted_.clear();
    suspects_.clear();
  }
  {
    absl::MutexLock lock(&pool_mu_);
    pool_.clear();
  }
  if (shared_) munmap(shared_, kSharedSize);
}

// ---- The keeper ---------------------------------------------------------------------------------

void SystrapPlatform::KeeperMain(base::Status* started, std::string* why,
                                 absl::Notification* done) {
  pthread_setname_np(pthread_self(), "stub-keeper");
  // The process gives up its capabilities when it confines itself; the threads that begin here have
  // none from the start.
  base::Status status = DropThreadCapabilities();
  if (status.ok()) status = zygote_.Start(shared_fd_.get(), strict(), why);
  if (status.ok() && tracer_) status = tracer_->Start(zygote_.pid(), zygote_.traced_entry(), why);
  if (status.ok()) {
    limits_.min_address = machine_.mmap_min_addr;
    limits_.max_address = kRegionBase - kPageSize;  // a guard: see the filter's rule for mremap
    limits_.vdso_base = zygote_.vdso_base();
    if (zygote_.listener() >= 0) gate_.Start(zygote_.listener());
    ordered_fds_ = zygote_.max_fds() - kFirstOrderedFd;
  }
  *started = status;
  bool ok = status.ok();
  done->Notify();
  if (ok) RunKeeper();
}

void SystrapPlatform::RunKeeper() {
  epoll_event events[32];
  while (!stopping_) {
    int64_t wait_ns = LookAfterStrays();
    int wait_ms = wait_ns < 0 ? -1 : static_cast<int>(wait_ns / 1'000'000) + 1;
    int n = base::HostEpollWait(epoll_fd_.get(), events, 32, wait_ms);
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr == nullptr) {
        uint64_t count;
        if (base::HostRead(kick_fd_.get(), &count, sizeof(count)) < 0) continue;
        FillPool();
      } else {
        ReapOne(static_cast<StubProcess*>(events[i].data.ptr));
      }
    }
  }
}

void SystrapPlatform::KickKeeper() {
  uint64_t one = 1;
  if (write(kick_fd_.get(), &one, sizeof(one)) < 0) return;  // full: it will come anyway
}

void SystrapPlatform::StartPool() {
  pool_started_ = true;
  KickKeeper();
}

void SystrapPlatform::FillPool() {
  while (pool_started_ && !stopping_) {
    {
      absl::MutexLock lock(&pool_mu_);
      if (pool_.size() >= static_cast<size_t>(std::max(options_.pool_size, 0))) return;
    }
    base::Result<base::Ref<StubProcess>> process = MakeProcess();
    if (!process.ok()) return;  // NewAddressSpace will meet the error and report it
    absl::MutexLock lock(&pool_mu_);
    pool_.push_back(std::move(*process));
  }
}

base::Result<base::Ref<StubProcess>> SystrapPlatform::MakeProcess() {
  base::Ref<StubProcess> process =
      TRY(StubProcess::Create(this, strict() ? nullptr : spare_shells_));
  if (strict()) gate_.ExpectBirth(zygote_.pid(), kNewMailboxFd);
  base::Result<int> pid = zygote_.MakeStub(process->mailbox_fd(), process->stub_socket());
  if (!pid.ok()) {
    gate_.CancelBirth(zygote_.pid(), kNewMailboxFd);
    return pid.error();
  }
  TRY(gate_.Claim(*pid, zygote_.pid(), kNewMailboxFd));
  TRY(Adopt(process, *pid));
  return process;
}

base::Status SystrapPlatform::Adopt(const base::Ref<StubProcess>& process, int pid) {
  base::Status status = process->Attach(pid);
  if (!status.ok()) {
    gate_.ForgetProcess(pid);
    process->KillGroup();
    absl::MutexLock lock(&watch_mu_);
    haunted_.push_back(process);
    KickKeeper();
    return status;
  }
  {
    absl::MutexLock lock(&watch_mu_);
    watched_.push_back(process);
  }
  epoll_event event{.events = EPOLLIN | EPOLLONESHOT, .data = {.ptr = process.get()}};
  epoll_ctl(epoll_fd_.get(), EPOLL_CTL_ADD, process->pidfd(), &event);
  return {};
}

void SystrapPlatform::ReapOne(StubProcess* process) {
  process->KillGroup();
  gate_.ForgetProcess(process->pid());
  process->Reap();
  bool alone = process->ReapGroup();
  base::Ref<StubProcess> ref(process);
  {
    absl::MutexLock lock(&watch_mu_);
    if (!alone) haunted_.push_back(ref);
    watched_.erase(std::remove(watched_.begin(), watched_.end(), ref), watched_.end());
  }
  {
    absl::MutexLock lock(&pool_mu_);
    pool_.erase(std::remove(pool_.begin(), pool_.end(), ref), pool_.end());
  }
  if (ref->abandoned()) return;
  {
    absl::MutexLock lock(&posted_mu_);
    died_.push_back(std::move(ref));
    has_posted_.store(true, std::memory_order_release);
  }
  Wake();
}

void SystrapPlatform::Suspect(StubProcess* process, uint32_t doubt) {
  if (process->doubt.fetch_add(doubt) != 0) return;
  absl::MutexLock lock(&watch_mu_);
  suspects_.push_back({base::Ref<StubProcess>(process), base::MonotonicNs() + kSuspicionNs});
  KickKeeper();
}

// Reaps what has been left behind by processes that have ended, and looks at the suspected ones
// whose time has come. Returns in how many nanoseconds to come again; -1: not for the time being.
int64_t SystrapPlatform::LookAfterStrays() {
  absl::MutexLock lock(&watch_mu_);
  haunted_.erase(std::remove_if(haunted_.begin(), haunted_.end(),
                                [](const auto& p) { return p->ReapGroup(); }),
                 haunted_.end());
  int64_t next = haunted_.empty() ? INT64_MAX : kHauntedNs;
  for (size_t i = 0; i < suspects_.size();) {
    Suspicion& s = suspects_[i];
    int64_t now = base::MonotonicNs();
    if (s.due_ns <= now && !IsSuspect(&s)) {
      s.process->doubt = 0;
      suspects_[i] = suspects_.back();
      suspects_.pop_back();
      continue;
    }
    next = std::min(next, std::max<int64_t>(s.due_ns - now, 0));
    i++;
  }
  return next == INT64_MAX ? -1 : next;
}

// Looks at a suspect; true if it remains one.
bool SystrapPlatform::IsSuspect(Suspicion* s) {
  StubProcess& process = *s->process;
  if (process.dead()) return false;
  switch (process.FindUnclaimed(zygote_.pid(), ++s->looks > kLooksBeforeHold)) {
    case StubProcess::Children::kNone:
      return false;
    case StubProcess::Children::kMaybe:
      s->due_ns = base::MonotonicNs() + kSuspectBusyNs;
      return true;
    case StubProcess::Children::kUnclaimed:
      break;
  }
  LOG_LIMITED(base::LogLevel::kWarning,
              "stub %d has made a process that it did not report, and is ended with it",
              process.pid());
  process.Kill();
  return false;
}

base::Result<std::unique_ptr<AddressSpace>> SystrapPlatform::NewAddressSpace() {
  base::Ref<StubProcess> process;
  {
    absl::MutexLock lock(&pool_mu_);
    while (!pool_.empty() && !process) {
      process = std::move(pool_.back());
      pool_.pop_back();
      if (process->dead()) process.reset();
    }
  }
  if (process) {
    chores_.FillPool();
  } else {
    KickKeeper();
    process = TRY(MakeProcess());
  }
  auto space = std::make_unique<SystrapAddressSpace>(std::move(process), limits_);
  AddContext(space->MakeMain());
  return std::unique_ptr<AddressSpace>(std::move(space));
}

// ---- Contexts -----------------------------------------------------------------------------------

void SystrapPlatform::AddContext(ThreadContext* context) {
  absl::MutexLock lock(&poll_mu_);
  AddContextLocked(context);
}

void SystrapPlatform::AddContextLocked(ThreadContext* context) {
  StubProcess& process = context->process();
  if (process.context_count() == 0) processes_.push_back(&process);
  process.set_context(context->index(), context);
}

void SystrapPlatform::RemoveContext(ThreadContext* context) {
  absl::MutexLock lock(&poll_mu_);
  StubProcess& process = context->process();
  if (process.context(context->index()) == context) {
    process.set_context(context->index(), nullptr);
    if (process.context_count() == 0) {
      processes_.erase(std::remove(processes_.begin(), processes_.end(), &process),
                       processes_.end());
    }
  }
  for (auto& hot : hot_) {
    ThreadContext* expected = context;
    hot.compare_exchange_strong(expected, nullptr);
  }
  absl::MutexLock posted_lock(&posted_mu_);
  posted_.erase(std::remove_if(posted_.begin(), posted_.end(),
                               [&](const Posted& p) { return p.context == context; }),
                posted_.end());
}

void SystrapPlatform::NoteResume(ThreadContext* context) {
  int index = context->hot_index;
  if (index >= 0 && hot_[static_cast<size_t>(index)].load(std::memory_order_acquire) == context) {
    return;
  }
  for (size_t i = 0; i < kHot; i++) {
    ThreadContext* expected = nullptr;
    if (hot_[i].load(std::memory_order_relaxed) == nullptr &&
        hot_[i].compare_exchange_strong(expected, context)) {
      context->hot_index = static_cast<int>(i);
      size_t limit = hot_limit_.load(std::memory_order_relaxed);
      while (limit <= i && !hot_limit_.compare_exchange_weak(limit, i + 1)) {
      }
      return;
    }
  }
  overflow_.store(true, std::memory_order_relaxed);
}

void SystrapPlatform::Post(ThreadContext* context) {
  {
    absl::MutexLock lock(&posted_mu_);
    posted_.push_back({context, false});
    has_posted_.store(true, std::memory_order_release);
  }
  Wake();
}

void SystrapPlatform::NoteGone(ThreadContext* context) {
  {
    absl::MutexLock lock(&posted_mu_);
    posted_.push_back({context, true});
    has_posted_.store(true, std::memory_order_release);
  }
  Wake();
}

base::Status SystrapPlatform::AdoptFork(SystrapAddressSpace* child, StubProcess* parent, int pid) {
  TRY(parent->ClaimFork(pid, child->main_index()));
  StubProcess& process = child->process();
  TRY(Adopt(base::Ref<StubProcess>(&process), pid));
  process.patcher().CopyFrom(parent->patcher());
  // Again: other threads may have mapped more until it was made.
  process.windows().InheritFrom(parent->windows());
  process.lanes().InheritFrom(parent->lanes());
  process.paths().InheritFrom(parent->paths());
  process.InheritFrom(*parent);
  AddContextLocked(child->MakeMain());
  return {};
}

// ---- Polling ------------------------------------------------------------------------------------

size_t SystrapPlatform::Poll() {
  if (chores_.pending() && ++polls_since_chore_ >= kPollsPerChore) {
    polls_since_chore_ = 0;
    chores_.DoOne();
  }
  absl::MutexLock lock(&poll_mu_);
  return PollLocked(false);
}

void SystrapPlatform::DeliverLocked(ThreadContext* context) {
  delivered_++;
  context->Deliver();
}

void SystrapPlatform::TakeLocked(ThreadContext* context) {
  if (context->Take()) DeliverLocked(context);
}

size_t SystrapPlatform::PollLocked(bool full) {
  size_t before = delivered_;
  // While the caller has nothing else to do, several looks for one lock.
  int looks = spinning_ && !full ? kLooksPerPoll : 1;
  for (;;) {
    if (has_posted_.load(std::memory_order_acquire)) TakePostedLocked();
    size_t hot = hot_limit_.load(std::memory_order_relaxed);
    for (size_t i = 0; i < hot; i++) {
      ThreadContext* context = hot_[i].load(std::memory_order_acquire);
      if (context && context->HasRequest()) TakeLocked(context);
    }
    if (delivered_ != before || --looks == 0 || wake_pending_.load(std::memory_order_relaxed))
      break;
    _mm_pause();
  }
  bool scan = full || overflow_.load(std::memory_order_relaxed) || ++poll_count_ % kScanEvery == 0;
  if (scan) ScanLocked(full);
  return delivered_ - before;
}

void SystrapPlatform::TakePostedLocked() {
  std::vector<Posted> posted;
  std::vector<base::Ref<StubProcess>> died;
  {
    absl::MutexLock lock(&posted_mu_);
    posted.swap(posted_);
    died.swap(died_);
    has_posted_.store(false, std::memory_order_relaxed);
  }
  for (const Posted& p : posted) {
    bool deliver = p.gone ? p.context->TakeDeath() : p.context->running() && p.context->posted();
    if (deliver) DeliverLocked(p.context);
  }
  for (const auto& process : died) {
    for (uint32_t i = 0; i < process->slot_limit(); i++) {
      ThreadContext* context = process->context(i);
      if (!context) continue;
      if (context->TakeDeath()) {
        DeliverLocked(context);
      } else {
        context->NoteDeath();
      }
    }
  }
}

// Looks at the ready bits of every process with running threads. Bits of what was found directly
// are stale and do no harm.
void SystrapPlatform::ScanLocked(bool full) {
  size_t before = delivered_;
  for (size_t p = 0; p < processes_.size(); p++) {
    StubProcess* process = processes_[p];
    if (!process->MayRun()) continue;
    uint32_t words = (process->slot_limit() + 63) / 64;
    for (uint32_t w = 0; w < words; w++) {
      uint64_t* word = &process->header()->ready[w];
      if (__atomic_load_n(word, __ATOMIC_SEQ_CST) == 0) continue;
      uint64_t bits = __atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST);
      for (; bits != 0; bits &= bits - 1) {
        uint32_t index = w * 64 + static_cast<uint32_t>(__builtin_ctzll(bits));
        ThreadContext* context = process->context(index);
        if (context && context->HasRequest()) TakeLocked(context);
      }
    }
    if (full) process->RefreshMayRun();
  }
  // Make room among the hot ones for those that run now.
  if (overflow_.exchange(false)) {
    for (auto& hot : hot_) {
      ThreadContext* context = hot.load(std::memory_order_acquire);
      if (context && !context->expected()) hot.compare_exchange_strong(context, nullptr);
    }
    if (delivered_ != before) overflow_.store(true);
  }
}

void SystrapPlatform::PublishCpu() {
  __atomic_store_n(&shared_->poller_cpu, static_cast<uint32_t>(sched_getcpu()), __ATOMIC_RELAXED);
}

void SystrapPlatform::Wait(int64_t deadline_ns) {
  if (wake_pending_.exchange(false)) return;
  while (!leaves_core_ && chores_.DoOne()) {
    absl::MutexLock lock(&poll_mu_);
    if (PollLocked(false) != 0 || wake_pending_.load()) return;
  }
  PublishCpu();
  __atomic_store_n(&shared_->sleeping, 1u, __ATOMIC_SEQ_CST);
  size_t n;
  {
    absl::MutexLock lock(&poll_mu_);
    n = PollLocked(true);
  }
  if (n == 0 && !wake_pending_.load()) {
    // Who has left the core to a guest thread comes back for what was put off.
    if (chores_.pending()) deadline_ns = std::min(deadline_ns, base::MonotonicNs() + kChoreDelayNs);
    timespec deadline{deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000};
    syscall(SYS_futex, &shared_->sleeping, FUTEX_WAIT_BITSET, 1,
            deadline_ns == INT64_MAX ? nullptr : &deadline, nullptr, FUTEX_BITSET_MATCH_ANY);
    PublishCpu();
  }
  __atomic_store_n(&shared_->sleeping, 0u, __ATOMIC_SEQ_CST);
  wake_pending_.store(false);
}

void SystrapPlatform::Wake() {
  wake_pending_.store(true);
  if (__atomic_load_n(&shared_->sleeping, __ATOMIC_SEQ_CST) != 0) {
    __atomic_store_n(&shared_->sleeping, 0u, __ATOMIC_SEQ_CST);
    FutexWakeShared(&shared_->sleeping, 1);
  }
}

}  // namespace platform
