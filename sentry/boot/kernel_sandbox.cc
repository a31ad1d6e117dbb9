// CreateSandbox: the kernel and its containers, behind the Sandbox interface.
#include <fcntl.h>
#include <signal.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/platform.h"
#include "sentry/base/kernel_memory.h"
#include "sentry/base/log.h"
#include "sentry/boot/filesystems.h"
#include "sentry/boot/kernel_container.h"
#include "sentry/boot/sandbox.h"
#include "sentry/fiber/scheduler.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/poller.h"
#include "sentry/net/host/host_network.h"
#include "sentry/syscalls/syscall.h"
#include "sentry/trace/times/call_times.h"

namespace sentry {

namespace {

// What the sentry may hold for the guest; see base/kernel_memory.h.
constexpr uint64_t kMinKernelMemory = uint64_t{32} << 20;
constexpr uint64_t kMaxKernelMemory = uint64_t{1} << 30;
// As a process that was killed.
constexpr int kKilledCode = 128 + SIGKILL;

Cgroup::Limits LimitsOf(const ContainerSpec& spec) {
  return {.pids = spec.pids_limit, .memory = spec.memory_limit, .cpu = spec.cpu_limit};
}

class KernelSandbox : public Sandbox {
 public:
  KernelSandbox(const BootSpec& spec, std::unique_ptr<platform::Platform> platform)
      : spec_(spec),
        kernel_(std::move(platform), LimitsOf(spec.container)),
        poller_(kernel_.platform()),
        scheduler_(fiber::Scheduler::Options{.workers = 0, .poller = &poller_}),
        first_(std::make_shared<KernelContainer>(spec.container, &kernel_)) {
    kernel_.set_dispatch(&DispatchSyscall);
    // Linux lets a guest's kernel objects take all memory; they are a part of it here.
    base::KernelMemory::SetLimit(
        std::clamp(kernel_.root_cgroup()->total_memory() / 4, kMinKernelMemory, kMaxKernelMemory));
  }

  base::Status Init(SandboxFds fds, std::string* why);

  std::shared_ptr<Container> first() override { return first_; }
  base::Result<std::shared_ptr<Container>> Join(const ContainerSpec& spec, ContainerFds fds,
                                                std::string* why) override;
  std::string SyscallTimes() override;
  void Destroy() override;

 private:
  // Null: there is none, or it has ended.
  std::shared_ptr<KernelContainer> Find(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  base::Result<KernelContainer::Place> PlaceOf(const ContainerSpec& spec, std::string* why);

  const BootSpec spec_;
  Kernel kernel_;
  PlatformPoller poller_;
  fiber::Scheduler scheduler_;
  base::UniqueFd log_;
  const std::shared_ptr<KernelContainer> first_;

  absl::Mutex mutex_;
  // Those that joined. Whoever drives them keeps them.
  std::map<std::string, std::weak_ptr<KernelContainer>> joined_ ABSL_GUARDED_BY(mutex_);
};

base::Status KernelSandbox::Init(SandboxFds fds, std::string* why) {
  if (fds.log.valid()) {
    log_ = std::move(fds.log);
    base::InitLog(
        {.fd = log_.get(), .level = spec_.debug ? base::LogLevel::kDebug : base::LogLevel::kInfo});
  }
  kernel_.strace.store(spec_.strace, std::memory_order_relaxed);
  if (spec_.network == kHostNetwork) {
    HostNetwork::Install(std::move(fds.network.route), std::move(fds.network.proc));
  }
  RegisterFilesystems(kernel_);
  KernelContainer::Place place;
  place.ns.uts = kernel_.root_uts_ns();
  place.ns.ipc = kernel_.root_ipc_ns();
  place.ns.net = kernel_.root_net_ns();
  place.ns.cgroup = kernel_.root_cgroup_ns();
  place.cgroup = kernel_.root_cgroup();
  return first_->Init(std::move(place), std::move(fds.container), why);
}

std::shared_ptr<KernelContainer> KernelSandbox::Find(const std::string& id) {
  if (id == first_->id()) return first_;
  absl::MutexLock l(&mutex_);
  auto it = joined_.find(id);
  return it == joined_.end() ? nullptr : it->second.lock();
}

base::Result<KernelContainer::Place> KernelSandbox::PlaceOf(const ContainerSpec& spec,
                                                            std::string* why) {
  KernelContainer::Place place;
  place.cgroup = base::MakeRef<Cgroup>(LimitsOf(spec));
  auto take = [&](const std::string& id, auto set) -> base::Status {
    if (id.empty()) return base::Ok();
    std::shared_ptr<KernelContainer> from = Find(id);
    if (!from) {
      *why = "container " + id + ", whose namespaces are to be shared, is not in this sandbox";
      return base::Error(ESRCH);
    }
    set(*from);
    return base::Ok();
  };
  NamespaceSet& ns = place.ns;
  TRY(take(spec.share.pid, [&](KernelContainer& c) { ns.pid = c.namespaces().pid; }));
  TRY(take(spec.share.uts, [&](KernelContainer& c) { ns.uts = c.namespaces().uts; }));
  TRY(take(spec.share.ipc, [&](KernelContainer& c) { ns.ipc = c.namespaces().ipc; }));
  TRY(take(spec.share.net, [&](KernelContainer& c) { ns.net = c.namespaces().net; }));
  TRY(take(spec.share.user, [&](KernelContainer& c) { place.user = c.user_ns(); }));
  if (!spec.new_cgroup_namespace) ns.cgroup = kernel_.root_cgroup_ns();
  return place;
}

base::Result<std::shared_ptr<Container>> KernelSandbox::Join(const ContainerSpec& spec,
                                                             ContainerFds fds, std::string* why) {
  auto container = std::make_shared<KernelContainer>(spec, &kernel_);
  {
    absl::MutexLock l(&mutex_);
    std::erase_if(joined_, [](const auto& entry) { return entry.second.expired(); });
    if (spec.container_id == first_->id() ||
        !joined_.emplace(spec.container_id, container).second) {
      *why = "container " + spec.container_id + " is in this sandbox already";
      return base::Error(EEXIST);
    }
  }
  auto place = PlaceOf(spec, why);
  if (!place.ok()) return place.error();
  TRY(container->Init(std::move(*place), std::move(fds), why));
  return std::shared_ptr<Container>(std::move(container));
}

std::string KernelSandbox::SyscallTimes() {
  return trace::CallTimesJson([](int number) {
    const SyscallInfo* info = FindSyscall(number);
    return info ? info->name : "unknown";
  });
}

void KernelSandbox::Destroy() {
  (void)first_->SignalAll(SIGKILL);
  absl::MutexLock l(&mutex_);
  for (const auto& [id, joined] : joined_) {
    if (auto container = joined.lock()) {
      (void)container->SignalAll(SIGKILL);
      container->EndGofer(kKilledCode);
    }
  }
}

}  // namespace

base::Result<std::unique_ptr<Sandbox>> CreateSandbox(const BootSpec& spec, SandboxFds fds,
                                                     std::unique_ptr<platform::Platform> platform,
                                                     std::string* why) {
  auto sandbox = std::make_unique<KernelSandbox>(spec, std::move(platform));
  base::Status status = sandbox->Init(std::move(fds), why);
  if (!status.ok()) {
    // Fibers may still refer to it, and the process is about to end.
    (void)sandbox.release();
    return status.error();
  }
  return std::unique_ptr<Sandbox>(std::move(sandbox));
}

}  // namespace sentry
