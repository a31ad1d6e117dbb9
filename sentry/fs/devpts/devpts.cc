#include "sentry/fs/devpts/devpts.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>

#include "sentry/fs/devpts/terminal.h"
#include "sentry/fs/devpts/tty_file.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"

namespace sentry {
namespace {

constexpr unsigned kPtsMajor = 136, kPtsMajors = 8, kTtyAuxMajor = 5;
constexpr uint64_t kPtmxIno = 2;

// Digits alone, no sign, no leading zero: what the names of slaves are.
bool ParseIndex(std::string_view name, int* index) {
  auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), *index);
  return ec == std::errc() && end == name.data() + name.size() && *index >= 0 &&
         name == std::to_string(*index);
}

}  // namespace

// The node of a slave.
class DevptsFs::SlaveInode : public PseudoInode {
 public:
  SlaveInode(DevptsFs* fs, mode_t mode, uid_t uid, gid_t gid, base::Ref<Terminal> terminal)
      : PseudoInode(fs, static_cast<uint64_t>(terminal->index()) + 3, S_IFCHR | mode, uid, gid),
        terminal_(std::move(terminal)) {}
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override {
    return terminal_->Open(args);
  }
  Terminal& terminal() const { return *terminal_; }

 private:
  ~SlaveInode() override = default;
  dev_t rdev() const override { return terminal_->device(); }
  const base::Ref<Terminal> terminal_;
};

namespace {

class PtmxInode : public PseudoInode {
 public:
  PtmxInode(DevptsFs* fs, mode_t mode) : PseudoInode(fs, kPtmxIno, S_IFCHR | mode) {}
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override {
    return static_cast<DevptsFs&>(fs()).OpenMaster(args.path, args.flags, args.creds);
  }

 private:
  ~PtmxInode() override = default;
  dev_t rdev() const override { return makedev(kTtyAuxMajor, 2); }
};

}  // namespace

class DevptsFs::Root : public PseudoDir {
 public:
  explicit Root(DevptsFs* fs) : PseudoDir(fs, 0755, 1) {
    Add("ptmx", base::MakeRef<PtmxInode>(fs, fs->options_.ptmx_mode));
  }

 private:
  ~Root() override = default;
  DevptsFs& devpts() { return static_cast<DevptsFs&>(fs()); }
  base::Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    int index;
    if (!ParseIndex(name, &index)) return base::Error(ENOENT);
    base::Ref<Inode> inode = devpts().Find(index);
    if (inode == nullptr) return base::Error(ENOENT);
    return inode;
  }
  bool RevalidateDynamic(std::string_view name, Inode* child) override {
    int index;
    return ParseIndex(name, &index) && devpts().Find(index).get() == child;
  }
  void ListDynamic(std::vector<PseudoEntry>* out) override {
    absl::MutexLock lock(&devpts().mutex_);
    for (const auto& [index, inode] : devpts().slaves_) {
      out->push_back({std::to_string(index), inode->ino(), DirentType(*inode)});
    }
  }
};

base::Result<DevptsFs::Options> DevptsFs::ParseOptions(std::string_view data) {
  Options o;
  while (!data.empty()) {
    std::string_view item = data.substr(0, data.find(','));
    data.remove_prefix(std::min(data.size(), item.size() + 1));
    std::string_view key = item.substr(0, item.find('='));
    std::string_view text = item.size() > key.size() ? item.substr(key.size() + 1) : "";
    uint32_t value = 0;
    int base = key == "mode" || key == "ptmxmode" ? 8 : 10;
    auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    bool number = ec == std::errc() && end == text.data() + text.size() && !text.empty();
    if (key.empty() || key == "newinstance") continue;
    if (!number) return base::Error(EINVAL);
    if (key == "uid") {
      o.uid = value;
      o.set_uid = true;
    } else if (key == "gid") {
      o.gid = value;
      o.set_gid = true;
    } else if (key == "mode") {
      o.mode = value & 07777;
    } else if (key == "ptmxmode") {
      o.ptmx_mode = value & 07777;
    } else if (key == "max") {
      if (value > 1 << 20) return base::Error(EINVAL);
      o.max = static_cast<int>(value);
    } else {
      return base::Error(EINVAL);
    }
  }
  return o;
}

DevptsFs::DevptsFs(Kernel* kernel, const Options& options)
    : PseudoFs("devpts", DEVPTS_SUPER_MAGIC, /*dynamic=*/true),
      kernel_(kernel),
      options_(options) {}

std::string DevptsFs::ShowOptions() const {
  char mode[32];
  snprintf(mode, sizeof(mode), ",mode=%03o,ptmxmode=%03o", options_.mode, options_.ptmx_mode);
  std::string s;
  if (options_.set_uid) s += ",uid=" + std::to_string(options_.uid);
  if (options_.set_gid) s += ",gid=" + std::to_string(options_.gid);
  s += mode;
  return s;
}

base::Ref<Inode> DevptsFs::NewRoot(base::Ref<DevptsFs> fs) { return base::MakeRef<Root>(fs.get()); }

base::Ref<Inode> DevptsFs::Find(int index) {
  absl::MutexLock lock(&mutex_);
  auto it = slaves_.find(index);
  if (it == slaves_.end()) return nullptr;
  return it->second;
}

base::Result<base::Ref<Terminal>> DevptsFs::NewTerminal(const Credentials& creds) {
  absl::MutexLock lock(&mutex_);
  int index = 0;
  for (const auto& [used, inode] : slaves_) {
    if (used != index) break;
    ++index;
  }
  if (index >= options_.max) return base::Error(ENOSPC);
  auto terminal = base::MakeRef<Terminal>(kernel_, base::Ref<DevptsFs>(this), index);
  slaves_[index] =
      base::MakeRef<SlaveInode>(this, options_.mode, options_.set_uid ? options_.uid : creds.fsuid,
                                options_.set_gid ? options_.gid : creds.fsgid, terminal);
  return terminal;
}

base::Result<base::Ref<FileDescription>> DevptsFs::OpenMaster(Path path, uint32_t flags,
                                                              const Credentials& creds) {
  base::Ref<Terminal> terminal = TRY(NewTerminal(creds));
  return base::Ref<FileDescription>(
      base::MakeRef<PtyMasterFile>(std::move(path), flags, std::move(terminal)));
}

void DevptsFs::Release(int index) {
  base::Ref<SlaveInode> dropped;
  absl::MutexLock lock(&mutex_);
  auto it = slaves_.find(index);
  if (it == slaves_.end()) return;
  dropped = std::move(it->second);
  slaves_.erase(it);
}

namespace {

// The devpts instance that a ptmx node stands for: its own filesystem, or what is mounted on "pts"
// beside it (devpts_mntget). Null if there is none.
base::Ref<Mount> InstanceOf(Task* t, const Path& ptmx) {
  if (dynamic_cast<DevptsFs*>(&ptmx.mount->fs()) != nullptr) return ptmx.mount;
  if (t == nullptr) return nullptr;
  base::Ref<Dentry> dir = ptmx.dentry->parent();
  base::Ref<Dentry> pts = dir != nullptr ? dir->FindChild("pts") : nullptr;
  if (pts == nullptr) return nullptr;
  base::Ref<Mount> mount = t->mount_namespace().MountedOn({ptmx.mount, pts});
  if (mount == nullptr || dynamic_cast<DevptsFs*>(&mount->fs()) == nullptr) return nullptr;
  return mount;
}

base::Result<base::Ref<FileDescription>> OpenPtmx(const OpenArgs& args, dev_t) {
  base::Ref<Mount> mount = InstanceOf(Task::Current(), args.path);
  if (mount == nullptr) return base::Error(ENODEV);
  return static_cast<DevptsFs&>(mount->fs()).OpenMaster(args.path, args.flags, args.creds);
}

// /dev/tty: the controlling terminal of the current process.
base::Result<base::Ref<FileDescription>> OpenCurrentTty(const OpenArgs& args, dev_t) {
  Task* t = Task::Current();
  base::Ref<Tty> tty = t != nullptr ? t->thread_group().tty() : nullptr;
  if (tty == nullptr) return base::Error(ENXIO);
  return tty->Open({args.path, args.flags | O_NOCTTY, args.creds});
}

// /dev/console: the terminal that the container's init has.
base::Result<base::Ref<FileDescription>> OpenConsole(const OpenArgs& args, dev_t) {
  base::Ref<base::RefCounted> console = Kernel::Get().CurrentCgroup()->console();
  if (console == nullptr) return base::Error(ENXIO);
  return static_cast<Terminal&>(*console).Open(args);
}

class DevptsType : public FilesystemType {
 public:
  explicit DevptsType(Kernel* kernel) : kernel_(kernel) {}
  std::string_view name() const override { return "devpts"; }
  base::Result<base::Ref<Inode>> Mount(const MountArgs& args) override {
    DevptsFs::Options options = TRY(DevptsFs::ParseOptions(args.data));
    return DevptsFs::NewRoot(base::MakeRef<DevptsFs>(kernel_, options));
  }
  base::Status CheckOption(std::string_view key, std::string_view value) const override {
    for (std::string_view known : {"uid", "gid", "mode", "ptmxmode", "max", "newinstance"}) {
      if (key != known) continue;
      TRY(DevptsFs::ParseOptions(std::string(key) + "=" + std::string(value)));
      return base::Ok();
    }
    return base::Error(ENOENT);
  }

 private:
  Kernel* const kernel_;
};

}  // namespace

base::Result<Path> DevptsFs::SlavePath(Task& t, const Path& master, int index) {
  base::Ref<sentry::Mount> mount = InstanceOf(&t, master);
  if (mount == nullptr) return base::Error(ENODEV);
  base::Ref<Inode> inode = Find(index);
  if (inode == nullptr) return base::Error(EIO);
  base::Ref<Inode> dir = mount->root()->inode();
  fiber::ReaderLock lock(&dir->lock());
  return Path{mount, mount->root()->AddChild(std::to_string(index), std::move(inode))};
}

// A node of a slave's number that does not stand in a devpts is nobody's (pts_unix98_lookup).
base::Result<base::Ref<FileDescription>> OpenPts(const OpenArgs& args, dev_t) {
  auto* inode = dynamic_cast<DevptsFs::SlaveInode*>(args.path.dentry->inode_ptr());
  if (inode == nullptr) return base::Error(EIO);
  return inode->Open(args);
}

void RegisterTerminals(Kernel* kernel, Vfs& vfs) {
  vfs.RegisterFilesystem(std::make_unique<DevptsType>(kernel));
  SpecialFiles& special = vfs.special_files();
  for (unsigned i = 0; i < kPtsMajors; ++i) special.RegisterCharDevice(kPtsMajor + i, -1, OpenPts);
  special.RegisterCharDevice(kTtyAuxMajor, 1, OpenConsole);
  special.RegisterCharDevice(kTtyAuxMajor, 2, OpenPtmx);
  special.RegisterCharDevice(kTtyAuxMajor, 0, OpenCurrentTty);
}

}  // namespace sentry
