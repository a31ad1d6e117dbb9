// statmount and listmount (Linux: fs/namespace.c).
#include <string>
#include <vector>

#include "sentry/fs/proc/mount_text.h"
#include "sentry/syscalls/mount/mount_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

// struct mnt_id_req.
struct MountIdRequest {
  uint32_t size;
  uint32_t spare;
  uint64_t mount_id;
  uint64_t param;
  uint64_t namespace_id;
};
constexpr uint64_t kRequestSize0 = 24;

// struct statmount; text stands behind it, at the offsets that the fields of the same name tell.
struct MountStat {
  uint32_t size;
  uint32_t mnt_opts;
  uint64_t mask;
  uint32_t sb_dev_major, sb_dev_minor;
  uint64_t sb_magic;
  uint32_t sb_flags;
  uint32_t fs_type;
  uint64_t mnt_id, mnt_parent_id;
  uint32_t mnt_id_old, mnt_parent_id_old;
  uint64_t mnt_attr, mnt_propagation, mnt_peer_group, mnt_master, propagate_from;
  uint32_t mnt_root, mnt_point;
  uint64_t mnt_ns_id;
  uint32_t fs_subtype, sb_source;
  uint32_t opt_num, opt_array, opt_sec_num, opt_sec_array;
  uint64_t supported_mask;
  uint64_t spare[45];
};
static_assert(sizeof(MountStat) == 512);

// STATMOUNT_*.
constexpr uint64_t kSbBasic = 1, kMntBasic = 2, kPropagateFrom = 4, kMntRoot = 8, kMntPoint = 0x10,
                   kFsType = 0x20, kMntNsId = 0x40, kMntOpts = 0x80, kSbSource = 0x200,
                   kSupportedMask = 0x1000;
constexpr uint64_t kSupported = kSbBasic | kMntBasic | kPropagateFrom | kMntRoot | kMntPoint |
                                kFsType | kMntNsId | kMntOpts | kSbSource | kSupportedMask;

constexpr uint64_t kListRoot = UINT64_MAX;  // LSMT_ROOT
constexpr uint32_t kListReverse = 1;        // LISTMOUNT_REVERSE
constexpr uint64_t kListMax = 1000000;

// copy_mnt_id_req().
Result<MountIdRequest> CopyInRequest(Task& t, uint64_t addr) {
  const uint32_t size = TRY(base::UserPtr<uint32_t>(addr).CopyIn(t.memory()));
  if (size > 4096) return Error(E2BIG);
  if (size < kRequestSize0) return Error(EINVAL);
  const auto request = TRY(CopyInStruct<MountIdRequest>(t, addr, size));
  if (request.spare != 0 || request.mount_id <= kUniqueMountIds) return Error(EINVAL);
  return request;
}

bool MayIn(Task& t, const MountNamespace& ns) {
  return ns.user_ns() ? t.creds().HasCapIn(CAP_SYS_ADMIN, *ns.user_ns()) : t.HasCap(CAP_SYS_ADMIN);
}

// The namespace that is asked about, and what is the root of those who see it.
struct View {
  base::Ref<MountNamespace> ns;
  Path root;
};
Result<View> ViewOf(Task& t, const MountIdRequest& request) {
  const base::Ref<MountNamespace> own = t.mount_namespace_ref();
  if (request.namespace_id == 0 || request.namespace_id == own->id()) {
    return View{own, t.fs_context().root()};
  }
  base::Ref<MountNamespace> ns = MountNamespace::Find(request.namespace_id);
  if (!ns || !MayIn(t, *ns)) return Error(ENOENT);
  const base::Ref<Mount> root = ns->root_mount();
  if (!root) return Error(ENOENT);
  View view{ns, Path{root, root->root()}};
  ns->CrossDown(&view.root);
  return view;
}

// mnt_to_attr_flags().
uint64_t AttrOf(uint64_t flags) {
  uint64_t attr = 0;
  for (uint64_t bit : {MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC,
                       MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOSYMFOLLOW}) {
    if ((flags & MountFlagsOf(bit)) != 0) attr |= bit;
  }
  if ((flags & MS_NOATIME) != 0) return attr | MOUNT_ATTR_NOATIME;
  return (flags & MS_RELATIME) != 0 ? attr : attr | MOUNT_ATTR_STRICTATIME;
}

class Statement {
 public:
  Statement(Task& t, View view, base::Ref<Mount> mount, uint64_t mask)
      : view_(std::move(view)), mount_(std::move(mount)), mask_(mask) {
    if (Asked(kSbBasic)) AddFilesystem();
    if (Asked(kMntBasic | kPropagateFrom)) AddMount();
    if (Asked(kMntNsId)) stat_.mnt_ns_id = view_.ns->id();
    if (Asked(kSupportedMask)) stat_.supported_mask = kSupported;
    stat_.mask = mask_ & (kSbBasic | kMntBasic | kPropagateFrom | kMntNsId | kSupportedMask);
    AddTexts(VfsOf(t));
  }

  base::Status CopyOut(Task& t, uint64_t addr, uint64_t size) {
    const size_t head = std::min<uint64_t>(size, sizeof(stat_));
    if (!texts_.empty() && sizeof(stat_) + texts_.size() > size) return Error(EOVERFLOW);
    stat_.size = static_cast<uint32_t>(head + texts_.size());
    if (!texts_.empty()) {
      TRY(t.memory().Write(addr + sizeof(stat_), std::as_bytes(std::span(texts_))));
    }
    return t.memory().Write(addr, std::as_bytes(std::span(&stat_, 1)).first(head));
  }

 private:
  bool Asked(uint64_t bits) const { return (mask_ & bits) != 0; }

  void AddFilesystem() {
    const Filesystem& fs = mount_->fs();
    stat_.sb_dev_major = major(fs.dev());
    stat_.sb_dev_minor = minor(fs.dev());
    stat_.sb_magic = fs.magic();
    stat_.sb_flags = fs.read_only() ? MS_RDONLY : 0;
  }

  void AddMount() {
    const Propagation p = MountNamespace::PropagationOf(*mount_, view_.root);
    if (Asked(kPropagateFrom)) stat_.propagate_from = static_cast<uint64_t>(p.from);
    if (!Asked(kMntBasic)) return;
    const base::Ref<Mount> parent = view_.ns->ParentOf(*mount_);
    const Mount& above = parent ? *parent : *mount_;
    stat_.mnt_id = mount_->unique_id();
    stat_.mnt_parent_id = above.unique_id();
    stat_.mnt_id_old = static_cast<uint32_t>(mount_->id());
    stat_.mnt_parent_id_old = static_cast<uint32_t>(above.id());
    stat_.mnt_attr = AttrOf(mount_->flags());
    stat_.mnt_peer_group = static_cast<uint64_t>(p.shared);
    stat_.mnt_master = static_cast<uint64_t>(p.master);
    stat_.mnt_propagation = (p.shared != 0 ? uint64_t{MS_SHARED} : 0) |
                            (p.master != 0 ? uint64_t{MS_SLAVE} : 0) |
                            (p.unbindable ? uint64_t{MS_UNBINDABLE} : 0);
    if (stat_.mnt_propagation == 0) stat_.mnt_propagation = MS_PRIVATE;
  }

  void AddTexts(Vfs& vfs) {
    if (Asked(kFsType)) Add(kFsType, mount_->fs().type_name(), &stat_.fs_type);
    if (Asked(kMntRoot)) Add(kMntRoot, MountRootPath(*mount_), &stat_.mnt_root);
    if (Asked(kMntPoint)) {
      const std::string where = vfs.PathName(*view_.ns, view_.root, {mount_, mount_->root()});
      Add(kMntPoint, where.starts_with("/") ? where : "", &stat_.mnt_point);
    }
    if (Asked(kMntOpts)) {
      const std::string options = mount_->fs().ShowOptions();
      Add(kMntOpts, options.empty() ? options : options.substr(1), &stat_.mnt_opts);
    }
    if (Asked(kSbSource)) Add(kSbSource, mount_->source(), &stat_.sb_source);
  }

  // statmount_string(): offset 0 is an empty string, what is empty is not there.
  void Add(uint64_t bit, const std::string& text, uint32_t* offset) {
    if (texts_.empty()) texts_ += '\0';
    if (text.empty()) return;
    *offset = static_cast<uint32_t>(texts_.size());
    texts_ += text;
    texts_ += '\0';
    stat_.mask |= bit;
  }

  const View view_;
  const base::Ref<Mount> mount_;
  const uint64_t mask_;
  MountStat stat_{};
  std::string texts_;
};

// What is below `above`, but not itself.
std::vector<uint64_t> IdsBelow(const View& view, const Path& above, const Mount* itself) {
  std::vector<uint64_t> ids;
  for (const base::Ref<Mount>& mount : view.ns->Mounts()) {
    if (mount.get() != itself && MountNamespace::IsReachable(*mount, above)) {
      ids.push_back(mount->unique_id());
    }
  }
  return ids;
}

}  // namespace

base::Result<uint64_t> SysStatmount(Task& t, const SyscallArgs& args) {
  if (args.Uint(3) != 0) return Error(EINVAL);
  const MountIdRequest request = TRY(CopyInRequest(t, args[0]));
  const View view = TRY(ViewOf(t, request));
  base::Ref<Mount> mount = view.ns->FindMount(request.mount_id);
  if (!mount) return Error(ENOENT);
  if (!MountNamespace::IsReachable(*mount, view.root) && !MayIn(t, *view.ns)) {
    return Error(EPERM);
  }
  TRY(Statement(t, view, std::move(mount), request.param).CopyOut(t, args[1], args[2]));
  return uint64_t{0};
}

base::Result<uint64_t> SysListmount(Task& t, const SyscallArgs& args) {
  const uint64_t room = args[2];
  const uint32_t flags = args.Uint(3);
  if ((flags & ~kListReverse) != 0) return Error(EINVAL);
  if (room > kListMax) return Error(EOVERFLOW);
  const MountIdRequest request = TRY(CopyInRequest(t, args[0]));
  if (request.param != 0 && request.param <= kUniqueMountIds) return Error(EINVAL);
  const View view = TRY(ViewOf(t, request));
  Path above = view.root;
  base::Ref<Mount> itself;
  if (request.mount_id != kListRoot) {
    itself = view.ns->FindMount(request.mount_id);
    if (!itself) return Error(ENOENT);
    above = Path{itself, itself->root()};
  }
  if (itself && !MountNamespace::IsReachable(*itself, view.root) && !MayIn(t, *view.ns)) {
    return Error(EPERM);
  }
  std::vector<uint64_t> ids = IdsBelow(view, above, itself.get());
  if ((flags & kListReverse) != 0) std::reverse(ids.begin(), ids.end());
  if (request.param != 0) {
    std::erase_if(ids, [&](uint64_t id) {
      return (flags & kListReverse) != 0 ? id >= request.param : id <= request.param;
    });
  }
  if (ids.size() > room) ids.resize(room);
  TRY(t.memory().Write(args[1], std::as_bytes(std::span(ids))));
  return ids.size();
}

}  // namespace sentry
