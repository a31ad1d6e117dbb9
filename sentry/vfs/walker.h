// The walk of one path (Linux: fs/namei.c, struct nameidata). Internal to sentry/vfs.
#pragma once

#include <linux/openat2.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

// What the last component of a path is.
enum class LastType { kNormal, kDot, kDotDot, kRoot };

class Walker {
 public:
  // `ctx` and the path must outlive it.
  explicit Walker(const WalkContext& ctx);

  // The whole walk.
  base::Result<Path> Walk(std::string_view path, WalkFlags flags);

  // --- in steps, for what creates, removes or renames the last component ---
  // Where the walk begins. ENOENT for an empty path.
  base::Status Begin(std::string_view path);
  // Walks to the parent of the last component: cur() is the directory, which the caller may search.
  base::Status ToLast();
  LastType last_type() const { return last_type_; }
  std::string_view last() const { return last_; }
  // A '/' followed the last component, here or in a link followed to it.
  bool trailing_slash() const { return trailing_slash_; }
  Path& cur() { return cur_; }
  // Goes to last() when it is "." or "..", or stays.
  base::Status StepSpecial();
  // The last component was found to be `child`: steps to it, or follows it if it is a symbolic link
  // and `follow`. False: a link's body is to be walked next, by ToLast.
  base::Result<bool> StepTo(base::Ref<Dentry> child, bool follow);
  // Looks `name` up in cur(). Null or a negative dentry: there is none.
  base::Result<base::Ref<Dentry>> LookupChild(std::string_view name);

 private:
  base::Status MaySearch();
  base::Status DotDot();
  // True if cur() is where the walk goes on; false if a link was entered.
  base::Result<bool> Component(std::string_view name);
  base::Result<bool> FollowLink(base::Ref<Dentry> link);
  base::Status JumpToRoot();
  base::Result<base::Ref<Dentry>> LookupSlow(std::string_view name);
  base::Result<base::Ref<Dentry>> LookupRun(std::string_view name);
  bool scoped() const { return (ctx_.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)) != 0; }

  const WalkContext& ctx_;
  const Path& root_;
  Path cur_;
  std::string_view rest_;
  // What is left to walk after the link that is being followed; outermost first.
  absl::InlinedVector<std::string_view, 4> frames_;
  std::vector<std::unique_ptr<std::string>> bodies_;  // texts of links, kept for the views above
  std::string_view last_;
  LastType last_type_ = LastType::kRoot;
  bool trailing_slash_ = false;
  int links_ = 0;
  uint64_t rename_sequence_ = 0;
};

// Looks `name` up in a directory whose inode lock the caller holds. Null or negative: there is
// none.
base::Result<base::Ref<Dentry>> LookupLocked(Dentry& dir, std::string_view name);

}  // namespace sentry
