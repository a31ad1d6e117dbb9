// /proc/sys. A value that can be set here takes effect; what has no effect yet is read-only.
#include <fmt/format.h>
#include <linux/capability.h>

#include "sentry/base/random.h"
#include "sentry/fs/aio/aio.h"
#include "sentry/fs/pipe/pipe.h"
#include "sentry/fs/proc/proc_root.h"
#include "sentry/fs/proc/sysctl.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/mount.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

base::Ref<UtsNamespace> CurrentUts(Kernel& kernel) {
  base::Ref<UtsNamespace> uts = kernel.CurrentNamespaces().uts;
  return uts != nullptr ? uts : kernel.root_uts_ns();
}

// A version 4 UUID.
std::string RandomUuid() {
  uint8_t b[16];
  base::FillRandom(std::as_writable_bytes(std::span(b)));
  b[6] = (b[6] & 0x0f) | 0x40;
  b[8] = (b[8] & 0x3f) | 0x80;
  std::string s;
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) s += '-';
    s += fmt::format("{:02x}", b[i]);
  }
  return s;
}

void AddNames(Kernel& kernel, SysctlBuilder& dir) {
  Kernel* k = &kernel;
  dir.ReadWrite(
      "hostname", [k] { return CurrentUts(*k)->hostname() + "\n"; },
      [k](std::string_view data) -> Status {
        std::string_view name = TrimSysctl(data);
        if (name.size() > 64) name = name.substr(0, 64);
        CurrentUts(*k)->SetHostname(std::string(name));
        return base::Ok();
      });
  dir.ReadWrite(
      "domainname",
      [k] {
        std::string name = CurrentUts(*k)->domainname();
        return (name.empty() ? "(none)" : name) + "\n";
      },
      [k](std::string_view data) -> Status {
        CurrentUts(*k)->SetDomainname(std::string(TrimSysctl(data).substr(0, 64)));
        return base::Ok();
      });
}

void AddLastPid(Kernel& kernel, SysctlBuilder& dir) {
  Kernel* k = &kernel;
  dir.ReadWrite(
      "ns_last_pid",
      [k]() -> Result<std::string> {
        return std::to_string(k->CurrentNamespaces().pid->last_pid()) + "\n";
      },
      [](std::string_view data) -> Status {
        Task* t = Task::Current();
        if (t == nullptr || !t->creds().HasCapIn(CAP_SYS_ADMIN, *t->pid_namespace().user_ns())) {
          return Error(EPERM);
        }
        int pid = TRY(ParseSysctl<int>(data));
        if (pid < 0) return Error(EINVAL);
        t->pid_namespace().SetLastPid(pid);
        return base::Ok();
      });
}

void AddKernel(Kernel& kernel, SysctlBuilder dir) {
  Kernel* k = &kernel;
  AddNames(kernel, dir);
  AddLastPid(kernel, dir);
  dir.Value("ostype", "Linux");
  dir.Value("osrelease", kLinuxRelease);
  dir.Value("version", kLinuxVersion);
  dir.Value("pid_max", 4194304);
  dir.Read("threads-max", [k]() -> base::Result<std::string> {
    const int64_t limit = k->CurrentCgroup()->pids_limit();
    return std::to_string(limit > 0 ? limit : 256000) + "\n";
  });
  dir.Value("cap_last_cap", CAP_LAST_CAP);
  dir.Value("ngroups_max", 65536);
  dir.Value("overflowuid", 65534);
  dir.Value("overflowgid", 65534);
  dir.Value("randomize_va_space", 2);
  dir.Value("core_pattern", "core");
  dir.Value("core_uses_pid", 0);
  dir.Value("dmesg_restrict", 1);
  dir.Value("kptr_restrict", 1);
  dir.Value("perf_event_paranoid", 4);
  dir.Value("io_uring_disabled", 2);
  dir.Value("tainted", 0);
  dir.Value("arch", "x86_64");
  dir.Value("core_pipe_limit", 0);
  dir.Value("numa_balancing", 0);
  dir.Value("sched_rr_timeslice_ms", 100);
  dir.Value("sched_autogroup_enabled", 0);
  dir.Dir("seccomp").Value("actions_avail",
                           "kill_process kill_thread trap errno user_notif trace log allow");
  dir.Value("panic", 0);
  dir.Value("sysrq", 0);
  AddIpcSysctls(dir);
  AddKeySysctls(dir.Dir("keys"));
  SysctlBuilder random = dir.Dir("random");
  random.Value("boot_id", RandomUuid());
  random.Read("uuid", [] { return RandomUuid() + "\n"; });
  random.Value("entropy_avail", 256);
  random.Value("poolsize", 256);
  SysctlBuilder pty = dir.Dir("pty");
  pty.Value("max", 4096);
  pty.Value("reserve", 1024);
}

void AddFs(Kernel& kernel, SysctlBuilder dir) {
  Kernel* k = &kernel;
  dir.Value("file-max", INT64_MAX);
  dir.Read("file-nr", [k] {
    return fmt::format("{}\t0\t{}\n", k->CurrentCgroup()->task_count() * 8, INT64_MAX);
  });
  dir.Value("nr_open", 1048576);
  dir.Read("aio-nr", [] { return std::to_string(g_aio_count.load()) + "\n"; });
  dir.ReadWrite(
      "aio-max-nr", [] { return std::to_string(g_aio_max.load()) + "\n"; },
      [](std::string_view data) -> Status {
        g_aio_max = std::min<uint64_t>(TRY(ParseSysctl<uint64_t>(data)), 1 << 20);
        return base::Ok();
      });
  dir.Value("inode-nr", "0\t0");
  dir.ReadWrite(
      "pipe-max-size", [] { return std::to_string(g_pipe_max_size.load()) + "\n"; },
      [](std::string_view data) -> Status {
        uint32_t size = TRY(ParseSysctl<uint32_t>(data));
        if (size == 0 || size > 1u << 31) return Error(EINVAL);
        g_pipe_max_size.store(std::bit_ceil(std::max(size, 4096u)));
        return base::Ok();
      });
  auto number = [&dir](const char* name, std::atomic<int>* value) {
    dir.ReadWrite(
        name, [value] { return std::to_string(value->load()) + "\n"; },
        [value](std::string_view data) -> Status {
          *value = TRY(ParseSysctl<int>(data));
          return base::Ok();
        });
  };
  number("leases-enable", &g_leases_enable);
  number("lease-break-time", &g_lease_break_time);
  dir.Value("pipe-user-pages-soft", 0);
  dir.Value("pipe-user-pages-hard", 0);
  dir.Value("mount-max", static_cast<int64_t>(kMaxMounts));
  dir.Value("suid_dumpable", 0);
  dir.Value("protected_hardlinks", 1);
  dir.Value("protected_symlinks", 1);
  dir.Value("protected_fifos", 0);
  dir.Value("protected_regular", 0);
  dir.Value("overflowuid", 65534);
  dir.Value("overflowgid", 65534);
  AddMqueueSysctls(dir.Dir("mqueue"));
  dir.Dir("epoll").Value("max_user_watches", 1024 * 1024);
  SysctlBuilder inotify = dir.Dir("inotify");
  inotify.Value("max_user_instances", 128);
  inotify.Value("max_user_watches", 65536);
  inotify.Value("max_queued_events", 16384);
}

void AddVm(SysctlBuilder dir) {
  dir.Value("overcommit_memory", 0);
  dir.Value("overcommit_ratio", 50);
  dir.Value("overcommit_kbytes", 0);
  dir.Value("max_map_count", 65530);
  dir.Value("mmap_min_addr", 65536);
  dir.Value("swappiness", 60);
  dir.Value("nr_hugepages", 0);
  dir.Value("legacy_va_layout", 0);
  dir.Value("mmap_rnd_bits", 28);
  dir.Value("page-cluster", 3);
  dir.Value("nr_overcommit_hugepages", 0);
  dir.Value("zone_reclaim_mode", 0);
  dir.Value("memfd_noexec", 0);
}

}  // namespace

void AddSysctls(ProcFs* fs, PseudoDir& dir) {
  SysctlBuilder root(fs, dir);
  AddKernel(fs->kernel(), root.Dir("kernel"));
  AddFs(fs->kernel(), root.Dir("fs"));
  AddVm(root.Dir("vm"));
  AddNetSysctls(root.Dir("net"));
}

}  // namespace sentry
