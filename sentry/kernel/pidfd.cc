#include "sentry/kernel/pidfd.h"

#include <fcntl.h>
#include <fmt/core.h>

#include <utility>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

namespace {

class PidFile : public FileDescription {
 public:
  PidFile(Kernel& kernel, Path path, uint32_t flags, base::Ref<Pid> pid)
      : FileDescription(std::move(path), O_RDWR | flags), kernel_(kernel), pid_(std::move(pid)) {}

  const base::Ref<Pid>& pid() const { return pid_; }
  uint32_t Readiness() override {
    absl::MutexLock l(&kernel_.task_mutex());
    ThreadGroup* group = pid_->group;
    return !group || group->is_zombie() ? EPOLLIN | EPOLLRDNORM : 0;
  }
  fiber::WaitQueue* wait_queue() override { return &pid_->exit_queue; }
  std::string Describe() const override { return "anon_inode:[pidfd]"; }
  std::string FdInfo() const override {
    Task* t = Task::Current();
    int number = t ? pid_->NumberIn(t->pid_namespace()) : pid_->number();
    return fmt::format("Pid:\t{}\nNSpid:\t{}\n", number, number);
  }

 private:
  Kernel& kernel_;
  const base::Ref<Pid> pid_;
};

}  // namespace

base::Ref<FileDescription> NewPidFd(Kernel& kernel, base::Ref<Pid> pid, uint32_t flags) {
  return base::MakeRef<PidFile>(kernel, kernel.AnonPath("[pidfd]"), flags, std::move(pid));
}

base::Ref<Pid> PidOfFile(const FileDescription& file) {
  auto* pidfile = dynamic_cast<const PidFile*>(&file);
  return pidfile ? pidfile->pid() : nullptr;
}

}  // namespace sentry
