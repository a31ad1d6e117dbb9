// The root directory of proc, and the files about the whole system.
#include "sentry/fs/proc/proc_root.h"

#include <dirent.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/sysinfo.h>
#include <time.h>

#include <algorithm>
#include <charconv>

#include "sentry/fs/proc/host_snapshot.h"
#include "sentry/fs/proc/pid_dir.h"
#include "sentry/fs/proc/pid_files.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr int64_t kTickNs = 10'000'000;
constexpr int64_t kSecond = 1'000'000'000;

int64_t ClockNs(int clock) {
  timespec ts;
  clock_gettime(clock, &ts);
  return ts.tv_sec * kSecond + ts.tv_nsec;
}

// Time that processes of the sandbox have run: those that live with what they have waited for.
int64_t BusyNs(Kernel& kernel, int64_t* system_ns) {
  int64_t user = 0;
  *system_ns = 0;
  for (const auto& group : kernel.ThreadGroups(*kernel.CurrentCgroup())) {
    Usage u = group->SelfUsage();
    u.Add(group->ChildrenUsage());
    user += u.user_ns;
    *system_ns += u.system_ns;
  }
  return user;
}

std::string Uptime(Kernel& kernel) {
  int64_t up = ClockNs(CLOCK_BOOTTIME), system;
  int64_t busy = BusyNs(kernel, &system) + system;
  int64_t idle = std::max<int64_t>(up * kernel.CurrentCgroup()->cpu_count() - busy, 0);
  constexpr int64_t kHundredth = kSecond / 100;
  return fmt::format("{}.{:02} {}.{:02}\n", up / kSecond, up % kSecond / kHundredth, idle / kSecond,
                     idle % kSecond / kHundredth);
}

std::string Loadavg(Kernel& kernel) {
  struct sysinfo info = {};
  (void)sysinfo(&info);
  std::string s;
  for (unsigned long load : info.loads) {
    s += fmt::format("{}.{:02} ", load >> SI_LOAD_SHIFT,
                     (load & ((1u << SI_LOAD_SHIFT) - 1)) * 100 >> SI_LOAD_SHIFT);
  }
  int running = 0, total = 0;
  for (const auto& task : kernel.Tasks(*kernel.CurrentCgroup())) {
    ++total;
    if (task->StateChar() == 'R') ++running;
  }
  return s + fmt::format("{}/{} {}\n", std::max(running, 1), total,
                         kernel.CurrentNamespaces().pid->last_pid());
}

std::string Meminfo(Kernel& kernel) {
  const auto [total, free, buffers, shared, used, anon] = SystemMemoryOf(kernel);
  uint64_t available = std::min(free + buffers, total);
  std::string s;
  auto line = [&s](std::string_view name, uint64_t bytes) {
    s += fmt::format("{:<16}{:8} kB\n", name, bytes / 1024);
  };
  line("MemTotal:", total);
  line("MemFree:", free);
  line("MemAvailable:", available);
  line("Buffers:", buffers);
  line("Cached:", shared);
  line("SwapCached:", 0);
  line("Active:", anon);
  line("Inactive:", 0);
  line("Active(anon):", anon);
  line("Inactive(anon):", 0);
  line("Active(file):", 0);
  line("Inactive(file):", 0);
  line("Unevictable:", 0);
  line("Mlocked:", 0);
  line("SwapTotal:", 0);
  line("SwapFree:", 0);
  line("Dirty:", 0);
  line("Writeback:", 0);
  line("AnonPages:", anon);
  line("Mapped:", 0);
  line("Shmem:", shared);
  line("KReclaimable:", 0);
  line("Slab:", 0);
  line("SReclaimable:", 0);
  line("SUnreclaim:", 0);
  line("KernelStack:", static_cast<uint64_t>(kernel.CurrentCgroup()->task_count()) * 16384);
  line("PageTables:", 0);
  line("NFS_Unstable:", 0);
  line("Bounce:", 0);
  line("WritebackTmp:", 0);
  line("CommitLimit:", total / 2);
  line("Committed_AS:", used);
  line("VmallocTotal:", uint64_t{34359738367} * 1024);
  line("VmallocUsed:", 0);
  line("VmallocChunk:", 0);
  line("Percpu:", 0);
  line("AnonHugePages:", 0);
  line("ShmemHugePages:", 0);
  line("ShmemPmdMapped:", 0);
  s += "HugePages_Total:       0\nHugePages_Free:        0\nHugePages_Rsvd:        0\n"
       "HugePages_Surp:        0\n";
  line("Hugepagesize:", 2048 * 1024);
  return s;
}

std::string Stat(Kernel& kernel) {
  int64_t up = ClockNs(CLOCK_BOOTTIME), system;
  int64_t user = BusyNs(kernel, &system);
  int cpus = kernel.CurrentCgroup()->cpu_count();
  int64_t idle = std::max<int64_t>(up * cpus - user - system, 0);
  auto cpu = [](std::string_view name, int64_t u, int64_t s, int64_t i) {
    return fmt::format("{} {} 0 {} {} 0 0 0 0 0 0\n", name, u / kTickNs, s / kTickNs, i / kTickNs);
  };
  std::string s = cpu("cpu ", user, system, idle);
  for (int n = 0; n < cpus; ++n) {
    s += cpu(fmt::format("cpu{}", n), user / cpus, system / cpus, idle / cpus);
  }
  int running = 0;
  for (const auto& task : kernel.Tasks(*kernel.CurrentCgroup())) {
    if (task->StateChar() == 'R') ++running;
  }
  int64_t boot = (ClockNs(CLOCK_REALTIME) - up) / kSecond;
  s += fmt::format(
      "intr 0\nctxt {}\nbtime {}\nprocesses {}\nprocs_running {}\nprocs_blocked 0\n"
      "softirq 0 0 0 0 0 0 0 0 0 0 0\n",
      kernel.context_switches.load(), boot, kernel.forks.load(), running);
  return s;
}

std::string Vmstat(Kernel& kernel) {
  struct sysinfo info = {};
  (void)sysinfo(&info);
  uint64_t unit = std::max<uint64_t>(info.mem_unit, 1);
  uint64_t free = std::min<uint64_t>(info.freeram * unit, kernel.CurrentCgroup()->total_memory());
  return fmt::format(
      "nr_free_pages {}\nnr_dirty 0\nnr_writeback 0\npgpgin 0\npgpgout 0\npswpin 0\npswpout 0\n"
      "pgfault {}\npgmajfault 0\n",
      free / 4096, kernel.faults.load());
}

std::string Filesystems(Vfs& vfs) {
  std::string s = "nodev\tsockfs\nnodev\tpipefs\n";
  for (const FilesystemType* type : vfs.filesystems()) {
    s += fmt::format("{}\t{}\n", type->requires_device() ? "" : "nodev", type->name());
  }
  return s;
}

std::string Version() {
  return fmt::format("Linux version {} (runsc@sentry) (gcc {}) {}\n", kLinuxRelease, __VERSION__,
                     kLinuxVersion);
}

class Root : public PseudoDir {
 public:
  explicit Root(ProcFs* fs) : PseudoDir(fs, 0555, 1), fs_(fs) {
    Kernel* k = &fs->kernel();
    auto file = [&](const char* name, FuncFile::Reader reader) {
      Add(name, base::MakeRef<FuncFile>(fs, 0444, std::move(reader)));
    };
    Add("self", base::MakeRef<PseudoLink>(fs, [fs]() -> Result<std::string> {
          Task* t = Task::Current();
          int pid = t != nullptr ? t->thread_group().PidIn(fs->pid_ns()) : 0;
          if (pid == 0) return Error(ENOENT);
          return fmt::format("{}", pid);
        }));
    Add("thread-self", base::MakeRef<PseudoLink>(fs, [fs]() -> Result<std::string> {
          Task* t = Task::Current();
          int pid = t != nullptr ? t->thread_group().PidIn(fs->pid_ns()) : 0;
          if (pid == 0) return Error(ENOENT);
          return fmt::format("{}/task/{}", pid, t->TidIn(fs->pid_ns()));
        }));
    Add("mounts", base::MakeRef<PseudoLink>(fs, "self/mounts"));
    Add("net", base::MakeRef<PseudoLink>(fs, "self/net"));
    file("cmdline", [] { return std::string("BOOT_IMAGE=/vmlinuz\n"); });
    file("cpuinfo", [k] { return CpuInfoText(k->CurrentCgroup()->cpu_count()); });
    file("devices", [] {
      return std::string(
          "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n"
          "  5 /dev/ptmx\n136 pts\n\nBlock devices:\n");
    });
    file("filesystems", [k] { return Filesystems(k->vfs()); });
    file("loadavg", [k] { return Loadavg(*k); });
    file("meminfo", [k] { return Meminfo(*k); });
    file("diskstats", [] { return std::string(); });  // there is no block device
    file("partitions", [] { return std::string("major minor  #blocks  name\n\n"); });
    file("stat", [k] { return Stat(*k); });
    file("swaps", [] { return std::string("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"); });
    file("uptime", [k] { return Uptime(*k); });
    file("version", [] { return Version(); });
    file("vmstat", [k] { return Vmstat(*k); });
    file("cgroups", [] { return std::string("#subsys_name\thierarchy\tnum_cgroups\tenabled\n"); });
    AddDir("tty")->Add("drivers", base::MakeRef<FuncFile>(fs, 0444, [] {
                         return std::string(
                             "/dev/tty             /dev/tty        5       0 system:/dev/tty\n"
                             "/dev/console         /dev/console    5       1 system:console\n"
                             "/dev/ptmx            /dev/ptmx       5       2 system\n"
                             "pty_slave            /dev/pts      136 0-2047 pty:slave\n");
                       }));
    AddSysctls(fs, *AddDir("sys"));
    AddSysvIpc(fs, *this);
    AddKeys(fs, *this);
    AddLocks(fs, *this);
    AddPressure(fs, *this);
  }

 private:
  ~Root() override = default;
  uint32_t nlink() const override {
    return PseudoDir::nlink() + static_cast<uint32_t>(fs_->kernel().task_count());
  }
  Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    int number;
    auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (ec != std::errc() || end != name.data() + name.size() || number <= 0 ||
        name != fmt::format("{}", number)) {
      return Error(ENOENT);
    }
    base::Ref<Pid> pid = fs_->pid_ns().Find(number);
    if (pid == nullptr || TaskOf(fs_->kernel(), *pid) == nullptr) return Error(ENOENT);
    return NewPidDir(fs_, std::move(pid), true);
  }
  bool RevalidateDynamic(std::string_view, Inode* child) override {
    auto* dir = dynamic_cast<PidOwned<PseudoDir>*>(child);
    return dir != nullptr && TaskOf(fs_->kernel(), *dir->pid()) != nullptr;
  }
  void ListDynamic(std::vector<PseudoEntry>* out) override {
    for (const auto& group : fs_->kernel().ThreadGroups(fs_->pid_ns())) {
      base::Ref<Pid> pid = group->pid();
      int number = pid->NumberIn(fs_->pid_ns());
      if (number == 0) continue;
      out->push_back({fmt::format("{}", number), PidIno(*pid, fs_->pid_ns(), true, 0), DT_DIR});
    }
  }
  ProcFs* const fs_;
};

class ProcType : public FilesystemType {
 public:
  explicit ProcType(Kernel* kernel) : kernel_(kernel) {}
  std::string_view name() const override { return "proc"; }
  // hidepid=, gid= and subset= are refused but for their defaults.
  Result<base::Ref<Inode>> Mount(const MountArgs& args) override {
    std::string_view data = args.data;
    if (!data.empty() && data != "hidepid=0" && data != "hidepid=off") return Error(EINVAL);
    return ProcFs::NewRoot(base::MakeRef<ProcFs>(kernel_, kernel_->CurrentNamespaces().pid));
  }
  base::Status CheckOption(std::string_view key, std::string_view value) const override {
    if (key == "gid" || key == "subset") return Error(EINVAL);
    if (key != "hidepid") return Error(ENOENT);
    return value == "0" || value == "off" ? base::Ok() : Error(EINVAL);
  }

 private:
  Kernel* const kernel_;
};

}  // namespace

SystemMemory SystemMemoryOf(Kernel& kernel) {
  struct sysinfo info = {};
  (void)sysinfo(&info);
  const uint64_t unit = std::max<uint64_t>(info.mem_unit, 1);
  const base::Ref<Cgroup> cgroup = kernel.CurrentCgroup();
  SystemMemory m{.total = cgroup->total_memory(),
                 .free = info.freeram * unit,
                 .buffers = info.bufferram * unit,
                 .shared = info.sharedram * unit};
  for (const auto& group : kernel.ThreadGroups(*cgroup)) {
    base::Ref<Task> leader = group->leader();
    if (leader == nullptr) continue;
    Resident r = ResidentOf(*leader);
    m.anonymous += r.anon;
    m.committed += r.anon + r.shmem;
  }
  if (m.total < info.totalram * unit) {
    const uint64_t used = std::min(m.committed, m.total);
    m.free = std::min(m.free, m.total - used);
    m.buffers = 0;
    m.shared = std::min(m.shared, used);
  }
  m.anonymous = std::min(m.anonymous, m.total - m.free);
  return m;
}

ProcFs::ProcFs(Kernel* kernel, base::Ref<PidNamespace> pid_ns)
    : PseudoFs("proc", PROC_SUPER_MAGIC, /*dynamic=*/true),
      kernel_(kernel),
      pid_ns_(std::move(pid_ns)) {}

base::Ref<Inode> ProcFs::NewRoot(base::Ref<ProcFs> fs) { return base::MakeRef<Root>(fs.get()); }

void RegisterProc(Kernel* kernel, Vfs& vfs) {
  vfs.RegisterFilesystem(std::make_unique<ProcType>(kernel));
}

}  // namespace sentry
