#include "sentry/boot/filesystems.h"

#include "sentry/fs/dev/dev.h"
#include "sentry/fs/devpts/devpts.h"
#include "sentry/fs/mqueue/mqueue_fs.h"
#include "sentry/fs/pipe/pipe_file.h"
#include "sentry/fs/proc/proc.h"
#include "sentry/fs/sys/sys.h"
#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/kernel/kernel.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

void RegisterFilesystems(Kernel& kernel) {
  Vfs& vfs = kernel.vfs();
  vfs.RegisterFilesystem(MakeTmpfsType(kernel.root_cgroup()->total_memory()));
  vfs.RegisterFilesystem(MakeTmpfsType(kernel.root_cgroup()->total_memory(), "ramfs"));
  RegisterMqueue(vfs);
  RegisterMemoryDevices(vfs);
  RegisterTerminals(&kernel, vfs);
  RegisterFifos(vfs);
  RegisterProc(&kernel, vfs);
  RegisterSys(&kernel, vfs);
}

}  // namespace sentry
