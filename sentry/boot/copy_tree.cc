#include "sentry/boot/copy_tree.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <string>
#include <utility>
#include <vector>

#include "sentry/vfs/file_description.h"

namespace sentry {

namespace {

constexpr size_t kChunk = 64 * 1024;
constexpr uint32_t kReadFlags = O_RDONLY | O_NOFOLLOW;

class Copier {
 public:
  Copier(Vfs& vfs, const WalkContext& ctx) : vfs_(vfs), ctx_(ctx) {}

  base::Status Copy(const Path& to) {
    todo_.emplace_back(ctx_.start, to);
    while (!todo_.empty()) {
      auto [source, target] = std::move(todo_.back());
      todo_.pop_back();
      for (const std::string& name : TRY(Names(source))) TRY(CopyEntry(source, target, name));
    }
    return base::Ok();
  }

 private:
  WalkContext At(const Path& directory) const {
    WalkContext ctx = ctx_;
    ctx.start = directory;
    return ctx;
  }

  base::Result<std::vector<std::string>> Names(const Path& directory) {
    auto dir = TRY(vfs_.OpenPath(ctx_, directory, kReadFlags | O_DIRECTORY));
    std::vector<std::string> names;
    for (bool more = true; more;) {
      more = false;
      TRY(dir->GetDents([&](const DirEntry& entry) {
        more = true;
        if (entry.name != "." && entry.name != "..") names.emplace_back(entry.name);
        return true;
      }));
    }
    return names;
  }

  base::Status CopyEntry(const Path& from_dir, const Path& to_dir, const std::string& name) {
    const WalkContext from = At(from_dir), to = At(to_dir);
    const WalkFlags itself{.follow_last = false};
    Path source = TRY(vfs_.Walk(from, name, itself));
    InodeAttr attr = TRY(vfs_.GetAttr(source));
    switch (attr.mode & S_IFMT) {
      case S_IFDIR:
        TRY(vfs_.Mkdir(to, name, 0700));
        todo_.emplace_back(source, TRY(vfs_.Walk(to, name, itself)));
        break;
      case S_IFREG:
        TRY(CopyData(source, to, name));
        break;
      case S_IFLNK:
        TRY(vfs_.Symlink(to, TRY(vfs_.ReadLink(ctx_.creds, source)), name));
        break;
      case S_IFSOCK:
        return base::Ok();
      default:
        TRY(vfs_.Mknod(to, name, attr.mode, attr.rdev));
    }
    AttrChange change;
    change.set_uid = change.set_gid = change.set_atime = change.set_mtime = true;
    change.uid = attr.uid;
    change.gid = attr.gid;
    change.atime = attr.atime;
    change.mtime = attr.mtime;
    Path target = TRY(vfs_.Walk(to, name, itself));
    TRY(vfs_.SetAttr(ctx_.creds, target, change));
    if (S_ISLNK(attr.mode)) return base::Ok();
    // After the owner, whose change drops set-id bits.
    AttrChange mode;
    mode.set_mode = true;
    mode.mode = attr.mode & 07777;
    return vfs_.SetAttr(ctx_.creds, target, mode);
  }

  base::Status CopyData(const Path& source, const WalkContext& to, const std::string& name) {
    auto in = TRY(vfs_.OpenPath(ctx_, source, kReadFlags));
    auto out = TRY(vfs_.Open(to, name, O_WRONLY | O_CREAT | O_EXCL, 0600));
    buffer_.resize(kChunk);
    for (;;) {
      BufferDest dest{std::span(buffer_)};
      size_t length = TRY(in->Read(dest, false));
      if (length == 0) return base::Ok();
      BufferSource bytes{std::span(buffer_).first(length)};
      while (bytes.remaining() > 0) {
        if (TRY(out->Write(bytes, false)) == 0) return base::Error(ENOSPC);
      }
    }
  }

  Vfs& vfs_;
  const WalkContext& ctx_;
  std::vector<std::pair<Path, Path>> todo_;  // directories: what they hold is still to be copied
  std::vector<std::byte> buffer_;
};

}  // namespace

base::Status CopyTree(Vfs& vfs, const WalkContext& ctx, const Path& to) {
  return Copier(vfs, ctx).Copy(to);
}

}  // namespace sentry
