#include "sentry/fs/tmpfs/tmpfs_flags.h"

#include "sentry/fs/tmpfs/tmpfs_inode.h"

namespace sentry {
namespace {

TmpfsInode* Flagged(Inode& inode) {
  return inode.IsReg() || inode.IsDir() ? dynamic_cast<TmpfsInode*>(&inode) : nullptr;
}

}  // namespace

base::Result<uint32_t> FileFlagsOf(Inode& inode) {
  TmpfsInode* flagged = Flagged(inode);
  if (flagged == nullptr) return base::Error(ENOTTY);
  return flagged->file_flags();
}

base::Status SetFileFlags(Inode& inode, uint32_t flags) {
  TmpfsInode* flagged = Flagged(inode);
  if (flagged == nullptr) return base::Error(ENOTTY);
  if ((flags & ~kFileFlags) != 0) return base::Error(EOPNOTSUPP);
  flagged->set_file_flags(flags);
  flagged->Touch(false, false, true);
  return base::Ok();
}

}  // namespace sentry
