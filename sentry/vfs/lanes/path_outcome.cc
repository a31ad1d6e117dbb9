#include "sentry/vfs/lanes/path_outcome.h"

#include <sys/stat.h>

#include <cstring>
#include <utility>

#include "sentry/auth/credentials.h"

namespace sentry {
namespace {

using platform::PathStep;

// The way from the root to where a relative path begins: who may not go it has no business with
// what is found from there, though some process of its domain stands there.
bool RecordWay(const WalkContext& ctx, PathRecord* record) {
  const auto is_hidden = [&](const Path& at, const Mount* by) {
    if (!at.dentry->is_mountpoint()) return false;
    const base::Ref<Mount> top = ctx.ns.MountedOn(at);
    return top && top.get() != by;
  };
  Path at = ctx.start;
  if (is_hidden(at, nullptr)) return false;
  while (!(at == ctx.root)) {
    if (record->names.size() > platform::kPathSteps) return false;
    if (at.dentry == at.mount->root()) {
      Path up = ctx.ns.MountPoint(*at.mount);
      if (!up || is_hidden(up, at.mount.get())) return false;
      at = std::move(up);
      continue;
    }
    base::Ref<Dentry> up = at.dentry->parent();
    if (up == at.dentry || at.dentry->unlinked()) return false;
    record->names.push_back(std::move(at.dentry));
    at.dentry = std::move(up);
    Inode& dir = *at.dentry->inode_ptr();
    record->Searched(dir);
    if (!dir.CheckPermission(ctx.creds, kMayExec).ok()) return false;
    if (!(at == ctx.root) && is_hidden(at, nullptr)) return false;
  }
  return true;
}

// Calls add(word) for each word of the attributes, which looks at it. What made them others, or not
// enough, before they were all in use would not have changed one.
template <typename F>
bool UseAttrWords(Inode& inode, F add) {
  Inode::AttrWords words, again;
  if (!inode.WatchAttr(&words)) return false;
  for (PathWord* word : words) {
    if (!add(*word)) return false;
  }
  return inode.WatchAttr(&again) && again == words;
}

// Into the words of struct stat of an entry.
void PutStat(const Credentials& creds, const InodeAttr& attr, uint64_t (*out)[18]) {
  const struct stat st = ToStat(*creds.user_ns, attr);
  static_assert(sizeof(st) == sizeof(*out));
  memcpy(*out, &st, sizeof(st));
}

int CodeOf(const base::Result<Path>& r) { return r.ok() ? 0 : r.error().code(); }

bool IsKept(const base::Result<Path>& r) {
  const int code = CodeOf(r);
  return code == 0 || code == ENOENT || code == ENOTDIR || code == EACCES;
}

}  // namespace

bool PathOutcome::Find() {
  PathRecord first, second;
  const base::Result<Path> once = Walk(&first);
  if (!first.fixed || !IsKept(once) || !Depend(first, once)) return false;
  entry_.epoch = table_.epoch();
  const base::Result<Path> again = Walk(&second);
  if (!second.fixed || CodeOf(again) != CodeOf(once) || second.names != first.names ||
      second.absent_in != first.absent_in) {
    return false;
  }
  entry_.error = CodeOf(again);
  if (follows_) entry_.flags |= platform::kPathFollows;
  if (!ctx_.creds.RealIds()) entry_.flags |= platform::kPathHasAccess;
  if (!again.ok()) return true;
  return *again == *once && Fill(*again);
}

base::Result<Path> PathOutcome::Walk(PathRecord* record) {
  ctx_.record = record;
  if (path_.front() != '/' && !RecordWay(ctx_, record)) record->fixed = false;
  return vfs_.Walk(ctx_, path_, {.follow_last = follows_});
}

bool PathOutcome::AddStep(PathWord& word, uint32_t most) {
  const uint32_t number = word.Use(table_);
  if (number == 0) return false;
  for (uint32_t i = 0; i < steps_; i++) {
    if (entry_.step[i].word == number) return true;
  }
  if (steps_ == most) return false;
  entry_.step[steps_++] = PathStep{table_.ValueOf(number), number, 0};
  return true;
}

bool PathOutcome::AddAttrOf(Inode& inode, uint32_t most) {
  return UseAttrWords(inode, [&](PathWord& word) { return AddStep(word, most); });
}

bool PathOutcome::Depend(const PathRecord& record, const base::Result<Path>& found) {
  for (const base::Ref<Dentry>& name : record.names) {
    if (!AddStep(name->word(), platform::kPathSteps)) return false;
  }
  if (record.absent_in && !AddAttrOf(*record.absent_in, platform::kPathSteps)) return false;
  entry_.steps = static_cast<uint8_t>(steps_);
  if (!found.ok()) return true;
  has_attr_ = AddAttrOf(*found->dentry->inode_ptr(), steps_ + platform::kPathAttrWords);
  entry_.attr_words = static_cast<uint8_t>(has_attr_ ? steps_ - entry_.steps : 0);
  return true;
}

bool PathOutcome::Fill(const Path& found) {
  Inode& inode = *found.dentry->inode_ptr();
  entry_.type = inode.type();
  entry_.mount_id = static_cast<uint64_t>(found.mount->id());
  if (found.dentry == found.mount->root()) entry_.flags |= platform::kPathMountRoot;
  if (inode.IsSymlink()) {
    auto text = inode.ReadLink();
    if (!text.ok()) return false;
    if (text->size() + platform::PathLinkAt(static_cast<uint32_t>(path_.size())) <=
        platform::kPathText) {
      link_ = *std::move(text);
      entry_.flags |= platform::kPathHasLink;
    }
  }
  if (!has_attr_) {
    entry_.flags &= static_cast<uint8_t>(~platform::kPathHasAccess);
    return true;
  }
  const base::Result<InodeAttr> attr = vfs_.GetAttr(found);
  if (!attr.ok()) return false;
  PutStat(ctx_.creds, *attr, &entry_.stat);
  entry_.btime_sec = static_cast<uint64_t>(attr->btime.tv_sec);
  entry_.btime_nsec = static_cast<uint32_t>(attr->btime.tv_nsec);
  entry_.flags |= platform::kPathHasAttr;
  for (int mode = 0; mode < 8; mode++) {
    const base::Status may = vfs_.Access(ctx_.creds, found, mode);
    entry_.access[mode] = static_cast<uint8_t>(may.ok() ? 0 : may.error().code());
  }
  return true;
}

bool FindFdAttr(PathTable& table, const Credentials& creds, FileDescription& file,
                platform::FdAttr* out) {
  const bool used = UseAttrWords(*file.inode(), [&](PathWord& word) {
    const uint32_t number = word.Use(table);
    if (number == 0 || out->steps == platform::kPathAttrWords) return false;
    out->step[out->steps++] = PathStep{table.ValueOf(number), number, 0};
    return true;
  });
  if (!used) return false;
  const base::Result<InodeAttr> attr = file.GetAttr();
  if (!attr.ok()) return false;
  PutStat(creds, *attr, &out->stat);
  out->btime_sec = static_cast<uint64_t>(attr->btime.tv_sec);
  out->btime_nsec = static_cast<uint32_t>(attr->btime.tv_nsec);
  out->mount_id = static_cast<uint64_t>(file.path().mount->id());
  out->mount_root = file.path().dentry == file.path().mount->root();
  return true;
}

}  // namespace sentry
