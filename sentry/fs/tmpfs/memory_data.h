// MemoryData: the bytes of one file in memory. Small files live in the sentry's heap; a file that
// grows beyond kInlineMax or is mapped moves into a host memory file (memfd).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "sentry/base/file_source.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/memory_file.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/types.h"

namespace sentry {

inline constexpr uint64_t kMemoryPage = 4096;

// A budget of pages, shared by the files of a filesystem. Thread-safe.
class PageQuota {
 public:
  explicit PageQuota(uint64_t max) : max_(max) {}  // 0: no limit
  bool Charge(uint64_t pages);
  void Uncharge(uint64_t pages) { used_.fetch_sub(pages, std::memory_order_relaxed); }
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }
  uint64_t max() const { return max_.load(std::memory_order_relaxed); }
  void set_max(uint64_t max) { max_.store(max, std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> used_{0};
  std::atomic<uint64_t> max_;
};

// Not thread-safe: the owner's lock is held shared for const methods and Read, else exclusively.
class MemoryData {
 public:
  // Files up to this size stay in the heap.
  static constexpr uint64_t kInlineMax = 256 * 1024;

  // `quota` must outlive it.
  explicit MemoryData(PageQuota* quota) : quota_(quota) {}
  ~MemoryData();
  MemoryData(const MemoryData&) = delete;
  MemoryData& operator=(const MemoryData&) = delete;

  uint64_t size() const { return size_; }
  // Guests map it, or did: blocks() may change by itself.
  bool mapped() const { return exact_; }
  // Of 512 bytes.
  uint64_t blocks() const;

  // Copies up to the end of the file; 0 there.
  base::Result<size_t> Read(IoDest& dst, uint64_t offset) const;
  // Writes what `src` has, growing the file. Short if the budget ends or guest memory faults;
  // ENOSPC, EFBIG, EFAULT.
  base::Result<size_t> Write(IoSource& src, uint64_t offset);
  base::Status Truncate(uint64_t size);
  // Makes sure that [offset, offset + length) has pages; the size does not change. ENOSPC.
  base::Status Reserve(uint64_t offset, uint64_t length);
  // Makes a range zeros and gives its whole pages back.
  base::Status Punch(uint64_t offset, uint64_t length);
  // Grows the size alone.
  base::Status Extend(uint64_t size);
  // Next data or hole at or after `offset`, which is below size(); ENXIO if there is no data.
  base::Result<uint64_t> Seek(uint64_t offset, bool data) const;
  // The host file to be mapped, moving the data there if need be. With `writable` a reference that
  // writable_mappings() counts, else a description that cannot write.
  base::Result<base::Ref<base::HostFd>> HostFile(bool writable);
  // The host file for who maps it to read what is below size() alone; the data moves there first.
  // ENODATA if there are holes, which reading a mapping would fill.
  base::Status MakeSource();
  // Null: there is none, or there are holes by now.
  base::Ref<base::FileSource> Source() const;
  // True while a reference that HostFile(true) gave out exists.
  bool writable_mappings() const { return writable_fd_ && writable_fd_->ref_count() > 1; }

 private:
  base::Status MoveToFile();
  // Charges what is missing of [offset, offset + length); returns how many bytes have pages then.
  uint64_t ChargeRange(uint64_t offset, uint64_t length);
  bool IsCharged(uint64_t page) const;
  void SetCharged(uint64_t page);
  // Drops pages [first, last).
  void UnchargePages(uint64_t first, uint64_t last);
  // The host file reaches at least `end`, and is mapped here if it may be.
  base::Status EnsureCapacity(uint64_t end);
  void EnsureMapped(uint64_t end);
  base::Status SetHostSize(uint64_t size);
  base::Result<size_t> WriteInline(IoSource& src, uint64_t offset, uint64_t length);
  base::Result<size_t> WriteFile(IoSource& src, uint64_t offset, uint64_t length);
  base::Result<size_t> ReadFile(IoDest& dst, uint64_t offset, uint64_t length) const;

  PageQuota* const quota_;
  uint64_t size_ = 0;
  std::vector<std::byte> inline_;  // while there is no file: bytes up to the last one written
  std::unique_ptr<base::MemoryFile> file_;
  base::Ref<base::HostFd> fd_;           // reads and writes; for us alone
  base::Ref<base::HostFd> writable_fd_;  // the same
  base::Ref<base::FileSource> source_;
  bool exact_ = false;     // the host file has exactly size_ bytes, since guests map it
  uint64_t capacity_ = 0;  // size of the host file
  std::byte* map_ = nullptr;
  uint64_t mapped_ = 0;
  absl::flat_hash_map<uint64_t, uint64_t> pages_;  // charged pages, 64 to a word
  uint64_t charged_ = 0;
};

}  // namespace sentry
