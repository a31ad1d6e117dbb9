// The devpts filesystem and /dev/ptmx. Follows fs/devpts/inode.c. Every mount is an instance of its
// own, as in Linux since 4.7.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/result.h"
#include "sentry/fs/pseudo/pseudo.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

class Kernel;
class Task;
class Terminal;

class DevptsFs : public PseudoFs {
 public:
  struct Options {
    bool set_uid = false, set_gid = false;
    uid_t uid = 0;
    gid_t gid = 0;
    mode_t mode = 0600;
    mode_t ptmx_mode = 0;
    int max = 4096;  // kernel.pty.max
  };
  // "uid=,gid=,mode=,ptmxmode=,max=,newinstance"; EINVAL.
  static base::Result<Options> ParseOptions(std::string_view data);

  DevptsFs(Kernel* kernel, const Options& options);
  std::string ShowOptions() const override;
  // The root directory: made by New, kept by the mount.
  static base::Ref<Inode> NewRoot(base::Ref<DevptsFs> fs);

  // A new pair, owned by `creds`; ENOSPC when there are `max`.
  base::Result<base::Ref<Terminal>> NewTerminal(const Credentials& creds);
  // Opens /dev/ptmx: a new pair's master with `path` as its place.
  base::Result<base::Ref<FileDescription>> OpenMaster(Path path, uint32_t flags,
                                                      const Credentials& creds);
  // The master was closed: the name goes.
  void Release(int index);
  // The place of a slave: in the mount that `master` is in, or the one that serves it.
  base::Result<Path> SlavePath(Task& t, const Path& master, int index);

 private:
  class Root;
  class SlaveInode;
  friend base::Result<base::Ref<FileDescription>> OpenPts(const OpenArgs&, dev_t);
  ~DevptsFs() override = default;
  base::Ref<Inode> Find(int index);

  Kernel* const kernel_;
  const Options options_;
  absl::Mutex mutex_;
  std::map<int, base::Ref<SlaveInode>> slaves_ ABSL_GUARDED_BY(mutex_);
};

// Registers the filesystem type and the devices: ptmx (5, 2), pts (136 to 143), tty (5, 0).
void RegisterTerminals(Kernel* kernel, Vfs& vfs);

}  // namespace sentry
