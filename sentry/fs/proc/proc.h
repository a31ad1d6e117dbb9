// The proc filesystem. Follows fs/proc. An instance shows the processes of one PID namespace.
#pragma once

#include <string>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fs/pseudo/pseudo.h"
#include "sentry/kernel/namespaces.h"

namespace sentry {

class Kernel;
class Task;
class Vfs;

class ProcFs : public PseudoFs {
 public:
  ProcFs(Kernel* kernel, base::Ref<PidNamespace> pid_ns);
  Kernel& kernel() const { return *kernel_; }
  PidNamespace& pid_ns() const { return *pid_ns_; }
  static base::Ref<Inode> NewRoot(base::Ref<ProcFs> fs);

 private:
  ~ProcFs() override = default;
  Kernel* const kernel_;
  const base::Ref<PidNamespace> pid_ns_;
};

// Bytes of memory, for /proc/meminfo and sysinfo(2). The sandbox's limit, if it has one, bounds
// what the host tells.
struct SystemMemory {
  uint64_t total = 0, free = 0, buffers = 0, shared = 0;
  uint64_t committed = 0;  // anonymous and shared memory of the processes
  uint64_t anonymous = 0;
};
SystemMemory SystemMemoryOf(Kernel& kernel);

// Registers the filesystem type.
void RegisterProc(Kernel* kernel, Vfs& vfs);

// The process whose directory /proc/PID `file` is, which may stand for a pidfd; null for any other
// file (Linux: tgid_pidfd_to_pid).
base::Ref<Pid> PidOfProcDir(const FileDescription& file);

// Linux: ptrace_may_access with PTRACE_MODE_READ_FSCREDS. EACCES.
base::Status MayReadTask(Task& reader, Task& target);

}  // namespace sentry
