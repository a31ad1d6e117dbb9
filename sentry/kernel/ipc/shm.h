// System V shared memory (Linux: ipc/shm.c).
#pragma once

#include <sys/shm.h>

#include <string>
#include <vector>

#include "sentry/base/host_fd.h"
#include "sentry/kernel/ipc/ipc.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class ShmFile;
class Vfs;

// A segment. All that changes is guarded by IpcState::mutex of its namespace.
class ShmSegment : public base::RefCounted {
 public:
  ShmSegment(IpcPerm perm, uint64_t size, base::Ref<base::HostFd> memory, base::Ref<Inode> inode);

  IpcPerm perm;
  const uint64_t size;  // as asked for; whole pages are mapped
  const base::Ref<base::HostFd> memory;
  const base::Ref<Inode> inode;
  bool removed = false;  // from the table
  int64_t atime = 0, dtime = 0, ctime = 0;
  base::Ref<Pid> creator, last;
  std::vector<ShmFile*> attached;

  uint64_t pages() const { return (size + 4095) / 4096; }
  // How many mappings there are, those of forked processes included.
  uint64_t AttachCount() const;
};

// shmget(2).
base::Result<uint64_t> GetShm(Vfs& vfs, const IpcCaller& caller, key_t key, uint64_t size,
                              int flags);
// What shmat(2) maps; while a mapping of it exists it counts as an attachment. `access`: S_IRUGO,
// S_IWUGO, S_IXUGO. EINVAL, EIDRM, EACCES.
base::Result<base::Ref<FileDescription>> OpenShm(Vfs& vfs, const IpcCaller& caller, int id,
                                                 uint32_t access);
// The segment's size if `file` is one's, else 0.
uint64_t ShmSizeOf(const FileDescription& file);
// shmdt(2) by the current task has unmapped it.
void NoteShmDetach(FileDescription& file);

// shmctl(2).
base::Result<IpcStatResult<shmid_ds>> StatShm(const IpcCaller& caller, int id, IpcStat how);
base::Status SetShm(const IpcCaller& caller, int id, const UserIpcPerm& perm);
base::Status RemoveShm(const IpcCaller& caller, int id);
// SHM_LOCK, SHM_UNLOCK. `limit`: RLIMIT_MEMLOCK.
base::Status LockShm(const IpcCaller& caller, int id, bool lock, uint64_t limit);
// IPC_INFO and SHM_INFO: the highest place in use.
int ShmInfo(const IpcCaller& caller, shminfo* info);
int ShmUsage(const IpcCaller& caller, shm_info* info);

}  // namespace sentry
