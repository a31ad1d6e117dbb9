// The table of files in /proc/PID, and the short ones: fs/proc/base.c.
#include "sentry/fs/proc/pid_files.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <vector>

#include "platform/platform.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/mm/memory_manager.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr uint64_t kMaxArea = 4 << 20;  // of what is shown of arguments and environment

// Guest bytes [start, end); fewer at a fault.
std::string ReadArea(MemoryManager& mm, uint64_t start, uint64_t end) {
  if (end <= start) return "";
  std::string text(std::min(end - start, kMaxArea), '\0');
  Result<size_t> n = mm.address_space().ReadPartial(start, std::as_writable_bytes(std::span(text)));
  text.resize(n.ok() ? *n : 0);
  return text;
}

// get_mm_cmdline(): a program that has overwritten its arguments beyond their end (setproctitle)
// is read up to the first NUL.
Result<std::string> Cmdline(const PidContext& c) {
  base::Ref<MemoryManager> mm = c.task->mm_ref();
  if (mm == nullptr) return std::string();
  MmLayout l = mm->layout();
  std::string text = ReadArea(*mm, l.arg_start, l.arg_end);
  if (text.empty() || text.back() == '\0') return text;
  if (l.env_start == l.arg_end && l.env_end > l.env_start) {
    text += ReadArea(*mm, l.env_start, l.env_end);
  }
  size_t nul = text.find('\0');
  if (nul != std::string::npos) text.resize(nul + 1);
  return text;
}

Result<std::string> Environ(const PidContext& c) {
  base::Ref<MemoryManager> mm = c.task->mm_ref();
  if (mm == nullptr) return std::string();
  MmLayout l = mm->layout();
  return ReadArea(*mm, l.env_start, l.env_end);
}

Result<std::string> Auxv(const PidContext& c) {
  base::Ref<MemoryManager> mm = c.task->mm_ref();
  if (mm == nullptr) return std::string();
  std::vector<uint64_t> auxv = mm->layout().auxv;
  size_t n = auxv.size();
  if (n < 2 || auxv[n - 2] != 0 || auxv[n - 1] != 0) auxv.insert(auxv.end(), {0, 0});
  return std::string(reinterpret_cast<const char*>(auxv.data()), auxv.size() * sizeof(uint64_t));
}

Result<std::string> Comm(const PidContext& c) { return c.task->comm() + "\n"; }

// Only threads of the same process may rename one another.
Status SetComm(const PidContext& c, std::string_view data) {
  Task* current = Task::Current();
  if (current == nullptr || &current->thread_group() != &c.task->thread_group()) {
    return Error(EINVAL);
  }
  data = data.substr(0, data.find('\0'));
  if (data.ends_with('\n')) data.remove_suffix(1);
  c.task->SetComm(data.substr(0, 15));
  return base::Ok();
}

Result<std::string> Limits(const PidContext& c) {
  constexpr struct {
    int resource;
    const char* name;
    const char* unit;
  } kLimits[] = {
      {RLIMIT_CPU, "Max cpu time", "seconds"},
      {RLIMIT_FSIZE, "Max file size", "bytes"},
      {RLIMIT_DATA, "Max data size", "bytes"},
      {RLIMIT_STACK, "Max stack size", "bytes"},
      {RLIMIT_CORE, "Max core file size", "bytes"},
      {RLIMIT_RSS, "Max resident set", "bytes"},
      {RLIMIT_NPROC, "Max processes", "processes"},
      {RLIMIT_NOFILE, "Max open files", "files"},
      {RLIMIT_MEMLOCK, "Max locked memory", "bytes"},
      {RLIMIT_AS, "Max address space", "bytes"},
      {RLIMIT_LOCKS, "Max file locks", "locks"},
      {RLIMIT_SIGPENDING, "Max pending signals", "signals"},
      {RLIMIT_MSGQUEUE, "Max msgqueue size", "bytes"},
      {RLIMIT_NICE, "Max nice priority", ""},
      {RLIMIT_RTPRIO, "Max realtime priority", ""},
      {RLIMIT_RTTIME, "Max realtime timeout", "us"},
  };
  auto value = [](uint64_t v) {
    return v == RLIM_INFINITY ? std::string("unlimited") : fmt::format("{}", v);
  };
  std::string s =
      fmt::format("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
  for (const auto& l : kLimits) {
    Rlimits::Limit limit = c.task->thread_group().rlimits().Get(l.resource);
    s += fmt::format("{:<25} {:<20} {:<20} {:<10}\n", l.name, value(limit.soft), value(limit.hard),
                     l.unit);
  }
  return s;
}

Result<std::string> CgroupText(const PidContext&) { return std::string("0::/\n"); }
Result<std::string> Cpuset(const PidContext&) { return std::string("/\n"); }

// oom_badness() in thousandths of the memory, as proc_oom_score scales it.
Result<std::string> OomScore(const PidContext& c) {
  int adj = c.task->thread_group().oom_score_adj.load();
  if (adj == -1000) return std::string("0\n");
  uint64_t total = std::max<uint64_t>(c.task->thread_group().cgroup()->total_memory(), 1);
  auto points = static_cast<int64_t>(std::min(ResidentOf(*c.task).total(), total) * 1000 / total);
  return fmt::format("{}\n", std::max<int64_t>((1000 + points + adj) * 2 / 3, 0));
}

Result<int> ParseInt(std::string_view data) {
  while (!data.empty() && (data.back() == '\n' || data.back() == ' ')) data.remove_suffix(1);
  int value;
  auto [end, ec] = std::from_chars(data.data(), data.data() + data.size(), value);
  if (ec != std::errc() || end != data.data() + data.size()) return Error(EINVAL);
  return value;
}

Result<std::string> OomScoreAdj(const PidContext& c) {
  return fmt::format("{}\n", c.task->thread_group().oom_score_adj.load());
}

Status SetOomScoreAdj(const PidContext& c, std::string_view data) {
  int value = TRY(ParseInt(data));
  if (value < -1000 || value > 1000) return Error(EINVAL);
  Task* current = Task::Current();
  std::atomic<int>& adj = c.task->thread_group().oom_score_adj;
  if (value < adj.load() && (current == nullptr || !current->HasCap(CAP_SYS_RESOURCE))) {
    return Error(EACCES);
  }
  adj.store(value);
  return base::Ok();
}

Result<std::string> ShowIdMap(std::vector<IdMapEntry> map) {
  std::string s;
  for (const IdMapEntry& e : map) {
    s += fmt::format("{:10} {:10} {:10}\n", e.first_inside, e.first_outside, e.count);
  }
  return s;
}

Result<std::string> UidMap(const PidContext& c) {
  base::Ref<const Credentials> creds = c.task->credentials();
  return creds != nullptr ? ShowIdMap(creds->user_ns->uid_map()) : Error(ESRCH);
}
Result<std::string> GidMap(const PidContext& c) {
  base::Ref<const Credentials> creds = c.task->credentials();
  return creds != nullptr ? ShowIdMap(creds->user_ns->gid_map()) : Error(ESRCH);
}

// map_write(): lines "inside outside count", once; outside ids are those of the writer's namespace
// (the parent), and whoever lacks CAP_SETUID there may map its own id alone.
Status WriteIdMap(const PidContext& c, std::string_view data, bool gid) {
  base::Ref<const Credentials> creds = c.task->credentials();
  Task* current = Task::Current();
  if (creds == nullptr || current == nullptr || data.size() >= 4096) return Error(EINVAL);
  base::Ref<UserNamespace> ns = creds->user_ns;
  base::Ref<UserNamespace> parent = ns->parent();
  if (parent == nullptr) return Error(EPERM);
  const Credentials& mine = current->creds();
  if (mine.user_ns != ns && mine.user_ns != parent) return Error(EPERM);
  if (!mine.HasCapIn(CAP_SYS_ADMIN, *ns)) return Error(EPERM);
  std::vector<IdMapEntry> map;
  while (!data.empty()) {
    std::string_view line = data.substr(0, data.find('\n'));
    data.remove_prefix(std::min(data.size(), line.size() + 1));
    uint32_t numbers[3];
    for (uint32_t& n : numbers) {
      line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
      auto [end, ec] = std::from_chars(line.data(), line.data() + line.size(), n);
      if (ec != std::errc()) return Error(EINVAL);
      line.remove_prefix(static_cast<size_t>(end - line.data()));
    }
    if (line.find_first_not_of(" \t") != std::string_view::npos) return Error(EINVAL);
    IdMapEntry e{numbers[0], numbers[1], numbers[2]};
    bool own = map.empty() && data.empty() && e.count == 1;
    uint32_t outside =
        gid ? TRY(parent->MapGidIn(e.first_outside)) : TRY(parent->MapUidIn(e.first_outside));
    own = own && outside == (gid ? mine.egid : mine.euid) && mine.euid == ns->owner() &&
          (!gid || ns->setgroups_denied());
    if (!own && !mine.HasCapIn(gid ? CAP_SETGID : CAP_SETUID, *parent)) return Error(EPERM);
    e.first_outside = outside;
    map.push_back(e);
    if (map.size() > 340) return Error(EINVAL);
  }
  if (map.empty()) return Error(EINVAL);
  return gid ? ns->SetGidMap(std::move(map)) : ns->SetUidMap(std::move(map));
}
Status SetUidMap(const PidContext& c, std::string_view data) { return WriteIdMap(c, data, false); }
Status SetGidMap(const PidContext& c, std::string_view data) { return WriteIdMap(c, data, true); }

Result<std::string> Setgroups(const PidContext& c) {
  base::Ref<const Credentials> creds = c.task->credentials();
  if (creds == nullptr) return Error(ESRCH);
  return std::string(creds->user_ns->setgroups_denied() ? "deny\n" : "allow\n");
}
// What is denied is not allowed again (Linux: proc_setgroups_write).
Status SetSetgroups(const PidContext& c, std::string_view data) {
  base::Ref<const Credentials> creds = c.task->credentials();
  Task* current = Task::Current();
  if (creds == nullptr || current == nullptr) return Error(ESRCH);
  UserNamespace& ns = *creds->user_ns;
  if (!current->creds().HasCapIn(CAP_SYS_ADMIN, ns)) return Error(EACCES);
  while (!data.empty() && strchr(" \t\n", data.back()) != nullptr) data.remove_suffix(1);
  if (data == "deny") return ns.DenySetgroups();
  if (data != "allow") return Error(EINVAL);
  return ns.setgroups_denied() ? Status(Error(EPERM)) : base::Ok();
}

Result<std::string> Loginuid(const PidContext& c) {
  return fmt::format("{}", static_cast<uint32_t>(c.task->thread_group().loginuid.load()));
}
// audit_set_loginuid(): once, or with CAP_AUDIT_CONTROL.
Status SetLoginuid(const PidContext& c, std::string_view data) {
  Task* current = Task::Current();
  if (current == nullptr || &current->thread_group() != &c.task->thread_group()) {
    return Error(EPERM);
  }
  uint32_t value;
  auto [end, ec] = std::from_chars(data.data(), data.data() + data.size(), value);
  if (ec != std::errc()) return Error(EINVAL);
  auto& loginuid = c.task->thread_group().loginuid;
  if (loginuid.load() != 0xffffffff && !current->HasCap(CAP_AUDIT_CONTROL)) return Error(EPERM);
  loginuid.store(value);
  return base::Ok();
}
Result<std::string> Sessionid(const PidContext&) { return std::string("4294967295"); }

Result<std::string> Personality(const PidContext& c) {
  return fmt::format("{:08x}\n", c.task->personality.load());
}
Result<std::string> TimerSlack(const PidContext& c) {
  return fmt::format("{}\n", c.task->timer_slack_ns.load());
}
// Nothing blocks in a kernel whose symbols could be told.
Result<std::string> Wchan(const PidContext&) { return std::string("0"); }
Result<std::string> CoredumpFilter(const PidContext&) { return std::string("00000033\n"); }

// Time on a processor, time waiting for one (which nobody counts), number of turns.
Result<std::string> Schedstat(const PidContext& c) {
  Usage u = c.whole ? c.task->thread_group().SelfUsage() : c.task->usage();
  return fmt::format("{} 0 {}\n", u.user_ns + u.system_ns,
                     u.voluntary_switches + u.involuntary_switches);
}

// What reached a device, only the host knows.
Result<std::string> Io(const PidContext& c) {
  IoCounts io;
  if (c.whole) {
    c.task->thread_group().AddIo(&io);
  } else {
    io.Add(c.task->io);
  }
  return fmt::format(
      "rchar: {}\nwchar: {}\nsyscr: {}\nsyscw: {}\nread_bytes: 0\nwrite_bytes: 0\n"
      "cancelled_write_bytes: 0\n",
      io.read_bytes.load(), io.write_bytes.load(), io.read_calls.load(), io.write_calls.load());
}

Result<std::string> Children(const PidContext& c) {
  std::string s;
  int self = c.task->thread_group().PidIn(c.ns());
  for (const auto& group : c.kernel().ThreadGroups(c.ns())) {
    if (group->ParentPidIn(c.ns()) == self && self != 0) {
      s += fmt::format("{} ", group->PidIn(c.ns()));
    }
  }
  return s;
}

constexpr PidFileInfo kFiles[] = {
    {"auxv", 0400, Auxv, nullptr, true},
    {"cgroup", 0444, CgroupText},
    {"cmdline", 0444, Cmdline},
    {"comm", 0644, Comm, SetComm},
    {"coredump_filter", 0444, CoredumpFilter},
    {"cpuset", 0444, Cpuset},
    {"environ", 0400, Environ, nullptr, true},
    {"gid_map", 0644, GidMap, SetGidMap},
    {"io", 0400, Io, nullptr, true},
    {"limits", 0444, Limits},
    {"loginuid", 0644, Loginuid, SetLoginuid},
    {"maps", 0444, PidMaps, nullptr, true, false, OpenPidMaps},
    {"mountinfo", 0444, PidMountInfo, nullptr, false, false, OpenPidMounts},
    {"mounts", 0444, PidMounts, nullptr, false, false, OpenPidMounts},
    {"mountstats", 0400, PidMountStats},
    {"oom_score", 0444, OomScore},
    {"oom_score_adj", 0644, OomScoreAdj, SetOomScoreAdj},
    {"personality", 0400, Personality, nullptr, true},
    {"sched", 0644, PidSched, ResetSched},
    {"schedstat", 0444, Schedstat},
    {"sessionid", 0444, Sessionid},
    {"setgroups", 0644, Setgroups, SetSetgroups},
    {"smaps", 0444, PidSmaps, nullptr, true},
    {"smaps_rollup", 0444, PidSmapsRollup, nullptr, true},
    {"stack", 0400, PidStack},
    {"stat", 0444, PidStat},
    {"statm", 0444, PidStatm},
    {"status", 0444, PidStatus},
    {"syscall", 0400, PidSyscall, nullptr, true},
    {"timerslack_ns", 0444, TimerSlack, nullptr, false, true},
    {"uid_map", 0644, UidMap, SetUidMap},
    {"wchan", 0444, Wchan},
    {"children", 0444, Children},
};

}  // namespace

std::span<const PidFileInfo> PidFiles() { return kFiles; }

}  // namespace sentry
