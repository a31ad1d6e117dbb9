#include "sentry/fs/anon/anon.h"

#include <linux/magic.h>

#include "sentry/vfs/vfs.h"

namespace sentry {

Path AnonFilePath(Vfs& vfs, std::string_view name) {
  static Filesystem* fs = base::MakeRef<Filesystem>("anon_inodefs", ANON_INODE_FS_MAGIC).release();
  // Linux's has no file type.
  static AnonInode* inode = base::MakeRef<AnonInode>(fs, 0600, 0, 0).release();
  return vfs.AnonymousPath(base::Ref<Inode>(inode), "anon_inode:" + std::string(name));
}

AnonFile::AnonFile(Vfs& vfs, std::string_view name, uint32_t flags)
    : FileDescription(AnonFilePath(vfs, name), flags), name_(name) {}

}  // namespace sentry
