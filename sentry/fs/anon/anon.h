// Anonymous files: descriptions of kernel objects that stand nowhere in a tree, all of one inode
// (Linux: fs/anon_inodes.c).
#pragma once

#include <string>
#include <string_view>

#include "sentry/vfs/file_description.h"
#include "sentry/vfs/types.h"

namespace sentry {

class Vfs;

// A path for a description called `name`, such as "[eventfd]"; /proc/PID/fd/N shows
// "anon_inode:[eventfd]".
Path AnonFilePath(Vfs& vfs, std::string_view name);

// Base of descriptions of such objects.
class AnonFile : public FileDescription {
 public:
  AnonFile(Vfs& vfs, std::string_view name, uint32_t flags);
  std::string Describe() const override { return "anon_inode:" + name_; }
  base::Result<int64_t> Seek(int64_t, int) override { return int64_t{0}; }  // noop_llseek

 private:
  const std::string name_;
};

}  // namespace sentry
