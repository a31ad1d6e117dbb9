// /proc/PID/pagemap: fs/proc/task_mmu.c. Which pages are resident only the host knows: a page that
// is mapped and accessible counts as present, as in smaps. Frame numbers are nobody's business (0,
// as without CAP_SYS_ADMIN).
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "sentry/fs/proc/pid_dir.h"
#include "sentry/kernel/kernel.h"
#include "sentry/mm/memory_manager.h"

namespace sentry {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kSoftDirty = uint64_t{1} << 55;  // nobody can clear it
constexpr uint64_t kOfFileOrShared = uint64_t{1} << 61;
constexpr uint64_t kPresent = uint64_t{1} << 63;
constexpr uint64_t kEntry = sizeof(uint64_t);
constexpr size_t kEntriesAtOnce = 512;
constexpr size_t kMaxRead = 4 << 20;  // at once, so that nobody else waits long

class PagemapDescription : public SeekableFile {
 public:
  PagemapDescription(Path path, uint32_t flags, base::Ref<MemoryManager> mm)
      : SeekableFile(std::move(path), flags), mm_(std::move(mm)) {}

  base::Result<size_t> PRead(IoDest& dst, uint64_t offset, bool) override {
    if (mm_ == nullptr) return size_t{0};
    if (offset % kEntry != 0 || dst.remaining() % kEntry != 0) return base::Error(EINVAL);
    const uint64_t pages = mm_->address_space().limits().max_address / kPage;
    uint64_t page = offset / kEntry;
    size_t total = 0;
    while (page < pages && dst.remaining() > 0 && total < kMaxRead) {
      size_t n = std::min({kEntriesAtOnce, static_cast<size_t>(pages - page),
                           dst.remaining() / static_cast<size_t>(kEntry)});
      std::vector<uint64_t> entries = Entries(page, n);
      size_t put = TRY(dst.Put(std::as_bytes(std::span(entries))));
      total += put;
      if (put < n * kEntry) break;
      page += n;
    }
    return total;
  }

 private:
  ~PagemapDescription() override = default;
  std::vector<uint64_t> Entries(uint64_t first, size_t n) const {
    std::vector<uint64_t> entries(n);
    const uint64_t begin = first * kPage, end = begin + n * kPage;
    mm_->ForEachVma([&](const Vma& v) {
      if (v.prot == PROT_NONE) return;
      uint64_t entry = kPresent | kSoftDirty;
      if (v.file != nullptr || v.shared) entry |= kOfFileOrShared;
      for (uint64_t at = std::max(v.start, begin); at < std::min(v.end, end); at += kPage) {
        entries[(at - begin) / kPage] = entry;
      }
    });
    return entries;
  }
  const base::Ref<MemoryManager> mm_;
};

class PagemapInode : public PidOwned<PseudoInode> {
 public:
  PagemapInode(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino)
      : PidOwned(fs, std::move(pid), whole, fs, ino, S_IFREG | 0400) {}
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override {
    base::Ref<Task> task = TRY(GetInspectable());
    return base::Ref<FileDescription>(
        base::MakeRef<PagemapDescription>(args.path, args.flags, task->mm_ref()));
  }

 private:
  ~PagemapInode() override = default;
};

}  // namespace

base::Ref<Inode> NewPagemapFile(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino) {
  return base::MakeRef<PagemapInode>(fs, std::move(pid), whole, ino);
}

}  // namespace sentry
