#include "sentry/kernel/ipc/shm.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/mman.h>

#include <algorithm>

#include "sentry/kernel/task.h"
#include "sentry/mm/shared_memory.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint32_t kWriteAccess = 0222;

}  // namespace

// One shmat(2).
class ShmFile : public FileDescription {
 public:
  ShmFile(Path path, uint32_t flags, base::Ref<IpcState> state, base::Ref<ShmSegment> segment)
      : FileDescription(std::move(path), flags),
        state_(std::move(state)),
        segment_(std::move(segment)) {}

  ShmSegment& segment() const { return *segment_; }
  IpcState& state() const { return *state_; }
  Result<HostMapping> Mmap(uint64_t offset, uint64_t, int, bool) override {
    return HostMapping{segment_->memory, offset};
  }
  Result<InodeAttr> GetAttr() override {
    InodeAttr attr = TRY(inode()->GetAttr());
    attr.size = segment_->size;
    return attr;
  }
  bool CanPoll() const override { return false; }
  // Under the mutex of the tables.
  void Stamp() {
    segment_->dtime = IpcNow();
    if (Task* t = Task::Current()) segment_->last = t->thread_group().pid();
  }

 private:
  ~ShmFile() override {
    base::Ref<ShmSegment> keep = segment_;
    absl::MutexLock l(&state_->mutex);
    std::erase(segment_->attached, this);
    Stamp();
    DestroyIfUnused(*state_, *segment_);
  }

 public:
  // The last attachment of a segment that was removed takes it along.
  static void DestroyIfUnused(IpcState& state, ShmSegment& segment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mutex) {
    bool doomed = (segment.perm.mode & SHM_DEST) || state.limits.shm_rmid_forced != 0;
    if (segment.removed || !segment.attached.empty() || !doomed) return;
    segment.removed = true;
    state.shm_pages -= segment.pages();
    state.shm.Remove(segment);
  }

 private:
  const base::Ref<IpcState> state_;
  const base::Ref<ShmSegment> segment_;
};

ShmSegment::ShmSegment(IpcPerm perm, uint64_t size, base::Ref<base::HostFd> memory,
                       base::Ref<Inode> inode)
    : perm(perm), size(size), memory(std::move(memory)), inode(std::move(inode)) {}

uint64_t ShmSegment::AttachCount() const {
  uint64_t count = 0;
  for (const ShmFile* file : attached) count += file->ref_count();
  return count;
}

namespace {

shmid_ds Show(const ShmSegment& segment, const UserNamespace& ns) {
  shmid_ds ds{};
  UserIpcPerm perm = ShowIpcPerm(segment.perm, ns);
  static_assert(sizeof(perm) == sizeof(ds.shm_perm));
  memcpy(&ds.shm_perm, &perm, sizeof(perm));
  ds.shm_segsz = segment.size;
  ds.shm_atime = segment.atime;
  ds.shm_dtime = segment.dtime;
  ds.shm_ctime = segment.ctime;
  ds.shm_cpid = ShownPid(segment.creator);
  ds.shm_lpid = ShownPid(segment.last);
  ds.shm_nattch = segment.AttachCount();
  return ds;
}

Result<base::Ref<ShmSegment>> NewSegment(Vfs& vfs, const IpcCaller& caller, key_t key,
                                         uint64_t size, int flags) {
  IpcState& state = *caller.state;
  state.mutex.AssertHeld();
  const IpcLimits& limits = state.limits;
  if (size < 1 || size > limits.shm_max) return Error(EINVAL);
  const uint64_t pages = size / kPage + (size % kPage != 0);
  if (pages * kPage < size) return Error(ENOSPC);
  if (state.shm_pages + pages < pages || state.shm_pages + pages > limits.shm_all) {
    return Error(ENOSPC);
  }
  if (state.shm.count() >= limits.shm_count) return Error(ENOSPC);
  if (flags & SHM_HUGETLB) return Error(ENOMEM);  // as a machine that has reserved none
  SharedMemory memory = TRY(NewSharedMemory(pages * kPage));
  auto inode = base::MakeRef<AnonInode>(vfs.anonymous_filesystem().get(),
                                        S_IFREG | (static_cast<uint32_t>(flags) & 0777),
                                        caller.creds.fsuid, caller.creds.fsgid);
  auto segment = base::MakeRef<ShmSegment>(caller.NewPerm(key, flags), size, std::move(memory.file),
                                           std::move(inode));
  segment->ctime = IpcNow();
  segment->creator = caller.pid;
  TRY(state.shm.Add(segment, limits.shm_count));
  state.shm_pages += pages;
  return segment;
}

}  // namespace

Result<uint64_t> GetShm(Vfs& vfs, const IpcCaller& caller, key_t key, uint64_t size, int flags) {
  absl::MutexLock l(&caller.state->mutex);
  return GetIpcObject(
      caller, caller.state->shm, key, flags,
      [size](const ShmSegment& found) -> Status {
        return found.size < size ? Status(Error(EINVAL)) : base::Ok();
      },
      [&]() -> Result<uint64_t> {
        return static_cast<uint64_t>(TRY(NewSegment(vfs, caller, key, size, flags))->perm.id);
      });
}

Result<base::Ref<FileDescription>> OpenShm(Vfs& vfs, const IpcCaller& caller, int id,
                                           uint32_t access) {
  base::Ref<ShmSegment> segment;
  key_t key;
  {
    absl::MutexLock l(&caller.state->mutex);
    segment = TRY(caller.state->shm.Find(id));
    TRY(caller.MayAccess(segment->perm, access));
    key = segment->perm.key;
  }
  Path path = vfs.AnonymousPath(segment->inode,
                                fmt::format("/SYSV{:08x} (deleted)", static_cast<uint32_t>(key)));
  auto file = base::MakeRef<ShmFile>(std::move(path), (access & kWriteAccess) ? O_RDWR : O_RDONLY,
                                     caller.state, segment);
  absl::MutexLock l(&caller.state->mutex);
  if (segment->removed) return Error(EIDRM);
  segment->attached.push_back(file.get());
  segment->atime = IpcNow();
  segment->last = caller.pid;
  return base::Ref<FileDescription>(std::move(file));
}

uint64_t ShmSizeOf(const FileDescription& file) {
  const auto* shm = dynamic_cast<const ShmFile*>(&file);
  return shm == nullptr ? 0 : shm->segment().size;
}

void NoteShmDetach(FileDescription& file) {
  auto* shm = dynamic_cast<ShmFile*>(&file);
  if (shm == nullptr) return;
  absl::MutexLock l(&shm->state().mutex);
  shm->Stamp();
}

Result<IpcStatResult<shmid_ds>> StatShm(const IpcCaller& caller, int id, IpcStat how) {
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<ShmSegment> found = TRY(FindForStat(caller, caller.state->shm, id, how));
  return IpcStatResult<shmid_ds>{how == IpcStat::kById ? 0 : static_cast<uint64_t>(found->perm.id),
                                 Show(*found, *caller.creds.user_ns)};
}

Status SetShm(const IpcCaller& caller, int id, const UserIpcPerm& perm) {
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<ShmSegment> segment = TRY(caller.state->shm.Find(id));
  TRY(caller.MayChange(segment->perm));
  TRY(SetIpcPerm(perm, *caller.creds.user_ns, &segment->perm));
  segment->ctime = IpcNow();
  return base::Ok();
}

Status RemoveShm(const IpcCaller& caller, int id) {
  base::Ref<ShmSegment> segment;
  absl::MutexLock l(&caller.state->mutex);
  segment = TRY(caller.state->shm.Find(id));
  TRY(caller.MayChange(segment->perm));
  // From now on it is found by its id alone, by those who know it.
  caller.state->shm.ForgetKey(*segment);
  segment->perm.mode |= SHM_DEST;
  ShmFile::DestroyIfUnused(*caller.state, *segment);
  return base::Ok();
}

Status LockShm(const IpcCaller& caller, int id, bool lock, uint64_t limit) {
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<ShmSegment> segment = TRY(caller.state->shm.Find(id));
  if (!caller.creds.HasCapIn(CAP_IPC_LOCK, caller.user_ns())) {
    if (caller.creds.euid != segment->perm.uid && caller.creds.euid != segment->perm.cuid) {
      return Error(EPERM);
    }
    if (lock && limit == 0) return Error(EPERM);
  }
  if (lock) {
    segment->perm.mode |= SHM_LOCKED;
  } else {
    segment->perm.mode &= ~static_cast<uint32_t>(SHM_LOCKED);
  }
  return base::Ok();
}

int ShmInfo(const IpcCaller& caller, shminfo* info) {
  const IpcLimits& limits = caller.state->limits;
  *info = {};
  info->shmmax = limits.shm_max;
  info->shmmin = 1;
  info->shmmni = info->shmseg = static_cast<uint64_t>(limits.shm_count.load());
  info->shmall = limits.shm_all;
  absl::MutexLock l(&caller.state->mutex);
  return caller.state->shm.max_index();
}

int ShmUsage(const IpcCaller& caller, shm_info* info) {
  absl::MutexLock l(&caller.state->mutex);
  *info = {};
  info->used_ids = caller.state->shm.count();
  info->shm_tot = info->shm_rss = caller.state->shm_pages;
  return caller.state->shm.max_index();
}

std::string ShmListing(IpcNamespace& ns) {
  std::string s =
      "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid"
      "      atime      dtime      ctime                   rss                  swap\n";
  base::Ref<IpcState> state = IpcState::Of(ns);
  Task* reader = Task::Current();
  if (reader == nullptr) return s;
  const UserNamespace& user_ns = reader->user_ns();
  absl::MutexLock l(&state->mutex);
  for (const auto& [index, segment] : state->shm.objects()) {
    UserIpcPerm perm = ShowIpcPerm(segment->perm, user_ns);
    s += fmt::format(
        "{:10} {:10}  {:4o} {:21} {:5} {:5}  {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10} {:21} "
        "{:21}\n",
        perm.key, segment->perm.id, perm.mode, segment->size, ShownPid(segment->creator),
        ShownPid(segment->last), segment->AttachCount(), perm.uid, perm.gid, perm.cuid, perm.cgid,
        segment->atime, segment->dtime, segment->ctime, segment->pages() * kPage, 0);
  }
  return s;
}

}  // namespace sentry
