// maps, smaps, smaps_rollup: fs/proc/task_mmu.c.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <algorithm>

#include "sentry/fs/proc/pid_files.h"
#include "sentry/kernel/kernel.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/vfs/inode.h"

namespace sentry {
namespace {

constexpr size_t kNameColumn = 73;
constexpr size_t kMaxVmas = 1 << 17;

std::vector<Vma> Collect(Task& task) {
  std::vector<Vma> vmas;
  base::Ref<MemoryManager> mm = task.mm_ref();
  if (mm == nullptr) return vmas;
  mm->ForEachVma([&](const Vma& v) {
    if (vmas.size() < kMaxVmas) vmas.push_back(v);
  });
  return vmas;
}

// A file name with newlines as octal (seq_file_path).
std::string EscapeNewlines(const std::string& name) {
  std::string out;
  for (char ch : name) {
    if (ch == '\n') {
      out += "\\012";
    } else {
      out += ch;
    }
  }
  return out;
}

std::string Line(const PidContext& c, const Vma& v) {
  dev_t dev = 0;
  uint64_t ino = v.shm_id;
  std::string name = v.name;
  if (v.file != nullptr && v.file->inode() != nullptr) {
    dev = v.file->inode()->fs().dev();
    ino = v.file->inode()->ino();
    name = EscapeNewlines(PathForCurrent(c.kernel(), v.file->path()));
  }
  std::string line = fmt::format("{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ", v.start, v.end,
                                 v.prot & PROT_READ ? 'r' : '-', v.prot & PROT_WRITE ? 'w' : '-',
                                 v.prot & PROT_EXEC ? 'x' : '-', v.shared ? 's' : 'p',
                                 v.file != nullptr || v.shm_id != 0 ? v.offset : 0,
                                 gnu_dev_major(dev), gnu_dev_minor(dev), ino);
  if (!name.empty()) {
    if (line.size() < kNameColumn) line.resize(kNameColumn, ' ');
    line += name;
  }
  return line + "\n";
}

uint64_t ResidentPart(const Vma& v) { return v.prot == PROT_NONE ? 0 : v.size(); }

void Account(const Vma& v, Resident* r) {
  uint64_t n = ResidentPart(v);
  if (v.file != nullptr) {
    r->file += n;
  } else if (v.shared) {
    r->shmem += n;
  } else {
    r->anon += n;
  }
}

std::string VmFlags(const Vma& v) {
  std::string s;
  auto flag = [&s](bool on, const char* name) {
    if (on) s += std::string(name) + " ";
  };
  flag(v.prot & PROT_READ, "rd");
  flag(v.prot & PROT_WRITE, "wr");
  flag(v.prot & PROT_EXEC, "ex");
  flag(v.shared, "sh");
  flag(v.max_prot & PROT_READ, "mr");
  flag(v.max_prot & PROT_WRITE, "mw");
  flag(v.max_prot & PROT_EXEC, "me");
  flag(v.shared && (v.max_prot & PROT_WRITE), "ms");
  flag(v.flags & kVmaGrowsDown, "gd");
  flag(v.flags & kVmaLocked, "lo");
  flag(v.flags & kVmaDontFork, "dc");
  flag(v.flags & kVmaNoReserve, "nr");
  flag(v.flags & kVmaAccount, "ac");
  flag(v.flags & kVmaDontDump, "dd");
  flag(v.flags & kVmaHugePage, "hg");
  flag(v.flags & kVmaNoHugePage, "nh");
  flag(v.flags & kVmaWipeOnFork, "wf");
  return s;
}

std::string Counters(const Resident& r, uint64_t locked) {
  std::string s;
  auto line = [&s](std::string_view name, uint64_t bytes) {
    s += fmt::format("{:<16}{:8} kB\n", name, bytes / 1024);
  };
  line("Rss:", r.total());
  line("Pss:", r.total());
  line("Pss_Dirty:", r.anon);
  line("Shared_Clean:", 0);
  line("Shared_Dirty:", r.shmem);
  line("Private_Clean:", r.file);
  line("Private_Dirty:", r.anon);
  line("Referenced:", r.total());
  line("Anonymous:", r.anon);
  line("KSM:", 0);
  line("LazyFree:", 0);
  line("AnonHugePages:", 0);
  line("ShmemPmdMapped:", 0);
  line("FilePmdMapped:", 0);
  line("Shared_Hugetlb:", 0);
  line("Private_Hugetlb:", 0);
  line("Swap:", 0);
  line("SwapPss:", 0);
  line("Locked:", locked);
  return s;
}

}  // namespace

Resident ResidentOf(Task& task) {
  Resident r;
  if (base::Ref<MemoryManager> mm = task.mm_ref()) {
    int64_t known = mm->ResidentBytes();
    mm->ForEachVma([&](const Vma& v) { Account(v, &r); });
    if (known >= 0) {
      // The host's figure, split as the mappings are.
      uint64_t file = std::min<uint64_t>(r.file, static_cast<uint64_t>(known));
      r = {static_cast<uint64_t>(known) - file, file, 0};
    }
  }
  return r;
}

base::Result<std::string> PidMaps(const PidContext& c) {
  std::string s;
  for (const Vma& v : Collect(*c.task)) s += Line(c, v);
  return s;
}

base::Result<std::string> PidSmaps(const PidContext& c) {
  std::string s;
  for (const Vma& v : Collect(*c.task)) {
    Resident r;
    Account(v, &r);
    s += Line(c, v);
    s += fmt::format("{:<16}{:8} kB\nKernelPageSize:{:9} kB\nMMUPageSize:{:12} kB\n",
                     "Size:", v.size() / 1024, 4, 4);
    s += Counters(r, v.flags & kVmaLocked ? r.total() : 0);
    s += fmt::format("THPeligible:{:12}\nVmFlags: {}\n", 0, VmFlags(v));
  }
  return s;
}

base::Result<std::string> PidSmapsRollup(const PidContext& c) {
  std::vector<Vma> vmas = Collect(*c.task);
  if (vmas.empty()) return base::Error(ESRCH);
  Resident r;
  uint64_t locked = 0;
  for (const Vma& v : vmas) {
    Account(v, &r);
    if (v.flags & kVmaLocked) locked += ResidentPart(v);
  }
  std::string line =
      fmt::format("{:08x}-{:08x} ---p 00000000 00:00 0 ", vmas.front().start, vmas.back().end);
  if (line.size() < kNameColumn) line.resize(kNameColumn, ' ');
  return line + "[rollup]\n" + Counters(r, locked);
}

}  // namespace sentry
