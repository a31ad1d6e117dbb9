// maps, smaps, smaps_rollup: fs/proc/task_mmu.c.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <climits>
#include <cstring>

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

// In the order of Linux's bits.
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
  flag(v.flags & kVmaLockOnFault, "lf");
  flag(v.flags & kVmaAccount, "ac");
  flag(v.flags & kVmaNoReserve, "nr");
  flag(v.flags & kVmaWipeOnFork, "wf");
  flag(v.flags & kVmaDontDump, "dd");
  flag(v.flags & kVmaHugePage, "hg");
  flag(v.flags & kVmaNoHugePage, "nh");
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

// struct procmap_query of linux/fs.h, and its flags.
struct ProcmapQuery {
  uint64_t size, query_flags, query_addr;
  uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
  uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
  uint64_t vma_name_addr, build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr uint64_t kQueryReadable = 1, kQueryWritable = 2, kQueryExecutable = 4, kQueryShared = 8;
constexpr uint64_t kQueryPermissions =
    kQueryReadable | kQueryWritable | kQueryExecutable | kQueryShared;
constexpr uint64_t kQueryNext = 0x10, kQueryFile = 0x20;
constexpr uint32_t kProcmapQuery = _IOWR('f', 17, ProcmapQuery);

uint64_t QueryFlagsOf(const Vma& v) {
  return ((v.prot & PROT_READ) != 0 ? kQueryReadable : 0) |
         ((v.prot & PROT_WRITE) != 0 ? kQueryWritable : 0) |
         ((v.prot & PROT_EXEC) != 0 ? kQueryExecutable : 0) | (v.shared ? kQueryShared : 0);
}

// query_matching_vma(): the one that has the address, or the next that is as asked.
const Vma* FindQueried(const std::vector<Vma>& vmas, const ProcmapQuery& q) {
  const uint64_t wanted = q.query_flags & kQueryPermissions;
  for (const Vma& v : vmas) {
    if (v.end <= q.query_addr) continue;
    const bool next = (q.query_flags & kQueryNext) != 0;
    if (!next && v.start > q.query_addr) return nullptr;
    const bool file = (q.query_flags & kQueryFile) == 0 || v.file != nullptr;
    if (file && (QueryFlagsOf(v) & wanted) == wanted) return &v;
    if (!next) return nullptr;
  }
  return nullptr;
}

// do_procmap_query(). Build ids are not looked for: none is found.
base::Result<uint64_t> AnswerQuery(Kernel& kernel, Task& task, const IoctlArgs& args) {
  const uint64_t size = TRY(base::UserPtr<uint64_t>(args.arg).CopyIn(args.memory));
  if (size > 4096) return base::Error(E2BIG);
  if (size < offsetof(ProcmapQuery, vma_start)) return base::Error(EINVAL);
  std::string raw(size, '\0');
  TRY(args.memory.Read(args.arg, std::as_writable_bytes(std::span(raw))));
  ProcmapQuery q{};
  memcpy(&q, raw.data(), std::min(size, sizeof(q)));
  if (size > sizeof(q) && raw.find_first_not_of('\0', sizeof(q)) != std::string::npos) {
    return base::Error(E2BIG);
  }
  if ((q.query_flags & ~(kQueryPermissions | kQueryNext | kQueryFile)) != 0 ||
      (q.vma_name_size != 0) != (q.vma_name_addr != 0) ||
      (q.build_id_size != 0) != (q.build_id_addr != 0)) {
    return base::Error(EINVAL);
  }
  if (task.mm_ref() == nullptr) return base::Error(ESRCH);
  const std::vector<Vma> vmas = Collect(task);
  const Vma* v = FindQueried(vmas, q);
  if (v == nullptr) return base::Error(ENOENT);
  q.vma_start = v->start;
  q.vma_end = v->end;
  q.vma_flags = QueryFlagsOf(*v);
  q.vma_page_size = 4096;
  q.vma_offset = q.inode = q.dev_major = q.dev_minor = q.build_id_size = 0;
  std::string name = v->name;
  if (v->file != nullptr && v->file->inode() != nullptr) {
    const dev_t dev = v->file->inode()->fs().dev();
    q.vma_offset = v->offset;
    q.inode = v->file->inode()->ino();
    q.dev_major = gnu_dev_major(dev);
    q.dev_minor = gnu_dev_minor(dev);
    name = PathForCurrent(kernel, v->file->path());
  }
  if (q.vma_name_size != 0) {
    const uint32_t room = std::min<uint32_t>(q.vma_name_size, PATH_MAX);
    if (!name.empty() && name.size() + 1 > room) return base::Error(ENAMETOOLONG);
    q.vma_name_size = name.empty() ? 0 : static_cast<uint32_t>(name.size() + 1);
    TRY(args.memory.Write(q.vma_name_addr,
                          std::as_bytes(std::span(name.c_str(), q.vma_name_size))));
  }
  TRY(args.memory.Write(args.arg,
                        std::as_bytes(std::span(&q, 1)).first(std::min(size, sizeof(q)))));
  return uint64_t{0};
}

// Answers PROCMAP_QUERY.
class MapsFile final : public PseudoFileDescription {
 public:
  MapsFile(Path path, uint32_t flags, base::Ref<PseudoFile> file, const PidContext& c)
      : PseudoFileDescription(std::move(path), flags, std::move(file)), fs_(c.fs), task_(c.task) {}
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override {
    if (args.cmd != kProcmapQuery) return base::Error(ENOTTY);
    return AnswerQuery(fs_.kernel(), *task_, args);
  }

 private:
  ~MapsFile() override = default;
  ProcFs& fs_;  // kept by the path
  const base::Ref<Task> task_;
};

}  // namespace

base::Ref<FileDescription> OpenPidMaps(const PidContext& c, const OpenArgs& args,
                                       base::Ref<PseudoFile> file) {
  return base::MakeRef<MapsFile>(args.path, args.flags, std::move(file), c);
}

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
