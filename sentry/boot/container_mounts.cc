#include "sentry/boot/container_mounts.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "sentry/boot/copy_tree.h"
#include "sentry/fs/dev/dev.h"
#include "sentry/fs/gofer/connection.h"
#include "sentry/fs/gofer/gofer_fs.h"
#include "sentry/fs/overlay/overlay.h"
#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/kernel/kernel.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

namespace {

// A mount's flags that its owner sees; the others steer mount(2) itself.
constexpr uint64_t kKeptFlags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME |
                                MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME;

class Builder {
 public:
  Builder(Vfs& vfs, const base::Ref<GoferConnection>& gofer, const ContainerSpec& spec,
          const Credentials& creds, const base::Ref<UserNamespace>& user_ns, std::string* why)
      : vfs_(vfs), gofer_(gofer), spec_(spec), creds_(creds), user_ns_(user_ns), why_(why) {}

  base::Result<ContainerMounts> Build() {
    TRY(MakeRoot());
    for (const MountSpec& mount : spec_.mounts) {
      TRY(Named(
          "mounting \"" + mount.source + "\" (" + mount.type + ") to \"" + mount.destination + "\"",
          MakeMount(mount)));
    }
    TRY(MakeDev());
    // Before /proc/sys is made read-only.
    TRY(WriteSysctls());
    for (const std::string& path : spec_.readonly_paths) {
      TRY(Named("making " + path + " read-only", MakeReadonly(path)));
    }
    for (const std::string& path : spec_.masked_paths) {
      TRY(Named("masking " + path, Mask(path)));
    }
    if (spec_.root_readonly) {
      made_.root.mount->set_flags(made_.root.mount->flags() | MS_RDONLY);
    }
    TRY(Share(*made_.root.mount, spec_.root_propagation));
    return made_;
  }

 private:
  // Puts the name of the step into *why_ on failure.
  base::Status Named(const std::string& what, base::Status status) {
    if (!status.ok()) *why_ = what + ": " + strerror(status.error().code());
    return status;
  }

  WalkContext FromRoot() const {
    return WalkContext{.creds = creds_,
                       .ns = *made_.ns,
                       .root = made_.root,
                       .start = made_.root,
                       .umask = 0,
                       .resolve = 0};
  }

  base::Status MakeRoot() {
    // An overlay's lower layer never changes.
    const bool shared = spec_.root_shared && !spec_.overlay;
    auto lower = MountGofer(gofer_, 0, shared ? GoferCache::kShared : GoferCache::kExclusive);
    if (!lower.ok()) return Named("mounting the root file system", lower.error());
    base::Ref<Inode> root = std::move(*lower);
    if (spec_.overlay) {
      TmpfsOptions upper;
      // As a tmpfs: half of the memory that the container has.
      upper.size = Kernel::Get().CurrentCgroup()->total_memory() / 2;
      auto overlay = NewOverlay(std::move(root), upper);
      if (!overlay.ok()) return Named("making the overlay", overlay.error());
      root = std::move(*overlay);
    }
    if (!root->IsDir()) return Named("mounting the root file system", base::Error(ENOTDIR));
    base::Ref<Mount> mount = Vfs::NewMount(root, MS_RELATIME, "none");
    made_.ns = MountNamespace::New(mount, user_ns_);
    made_.root = Path{mount, mount->root()};
    return base::Ok();
  }

  // The place to mount on, made if it is missing.
  base::Result<Path> MountPoint(const MountSpec& spec, bool* made) {
    WalkContext ctx = FromRoot();
    auto found = vfs_.Walk(ctx, spec.destination, {});
    *made = !found.ok() && found.error().code() == ENOENT;
    if (!*made) return found;
    bool file = spec.gofer_mount >= 0 && !spec.source_is_directory;
    size_t slash = spec.destination.find_last_of('/');
    std::string parent = slash == 0 ? "/" : spec.destination.substr(0, slash);
    TRY(MakeDirectories(vfs_, made_, creds_, file ? parent : spec.destination, 0755));
    if (file) TRY(vfs_.Mknod(ctx, spec.destination, S_IFREG | 0755, 0));
    return vfs_.Walk(ctx, spec.destination, {});
  }

  base::Result<base::Ref<Mount>> NewFilesystemMount(const MountSpec& spec, uint64_t flags) {
    std::string data;
    for (const std::string& option : spec.data) data += (data.empty() ? "" : ",") + option;
    return vfs_.MakeMount(
        spec.type, MountArgs{.source = spec.source, .flags = flags, .data = data, .creds = creds_});
  }

  // As runc: a tmpfs has the mode of the directory that it covers unless another is asked for, and
  // with "tmpcopyup" begins with what is there.
  base::Result<base::Ref<Mount>> NewTmpfsMount(MountSpec spec, uint64_t flags,
                                               const Path* covered) {
    const bool copy = std::erase(spec.data, "tmpcopyup") > 0;
    if (covered == nullptr) return NewFilesystemMount(spec, flags);
    InodeAttr attr = TRY(vfs_.GetAttr(*covered));
    char mode[16];
    snprintf(mode, sizeof(mode), "mode=%04o", attr.mode & 07777);
    spec.data.insert(spec.data.begin(), mode);  // a later one wins
    if (!copy) return NewFilesystemMount(spec, flags);
    // Filled before it may be read-only and before anybody sees it.
    base::Ref<Mount> mount = TRY(NewFilesystemMount(spec, flags & ~uint64_t{MS_RDONLY}));
    WalkContext from = FromRoot();
    from.start = *covered;
    TRY(CopyTree(vfs_, from, Path{mount, mount->root()}));
    mount->set_flags(flags);
    return mount;
  }

  base::Status MakeMount(const MountSpec& spec) {
    bool made_here = false;
    Path where = TRY(MountPoint(spec, &made_here));
    uint64_t flags = spec.flags & kKeptFlags;
    if ((flags & (MS_NOATIME | MS_STRICTATIME)) == 0) flags |= MS_RELATIME;
    if (spec.gofer_mount >= 0) {
      auto index = static_cast<uint32_t>(spec.gofer_mount);
      base::Ref<Inode> root = TRY(MountGofer(gofer_, index, GoferCache::kShared));
      base::Ref<Mount> mount = Vfs::NewMount(root, flags, spec.source);
      TRY(made_.ns->Attach(mount, where));
      return Share(*mount, spec.propagation);
    }
    base::Ref<Mount> mount =
        TRY(spec.type == "tmpfs" ? NewTmpfsMount(spec, flags, made_here ? nullptr : &where)
                                 : NewFilesystemMount(spec, flags));
    if (spec.type == "devpts" && !made_.devpts) made_.devpts = Path{mount, mount->root()};
    TRY(made_.ns->Attach(mount, where));
    if (spec.destination == "/dev") dev_is_ours_ = true;
    return Share(*mount, spec.propagation);
  }

  static base::Status Share(Mount& mount, const std::vector<uint64_t>& propagation) {
    for (uint64_t type : propagation) {
      const bool recursive = (type & MS_REC) != 0;
      TRY(MountNamespace::SetPropagation(mount, type & ~uint64_t{MS_REC}, recursive));
    }
    return base::Ok();
  }

  // As runc, nodes are made unless the host's own /dev is mounted there.
  base::Status MakeDev() {
    for (const MountSpec& mount : spec_.mounts) {
      if (mount.gofer_mount >= 0 && mount.destination == "/dev") return base::Ok();
    }
    std::vector<DevNode> nodes;
    for (const DeviceSpec& d : spec_.devices) {
      mode_t type = d.type == 'b' ? S_IFBLK : d.type == 'p' ? S_IFIFO : S_IFCHR;
      nodes.push_back(DevNode{.path = d.path,
                              .mode = type | (d.mode & 07777),
                              .rdev = makedev(d.major, d.minor),
                              .uid = d.uid,
                              .gid = d.gid});
    }
    // A host directory as /dev cannot hold device nodes: an unprivileged gofer may not make them.
    if (!dev_is_ours_) {
      MountSpec tmpfs{.destination = "/dev",
                      .type = "tmpfs",
                      .source = "tmpfs",
                      .flags = MS_NOSUID | MS_STRICTATIME,
                      .propagation = {},
                      .data = {"mode=755", "size=65536k"}};
      TRY(Named("mounting /dev", MakeMount(tmpfs)));
    }
    for (const DevNode& node : nodes) {
      const std::string parent = node.path.substr(0, node.path.rfind('/'));
      if (parent.empty()) continue;
      TRY(Named("making " + parent, MakeDirectories(vfs_, made_, creds_, parent, 0755)));
    }
    std::string failed;
    base::Status status = PopulateDev(vfs_, FromRoot(), spec_.process.terminal, nodes, &failed);
    return Named("creating device nodes: " + failed, status);
  }

  // Remounts one path on itself. What is missing needs no protection.
  base::Status MakeReadonly(const std::string& path) {
    auto found = vfs_.Walk(FromRoot(), path, {});
    if (!found.ok())
      return found.error().code() == ENOENT ? base::Ok() : base::Status(found.error());
    return vfs_.Bind(*made_.ns, *found, *found, MS_REC | MS_RDONLY);
  }

  base::Status Mask(const std::string& path) {
    auto found = vfs_.Walk(FromRoot(), path, {});
    if (!found.ok()) {
      int code = found.error().code();
      return code == ENOENT || code == ENOTDIR ? base::Ok() : base::Status(found.error());
    }
    if (found->dentry->inode()->IsDir()) {
      MountSpec empty{
          .type = "tmpfs", .source = "tmpfs", .propagation = {}, .data = {"size=0k", "mode=755"}};
      base::Ref<Mount> mount = TRY(NewFilesystemMount(empty, MS_RDONLY | MS_RELATIME));
      return made_.ns->Attach(std::move(mount), *found);
    }
    Path null = TRY(vfs_.Walk(FromRoot(), "/dev/null", {}));
    return vfs_.Bind(*made_.ns, null, *found, 0);
  }

  // Through the container's /proc/sys.
  base::Status WriteSysctls() {
    for (const ContainerSpec::Sysctl& sysctl : spec_.network_sysctls) (void)WriteSysctl(sysctl);
    for (const ContainerSpec::Sysctl& sysctl : spec_.sysctls) {
      TRY(Named("setting sysctl " + sysctl.name, WriteSysctl(sysctl)));
    }
    return base::Ok();
  }

  base::Status WriteSysctl(const ContainerSpec::Sysctl& sysctl) {
    std::string path = "/proc/sys/" + sysctl.name;
    std::replace(path.begin() + 10, path.end(), '.', '/');
    return WriteFile(path, sysctl.value);
  }

  base::Status WriteFile(const std::string& path, const std::string& text) {
    auto file = TRY(vfs_.Open(FromRoot(), path, O_WRONLY, 0));
    BufferSource value(std::as_bytes(std::span(text)));
    TRY(file->Write(value, false));
    return base::Ok();
  }

  Vfs& vfs_;
  const base::Ref<GoferConnection>& gofer_;
  const ContainerSpec& spec_;
  const Credentials& creds_;
  const base::Ref<UserNamespace>& user_ns_;
  std::string* const why_;
  ContainerMounts made_;
  bool dev_is_ours_ = false;
};

}  // namespace

base::Result<ContainerMounts> BuildMounts(Vfs& vfs, const base::Ref<GoferConnection>& gofer,
                                          const ContainerSpec& spec, const Credentials& creds,
                                          const base::Ref<UserNamespace>& user_ns,
                                          std::string* why) {
  return Builder(vfs, gofer, spec, creds, user_ns, why).Build();
}

base::Status MakeDirectories(Vfs& vfs, const ContainerMounts& mounts, const Credentials& creds,
                             const std::string& path, mode_t mode) {
  WalkContext ctx{.creds = creds,
                  .ns = *mounts.ns,
                  .root = mounts.root,
                  .start = mounts.root,
                  .umask = 0,
                  .resolve = 0};
  for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    std::string prefix = path.substr(0, end);
    base::Status made = vfs.Mkdir(ctx, prefix, mode);
    if (!made.ok() && made.error().code() != EEXIST) return made;
    if (end == std::string::npos) break;
  }
  TRY(vfs.Walk(ctx, path, WalkFlags{.need_dir = true}));
  return base::Ok();
}

}  // namespace sentry
