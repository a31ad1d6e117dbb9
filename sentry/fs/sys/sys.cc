#include "sentry/fs/sys/sys.h"

#include <cpuid.h>
#include <fmt/format.h>
#include <linux/magic.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "sentry/fs/proc/host_snapshot.h"
#include "sentry/fs/proc/proc.h"
#include "sentry/fs/pseudo/pseudo.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/net/host/host_network.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

using base::Result;

constexpr int kMaxCpus = 8192;  // CONFIG_NR_CPUS

// An attribute: its size is always a page.
class Attribute : public FuncFile {
 public:
  using FuncFile::FuncFile;

 private:
  ~Attribute() override = default;
  uint64_t size() const override { return 4096; }
};

class Builder {
 public:
  Builder(PseudoFs* fs, base::Ref<PseudoDir> dir) : fs_(fs), dir_(std::move(dir)) {}
  Builder Dir(const std::string& name) { return {fs_, dir_->AddDir(name, 0755)}; }
  void Read(const std::string& name, FuncFile::Reader read) {
    dir_->Add(name, base::MakeRef<Attribute>(fs_, 0444, std::move(read)));
  }
  void Value(const std::string& name, std::string value) {
    Read(name, [value = value + "\n"]() -> Result<std::string> { return value; });
  }
  void Value(const std::string& name, int64_t value) { Value(name, std::to_string(value)); }
  void Link(const std::string& name, std::string target) {
    dir_->Add(name, base::MakeRef<PseudoLink>(fs_, std::move(target)));
  }

 private:
  PseudoFs* const fs_;
  const base::Ref<PseudoDir> dir_;
};

// "0-3,8" of ascending numbers.
std::string ListText(const std::vector<int>& cpus) {
  std::string s;
  for (size_t i = 0; i < cpus.size();) {
    size_t j = i;
    while (j + 1 < cpus.size() && cpus[j + 1] == cpus[j] + 1) ++j;
    if (!s.empty()) s += ",";
    s += i == j ? fmt::format("{}", cpus[i]) : fmt::format("{}-{}", cpus[i], cpus[j]);
    i = j + 1;
  }
  return s;
}

std::string MaskText(const std::vector<int>& cpus, int count) {
  std::string s;
  for (int base = 0; base < count; base += 32) {
    uint32_t word = 0;
    for (int cpu : cpus) {
      if (cpu >= base && cpu < base + 32) word |= 1u << (cpu - base);
    }
    std::string text = base + 32 < count ? fmt::format("{:08x}", word) : fmt::format("{:x}", word);
    if (!s.empty()) text += ",";
    s.insert(0, text);
  }
  return s;
}

std::vector<int> AllCpus(int count) {
  std::vector<int> v(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) v[static_cast<size_t>(i)] = i;
  return v;
}

struct Cache {
  int level, ways, line, sharing;
  unsigned sets;
  const char* type;
};

// The processor's deterministic cache parameters (Intel leaf 4, AMD leaf 0x8000001d).
std::vector<Cache> Caches() {
  std::vector<Cache> out;
  unsigned a, b, c, d;
  unsigned leaf = 4;
  if (__get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx) leaf = 0x8000001d;
  for (unsigned i = 0; i < 8; ++i) {
    if (!__get_cpuid_count(leaf, i, &a, &b, &c, &d)) break;
    unsigned type = a & 0x1f;
    if (type == 0 || type > 3) break;
    constexpr const char* kTypes[] = {"", "Data", "Instruction", "Unified"};
    out.push_back({static_cast<int>(a >> 5 & 7), static_cast<int>(b >> 22) + 1,
                   static_cast<int>(b & 0xfff) + 1, static_cast<int>(a >> 14 & 0xfff) + 1, c + 1,
                   kTypes[type]});
  }
  return out;
}

void AddTopology(Builder dir, int cpu, int count) {
  HostSnapshot::Cpu own = CpuTopology(cpu);
  std::vector<int> threads, package;
  for (int other = 0; other < count; ++other) {
    HostSnapshot::Cpu o = CpuTopology(other);
    if (o.package != own.package) continue;
    package.push_back(other);
    if (o.core == own.core) threads.push_back(other);
  }
  dir.Value("core_id", own.core);
  dir.Value("physical_package_id", own.package);
  dir.Value("die_id", 0);
  struct {
    const char* name;
    const std::vector<int>& cpus;
  } const kSets[] = {{"thread_siblings", threads},
                     {"core_cpus", threads},
                     {"core_siblings", package},
                     {"package_cpus", package},
                     {"die_cpus", package}};
  for (const auto& set : kSets) {
    dir.Value(set.name, MaskText(set.cpus, count));
    dir.Value(std::string(set.name) + "_list", ListText(set.cpus));
  }
}

void AddCaches(Builder dir, int cpu, int count) {
  std::vector<Cache> caches = Caches();
  std::vector<int> package;
  for (int other = 0; other < count; ++other) {
    if (CpuTopology(other).package == CpuTopology(cpu).package) package.push_back(other);
  }
  std::vector<int> threads;
  for (int sibling : CpuTopology(cpu).siblings) {
    if (sibling < count) threads.push_back(sibling);
  }
  for (size_t i = 0; i < caches.size(); ++i) {
    const Cache& c = caches[i];
    Builder index = dir.Dir(fmt::format("index{}", i));
    const std::vector<int>& shared = c.level >= 3 ? package : threads;
    index.Value("level", c.level);
    index.Value("type", c.type);
    index.Value("size", fmt::format("{}K", uint64_t{c.sets} * static_cast<unsigned>(c.ways) *
                                               static_cast<unsigned>(c.line) / 1024));
    index.Value("coherency_line_size", c.line);
    index.Value("number_of_sets", c.sets);
    index.Value("ways_of_associativity", c.ways);
    index.Value("physical_line_partition", 1);
    index.Value("id", c.level >= 3 ? CpuTopology(cpu).package : CpuTopology(cpu).core);
    index.Value("shared_cpu_list", ListText(shared));
    index.Value("shared_cpu_map", MaskText(shared, count));
  }
}

void AddCpus(Builder dir, int count) {
  std::string list = ListText(AllCpus(count));
  dir.Value("online", list);
  dir.Value("possible", list);
  dir.Value("present", list);
  dir.Value("offline", "");
  dir.Value("isolated", "");
  dir.Value("kernel_max", kMaxCpus - 1);
  for (int cpu = 0; cpu < count; ++cpu) {
    Builder one = dir.Dir(fmt::format("cpu{}", cpu));
    AddTopology(one.Dir("topology"), cpu, count);
    AddCaches(one.Dir("cache"), cpu, count);
    if (cpu != 0) one.Value("online", 1);
    one.Link("node0", "../../node/node0");
  }
}

void AddNodes(Builder dir, Kernel& kernel) {
  int count = kernel.CurrentCgroup()->cpu_count();
  for (const char* name : {"online", "possible", "has_cpu", "has_memory", "has_normal_memory"}) {
    dir.Value(name, "0");
  }
  Builder node = dir.Dir("node0");
  node.Value("cpulist", ListText(AllCpus(count)));
  node.Value("cpumap", MaskText(AllCpus(count), count));
  node.Value("distance", "10");
  Kernel* k = &kernel;
  // libnuma, and so ps and a JVM, want the first two (drivers/base/node.c:node_read_meminfo()).
  node.Read("meminfo", [k] {
    const SystemMemory memory = SystemMemoryOf(*k);
    const uint64_t total = memory.total / 1024, free = memory.free / 1024;
    return fmt::format(
        "Node 0 MemTotal:       {:8} kB\nNode 0 MemFree:        {:8} kB\n"
        "Node 0 MemUsed:        {:8} kB\n",
        total, free, total - free);
  });
}

void AddLoopback(Builder dir) {
  dir.Value("address", "00:00:00:00:00:00");
  dir.Value("addr_len", 6);
  dir.Value("broadcast", "00:00:00:00:00:00");
  dir.Value("carrier", 1);
  dir.Value("dev_id", "0x0");
  dir.Value("flags", "0x9");
  dir.Value("ifindex", 1);
  dir.Value("iflink", 1);
  dir.Value("mtu", 65536);
  dir.Value("operstate", "unknown");
  dir.Value("tx_queue_len", 1000);
  dir.Value("type", 772);
}

std::string HardwareText(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (uint8_t byte : bytes) text += fmt::format("{}{:02x}", text.empty() ? "" : ":", byte);
  return text;
}

// A device of the host's network, as it is when a file is read.
void AddHostDevice(Builder dir, HostNetwork& host, int index) {
  auto read = [&](Builder& to, const std::string& name,
                  std::function<std::string(const HostInterface&)> text) {
    to.Read(name, [&host, index, text]() -> Result<std::string> {
      for (const HostInterface& i : TRY(host.Interfaces())) {
        if (i.index == index) return text(i) + "\n";
      }
      return base::Error(ENODEV);
    });
  };
  auto number = [&](const std::string& name, auto HostInterface::*member) {
    read(dir, name, [member](const HostInterface& i) { return std::to_string(i.*member); });
  };
  number("ifindex", &HostInterface::index);
  number("iflink", &HostInterface::link);
  number("mtu", &HostInterface::mtu);
  number("tx_queue_len", &HostInterface::queue_length);
  number("type", &HostInterface::type);
  number("carrier", &HostInterface::carrier);
  read(dir, "flags", [](const HostInterface& i) { return fmt::format("{:#x}", i.flags & 0xffff); });
  read(dir, "addr_len", [](const HostInterface& i) { return std::to_string(i.hardware.size()); });
  read(dir, "address", [](const HostInterface& i) { return HardwareText(i.hardware); });
  read(dir, "broadcast", [](const HostInterface& i) { return HardwareText(i.hardware_broadcast); });
  read(dir, "operstate", [](const HostInterface& i) -> std::string {
    // RFC 2863 (linux/if.h: IF_OPER_*).
    constexpr const char* kNames[] = {"unknown", "notpresent", "down", "lowerlayerdown",
                                      "testing", "dormant",    "up"};
    return i.operstate < std::size(kNames) ? kNames[i.operstate] : "unknown";
  });
  Builder statistics = dir.Dir("statistics");
  constexpr const char* kCounters[] = {"rx_packets", "tx_packets", "rx_bytes",   "tx_bytes",
                                       "rx_errors",  "tx_errors",  "rx_dropped", "tx_dropped"};
  static_assert(std::size(kCounters) == std::tuple_size_v<decltype(HostInterface::statistics)>);
  for (size_t n = 0; n < std::size(kCounters); ++n) {
    read(statistics, kCounters[n],
         [n](const HostInterface& i) { return std::to_string(i.statistics[n]); });
  }
}

void AddNetwork(Builder devices, Builder classes) {
  Builder dir = devices.Dir("virtual").Dir("net"), links = classes.Dir("net");
  auto link = [&](const std::string& name) {
    links.Link(name, "../../devices/virtual/net/" + name);
  };
  HostNetwork* host = HostNetwork::Of(*Kernel::Get().root_net_ns());
  if (host == nullptr) {
    AddLoopback(dir.Dir("lo"));
    return link("lo");
  }
  // The devices that are there now; one that comes later is in netlink's answers alone.
  auto interfaces = host->Interfaces();
  if (!interfaces.ok()) return;
  for (const HostInterface& i : *interfaces) {
    if (i.name.find('/') != std::string::npos) continue;
    AddHostDevice(dir.Dir(i.name), *host, i.index);
    link(i.name);
  }
}

base::Ref<Inode> NewSysRoot(Kernel& kernel) {
  auto fs = base::MakeRef<PseudoFs>("sysfs", SYSFS_MAGIC, /*dynamic=*/false);
  auto root = base::MakeRef<PseudoDir>(fs.get(), 0555, 1);
  Builder b(fs.get(), root);
  for (const char* name : {"block", "bus", "firmware", "hypervisor", "module", "power"})
    b.Dir(name);
  Builder dev = b.Dir("dev");
  dev.Dir("block");
  dev.Dir("char");
  Builder devices = b.Dir("devices");
  Builder system = devices.Dir("system");
  AddCpus(system.Dir("cpu"), kernel.CurrentCgroup()->cpu_count());
  AddNodes(system.Dir("node"), kernel);
  AddNetwork(devices, b.Dir("class"));
  Builder kernel_dir = b.Dir("kernel");
  kernel_dir.Dir("mm");
  kernel_dir.Dir("debug");
  kernel_dir.Dir("security");
  kernel_dir.Dir("tracing");
  b.Dir("fs").Dir("cgroup");
  return root;
}

// The one cgroup that the sandbox is in, seen as the root of its cgroup namespace. Its limits are
// those that the host enforces on the whole sandbox.
base::Ref<Inode> NewCgroupRoot(Kernel& kernel, const char* type_name, uint64_t magic) {
  auto fs = base::MakeRef<PseudoFs>(type_name, magic, /*dynamic=*/false);
  auto root = base::MakeRef<PseudoDir>(fs.get(), 0555, 1);
  Kernel* k = &kernel;
  auto file = [&](const char* name, FuncFile::Reader reader) {
    root->Add(name, base::MakeRef<FuncFile>(fs.get(), 0444, std::move(reader)));
  };
  file("cgroup.procs", [k] {
    const base::Ref<PidNamespace> ns = k->CurrentNamespaces().pid;
    std::string s;
    for (const auto& group : k->ThreadGroups(*ns)) s += fmt::format("{}\n", group->PidIn(*ns));
    return s;
  });
  if (magic != CGROUP2_SUPER_MAGIC) return root;
  const base::Ref<Cgroup> group = kernel.CurrentCgroup();
  auto limit = [](uint64_t value) { return value > 0 ? fmt::format("{}\n", value) : "max\n"; };
  std::string cpu =
      group->cpu_limit() > 0
          ? fmt::format("{} 100000\n", static_cast<int64_t>(group->cpu_limit() * 100000))
          : "max 100000\n";
  file("cgroup.controllers", [] { return std::string("cpu memory pids\n"); });
  file("cgroup.subtree_control", [] { return std::string("\n"); });
  file("cgroup.type", [] { return std::string("domain\n"); });
  file("cgroup.events", [] { return std::string("populated 1\nfrozen 0\n"); });
  file("memory.max", [group, limit] { return limit(group->memory_limit()); });
  file("pids.max", [group, limit] { return limit(static_cast<uint64_t>(group->pids_limit())); });
  file("pids.current", [group] { return fmt::format("{}\n", group->task_count()); });
  file("cpu.max", [cpu] { return cpu; });
  return root;
}

class Type : public FilesystemType {
 public:
  using Make = std::function<base::Ref<Inode>()>;
  Type(std::string name, Make make) : name_(std::move(name)), make_(std::move(make)) {}
  std::string_view name() const override { return name_; }
  Result<base::Ref<Inode>> Mount(const MountArgs&) override { return make_(); }

 private:
  const std::string name_;
  const Make make_;
};

}  // namespace

void RegisterSys(Kernel* kernel, Vfs& vfs) {
  vfs.RegisterFilesystem(std::make_unique<Type>("sysfs", [kernel] { return NewSysRoot(*kernel); }));
  vfs.RegisterFilesystem(std::make_unique<Type>(
      "cgroup2", [kernel] { return NewCgroupRoot(*kernel, "cgroup2", CGROUP2_SUPER_MAGIC); }));
  vfs.RegisterFilesystem(std::make_unique<Type>(
      "cgroup", [kernel] { return NewCgroupRoot(*kernel, "cgroup", CGROUP_SUPER_MAGIC); }));
}

}  // namespace sentry
