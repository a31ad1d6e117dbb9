// stat, statm and status of a process or thread: fs/proc/array.c.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <bit>

#include "sentry/fs/proc/pid_files.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/seccomp/filter.h"
#include "sentry/kernel/session.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/vfs/fd_table.h"

namespace sentry {
namespace {

constexpr int64_t kTickNs = 10'000'000;  // USER_HZ is 100
constexpr uint64_t kPage = 4096;
constexpr uint64_t kPfForkNoExec = 0x40, kPfRandomize = 0x400000;
constexpr uint32_t kAddrNoRandomize = 0x0040000;

const char* StateName(char state) {
  switch (state) {
    case 'R':
      return "R (running)";
    case 'S':
      return "S (sleeping)";
    case 'D':
      return "D (disk sleep)";
    case 'T':
      return "T (stopped)";
    case 't':
      return "t (tracing stop)";
    case 'Z':
      return "Z (zombie)";
    default:
      return "X (dead)";
  }
}

// new_encode_dev().
uint64_t EncodeDev(dev_t dev) {
  uint64_t ma = gnu_dev_major(dev), mi = gnu_dev_minor(dev);
  return (mi & 0xff) | ma << 8 | (mi & ~uint64_t{0xff}) << 12;
}

// comm with what would break a line or a parser escaped, as Linux's proc_task_name.
std::string Escaped(const std::string& comm) {
  std::string out;
  for (char ch : comm) {
    if (ch == '\n') {
      out += "\\n";
    } else if (ch == '\\') {
      out += "\\\\";
    } else {
      out += ch;
    }
  }
  return out;
}

// Offset from CLOCK_MONOTONIC to CLOCK_BOOTTIME.
int64_t BootOffset() {
  timespec mono, boot;
  clock_gettime(CLOCK_MONOTONIC, &mono);
  clock_gettime(CLOCK_BOOTTIME, &boot);
  return (boot.tv_sec - mono.tv_sec) * 1'000'000'000 + (boot.tv_nsec - mono.tv_nsec);
}

int Priority(const Task& t) {
  if (t.sched_policy.load() == 1 || t.sched_policy.load() == 2) return -1 - t.sched_priority.load();
  return 20 + t.nice.load();
}

// The calling process may see addresses of this one.
bool AddressesShown(Task& task) {
  Task* current = Task::Current();
  return current != nullptr && MayReadTask(*current, task).ok();
}

struct JobIds {
  int pgrp = 0, session = 0, tpgid = -1;
  uint64_t tty = 0;
};

JobIds JobOf(const PidContext& c) {
  JobIds ids;
  ThreadGroup& group = c.task->thread_group();
  if (base::Ref<ProcessGroup> p = group.process_group()) ids.pgrp = p->pid()->NumberIn(c.ns());
  if (base::Ref<Session> s = group.session()) ids.session = s->pid()->NumberIn(c.ns());
  if (base::Ref<Tty> tty = group.tty()) {
    ids.tty = EncodeDev(tty->device());
    base::Ref<ProcessGroup> foreground = tty->foreground();
    ids.tpgid = foreground != nullptr ? foreground->pid()->NumberIn(c.ns()) : -1;
  }
  return ids;
}

std::string NumbersFrom(const Pid& pid, const PidNamespace& ns) {
  // The number in `ns` and in each namespace below it.
  std::string text;
  std::vector<const PidNamespace*> chain;
  for (const PidNamespace* n = pid.ns().get(); n != nullptr; n = n->parent().get()) {
    chain.push_back(n);
    if (n == &ns) break;
  }
  for (auto it = chain.rbegin(); it != chain.rend(); ++it) {
    text += fmt::format("\t{}", pid.NumberIn(**it));
  }
  return text + "\n";
}

// The processors that a task may run on, as a mask and as a list.
void AllowedCpus(const Task& t, int cpus, std::string* mask, std::string* list) {
  int last = -1, first = -1;
  auto close = [&] {
    if (first < 0) return;
    if (!list->empty()) *list += ",";
    *list += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
    first = -1;
  };
  for (int done = 0; done < cpus; done += 32) {
    uint32_t word = 0;
    for (int cpu = done; cpu < std::min(done + 32, std::min(cpus, 128)); ++cpu) {
      if (t.cpu_mask_words[static_cast<size_t>(cpu) / 64].load() >> (cpu % 64) & 1) {
        word |= 1u << (cpu - done);
        if (first >= 0 && last != cpu - 1) close();
        if (first < 0) first = cpu;
        last = cpu;
      }
    }
    *mask = (done + 32 < cpus ? fmt::format("{:08x}", word) : fmt::format("{:x}", word)) +
            (mask->empty() ? "" : "," + *mask);
  }
  close();
}

}  // namespace

uid_t ShownUid(uid_t kuid) {
  Task* t = Task::Current();
  return t != nullptr ? t->user_ns().MapUidOut(kuid) : kuid;
}
gid_t ShownGid(gid_t kgid) {
  Task* t = Task::Current();
  return t != nullptr ? t->user_ns().MapGidOut(kgid) : kgid;
}

base::Result<std::string> PidStat(const PidContext& c) {
  Task& t = *c.task;
  ThreadGroup& group = t.thread_group();
  base::Ref<MemoryManager> mm = t.mm_ref();
  MmLayout layout;
  MmStats stats;
  if (mm != nullptr) {
    stats = mm->stats();
    if (AddressesShown(t)) layout = mm->layout();
  }
  Usage own = c.whole ? group.SelfUsage() : t.usage();
  Usage children = group.ChildrenUsage();
  JobIds job = JobOf(c);
  SigSet ignored, caught;
  group.handlers()->Sets(&ignored, &caught);
  uint64_t flags = (group.did_exec.load() ? 0 : kPfForkNoExec) |
                   (t.personality.load() & kAddrNoRandomize ? 0 : kPfRandomize);
  char state = t.StateChar();
  bool zombie = state == 'Z' || state == 'X';
  std::string s = fmt::format("{} ({}) {} {} {} {} {} {} {} ",
                              (c.whole ? *group.pid() : *t.pid_ref()).NumberIn(c.ns()),
                              Escaped(t.comm()), state, group.ParentPidIn(c.ns()), job.pgrp,
                              job.session, job.tty, job.tpgid, flags);
  s += fmt::format("{} {} {} {} ", own.min_faults, children.min_faults, own.maj_faults,
                   children.maj_faults);
  s += fmt::format("{} {} {} {} {} {} {} 0 {} ", own.user_ns / kTickNs, own.system_ns / kTickNs,
                   children.user_ns / kTickNs, children.system_ns / kTickNs, Priority(t),
                   t.nice.load(), zombie ? 0 : std::max(group.thread_count(), 1),
                   (t.start_time_ns() + BootOffset()) / kTickNs);
  s += fmt::format(
      "{} {} {} {} {} {} 0 0 ", stats.total_vm, mm != nullptr ? ResidentOf(t).total() / kPage : 0,
      group.rlimits().Soft(RLIMIT_RSS), layout.start_code, layout.end_code, layout.start_stack);
  // Signals as the old 31 bits; wchan, swap, exit signal, processor.
  s += fmt::format("{} {} {} {} {} 0 0 17 0 ", (t.PendingSignalSet() & 0x7fffffff),
                   t.CurrentSignalMask() & 0x7fffffff, ignored & 0x7fffffff, caught & 0x7fffffff,
                   state == 'S' ? 1 : 0);
  int policy = t.sched_policy.load();
  s += fmt::format("{} {} 0 0 0 {} {} {} {} {} {} {} {}\n",
                   policy == 1 || policy == 2 ? t.sched_priority.load() : 0, policy,
                   layout.start_data, layout.end_data, layout.start_brk, layout.arg_start,
                   layout.arg_end, layout.env_start, layout.env_end,
                   zombie && AddressesShown(t) ? group.exit_status() : 0);
  return s;
}

base::Result<std::string> PidStatm(const PidContext& c) {
  base::Ref<MemoryManager> mm = c.task->mm_ref();
  if (mm == nullptr) return std::string("0 0 0 0 0 0 0\n");
  MmStats stats = mm->stats();
  MmLayout layout = mm->layout();
  Resident rss = ResidentOf(*c.task);
  return fmt::format("{} {} {} {} 0 {} 0\n", stats.total_vm / kPage, rss.total() / kPage,
                     (rss.file + rss.shmem) / kPage,
                     (layout.end_code - layout.start_code + kPage - 1) / kPage,
                     (stats.data_vm + stats.stack_vm) / kPage);
}

namespace {

std::string MemoryLines(Task& t) {
  base::Ref<MemoryManager> mm = t.mm_ref();
  if (mm == nullptr) return "";
  MmStats stats = mm->stats();
  MmLayout layout = mm->layout();
  Resident rss = ResidentOf(t);
  uint64_t text = (layout.end_code - layout.start_code + kPage - 1) / kPage * kPage;
  std::string s;
  auto line = [&s](const char* name, uint64_t bytes) {
    s += fmt::format("{}:\t{:8} kB\n", name, bytes / 1024);
  };
  line("VmPeak", std::max(stats.peak_vm, stats.total_vm));
  line("VmSize", stats.total_vm);
  line("VmLck", stats.locked_vm);
  line("VmPin", 0);
  line("VmHWM",
       std::max<uint64_t>(rss.total(), static_cast<uint64_t>(t.usage().max_rss_kb) * 1024));
  line("VmRSS", rss.total());
  line("RssAnon", rss.anon);
  line("RssFile", rss.file);
  line("RssShmem", rss.shmem);
  line("VmData", stats.data_vm);
  line("VmStk", stats.stack_vm);
  line("VmExe", text);
  line("VmLib", stats.exec_vm > text ? stats.exec_vm - text : 0);
  line("VmPTE", stats.total_vm / 512 + kPage);
  line("VmSwap", 0);
  line("HugetlbPages", 0);
  return s + "CoreDumping:\t0\nTHP_enabled:\t" + (t.thp_disable.load() ? "0" : "1") + "\n";
}

std::string CredentialLines(const Credentials& creds) {
  std::string s = fmt::format("Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\n", ShownUid(creds.ruid),
                              ShownUid(creds.euid), ShownUid(creds.suid), ShownUid(creds.fsuid),
                              ShownGid(creds.rgid), ShownGid(creds.egid), ShownGid(creds.sgid),
                              ShownGid(creds.fsgid));
  return s;
}

std::string SignalLines(Task& t) {
  ThreadGroup& group = t.thread_group();
  SigSet ignored, caught;
  group.handlers()->Sets(&ignored, &caught);
  size_t queued = 0;
  {
    absl::MutexLock lock(&group.signal_mutex());
    queued = group.shared_pending().count();
  }
  return fmt::format(
      "SigQ:\t{}/{}\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\nSigIgn:\t{:016x}\n"
      "SigCgt:\t{:016x}\n",
      queued, group.rlimits().Soft(RLIMIT_SIGPENDING), t.OwnPendingSet(), t.SharedPendingSet(),
      t.CurrentSignalMask(), ignored, caught);
}

}  // namespace

base::Result<std::string> PidStatus(const PidContext& c) {
  Task& t = *c.task;
  ThreadGroup& group = t.thread_group();
  base::Ref<const Credentials> creds = t.credentials();
  base::Ref<Pid> tgid = group.pid(), tid = c.whole ? tgid : t.pid_ref();
  std::string s = "Name:\t" + Escaped(t.comm()) + "\n";
  if (base::Ref<FsContext> fs = t.fs_context_ref())
    s += fmt::format("Umask:\t{:04o}\n", fs->umask());
  base::Ref<FdTable> fds = t.fd_table_ref();
  size_t fd_size = fds != nullptr ? std::bit_ceil(std::max<size_t>(fds->size(), 64)) : 0;
  s += fmt::format("State:\t{}\nTgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}\nTracerPid:\t{}\n",
                   StateName(t.StateChar()), tgid->NumberIn(c.ns()), tid->NumberIn(c.ns()),
                   group.ParentPidIn(c.ns()), Ptrace::TracerIn(t, c.ns()));
  if (creds != nullptr) s += CredentialLines(*creds);
  s += fmt::format("FDSize:\t{}\nGroups:\t", fd_size);
  if (creds != nullptr) {
    for (gid_t gid : creds->groups) s += fmt::format("{} ", ShownGid(gid));
  }
  s += "\nNStgid:" + NumbersFrom(*tgid, c.ns()) + "NSpid:" + NumbersFrom(*tid, c.ns());
  if (base::Ref<ProcessGroup> p = group.process_group())
    s += "NSpgid:" + NumbersFrom(*p->pid(), c.ns());
  if (base::Ref<Session> n = group.session()) s += "NSsid:" + NumbersFrom(*n->pid(), c.ns());
  s += "Kthread:\t0\n";
  s += MemoryLines(t);
  s += fmt::format("Threads:\t{}\n", std::max(group.thread_count(), 1));
  s += SignalLines(t);
  if (creds != nullptr) {
    s += fmt::format(
        "CapInh:\t{:016x}\nCapPrm:\t{:016x}\nCapEff:\t{:016x}\nCapBnd:\t{:016x}\n"
        "CapAmb:\t{:016x}\n",
        creds->inheritable, creds->permitted, creds->effective, creds->bounding, creds->ambient);
  }
  std::string cpu_mask, cpu_list;
  AllowedCpus(t, group.cgroup()->cpu_count(), &cpu_mask, &cpu_list);
  Usage usage = t.usage();
  base::Ref<const SeccompFilter> filter = t.seccomp_filter();
  s += fmt::format(
      "NoNewPrivs:\t{}\nSeccomp:\t{}\nSeccomp_filters:\t{}\n"
      "Speculation_Store_Bypass:\tvulnerable\n"
      "SpeculationIndirectBranch:\tconditional enabled\nCpus_allowed:\t{}\nCpus_allowed_list:\t{}\n"
      "Mems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t{}\n"
      "nonvoluntary_ctxt_switches:\t{}\n",
      t.no_new_privs.load() ? 1 : 0, t.seccomp_mode(), filter ? filter->count() : 0, cpu_mask,
      cpu_list, usage.voluntary_switches, usage.involuntary_switches);
  return s;
}

}  // namespace sentry
