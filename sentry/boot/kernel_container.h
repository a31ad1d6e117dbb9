// A container of the kernel: its namespaces, mounts and processes, behind the Container interface.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/boot/container_mounts.h"
#include "sentry/boot/sandbox.h"
#include "sentry/fs/devpts/console.h"
#include "sentry/fs/gofer/connection.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/seccomp/filter.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/vfs/fd_table.h"

namespace sentry {

class KernelContainer : public Container, public std::enable_shared_from_this<KernelContainer> {
 public:
  // What it is made with. A namespace that is null is made; `user` null: the specification's.
  struct Place {
    NamespaceSet ns;
    base::Ref<UserNamespace> user;
    base::Ref<Cgroup> cgroup;
  };
  KernelContainer(const ContainerSpec& spec, Kernel* kernel) : spec_(spec), kernel_(*kernel) {}

  // Builds it, up to an init that does not run yet. Not on a fiber. On error nothing of it runs.
  base::Status Init(Place place, ContainerFds fds, std::string* why);

  const std::string& id() const { return spec_.container_id; }
  const NamespaceSet& namespaces() const { return ns_; }
  const base::Ref<UserNamespace>& user_ns() const { return user_ns_; }

  base::Status Start(std::string* why) override;
  base::Result<int32_t> Exec(const ProcessSpec& process, ProcessFds fds, std::string* why) override;
  base::Status Wait(int32_t pid, std::function<void(int)> done) override;
  base::Status Signal(int32_t pid, int signo) override;
  base::Status SignalAll(int signo) override;
  std::vector<ProcessInfo> Processes() override;
  base::Status SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols) override;
  void SetLimits(int64_t pids, int64_t memory) override { cgroup_->SetLimits(pids, memory); }
  void SetFrozen(bool frozen) override { kernel_.SetFrozen(*cgroup_, frozen); }
  void End(int exit_code) override;
  // Tells the gofer to end, which it does at once.
  void EndGofer(int exit_code) { gofer_->End(exit_code); }

 private:
  // A process that runsc knows: init, or of Exec.
  struct Known {
    base::Ref<ThreadGroup> group;
    base::Ref<Console> console;
    bool ended = false;
    int status = 0;
    std::vector<std::function<void(int)>> waiters;
  };

  base::Status MakeNamespaces(Place place, std::string* why);
  base::Result<base::Ref<UserNamespace>> MakeUserNamespace();
  base::Status MakeSeccomp();
  base::Result<base::Ref<Credentials>> MakeCredentials(const ProcessSpec& p);
  base::Result<std::string> FindProgram(const ProcessSpec& p, const WalkContext& ctx,
                                        std::string* why);
  // Imports the files and makes the console, if any.
  base::Result<base::Ref<FdTable>> MakeFiles(const ProcessSpec& p, ProcessFds fds, bool init,
                                             const Credentials& creds, base::Ref<Console>* console,
                                             std::string* why);
  // Makes the process, not yet running; its number in the container.
  base::Result<int32_t> MakeProcess(const ProcessSpec& p, ProcessFds fds, bool init,
                                    std::string* why);
  void OnEnd(int32_t pid, int status);
  base::Ref<ThreadGroup> GroupFor(int32_t pid);
  ProcessInfo Describe(ThreadGroup& group);
  // True if nothing is left of it. On a fiber.
  bool KillAll();

  const ContainerSpec spec_;
  Kernel& kernel_;
  // Set by Init.
  NamespaceSet ns_;
  base::Ref<Cgroup> cgroup_;
  base::Ref<GoferConnection> gofer_;
  base::Ref<UserNamespace> user_ns_;
  base::Ref<SeccompFilter> seccomp_;  // null: none
  int32_t init_pid_ = 0;

  absl::Mutex mutex_;
  ContainerMounts mounts_;  // set by Init, dropped by End when no Exec is left
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  int execs_ ABSL_GUARDED_BY(mutex_) = 0;  // that are at work
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<int32_t, Known> known_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
