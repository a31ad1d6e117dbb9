// fsopen, fsconfig, fsmount, fspick (Linux: fs/fsopen.c, fs/fs_context.c).
#include <deque>

#include "sentry/fiber/mutex.h"
#include "sentry/fs/anon/anon.h"
#include "sentry/syscalls/mount/mount_util.h"
#include "sentry/vfs/mount_locks.h"

#ifndef FSOPEN_CLOEXEC
#define FSOPEN_CLOEXEC 1
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr int kCreateExclusive = 8;  // FSCONFIG_CMD_CREATE_EXCL
constexpr size_t kMaxText = 256, kMaxBinary = 1 << 20, kMaxLog = 8;

// A parameter as it is to be understood.
struct Parameter {
  std::string key, value;
  int type;  // FSCONFIG_SET_*
};

// A filesystem that is being configured: a new one, or one that is mounted (struct fs_context).
class MountConfig : public AnonFile {
 public:
  MountConfig(Vfs& vfs, FilesystemType& type, base::Ref<const Credentials> creds)
      : AnonFile(vfs, "[fscontext]", O_RDWR),
        vfs_(vfs),
        type_(&type),
        name_(type.name()),
        creds_(std::move(creds)) {}
  MountConfig(Vfs& vfs, Filesystem& mounted, base::Ref<const Credentials> creds)
      : AnonFile(vfs, "[fscontext]", O_RDWR),
        vfs_(vfs),
        type_(vfs.FindFilesystem(mounted.type_name())),
        name_(mounted.type_name()),
        creds_(std::move(creds)),
        phase_(Phase::kReconfigure),
        fs_(base::Ref<Filesystem>(&mounted)) {}

  // One message of the log. ENODATA.
  Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Status Set(const Parameter& parameter);
  base::Status Create(bool exclusive);
  base::Status Reconfigure();
  // What Create made, once, with `flags` of its mount.
  Result<base::Ref<Mount>> TakeMount(uint64_t flags);
  bool CanPoll() const override { return false; }

 private:
  enum class Phase { kCreate, kAwaitMount, kReconfigure, kFailed };

  ~MountConfig() override = default;
  base::Status Refuse(const std::string& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Options() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Vfs& vfs_;
  FilesystemType* const type_;  // null: one that nobody can make
  const std::string name_;
  const base::Ref<const Credentials> creds_;
  fiber::Mutex mutex_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kCreate;
  base::Ref<Filesystem> fs_ ABSL_GUARDED_BY(mutex_);  // null: not made yet
  base::Ref<Mount> mount_ ABSL_GUARDED_BY(mutex_);    // in phase kAwaitMount
  std::string source_ ABSL_GUARDED_BY(mutex_);
  // In the order in which they were set; each once, so no more than the filesystem knows.
  std::vector<std::pair<std::string, std::string>> options_ ABSL_GUARDED_BY(mutex_);
  bool set_read_only_ ABSL_GUARDED_BY(mutex_) = false;
  bool read_only_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::string> log_ ABSL_GUARDED_BY(mutex_);
};

Result<size_t> MountConfig::Read(IoDest& dst, bool) {
  std::string message;
  {
    fiber::MutexLock l(&mutex_);
    if (log_.empty()) return Error(ENODATA);
    if (log_.front().size() > dst.remaining()) return Error(EMSGSIZE);
    message = std::move(log_.front());
    log_.pop_front();
  }
  return dst.Put(std::as_bytes(std::span(message)));
}

base::Status MountConfig::Refuse(const std::string& why) {
  if (log_.size() == kMaxLog) log_.pop_front();
  log_.push_back("e " + name_ + ": " + why + "\n");
  return Error(EINVAL);
}

// vfs_parse_fs_param().
base::Status MountConfig::Set(const Parameter& p) {
  fiber::MutexLock l(&mutex_);
  if (phase_ != Phase::kCreate && phase_ != Phase::kReconfigure) return Error(EBUSY);
  if (p.key == "ro" || p.key == "rw") {
    set_read_only_ = true;
    read_only_ = p.key == "ro";
    return base::Ok();
  }
  // vfs_parse_sb_flag(): without effect here.
  for (std::string_view flag :
       {"dirsync", "lazytime", "mand", "sync", "async", "nolazytime", "nomand"}) {
    if (p.key == flag) return base::Ok();
  }
  if (p.key == "source") {
    if (p.type != FSCONFIG_SET_STRING) return Refuse("Non-string source");
    if (!source_.empty()) return Refuse("Multiple sources");
    source_ = p.value;
    return base::Ok();
  }
  const base::Status check =
      type_ != nullptr ? type_->CheckOption(p.key, p.value) : base::Status(Error(ENOENT));
  if (!check.ok() && check.error().code() == ENOENT) {
    return Refuse("Unknown parameter '" + p.key + "'");
  }
  const bool simple = p.type == FSCONFIG_SET_FLAG || p.type == FSCONFIG_SET_STRING;
  if (!simple || !check.ok() || p.value.find(',') != std::string::npos) {
    return Refuse("Bad value for '" + p.key + "'");
  }
  std::erase_if(options_, [&](const auto& option) { return option.first == p.key; });
  options_.emplace_back(p.key, p.value);
  return base::Ok();
}

std::string MountConfig::Options() const {
  std::string text;
  for (const auto& [key, value] : options_) {
    if (!text.empty()) text += ',';
    text += value.empty() ? key : key + "=" + value;
  }
  return text;
}

// vfs_cmd_create().
base::Status MountConfig::Create(bool exclusive) {
  fiber::MutexLock l(&mutex_);
  if (phase_ != Phase::kCreate) return Error(EBUSY);
  phase_ = Phase::kFailed;
  const MountArgs args{source_.empty() ? "none" : source_, read_only_ ? uint64_t{MS_RDONLY} : 0,
                       Options(), *creds_};
  base::Ref<Mount> mount = TRY(vfs_.MakeMount(name_, args));
  if (exclusive && mount->fs().mounts() > 1) return Error(EBUSY);
  fs_ = base::Ref<Filesystem>(&mount->fs());
  mount_ = std::move(mount);
  phase_ = Phase::kAwaitMount;
  options_.clear();
  set_read_only_ = false;
  return base::Ok();
}

// vfs_cmd_reconfigure(), reconfigure_super().
base::Status MountConfig::Reconfigure() {
  fiber::MutexLock l(&mutex_);
  if (phase_ != Phase::kReconfigure) return Error(EBUSY);
  phase_ = Phase::kFailed;
  const bool before = fs_->read_only();
  if (set_read_only_) TRY(fs_->SetReadOnly(read_only_));
  base::Status status = options_.empty() ? base::Ok() : fs_->Reconfigure(Options());
  if (!status.ok()) {
    (void)fs_->SetReadOnly(before);
    return status;
  }
  phase_ = Phase::kReconfigure;
  options_.clear();
  set_read_only_ = false;
  return base::Ok();
}

Result<base::Ref<Mount>> MountConfig::TakeMount(uint64_t flags) {
  fiber::MutexLock l(&mutex_);
  if (!fs_) return Error(EINVAL);
  if (phase_ != Phase::kAwaitMount) return Error(EBUSY);
  phase_ = Phase::kReconfigure;
  mount_->set_flags(flags);
  return std::move(mount_);
}

Result<base::Ref<MountConfig>> GetConfig(Task& t, int fd) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  auto* config = dynamic_cast<MountConfig*>(file.get());
  if (config == nullptr) return Error(EINVAL);
  return base::Ref<MountConfig>(config);
}

// What must be there, and what must not, for `command`.
base::Status CheckConfigArgs(uint32_t command, bool key, bool value, int aux) {
  bool good = false;
  switch (command) {
    case FSCONFIG_SET_FLAG:
      good = key && !value && aux == 0;
      break;
    case FSCONFIG_SET_STRING:
      good = key && value && aux == 0;
      break;
    case FSCONFIG_SET_BINARY:
      good = key && value && aux > 0 && static_cast<size_t>(aux) <= kMaxBinary;
      break;
    case FSCONFIG_SET_PATH:
    case FSCONFIG_SET_PATH_EMPTY:
      good = key && value && (aux == AT_FDCWD || aux >= 0);
      break;
    case FSCONFIG_SET_FD:
      good = key && !value && aux >= 0;
      break;
    case FSCONFIG_CMD_CREATE:
    case FSCONFIG_CMD_RECONFIGURE:
    case kCreateExclusive:
      good = !key && !value && aux == 0;
      break;
    default:
      return Error(EOPNOTSUPP);
  }
  return good ? base::Ok() : Error(EINVAL);
}

// The value of a parameter; of one that no filesystem here takes, only that it is there.
Result<std::string> CopyInValue(Task& t, uint32_t command, uint64_t addr, int aux) {
  switch (command) {
    case FSCONFIG_SET_STRING:
      return CopyInText(t, addr, kMaxText);
    case FSCONFIG_SET_BINARY: {
      std::string bytes(static_cast<size_t>(aux), '\0');
      TRY(t.memory().Read(addr, std::as_writable_bytes(std::span(bytes))));
      return std::string();
    }
    case FSCONFIG_SET_PATH:
    case FSCONFIG_SET_PATH_EMPTY: {
      const std::string path = TRY(t.CopyInPath(addr));
      if (path.empty() && command == FSCONFIG_SET_PATH) return Error(ENOENT);
      return std::string();
    }
    case FSCONFIG_SET_FD:
      TRY(t.GetFile(aux));
      return std::string();
    default:
      return std::string();
  }
}

Result<uint64_t> Install(Task& t, base::Ref<FileDescription> file, bool cloexec) {
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), cloexec)));
}

}  // namespace

base::Result<uint64_t> SysFsopen(Task& t, const SyscallArgs& args) {
  TRY(MayMount(t));
  if ((args.Uint(1) & ~uint32_t{FSOPEN_CLOEXEC}) != 0) return Error(EINVAL);
  const std::string name = TRY(CopyInText(t, args[0], kPathMax));
  FilesystemType* type = VfsOf(t).FindFilesystem(name);
  if (type == nullptr) return Error(ENODEV);
  return Install(t, base::MakeRef<MountConfig>(VfsOf(t), *type, t.credentials()),
                 (args.Uint(1) & FSOPEN_CLOEXEC) != 0);
}

base::Result<uint64_t> SysFspick(Task& t, const SyscallArgs& args) {
  constexpr uint32_t kKnown =
      FSPICK_CLOEXEC | FSPICK_SYMLINK_NOFOLLOW | FSPICK_NO_AUTOMOUNT | FSPICK_EMPTY_PATH;
  const uint32_t flags = args.Uint(2);
  TRY(MayMount(t));
  if ((flags & ~kKnown) != 0) return Error(EINVAL);
  const Path path = TRY(WalkArg(t, args.Int(0), args[1],
                                {.follow_last = (flags & FSPICK_SYMLINK_NOFOLLOW) == 0,
                                 .allow_empty = (flags & FSPICK_EMPTY_PATH) != 0}));
  if (!IsMountRoot(path)) return Error(EINVAL);
  // A filesystem of those who are more privileged.
  if ((path.mount->flags() & kLockTimes) != 0) return Error(EPERM);
  return Install(t, base::MakeRef<MountConfig>(VfsOf(t), path.mount->fs(), t.credentials()),
                 (flags & FSPICK_CLOEXEC) != 0);
}

base::Result<uint64_t> SysFsconfig(Task& t, const SyscallArgs& args) {
  const uint32_t command = args.Uint(1);
  if (args.Int(0) < 0) return Error(EINVAL);
  TRY(CheckConfigArgs(command, args[2] != 0, args[3] != 0, args.Int(4)));
  const base::Ref<MountConfig> config = TRY(GetConfig(t, args.Int(0)));
  switch (command) {
    case FSCONFIG_CMD_CREATE:
    case kCreateExclusive:
      TRY(MayMount(t));
      TRY(config->Create(command == kCreateExclusive));
      break;
    case FSCONFIG_CMD_RECONFIGURE:
      TRY(MayMount(t));
      TRY(config->Reconfigure());
      break;
    default: {
      Parameter parameter{.key = TRY(CopyInText(t, args[2], kMaxText)),
                          .value = {},
                          .type = static_cast<int>(command)};
      parameter.value = TRY(CopyInValue(t, command, args[3], args.Int(4)));
      TRY(config->Set(parameter));
    }
  }
  return uint64_t{0};
}

base::Result<uint64_t> SysFsmount(Task& t, const SyscallArgs& args) {
  const uint32_t attr = args.Uint(2);
  TRY(MayMount(t));
  if ((args.Uint(1) & ~uint32_t{FSMOUNT_CLOEXEC}) != 0) return Error(EINVAL);
  if ((attr & ~kAttrFlags) != 0) return Error(EINVAL);
  const uint64_t flags = MountFlagsOf(attr) | TRY(AccessTimesOf(attr));
  const base::Ref<MountConfig> config = TRY(GetConfig(t, args.Int(0)));
  const base::Ref<Mount> mount = TRY(config->TakeMount(flags));
  TRY(CheckRevealing(t, *mount));
  base::Ref<MountNamespace> tree = t.mount_namespace().NewDetached(mount);
  return Install(t, base::MakeRef<PathOnlyFile>(Path{mount, mount->root()}, std::move(tree)),
                 (args.Uint(1) & FSMOUNT_CLOEXEC) != 0);
}

}  // namespace sentry
