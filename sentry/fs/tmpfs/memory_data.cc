#include "sentry/fs/tmpfs/memory_data.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "sentry/base/host_io.h"
#include "sentry/base/kernel_memory.h"

namespace sentry {
namespace {

// Beyond this a file is read and written with host calls rather than through a mapping.
constexpr uint64_t kMaxMapped = uint64_t{4} << 30;
// Mappings of the sentry at most (Linux's vm.max_map_count is 65530).
constexpr int kMaxMappings = 16384;
constexpr size_t kBounce = 64 * 1024;
// Pages that one fallocate may ask for where there is no budget.
constexpr uint64_t kMaxReserve = uint64_t{1} << 24;

std::atomic<int> g_mappings{0};

// With little left of the sentry's own memory no more than a page is kept there.
uint64_t InlineMax() { return base::KernelMemory::Tight() ? kMemoryPage : MemoryData::kInlineMax; }

constexpr uint64_t PageOf(uint64_t offset) { return offset / kMemoryPage; }
constexpr uint64_t PagesOf(uint64_t bytes) {
  return bytes / kMemoryPage + (bytes % kMemoryPage != 0);
}
constexpr uint64_t RoundUp(uint64_t bytes) { return PagesOf(bytes) * kMemoryPage; }

}  // namespace

bool PageQuota::Charge(uint64_t pages) {
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    const uint64_t max = max_.load(std::memory_order_relaxed);
    if (max != 0 && (used > max || pages > max - used)) return false;
  } while (!used_.compare_exchange_weak(used, used + pages, std::memory_order_relaxed));
  return true;
}

MemoryData::~MemoryData() {
  if (source_) source_->Retire();
  quota_->Uncharge(charged_);
  if (map_ != nullptr) {
    munmap(map_, mapped_);
    g_mappings.fetch_sub(1, std::memory_order_relaxed);
  }
}

uint64_t MemoryData::blocks() const {
  uint64_t blocks = charged_ * (kMemoryPage / 512);
  if (exact_) {
    // Guests that map the file allocate pages too.
    struct stat st;
    if (base::HostStat(fd_->get(), &st) == 0) blocks = std::max<uint64_t>(blocks, st.st_blocks);
  }
  return blocks;
}

bool MemoryData::IsCharged(uint64_t page) const {
  if (!fd_) return page < PagesOf(inline_.size());
  auto it = pages_.find(page / 64);
  return it != pages_.end() && (it->second >> (page % 64) & 1) != 0;
}

void MemoryData::SetCharged(uint64_t page) {
  pages_[page / 64] |= uint64_t{1} << (page % 64);
  charged_++;
}

uint64_t MemoryData::ChargeRange(uint64_t offset, uint64_t length) {
  if (length == 0) return 0;
  const uint64_t first = PageOf(offset), last = PageOf(offset + length - 1);
  for (uint64_t page = first; page <= last; page++) {
    if (IsCharged(page)) continue;
    if (!quota_->Charge(1)) return page == first ? 0 : page * kMemoryPage - offset;
    SetCharged(page);
  }
  return length;
}

void MemoryData::UnchargePages(uint64_t first, uint64_t last) {
  uint64_t dropped = 0;
  auto clear = [&](uint64_t& word, uint64_t word_index) {
    const uint64_t start = word_index * 64;
    uint64_t mask = ~uint64_t{0};
    if (first > start) mask &= first - start >= 64 ? 0 : ~uint64_t{0} << (first - start);
    if (last < start + 64) mask &= last <= start ? 0 : ~uint64_t{0} >> (start + 64 - last);
    dropped += std::popcount(word & mask);
    word &= ~mask;
  };
  if (last / 64 - first / 64 > pages_.size()) {
    for (auto& [index, word] : pages_) clear(word, index);
  } else {
    for (uint64_t index = first / 64; index <= last / 64; index++) {
      auto it = pages_.find(index);
      if (it != pages_.end()) clear(it->second, index);
    }
  }
  absl::erase_if(pages_, [](const auto& e) { return e.second == 0; });
  charged_ -= dropped;
  quota_->Uncharge(dropped);
}

base::Result<size_t> MemoryData::Read(IoDest& dst, uint64_t offset) const {
  if (offset >= size_) return size_t{0};
  const uint64_t length = std::min<uint64_t>(dst.remaining(), size_ - offset);
  if (length == 0) return size_t{0};
  if (fd_) return ReadFile(dst, offset, length);
  size_t done = 0;
  if (offset < inline_.size()) {
    const size_t n = std::min<uint64_t>(length, inline_.size() - offset);
    done = TRY(dst.Put(std::span(inline_).subspan(offset, n)));
    if (done < n) return done;
  }
  if (done < length) {
    auto zeros = dst.PutZeros(length - done);
    if (!zeros.ok()) return done > 0 ? base::Result<size_t>(done) : zeros;
    done += *zeros;
  }
  return done;
}

base::Result<size_t> MemoryData::ReadFile(IoDest& dst, uint64_t offset, uint64_t length) const {
  size_t done = 0;
  // The host file may end before the size does, after Extend.
  const uint64_t in_file = offset < capacity_ ? std::min(length, capacity_ - offset) : 0;
  if (in_file > 0 && offset + in_file <= mapped_) {
    done = TRY(dst.Put(std::span<const std::byte>(map_ + offset, in_file)));
    if (done < in_file) return done;
  }
  std::vector<std::byte> bounce;
  while (done < in_file) {
    if (bounce.empty()) bounce.resize(std::min<uint64_t>(kBounce, in_file));
    const size_t want = std::min<uint64_t>(bounce.size(), in_file - done);
    const ssize_t got =
        base::HostReadAt(fd_->get(), bounce.data(), want, static_cast<off_t>(offset + done));
    if (got <= 0) return done > 0 ? base::Result<size_t>(done) : base::Error(got < 0 ? errno : EIO);
    auto put = dst.Put(std::span(bounce).first(static_cast<size_t>(got)));
    if (!put.ok()) return done > 0 ? base::Result<size_t>(done) : put;
    done += *put;
    if (*put < static_cast<size_t>(got)) return done;
  }
  if (done < length) {
    auto zeros = dst.PutZeros(length - done);
    if (!zeros.ok()) return done > 0 ? base::Result<size_t>(done) : zeros;
    done += *zeros;
  }
  return done;
}

base::Status MemoryData::SetHostSize(uint64_t size) {
  if (ftruncate(fd_->get(), static_cast<off_t>(size)) != 0) return base::LastError();
  capacity_ = size;
  return base::Ok();
}

void MemoryData::EnsureMapped(uint64_t end) {
  if (end <= mapped_ || end > kMaxMapped || base::KernelMemory::Tight()) return;
  // Room to grow: pages beyond the host file are never touched.
  const uint64_t length = std::min(kMaxMapped, std::bit_ceil(std::max<uint64_t>(end, 1 << 20)));
  void* p;
  if (map_ == nullptr) {
    if (g_mappings.fetch_add(1, std::memory_order_relaxed) >= kMaxMappings) {
      g_mappings.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
    p = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd_->get(), 0);
    if (p == MAP_FAILED) {
      g_mappings.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
  } else {
    p = mremap(map_, mapped_, length, MREMAP_MAYMOVE);
    if (p == MAP_FAILED) return;
  }
  map_ = static_cast<std::byte*>(p);
  mapped_ = length;
}

base::Status MemoryData::EnsureCapacity(uint64_t end) {
  if (end > capacity_) {
    uint64_t wanted = end;
    if (!exact_) {
      wanted = RoundUp(end);
      if (end < kMaxMapped) wanted = std::max(wanted, std::bit_ceil(end));
    }
    TRY(SetHostSize(wanted));
  }
  EnsureMapped(end);
  return base::Ok();
}

base::Status MemoryData::MoveToFile() {
  auto file = base::MemoryFile::New();
  if (!file.ok()) {
    const int error = file.error().code();
    return base::Error(error == EMFILE || error == ENFILE ? ENOSPC : error);
  }
  file_ = std::move(*file);
  fd_ = file_->fd();
  for (uint64_t page = 0; page < PagesOf(inline_.size()); page++) {
    pages_[page / 64] |= uint64_t{1} << (page % 64);  // charged already
  }
  if (!inline_.empty()) {
    base::Status status = EnsureCapacity(inline_.size());
    if (status.ok() && map_ != nullptr) {
      memcpy(map_, inline_.data(), inline_.size());
    } else if (status.ok()) {
      const ssize_t n = base::HostWriteAt(fd_->get(), inline_.data(), inline_.size(), 0);
      if (n != static_cast<ssize_t>(inline_.size())) status = base::Error(n < 0 ? errno : EIO);
    }
    if (!status.ok()) {
      fd_ = nullptr;
      file_ = nullptr;
      pages_.clear();
      capacity_ = 0;
      return status;
    }
  }
  inline_ = {};
  return base::Ok();
}

base::Result<size_t> MemoryData::WriteInline(IoSource& src, uint64_t offset, uint64_t length) {
  const size_t old = inline_.size();
  const uint64_t end = offset + length;
  if (end > old) {
    if (base::KernelMemory::Full()) return base::Error(ENOSPC);
    const uint64_t more = PagesOf(end) - PagesOf(old);
    if (!quota_->Charge(more)) {
      // As many bytes as fit into pages that are there, then page by page.
      uint64_t fit = RoundUp(old);
      while (fit < end && quota_->Charge(1)) fit += kMemoryPage, charged_++;
      if (fit <= offset) {
        quota_->Uncharge(charged_ - PagesOf(old));
        charged_ = PagesOf(old);
        return base::Error(ENOSPC);
      }
      length = std::min(length, fit - offset);
    } else {
      charged_ += more;
    }
    inline_.resize(std::max<uint64_t>(old, offset + length));
  }
  auto got = src.Get(std::span(inline_).subspan(offset, length));
  const size_t n = got.ok() ? *got : 0;
  if (offset + n < inline_.size() && inline_.size() > old) {
    // Less came than there is room for.
    const uint64_t keep = std::max<uint64_t>(old, n > 0 ? offset + n : 0);
    inline_.resize(keep);
  }
  const uint64_t pages = PagesOf(inline_.size());
  if (charged_ > pages) {
    quota_->Uncharge(charged_ - pages);
    charged_ = pages;
  }
  return got;
}

base::Result<size_t> MemoryData::WriteFile(IoSource& src, uint64_t offset, uint64_t length) {
  length = ChargeRange(offset, length);
  if (length == 0) return base::Error(ENOSPC);
  TRY(EnsureCapacity(offset + length));
  if (offset + length <= mapped_) return src.Get(std::span(map_ + offset, length));
  std::vector<std::byte> bounce(std::min<uint64_t>(kBounce, length));
  size_t done = 0;
  while (done < length) {
    const size_t want = std::min<uint64_t>(bounce.size(), length - done);
    auto got = src.Get(std::span(bounce).first(want));
    if (!got.ok()) return done > 0 ? base::Result<size_t>(done) : got;
    const ssize_t n =
        base::HostWriteAt(fd_->get(), bounce.data(), *got, static_cast<off_t>(offset + done));
    if (n < 0) return done > 0 ? base::Result<size_t>(done) : base::LastError();
    done += static_cast<size_t>(n);
    if (static_cast<size_t>(n) < want) break;
  }
  return done;
}

base::Result<size_t> MemoryData::Write(IoSource& src, uint64_t offset) {
  uint64_t length = src.remaining();
  if (length == 0) return size_t{0};
  if (offset >= kMaxFileSize) return base::Error(EFBIG);
  length = std::min(length, kMaxFileSize - offset);
  const uint64_t end = offset + length;
  if (!fd_ && end > InlineMax()) TRY(MoveToFile());
  auto written = fd_ ? WriteFile(src, offset, length) : WriteInline(src, offset, length);
  if (written.ok() && *written > 0 && offset + *written > size_) size_ = offset + *written;
  if (exact_ && capacity_ != size_) TRY(SetHostSize(size_));
  return written;
}

base::Status MemoryData::Extend(uint64_t size) {
  if (size <= size_) return base::Ok();
  if (exact_) TRY(SetHostSize(size));
  size_ = size;
  return base::Ok();
}

base::Status MemoryData::Truncate(uint64_t size) {
  if (size >= size_) return Extend(size);
  if (!fd_) {
    if (size < inline_.size()) {
      inline_.resize(size);
      if (size < inline_.capacity() / 4) inline_.shrink_to_fit();
      const uint64_t pages = PagesOf(size);
      quota_->Uncharge(charged_ - pages);
      charged_ = pages;
    }
  } else {
    if (size < capacity_) TRY(SetHostSize(size));
    UnchargePages(PagesOf(size), UINT64_MAX / kMemoryPage);
  }
  size_ = size;
  return base::Ok();
}

base::Status MemoryData::Reserve(uint64_t offset, uint64_t length) {
  if (!fd_ && offset + length > InlineMax()) TRY(MoveToFile());
  if (!fd_) {
    if (offset + length <= inline_.size()) return base::Ok();
    const uint64_t more = PagesOf(offset + length) - PagesOf(inline_.size());
    if (!quota_->Charge(more)) return base::Error(ENOSPC);
    charged_ += more;
    inline_.resize(offset + length);
    return base::Ok();
  }
  // All or nothing: count first, so that what is refused leaves no trace.
  const uint64_t first = PageOf(offset), last = PageOf(offset + length - 1);
  uint64_t missing = 0;
  for (uint64_t page = first; page <= last; page++) {
    if (IsCharged(page)) continue;
    missing++;
    const uint64_t max = quota_->max();
    if (missing > (max != 0 ? max : kMaxReserve)) return base::Error(ENOSPC);
  }
  if (!quota_->Charge(missing)) return base::Error(ENOSPC);
  for (uint64_t page = first; page <= last; page++) {
    if (!IsCharged(page)) SetCharged(page);
  }
  return base::Ok();
}

base::Status MemoryData::Punch(uint64_t offset, uint64_t length) {
  if (!fd_) {
    if (offset >= inline_.size()) return base::Ok();
    const size_t n = std::min<uint64_t>(length, inline_.size() - offset);
    memset(inline_.data() + offset, 0, n);
    return base::Ok();
  }
  if (offset < capacity_) {
    if (fallocate(fd_->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(offset),
                  static_cast<off_t>(std::min(length, capacity_ - offset))) != 0) {
      return base::LastError();
    }
  }
  const uint64_t first = PagesOf(offset), last = PageOf(offset + length);
  if (first < last) UnchargePages(first, last);
  return base::Ok();
}

base::Result<uint64_t> MemoryData::Seek(uint64_t offset, bool data) const {
  if (!fd_) {
    const bool in_data = offset < inline_.size();
    if (data) {
      if (!in_data) return base::Error(ENXIO);
      return offset;
    }
    return in_data ? std::min<uint64_t>(inline_.size(), size_) : offset;
  }
  if (offset >= capacity_) {
    if (data) return base::Error(ENXIO);
    return offset;
  }
  const off_t at = lseek(fd_->get(), static_cast<off_t>(offset), data ? SEEK_DATA : SEEK_HOLE);
  if (at < 0) {
    if (data || errno != ENXIO) return base::LastError();
    return size_;
  }
  if (data && static_cast<uint64_t>(at) >= size_) return base::Error(ENXIO);
  return std::min<uint64_t>(static_cast<uint64_t>(at), size_);
}

base::Status MemoryData::MakeSource() {
  if (source_) return base::Ok();
  if (charged_ < PagesOf(size_)) return base::Error(ENODATA);
  if (!fd_) TRY(MoveToFile());
  source_ = base::MakeRef<base::FileSource>(TRY(file_->ReadOnly()));
  return base::Ok();
}

base::Ref<base::FileSource> MemoryData::Source() const {
  return charged_ >= PagesOf(size_) && capacity_ >= size_ ? source_ : nullptr;
}

base::Result<base::Ref<base::HostFd>> MemoryData::HostFile(bool writable) {
  if (!fd_) TRY(MoveToFile());
  if (!exact_) {
    TRY(SetHostSize(size_));
    exact_ = true;
  }
  if (!writable) return file_->ReadOnly();
  if (!writable_fd_) {
    const int copy = fcntl(fd_->get(), F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return base::LastError();
    writable_fd_ = base::MakeRef<base::HostFd>(copy);
  }
  return writable_fd_;
}

}  // namespace sentry
