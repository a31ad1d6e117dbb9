// Which tasks have stream lanes (sentry/lanes), and look paths up without the sentry.
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sys/resource.h>

#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "platform/file_lane.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/lanes/domain.h"
#include "sentry/vfs/lanes/lane_ends.h"
#include "sentry/vfs/lanes/lane_partner.h"
#include "sentry/vfs/lanes/path_outcome.h"
#include "sentry/vfs/notify.h"

namespace sentry {
namespace {

using platform::PathQuery;

// Who looks up little does not need the table: so many look-ups before it is asked for, and before
// a stub that does not have it yet maps it.
constexpr uint32_t kAsksBeforeTable = 4, kAsksBeforeMap = 12;
constexpr uint32_t kOpensBeforeLook = 8;

bool BeginsIn(const WalkContext& ctx, const PathTable& table) {
  return ctx.root.dentry == ctx.root.mount->root() && ctx.root.mount->id() == table.root_mount();
}

// Has fstat(2) of descriptor `fd` answered for the threads at that place of `table`.
void EnterAttr(Task& t, PathTable& table, uint64_t path_place, int fd, FileDescription& file) {
  auto* attrs = dynamic_cast<platform::FdAttrs*>(&t.mm().address_space());
  if (attrs == nullptr) return;
  platform::FdAttr attr{};
  attr.place = FsContext::NumberOf(file.path());
  attr.path_place = path_place;
  if (FindFdAttr(table, t.creds(), file, &attr)) attrs->SetAttrOfFd(fd, attr);
}

// Whether processes of the domain may use lanes of others.
bool MayBecomeOthers(const std::string& domain) {
  const std::optional<LaneRights> rights = LaneRights::FromName(domain);
  return rights && rights->MayBecome(*rights);
}

// The arena in whose lanes the partner's streams are, if it is one of a domain that processes of
// `domain` may become members of.
base::Ref<LaneArena> ArenaOfLesser(const std::string& domain, LanePartner& partner) {
  const std::optional<LaneRights> rights = LaneRights::FromName(domain);
  if (!rights || !MayBecomeOthers(domain)) return nullptr;
  for (auto& [name, arena] : LaneArenas()) {
    const std::optional<LaneRights> theirs = LaneRights::FromName(name);
    if (theirs && rights->MayBecome(*theirs) && partner.IsInLanesOf(*arena)) return arena;
  }
  return nullptr;
}

bool HasLane(const LaneArena& arena, uint64_t name) {
  const uint32_t index = platform::LaneIndex(name);
  return index < platform::kLanes && arena.NameOf(index) == name;
}

// Nothing that it watches can ask for lanes of another domain.
bool WatchesNoPartners(FileDescription& file) {
  auto* observer = dynamic_cast<LaneObserver*>(&file);
  return observer != nullptr && !observer->WatchesPartners();
}

// Some of its first `count` descriptors lead to lanes.
bool LeadsSomewhere(const LaneBinding& binding, size_t count) {
  for (size_t fd = 0; fd < count; ++fd) {
    if (binding.NameOf(static_cast<int>(fd)) != 0) return true;
  }
  return false;
}

}  // namespace

// Tasks of one domain may trace one another, whoever of them begins (Linux: ptrace_may_access):
// they have the same ids, capabilities and namespaces, and are dumpable. One container has one
// mount namespace at least. Empty: the task is in none.
std::string Task::LaneDomain() const {
  if (syscall_work() != 0 || seccomp_mode() != SECCOMP_MODE_DISABLED || mm_->dumpable() != 1) {
    return "";
  }
  const Credentials& c = *creds_;
  if (c.ruid != c.euid || c.ruid != c.suid || c.rgid != c.egid || c.rgid != c.sgid) return "";
  return LaneRights{.uid = c.ruid,
                    .gid = c.rgid,
                    .permitted = c.permitted,
                    .effective = c.effective,
                    .inheritable = c.inheritable,
                    .user_ns = reinterpret_cast<uintptr_t>(c.user_ns.get()),
                    .pid_ns = reinterpret_cast<uintptr_t>(pid_ns_.get()),
                    .mount_ns = reinterpret_cast<uintptr_t>(mount_ns_.get())}
      .Name();
}

base::Ref<LaneBinding> Task::FindLanes() {
  if (syscall_work() != 0 || seccomp_mode() != SECCOMP_MODE_DISABLED ||
      kernel_->strace.load(std::memory_order_relaxed)) {
    return nullptr;
  }
  // Lanes are given up with what makes the domain, but for the thread's own ids.
  if (HasLanes()) {
    if (base::Ref<LaneBinding> binding = mm_->lanes()) return binding;
  }
  const std::string domain = LaneDomain();
  if (domain.empty()) return nullptr;
  base::Ref<LaneBinding> binding = mm_->BindLanes(domain);
  if (binding != nullptr) lane_creds_ = creds_;
  return binding;
}

void Task::PassLanes(Task& child) {
  if (child.mm_ != mm_ || child.fds_ != fds_ || child.creds_ != creds_ || !HasLanes()) return;
  base::Ref<LaneBinding> binding = FindLanes();
  if (binding == nullptr || binding->table().get() != fds_.get()) return;
  child.lane_creds_ = lane_creds_;
  child.context_->SetLaneOwner(mm_->lane_owner());
}

void Task::ConsiderLanes(int fd, FileDescription& file) {
  base::Ref<LaneBinding> binding = FindLanes();
  if (binding == nullptr) return;
  const std::string own = LaneDomain();
  auto* partner = dynamic_cast<LanePartner*>(&file);
  if (partner != nullptr && !partner->IsInLanesOf(binding->arena())) {
    if (base::Ref<LaneArena> there = ArenaOfLesser(own, *partner)) {
      if (LeadsSomewhere(*binding, fds_->size())) return;
      mm_->DropLanes();
      binding = mm_->BindLanes(DomainOf(*there));
      if (binding == nullptr || &binding->arena() != there.get()) return;
      lane_creds_ = creds_;
    } else if (!partner->MeetsEqual(LanePartner::NumberOf(*creds_)) && MayBecomeOthers(own)) {
      return;  // who has the other end may be a lesser, in whose lanes the stream is to be
    }
  }
  LaneArena& arena = binding->arena();
  const bool guest = DomainOf(arena) != own;
  if (file.HasFewCalls() && !arena.HasPlenty()) return;
  platform::AddressSpace& space = mm_->address_space();
  if (!space.MapLanes(arena.file()))
    return space.DropLanes();  // those of the process it comes from
  if (!space.HasLanes(arena.file())) return;
  // An epoll instance without streams to watch would only keep the process in its own lanes.
  if (partner == nullptr && binding->table().get() == fds_.get() &&
      (LeadsSomewhere(*binding, fds_->size()) || WatchesNoPartners(file)) &&
      file.BindWatches(fd, binding)) {
    return context_->SetLaneOwner(mm_->lane_owner());
  }
  // What a guest has of its own stays its own.
  if (guest && (partner == nullptr || !partner->IsInLanesOf(arena))) return;
  const FileDescription::LaneNames lanes = file.EnterLanes(arena);
  if (lanes.in == 0 && lanes.out == 0) return;
  LaneEnds::Tell(file);
  if (fds_->SetLanes(fd, &file, binding, lanes.in, lanes.out)) {
    context_->SetLaneOwner(mm_->lane_owner());
  }
}

void Task::LendFile(int fd, FileDescription& file) {
  if (fd < 0 || static_cast<uint32_t>(fd) >= platform::kFileLanes || AnyWatches()) return;
  base::Ref<LaneBinding> binding = FindLanes();
  if (binding == nullptr) return;
  if (file.LendTo(*fds_, fd, binding, /*begin=*/false)) {
    context_->SetLaneOwner(mm_->lane_owner());
  }
}

void Task::LendBegin(int fd, FileDescription& file) {
  if (!file.may_be_lent() || file.writable() || file.is_path() ||
      static_cast<uint32_t>(fd) >= platform::kFileLanes || AnyWatches()) {
    return;
  }
  base::Ref<LaneBinding> binding = FindLanes();
  if (binding == nullptr || !binding->WantsBegin()) return;
  if (file.LendTo(*fds_, fd, binding, /*begin=*/true)) context_->SetLaneOwner(mm_->lane_owner());
}

base::Ref<FileDescription> Task::FileOf(int fd) {
  base::Ref<FileDescription> file = fds_->Get(fd);
  // Who closes a descriptor keeps its file first.
  if (!has_kept_file_.load(std::memory_order_acquire)) [[likely]]
    return file;
  absl::MutexLock l(&mutex_);
  return kept_file_ != nullptr && kept_fd_ == fd ? kept_file_ : file;
}

void Task::KeepForLaneWaits(int fd, const base::Ref<FileDescription>& file) {
  Task* current = Current();
  if (current == nullptr || file == nullptr || current->group_->thread_count() == 1) return;
  absl::MutexLock l(&current->group_->signal_mutex());
  for (const base::Ref<Task>& t : current->group_->tasks_) {
    if (t.get() == current || !t->context_ || t->context_->LaneWaitFd() != fd) continue;
    {
      absl::MutexLock l2(&t->mutex_);
      if (t->kept_file_ != nullptr) continue;  // it goes on with that
      t->kept_fd_ = fd;
      t->kept_file_ = file;
    }
    t->has_kept_file_.store(true, std::memory_order_seq_cst);
    if (t->in_guest_.load(std::memory_order_seq_cst)) t->context_->Interrupt();
  }
}

void Task::DropKeptFile() {
  base::Ref<FileDescription> file;
  absl::MutexLock l(&mutex_);
  has_kept_file_.store(false, std::memory_order_relaxed);
  std::swap(file, kept_file_);
}

void Task::FinishLaneCall() {
  const platform::Trap& trap = context_->trap();
  const uint64_t name = trap.lane_name;
  const bool wrote = trap.lane_wrote;
  const int64_t result = trap.lane_result;
  restart_code_ = 0;
  copy_out_failed_ = false;
  rax_kept_ = false;
  context_->SetResult(static_cast<uint64_t>(result));
  const base::Ref<LaneBinding> binding = mm_->lanes();
  if (binding != nullptr && HasLane(binding->arena(), name))
    return binding->arena().Tell(name, wrote);
  // Another thread has given up the lanes, or joined others, since this one has used its own: no
  // two lanes have the same name.
  for (auto& [domain, arena] : LaneArenas()) arena->Tell(name, wrote);
}

// All that decides what a walk finds, its beginning and the tree aside. Empty: the task is in no
// domain, and each of its look-ups is the sentry's.
std::string Task::PathDomain(int root_mount) const {
  const Credentials& c = *creds_;
  if (c.ruid != c.euid || c.ruid != c.suid || c.ruid != c.fsuid) return "";
  if (c.rgid != c.egid || c.rgid != c.sgid || c.rgid != c.fsgid) return "";
  if (!c.user_ns) return "";
  // Until ids are mapped, they will be shown in another way some day.
  if (c.user_ns->parent() && (c.user_ns->uid_map().empty() || c.user_ns->gid_map().empty())) {
    return "";
  }
  return fmt::format("{} {} {:x} {:x} {:x} {} {} {} {}", c.ruid, c.rgid, c.permitted, c.effective,
                     c.securebits, fmt::ptr(c.user_ns.get()), mount_ns_->id(), root_mount,
                     fmt::join(c.groups, ","));
}

PathTable* Task::PathsNow() {
  if (paths_ && paths_creds_ == creds_ && paths_namespace_ == mount_ns_->id()) return paths_.get();
  paths_ = nullptr;
  const Path root = fs_->root();
  const std::string domain = PathDomain(root.mount->id());
  if (domain.empty()) return nullptr;
  auto table = PathTable::OfDomain(domain, root.mount->id(), creds_->user_ns);
  if (!table.ok()) {
    path_asks_ = 0;  // later, perhaps
    return nullptr;
  }
  paths_ = *std::move(table);
  paths_creds_ = creds_;
  paths_namespace_ = mount_ns_->id();
  return paths_.get();
}

void Task::LeavePaths() {
  if (context_) context_->SetPathPlace(0);
  paths_ = nullptr;
  if (mm_) mm_->DropPaths();
}

void Task::HandOffLookUps() {
  absl::MutexLock l(&group_->signal_mutex());
  if (context_) context_->SetPathPlace(0);
}

PathTable* Task::JoinPaths(FsContext::Place* place) {
  platform::AddressSpace& space = mm_->address_space();
  if (path_asks_ < kAsksBeforeMap) path_asks_++;
  if (path_asks_ < kAsksBeforeTable || !space.MayMapPaths()) return nullptr;
  if (syscall_work() != 0 || seccomp_mode() != SECCOMP_MODE_DISABLED ||
      kernel_->strace.load(std::memory_order_relaxed)) {
    return nullptr;
  }
  PathTable* table = PathsNow();
  if (table == nullptr) return nullptr;
  *place = fs_->EnterPaths(*table);
  if (place->name == 0) return nullptr;
  if (space.HasPaths(table->file())) {
    // open(2) without room for descriptors fails before it looks anything up.
    if (Rlimit(RLIMIT_NOFILE) != 0) context_->SetPathPlace(place->name);
  } else if (path_asks_ >= kAsksBeforeMap) {
    space.MapPaths(table->file());
  }
  return table;
}

void Task::SetFdPlace(int fd, FileDescription& file) {
  const base::Ref<FdPlaces>& places = mm_->fd_places();
  const bool has = fds_->SetPlace(fd, &file, places, FsContext::NumberOf(file.path()));
  if (!has) return;
  has_fd_places_ = true;
  TellFdPlaces();
}

void Task::TellFdPlaces() {
  if (!std::exchange(told_fd_places_, true)) context_->SetFdPlaces(mm_->fd_places()->owner());
}

void Task::LendClose(int fd, const FileDescription& file) {
  if (!file.closes_unseen() || static_cast<uint32_t>(fd) >= platform::kCloseFds || AnyWatches() ||
      syscall_work() != 0 || seccomp_mode() != SECCOMP_MODE_DISABLED) {
    return;
  }
  if (fds_->LendClose(fd, file, mm_->fd_places())) TellFdPlaces();
}

void Task::ConsiderPath(int dirfd, std::string_view path, bool follows) {
  if (path.empty() || path.size() > platform::kPathMost) return;
  FsContext::Place place;
  PathTable* table = JoinPaths(&place);
  if (table == nullptr) return;
  uint64_t directory = place.directory;
  if (path.front() == '/') {
    directory = platform::kPathAtRoot;
  } else if (dirfd != AT_FDCWD) {
    const base::Ref<FileDescription> file = fds_->Get(dirfd);
    if (!file || !file->path().mount) return;
    SetFdPlace(dirfd, *file);
    directory = FsContext::NumberOf(file->path());
  }
  uint64_t text[platform::kPathBuffer / 8] = {};
  memcpy(text, path.data(), path.size());
  PathQuery query{0, directory, text, static_cast<uint32_t>(path.size()), follows};
  query.hash = platform::HashPath(query.directory, follows, text, query.length);
  if (!table->Asked(query.hash)) return;
  base::Result<WalkContext> ctx = Walk(dirfd, path);
  // Another thread may have changed them meanwhile.
  if (!ctx.ok() || !BeginsIn(*ctx, *table)) return;
  if (directory != platform::kPathAtRoot && FsContext::NumberOf(ctx->start) != directory) return;
  PathOutcome outcome(*table, kernel_->vfs(), *ctx, path, follows);
  const bool found = outcome.Find();
  if (found) table->Publish(query, outcome.entry(), outcome.link());
  table->Tried(query.hash, found);
}

void Task::ConsiderFile(int fd, FileDescription& file) {
  FsContext::Place place;
  PathTable* table = file.path().mount ? JoinPaths(&place) : nullptr;
  if (table == nullptr) return;
  attrs_at_open_ = true;
  SetFdPlace(fd, file);
  EnterAttr(*this, *table, place.name, fd, file);
}

// Programs that ask for attributes of open files do so for most that they open to read; whether it
// goes on like that is looked at now and then.
void Task::ConsiderOpened(int fd, FileDescription& file) {
  LendClose(fd, file);
  LendBegin(fd, file);
  if (!has_fd_places_ || !file.path().mount) return;
  PathTable* table = nullptr;
  if (attrs_at_open_ && !file.is_path() && !file.writable()) {
    auto* attrs = dynamic_cast<platform::FdAttrs*>(&mm_->address_space());
    attrs_at_open_ =
        attrs != nullptr && (++attr_opens_ % kOpensBeforeLook != 0 || attrs->UsedAttrOfFd(fd));
    if (attrs_at_open_) table = PathsNow();
  }
  if (table == nullptr && !file.inode()->IsDir()) return;
  SetFdPlace(fd, file);
  const FsContext::Place place = table != nullptr ? fs_->EnterPaths(*table) : FsContext::Place{};
  if (place.name != 0) EnterAttr(*this, *table, place.name, fd, file);
}

}  // namespace sentry
