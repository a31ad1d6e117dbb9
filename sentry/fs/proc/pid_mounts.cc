// mounts, mountinfo, mountstats: fs/proc_namespace.c.
#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>

#include <atomic>

#include "sentry/fs/proc/mount_text.h"
#include "sentry/fs/proc/pid_files.h"
#include "sentry/kernel/kernel.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/mount_events.h"
#include "sentry/vfs/vfs.h"

#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif

namespace sentry {
namespace {

// The optional fields of mountinfo.
std::string Shared(const Propagation& p) {
  std::string s;
  if (p.shared != 0) s += fmt::format(" shared:{}", p.shared);
  if (p.master != 0) s += fmt::format(" master:{}", p.master);
  if (p.from != 0) s += fmt::format(" propagate_from:{}", p.from);
  if (p.unbindable) s += " unbindable";
  return s;
}

std::string Source(const Mount& mount) {
  return mount.source().empty() ? "none" : MangleMountText(mount.source());
}

template <typename Format>
base::Result<std::string> ForEachMount(const PidContext& c, Format format) {
  base::Ref<MountNamespace> ns = c.task->mount_namespace_ref();
  base::Ref<FsContext> fs = c.task->fs_context_ref();
  if (ns == nullptr || fs == nullptr) return base::Error(EINVAL);
  Path root = fs->root();
  std::string s;
  for (const base::Ref<Mount>& mount : ns->Mounts()) {
    std::string where = c.kernel().vfs().PathName(*ns, root, {mount, mount->root()});
    if (!where.starts_with("/")) continue;  // not below the task's root
    s += format(*ns, *mount, MangleMountText(where), root);
  }
  return s;
}

// mounts and mountinfo can be polled for changes of the namespace that the file was opened in
// (mounts_poll).
class MountsFile final : public PseudoFileDescription {
 public:
  MountsFile(Path path, uint32_t flags, base::Ref<PseudoFile> file, base::Ref<MountNamespace> ns)
      : PseudoFileDescription(std::move(path), flags, std::move(file)),
        ns_(std::move(ns)),
        seen_(ns_ != nullptr ? ns_->version() : 0) {}
  bool CanPoll() const override { return true; }
  uint32_t Readiness() override {
    const uint64_t now = ns_ != nullptr ? ns_->version() : 0;
    const bool changed = seen_.exchange(now) != now;
    return EPOLLIN | EPOLLRDNORM | (changed ? EPOLLERR | EPOLLPRI : 0);
  }
  fiber::WaitQueue* wait_queue() override { return &MountEvents(); }

 private:
  ~MountsFile() override = default;
  const base::Ref<MountNamespace> ns_;  // null: of a task that has ended
  std::atomic<uint64_t> seen_;
};

}  // namespace

base::Ref<FileDescription> OpenPidMounts(const PidContext& c, const OpenArgs& args,
                                         base::Ref<PseudoFile> file) {
  return base::MakeRef<MountsFile>(args.path, args.flags, std::move(file),
                                   c.task->mount_namespace_ref());
}

std::string MangleMountText(std::string_view text) {
  std::string out;
  for (char ch : text) {
    if (ch == ' ' || ch == '\t' || ch == '\n' || ch == '\\' || ch == '#') {
      out += fmt::format("\\{:03o}", static_cast<unsigned>(static_cast<unsigned char>(ch)));
    } else {
      out += ch;
    }
  }
  return out;
}

std::string MountFlagText(const Mount& mount) {
  const uint64_t flags = mount.flags();
  std::string s;
  constexpr struct {
    uint64_t flag;
    const char* text;
  } kFlags[] = {{MS_NOSUID, ",nosuid"},          {MS_NODEV, ",nodev"},
                {MS_NOEXEC, ",noexec"},          {MS_NOATIME, ",noatime"},
                {MS_NODIRATIME, ",nodiratime"},  {MS_RELATIME, ",relatime"},
                {MS_NOSYMFOLLOW, ",nosymfollow"}};
  for (const auto& f : kFlags) {
    if (flags & f.flag) s += f.text;
  }
  return s;
}

std::string MountRootPath(const Mount& mount) {
  std::string path;
  base::Ref<Dentry> d = mount.root();
  while (true) {
    base::Ref<Dentry> parent = d->parent();
    if (parent == nullptr || parent == d) break;
    path.insert(0, "/" + d->name());
    d = std::move(parent);
  }
  // What stands in no tree is called by its name (nsfs).
  if (d == mount.root() && d->name() != "/") path = d->name();
  if (mount.root()->unlinked()) path += "//deleted";
  return path.empty() ? "/" : path;
}

base::Result<std::string> PidMounts(const PidContext& c) {
  return ForEachMount(
      c, [](MountNamespace&, const Mount& m, const std::string& where, const Path&) {
        return fmt::format("{} {} {} {}{}{} 0 0\n", Source(m), where, m.fs().type_name(),
                           m.read_only() ? "ro" : "rw", MountFlagText(m), m.fs().ShowOptions());
      });
}

base::Result<std::string> PidMountInfo(const PidContext& c) {
  return ForEachMount(
      c, [](MountNamespace& ns, const Mount& m, const std::string& where, const Path& root) {
        base::Ref<Mount> parent = ns.ParentOf(m);
        dev_t dev = m.fs().dev();
        return fmt::format("{} {} {}:{} {} {} {}{}{} - {} {} {}{}\n", m.id(),
                           parent != nullptr ? parent->id() : m.id(), gnu_dev_major(dev),
                           gnu_dev_minor(dev), MangleMountText(MountRootPath(m)), where,
                           (m.flags() & MS_RDONLY) != 0 ? "ro" : "rw", MountFlagText(m),
                           Shared(MountNamespace::PropagationOf(m, root)), m.fs().type_name(),
                           Source(m), m.fs().read_only() ? "ro" : "rw", m.fs().ShowOptions());
      });
}

base::Result<std::string> PidMountStats(const PidContext& c) {
  return ForEachMount(c,
                      [](MountNamespace&, const Mount& m, const std::string& where, const Path&) {
                        return fmt::format("device {} mounted on {} with fstype {} \n", Source(m),
                                           where, m.fs().type_name());
                      });
}

}  // namespace sentry
