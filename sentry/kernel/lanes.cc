// Which tasks have stream lanes (sentry/lanes).
#include <linux/seccomp.h>

#include <string>

#include "fmt/format.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"

namespace sentry {

// Tasks of one domain may trace one another, whoever of them begins (Linux: ptrace_may_access):
// they have the same ids, capabilities and namespaces, and are dumpable. One container has one
// mount namespace at least. Empty: the task is in none.
std::string Task::LaneDomain() const {
  if (syscall_work() != 0 || seccomp_mode() != SECCOMP_MODE_DISABLED || mm_->dumpable() != 1) {
    return "";
  }
  const Credentials& c = *creds_;
  if (c.ruid != c.euid || c.ruid != c.suid || c.rgid != c.egid || c.rgid != c.sgid) return "";
  return fmt::format("{} {} {:x} {:x} {:x} {} {} {}", c.ruid, c.rgid, c.permitted, c.effective,
                     c.inheritable, fmt::ptr(c.user_ns.get()), fmt::ptr(pid_ns_.get()),
                     fmt::ptr(mount_ns_.get()));
}

void Task::ConsiderLanes(int fd, FileDescription& file) {
  const std::string domain = LaneDomain();
  if (domain.empty() || kernel_->strace.load(std::memory_order_relaxed)) return;
  base::Ref<LaneBinding> binding = mm_->BindLanes(domain);
  if (binding == nullptr) return;
  LaneArena& arena = binding->arena();
  platform::AddressSpace& space = mm_->address_space();
  if (!space.MapLanes(arena.file()) || !space.HasLanes(arena.file())) return;
  if (binding->table().get() == fds_.get() && file.BindWatches(fd, binding)) {
    return context_->SetLaneOwner(mm_->lane_owner());
  }
  const FileDescription::LaneNames lanes = file.EnterLanes(arena);
  if (lanes.in == 0 && lanes.out == 0) return;
  if (fds_->SetLanes(fd, &file, binding, lanes.in, lanes.out)) {
    context_->SetLaneOwner(mm_->lane_owner());
  }
}

void Task::FinishLaneCall() {
  const platform::Trap& trap = context_->trap();
  const uint64_t name = trap.lane_name;
  const bool wrote = trap.lane_wrote;
  const int64_t result = trap.lane_result;
  restart_code_ = 0;
  copy_out_failed_ = false;
  rax_kept_ = false;
  context_->SetResult(static_cast<uint64_t>(result));
  if (base::Ref<LaneBinding> binding = mm_->lanes()) binding->arena().Tell(name, wrote);
}

}  // namespace sentry
