// execve(2) (Linux: fs/exec.c, begin_new_exec and de_thread).
#include "sentry/kernel/exec.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <tuple>
#include <utility>

#include "platform/exec_in_place.h"
#include "sentry/base/log.h"
#include "sentry/kernel/futex/futex_pi.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/keys/keys.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

// --- ContextRunner ---

ContextRunner::ContextRunner(platform::Context& context, const OrderRunner& limits, bool later)
    : context_(context), limits_(limits), later_(later) {
  context_.set_listener(this);
}

void ContextRunner::OnTrap() {
  base::Ref<fiber::Fiber> keep = fiber_;
  trapped_.store(true, std::memory_order_release);
  keep->Unpark();
}

base::Result<std::vector<uint64_t>> ContextRunner::RunOrders(std::vector<platform::Order> orders) {
  for (platform::Order& order : orders) context_.QueueOrder(std::move(order));
  fiber_ = base::Ref<fiber::Fiber>(fiber::Current());
  context_.Resume(platform::ResumeMode::kOrdersOnly);
  while (!trapped_.exchange(false, std::memory_order_acquire)) fiber::Park({.in_guest = true});
  const platform::Trap& trap = context_.trap();
  if (trap.kind == platform::TrapKind::kOrdersDone) return trap.results;
  if (trap.kind == platform::TrapKind::kOrderFailed)
    return base::Error(trap.error > 0 ? trap.error : EFAULT);
  return base::Error(ENOMEM);  // the fresh stub has died
}

void ContextRunner::QueueOrders(std::vector<platform::Order> orders,
                                std::function<int64_t(int)> on_failure) {
  static_cast<void>(on_failure);  // who takes them over has its own
  for (platform::Order& order : orders) queued_.push_back(std::move(order));
}

// --- credentials ---

namespace {

struct FileCaps {
  bool present = false;
  bool effective = false;
  CapSet permitted = 0, inheritable = 0;
};

// security.capability, revisions 1 to 3 (Linux: get_vfs_caps_from_disk).
base::Result<FileCaps> ReadFileCaps(Vfs& vfs, const Path& path, const Credentials& creds) {
  FileCaps caps;
  base::Ref<Credentials> root = Credentials::NewRoot(creds.user_ns);
  base::Result<std::string> value = vfs.GetXattr(*root, path, "security.capability");
  if (!value.ok()) return caps;
  uint32_t words[6] = {};
  if (value->size() < 4 || value->size() > sizeof(words)) return base::Error(EINVAL);
  memcpy(words, value->data(), value->size());
  uint32_t revision = words[0] & VFS_CAP_REVISION_MASK;
  size_t sets = revision == VFS_CAP_REVISION_1 ? 1 : 2;
  size_t want = revision == VFS_CAP_REVISION_1   ? XATTR_CAPS_SZ_1
                : revision == VFS_CAP_REVISION_2 ? XATTR_CAPS_SZ_2
                : revision == VFS_CAP_REVISION_3 ? XATTR_CAPS_SZ_3
                                                 : 0;
  if (value->size() != want) return base::Error(EINVAL);
  // Revision 3 is for one user namespace: that whose root it names.
  if (revision == VFS_CAP_REVISION_3) {
    base::Result<uid_t> ns_root = creds.user_ns->MapUidIn(0);
    if (!ns_root.ok() || *ns_root != words[5]) return caps;
  }
  caps.present = true;
  caps.effective = words[0] & VFS_CAP_FLAGS_EFFECTIVE;
  for (size_t i = 0; i < sets; ++i) {
    caps.permitted |= uint64_t{words[1 + 2 * i]} << (32 * i);
    caps.inheritable |= uint64_t{words[2 + 2 * i]} << (32 * i);
  }
  caps.permitted &= kAllCaps;
  caps.inheritable &= kAllCaps;
  return caps;
}

}  // namespace

base::Result<base::Ref<Credentials>> CredentialsForExec(const Credentials& old, ExecUnsafe unsafe,
                                                        Vfs& vfs, const Path& path,
                                                        const InodeAttr& attr, bool* secure,
                                                        bool* id_changed) {
  base::Ref<Credentials> creds = old.Clone();
  Credentials& c = *creds;
  bool nosuid = path.mount && (path.mount->flags() & MS_NOSUID);
  if (!nosuid && !unsafe.no_new_privs && c.user_ns->HasUid(attr.uid) &&
      c.user_ns->HasGid(attr.gid)) {
    if (attr.mode & S_ISUID) c.euid = attr.uid;
    if ((attr.mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP)) c.egid = attr.gid;
  }
  FileCaps file;
  if (!nosuid) file = TRY(ReadFileCaps(vfs, path, old));
  bool effective = file.present && file.effective;
  c.permitted = 0;
  if (file.present) {
    c.permitted = (c.bounding & file.permitted) | (c.inheritable & file.inheritable);
    if (effective && (file.permitted & ~c.permitted) != 0) return base::Error(EPERM);
  }
  base::Result<uid_t> mapped_root = c.user_ns->MapUidIn(0);
  bool is_root = mapped_root.ok() && c.euid == *mapped_root;
  bool real_root = mapped_root.ok() && c.ruid == *mapped_root;
  if (!(c.securebits & SECBIT_NOROOT) && !(file.present && is_root && !real_root)) {
    if (is_root || real_root) c.permitted = c.bounding | c.inheritable;
    if (is_root) effective = true;
  }
  bool is_setid = c.euid != old.euid || c.egid != old.egid;
  bool gained = (c.permitted & ~old.permitted) != 0;
  if ((is_setid || gained) && (unsafe.no_new_privs || unsafe.weak_tracer)) {
    if (unsafe.no_new_privs || !old.HasCapIn(CAP_SETUID, *c.user_ns)) {
      c.euid = c.ruid;
      c.egid = c.rgid;
    }
    c.permitted &= old.permitted;
  }
  c.suid = c.fsuid = c.euid;
  c.sgid = c.fsgid = c.egid;
  if (file.present || is_setid) c.ambient = 0;
  c.permitted |= c.ambient;
  c.effective = effective ? c.permitted : c.ambient;
  c.securebits &= ~SECBIT_KEEP_CAPS;
  *secure = is_setid || (!real_root && (effective || (c.permitted & ~c.ambient) != 0));
  *id_changed = c.euid != old.euid || c.egid != old.egid;
  return creds;
}

namespace {

// What is left of the old program in a host process that another one gets.
void ClearMemory(const platform::AddressSpace& space, std::vector<platform::Order>& orders) {
  uint64_t begin = space.limits().min_address;
  for (auto [from, to] : space.ReservedRanges()) {
    orders.push_back(platform::order::Munmap{begin, from - begin});
    begin = to;
  }
  orders.push_back(platform::order::Munmap{begin, space.limits().max_address - begin});
  orders.push_back(platform::order::RestoreFpu{0});
}

// Whether who may trace the old program may read the new one's file too, without which Linux makes
// the new one undumpable (would_dump).
bool IsReadable(const InodeAttr& attr, const Credentials& creds) {
  constexpr uint32_t kAllRead = S_IRUSR | S_IRGRP | S_IROTH;
  return (attr.mode & kAllRead) == kAllRead ||
         (creds.fsuid == attr.uid && (attr.mode & S_IRUSR) != 0);
}

// An address space for the new program in the host process of the old one; null if it is to have a
// fresh one. What the old program may have done to its host process, the new one meets: so it has
// to be one that the old could trace, and be traced by.
std::unique_ptr<platform::AddressSpace> InPlace(MemoryManager& old_mm, const Credentials& old,
                                                const Credentials& creds,
                                                const loader::ExecImage& image) {
  const bool equal = IsSameSubject(creds, old) && old_mm.dumpable() == 1 &&
                     IsReadable(image.attr, creds) && loader::FitsOrders(image);
  auto* able = dynamic_cast<platform::ExecInPlace*>(&old_mm.address_space());
  return equal && able ? able->PrepareExec() : nullptr;
}

}  // namespace

bool IsSameSubject(const Credentials& a, const Credentials& b) {
  auto all = [](const Credentials& c) {
    return std::tie(c.ruid, c.euid, c.suid, c.fsuid, c.rgid, c.egid, c.sgid, c.fsgid, c.groups,
                    c.permitted, c.effective, c.inheritable, c.bounding, c.ambient);
  };
  return a.user_ns == b.user_ns && all(a) == all(b);
}

base::Result<LoadedProgram> LoadProgram(Kernel& kernel, loader::ExecImage& image,
                                        const Credentials& old, ExecUnsafe unsafe,
                                        uint32_t personality, const OrderRunner& limits, bool later,
                                        bool* begun, MemoryManager* place) {
  LoadedProgram p;
  p.creds = TRY(CredentialsForExec(old, unsafe, kernel.vfs(), image.file.file()->path(), image.attr,
                                   &p.set_id, &p.id_changed));
  std::unique_ptr<platform::AddressSpace> space;
  if (place) space = InPlace(*place, old, *p.creds, image);
  std::optional<ContextRunner> fresh;
  OrderBatch queue(limits);
  if (space) {
    p.mm = MemoryManager::NewOn(std::move(space));
  } else {
    p.mm = TRY(MemoryManager::New(kernel.platform()));
    if (unsafe.traced) p.mm->address_space().LeaveText();
    p.context = p.mm->address_space().TakeMainContext();
    if (!p.context) return base::Error(ENOMEM);
    fresh.emplace(*p.context, limits, later);
  }
  OrderRunner& runner = fresh ? static_cast<OrderRunner&>(*fresh) : queue;
  const UserNamespace& ns = *p.creds->user_ns;
  loader::LoadArgs args{.image = image,
                        .identity = {.uid = ns.MapUidOut(p.creds->ruid),
                                     .euid = ns.MapUidOut(p.creds->euid),
                                     .gid = ns.MapGidOut(p.creds->rgid),
                                     .egid = ns.MapGidOut(p.creds->egid),
                                     .secure = p.set_id},
                        .personality = personality,
                        .mm = *p.mm,
                        .runner = runner};
  TRY(p.mm->SetMdwe(unsafe.mdwe));
  *begun = true;
  base::Result<loader::LoadResult> loaded = loader::LoadExec(args);
  if (!loaded.ok()) {
    if (p.context) p.context->Exit();
    return loaded.error();
  }
  p.orders = fresh ? fresh->TakeQueued() : std::move(queue.orders());
  p.regs.rip = loaded->rip;
  p.regs.rsp = loaded->rsp;
  p.regs.eflags = 0x202;
  p.regs.orig_rax = ~uint64_t{0};
  if (p.context) p.context->regs() = p.regs;
  p.comm = image.comm;
  return p;
}

// --- execve ---

base::Status Task::KillOtherThreads() {
  {
    absl::MutexLock l(&group_->signal_mutex());
    if (group_->exiting() || must_die_.load(std::memory_order_acquire) || group_->exec_task_) {
      return base::Error(EAGAIN);
    }
    if (group_->live_left_ == 1 && group_->live_threads_.load() == 1) return base::Ok();
    group_->exec_task_ = this;
    for (const auto& t : group_->tasks_) {
      if (t.get() == this || t->dead_) continue;
      t->must_die_.store(true, std::memory_order_release);
      t->KickFatal();
    }
    group_->continue_queue_.WakeAll(EPOLLIN);
  }
  fiber::WaitUntil(group_->thread_queue_, EPOLLIN, [this] {
    return group_->live_threads_.load(std::memory_order_acquire) == 1 || group_->exiting();
  });
  absl::MutexLock l(&group_->signal_mutex());
  group_->exec_task_ = nullptr;
  return group_->exiting() ? base::Status(base::Error(EAGAIN)) : base::Ok();
}

// The only thread left takes the identity of the process.
void Task::BecomeLeader() {
  if (is_leader()) return;
  Deferred later;
  absl::MutexLock l(&kernel_->task_mutex());
  // The old leader goes without a word; who waits for it has to look again.
  if (Task* tracer =
          group_->tasks_.front()->traced() ? group_->tasks_.front()->tracee_->tracer : nullptr) {
    Ptrace::Unlink(*group_->tasks_.front(), -1, &later);
    tracer->group_->child_queue_.WakeAll(EPOLLIN);
  }
  absl::MutexLock l2(&group_->signal_mutex());
  base::Ref<Pid> group_pid = group_->pid();
  pid_->task = nullptr;
  {
    absl::MutexLock l3(&mutex_);
    pid_ = group_pid;
  }
  pid_->task = this;
  std::vector<base::Ref<Task>>& tasks = group_->tasks_;
  for (base::Ref<Task>& t : tasks) {
    if (t.get() == this) continue;
    t->state_.store(TaskState::kDead, std::memory_order_relaxed);
    later.tasks.push_back(t);
  }
  std::erase_if(tasks, [this](const auto& t) { return t.get() != this; });
}

// Leaves the old memory for the new, and takes the new identity.
void Task::Adopt(LoadedProgram program) {
  const bool moves = program.context == nullptr;
  std::vector<platform::Order> orders;
  if (moves) {
    NoteResident();
    WalkRobustList();
    if (const Rseq& rseq = words().rseq; rseq.addr != 0) {
      orders.push_back(
          platform::order::Rseq{rseq.addr, rseq.length, kRseqUnregister, rseq.signature});
    }
    words() = {};
    aio.reset();
    CompleteVfork();
    PiFutexes::Get().OwnerExits(*this);
  } else {
    ReleaseMemory(true);
    program.context->set_listener(this);
  }
  queued_orders_.clear();
  queued_groups_.clear();
  Keys::Get().OnExec(*this);
  base::Ref<MemoryManager> old_mm;
  {
    absl::MutexLock l(&group_->signal_mutex());
    absl::MutexLock l2(&mutex_);
    if (moves) {
      CloseMaskLocked();
      group_->handlers_->Close();
    } else {
      context_ = std::move(program.context);
      gone_ = false;
    }
    old_mm = std::exchange(mm_, std::move(program.mm));
    mm_users_ = base::MakeRef<MmUsers>();
    aio = base::MakeRef<SharedPart>();
    comm_ = program.comm;
  }
  if (old_mm != nullptr) old_mm->UnbindLanes();
  has_fd_places_ = told_fd_places_ = false;
  if (moves) {
    context_->SetLaneOwner(0);
    context_->SetFdPlaces(0);
    context_->SetPathPlace(0);
    dynamic_cast<platform::ExecInPlace&>(mm_->address_space()).TakeThread(*context_);
    ClearMemory(mm_->address_space(), orders);
    context_->regs() = program.regs;
  }
  orders.insert(orders.end(), std::make_move_iterator(program.orders.begin()),
                std::make_move_iterator(program.orders.end()));
  if (!orders.empty()) {
    QueueOrders(std::move(orders), [this](int error) {
      LOG_INFO("[%d] %s cannot be loaded: %s", Tid(), comm().c_str(), strerror(error));
      group_->BeginExit(SIGSEGV);
      return int64_t{0};
    });
  }
  restart_block_ = nullptr;
  alt_stack_ = AltStack{};
  SetCredentials(std::move(program.creds));
}

base::Result<uint64_t> Task::Exec(int dirfd, const std::string& path, int flags, uint64_t argv,
                                  uint64_t envp) {
  Vfs& vfs = kernel_->vfs();
  WalkContext start = TRY(Walk(dirfd, path));
  loader::Executable file =
      TRY(loader::OpenExecutable(vfs, start, path,
                                 {.follow_last = !(flags & AT_SYMLINK_NOFOLLOW),
                                  .allow_empty = (flags & AT_EMPTY_PATH) != 0}));
  // Linux looks at the arguments when the file is open (alloc_bprm comes first, since 6.9).
  loader::ExecArgs args(Rlimit(RLIMIT_STACK));
  TRY(args.CopyIn(memory(), argv, envp));
  std::string filename = path;
  bool inaccessible = false;
  if (!path.starts_with('/') && dirfd != AT_FDCWD) {
    filename =
        path.empty() ? fmt::format("/dev/fd/{}", dirfd) : fmt::format("/dev/fd/{}/{}", dirfd, path);
    fd_table().Get(dirfd, &inaccessible);
  }
  loader::ExecImage image = TRY(loader::PrepareExec(vfs, WalkFromCwd(), std::move(file), filename,
                                                    std::move(args), inaccessible));
  // Handlers of its own, of which none is the old program's.
  const auto reset_handlers = [this] {
    if (group_->handlers_->ref_count() > 1) {
      base::Ref<SignalHandlers> own = group_->handlers_->Fork();
      absl::MutexLock l(&group_->signal_mutex());
      group_->handlers_ = std::move(own);
    }
    group_->handlers_->ResetForExec();
  };
  // Alone in its host process, which the new program may have then.
  const bool alone_here = mm_users_->tasks.load(std::memory_order_acquire) == 1 && is_leader() &&
                          group_->thread_count() == 1 && !traced();
  bool begun = false;
  base::Result<LoadedProgram> loaded =
      LoadProgram(*kernel_, image, *creds_,
                  {.no_new_privs = no_new_privs.load(),
                   .traced = traced(),
                   .weak_tracer = Ptrace::TracerIsWeak(*this, *creds_->user_ns),
                   .mdwe = InheritedMdwe(mm_->mdwe())},
                  personality.load(), *this,
                  /*later=*/true, &begun, alone_here ? mm_.get() : nullptr);
  if (!loaded.ok()) {
    if (begun) {  // bprm_execve's force_fatal_sig
      reset_handlers();
      siginfo_t info{};
      info.si_signo = SIGSEGV;
      info.si_code = SI_KERNEL;
      ForceSignal(info);
    }
    return loaded.error();
  }
  LoadedProgram program = *std::move(loaded);
  base::Status alone = KillOtherThreads();
  if (!alone.ok()) {
    if (program.context) program.context->Exit();
    return alone.error();
  }
  const uint64_t old_tid = traced() ? Ptrace::TidForTracer(*this) : 0;
  const uint64_t call = regs().orig_rax;
  BecomeLeader();
  bool id_changed = program.id_changed, secure = program.set_id;
  Adopt(std::move(program));

  reset_handlers();
  group_->timers_->DeleteAll();
  if (fds_->ref_count() > 1) {
    SetFdTable(fds_->Fork());
  } else {
    fds_->LeavePlaces();  // those of the old memory, which others may still have
  }
  for (base::Ref<FileDescription>& closed : fds_->RemoveCloexec()) {
    (void)fds_->Finish(closed).ok();  // errors of close(2) have nobody to go to
  }
  if (id_changed) personality.fetch_and(~0x7040000u);  // PER_CLEAR_ON_SETID
  if (id_changed || secure) pdeath_signal = 0;
  mm_->SetDumpable(id_changed ? 0 : 1);
  group_->did_exec = true;
  {
    absl::MutexLock l(&kernel_->task_mutex());
    if (group_->parent_) group_->exit_signal_ = SIGCHLD;
  }
  if (traced()) {
    regs().orig_rax = call;
    Ptrace::ExecEvent(*this, old_tid);
  }
  return 0;
}

}  // namespace sentry
