// What a walk gives, for as long as nothing changes it (sentry/lanes/path_table.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "platform/fd_lane.h"
#include "sentry/lanes/path_table.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/lanes/path_record.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

// One outcome of a walk, which is made twice: once to find out what it depends on, and once more
// after the words of all that have been looked at. So whatever changes meanwhile is seen.
class PathOutcome {
 public:
  // All of these must outlive it. A relative path begins at ctx.start.
  PathOutcome(PathTable& table, Vfs& vfs, WalkContext& ctx, std::string_view path, bool follows)
      : table_(table), vfs_(vfs), ctx_(ctx), path_(path), follows_(follows) {}

  // False: it is not one that stays until a word changes. May park.
  bool Find();
  // For PathTable::Publish.
  const platform::PathEntry& entry() const { return entry_; }
  const std::string& link() const { return link_; }

 private:
  base::Result<Path> Walk(PathRecord* record);
  bool AddStep(PathWord& word, uint32_t most);
  bool AddAttrOf(Inode& inode, uint32_t most);
  bool Depend(const PathRecord& record, const base::Result<Path>& found);
  bool Fill(const Path& found);

  PathTable& table_;
  Vfs& vfs_;
  WalkContext& ctx_;
  const std::string_view path_;
  const bool follows_;
  platform::PathEntry entry_{};
  uint32_t steps_ = 0;
  bool has_attr_ = false;
  std::string link_;
};

// The attributes of an open file as `creds` sees them, with the words of `table` that they depend
// on; `place` and `path_place` are left to the caller. False: they change without one. May park.
bool FindFdAttr(PathTable& table, const Credentials& creds, FileDescription& file,
                platform::FdAttr* attr);

}  // namespace sentry
