// A context's view of guest memory: what the stub has copied in, what it is to copy out, and
// process_vm_readv/writev for the rest.
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "platform/systrap/context.h"
#include "platform/systrap/platform.h"
#include "sentry/base/host_io.h"

namespace platform {
namespace {

constexpr size_t kMaxBufferedWrite = 4096;
constexpr size_t kFileCopyChunk = 64 * 1024;

bool Overlap(uint64_t a, size_t a_size, uint64_t b, size_t b_size) {
  return a < b + b_size && b < a + a_size;
}

}  // namespace

// The entries are the stub's: copied first, then checked.
void ThreadContext::LoadCopyIn() {
  copy_in_loaded_ = true;
  copy_in_.clear();
  uint32_t count = std::min<uint32_t>(copy_in_count_, kMaxCopiesIn);
  for (uint32_t i = 0; i < count; i++) {
    CopyEntry e;
    memcpy(&e, &slot_->copy_in[i], sizeof(e));
    if (e.length == 0 || e.offset > kCopyInSize || e.length > kCopyInSize - e.offset) continue;
    if (e.addr + e.length < e.addr) continue;
    copy_in_.push_back(e);
  }
}

bool ThreadContext::OverlapsPending(uint64_t addr, size_t size) const {
  return std::any_of(copy_out_.begin(), copy_out_.end(),
                     [&](const CopyEntry& e) { return Overlap(addr, size, e.addr, e.length); });
}

// What the mailbox holds of the bytes at `addr`: their number.
size_t ThreadContext::ReadCopied(uint64_t addr, std::span<std::byte> dst) {
  if (!copy_in_loaded_) LoadCopyIn();
  for (const CopyEntry& e : copy_in_) {
    if (addr < e.addr || addr >= e.addr + e.length) continue;
    uint64_t skip = addr - e.addr;
    size_t n = std::min<size_t>(dst.size(), e.length - skip);
    memcpy(dst.data(), slot_->in_area + e.offset + skip, n);
    return n;
  }
  return 0;
}

base::Result<size_t> ThreadContext::ReadSome(uint64_t addr, std::span<std::byte> dst) {
  if (!OverlapsPending(addr, dst.size())) {
    if (size_t n = ReadCopied(addr, dst)) return n;
  }
  return ReadPartial(addr, dst);
}

base::Result<size_t> ThreadContext::ReadPartial(uint64_t addr, std::span<std::byte> dst) {
  if (dst.empty()) return size_t{0};
  if (OverlapsPending(addr, dst.size())) TRY(FlushWrites());
  size_t done = ReadCopied(addr, dst);
  if (done == dst.size()) return done;
  base::Result<size_t> rest = process_->ReadMemory(addr + done, dst.subspan(done));
  if (rest.ok()) return done + *rest;
  if (done > 0) return done;
  return rest;
}

// Leaves a small write for the stub. False if it must be made at once.
bool ThreadContext::BufferWrite(uint64_t addr, std::span<const std::byte> src) {
  uint64_t end = space_->limits().max_address;
  bool stopped = !running() && tid_.load(std::memory_order_relaxed) > 0 && !exited_;
  if (!stopped || src.size() > kMaxBufferedWrite || src.size() > kCopyOutSize - out_used_ ||
      addr >= end || src.size() > end - addr) {
    return false;
  }
  uint32_t size = static_cast<uint32_t>(src.size());
  bool extends = !copy_out_.empty() && copy_out_.back().addr + copy_out_.back().length == addr &&
                 copy_out_.back().offset + copy_out_.back().length == out_used_;
  if (!extends && copy_out_.size() == kMaxCopies) return false;
  memcpy(slot_->out_area + out_used_, src.data(), size);
  if (extends) {
    copy_out_.back().length += size;
  } else {
    copy_out_.push_back(CopyEntry{addr, size, out_used_});
  }
  out_used_ += size;
  return true;
}

base::Result<size_t> ThreadContext::WritePartial(uint64_t addr, std::span<const std::byte> src) {
  if (src.empty()) return size_t{0};
  if (!copy_in_loaded_) LoadCopyIn();
  // What was copied in is not what stands there any more.
  std::erase_if(copy_in_,
                [&](const CopyEntry& e) { return Overlap(addr, src.size(), e.addr, e.length); });
  if (BufferWrite(addr, src)) return src.size();
  if (OverlapsPending(addr, src.size())) TRY(FlushWrites());
  return process_->WriteMemory(addr, src);
}

size_t ThreadContext::WriteFromFile(uint64_t addr, const base::Ref<base::FileSource>& source,
                                    uint64_t offset, size_t length) {
  const uint64_t end = space_->limits().max_address;
  const bool stopped = !running() && tid_.load(std::memory_order_relaxed) > 0 && !exited_;
  const bool no_fd = process_->platform().strict() && index_ >= process_->platform().ordered_fds();
  if (!stopped || no_fd || addr >= end || length > end - addr) return 0;
  if (!copy_in_loaded_) LoadCopyIn();
  size_t done = 0;
  while (done < length && copy_out_.size() < kMaxCopies && done < kFileWindowSize) {
    const uint64_t at = offset + done, skip = at % kFileWindowSize;
    const size_t n = std::min<uint64_t>(length - done, kFileWindowSize - skip);
    std::optional<FileWindows::Place> place = process_->windows().Pin(source, at, n);
    if (!place) break;
    const uint64_t from = place->window * kFileWindowSize + skip;
    copy_out_.push_back(CopyEntry{addr + done, static_cast<uint32_t>(n),
                                  static_cast<uint32_t>(from) | kFromWindow});
    file_copies_.push_back({source, at, place->window, place->map});
    done += n;
  }
  if (done > 0) {
    std::erase_if(copy_in_,
                  [&](const CopyEntry& e) { return Overlap(addr, done, e.addr, e.length); });
  }
  return done;
}

// What the stub was to copy from a window, copied here. Zeros where the file has become shorter, as
// a read beside a truncation may see them.
base::Status ThreadContext::CopyFromFile(const CopyEntry& e, const FileCopy& file) {
  std::vector<std::byte> buffer(std::min<size_t>(e.length, kFileCopyChunk));
  for (size_t done = 0; done < e.length;) {
    const std::span<std::byte> part =
        std::span(buffer).first(std::min<size_t>(e.length - done, buffer.size()));
    const ssize_t n = base::HostReadAt(file.source->file()->get(), part.data(), part.size(),
                                       static_cast<off_t>(file.offset + done));
    if (n < 0) return base::Error(EIO);
    std::ranges::fill(part.subspan(static_cast<size_t>(n)), std::byte{0});
    base::Result<size_t> written = process_->WriteMemory(e.addr + done, part);
    if (!written.ok() || *written != part.size()) return base::Error(EFAULT);
    done += part.size();
  }
  return {};
}

base::Status ThreadContext::FlushWrites() {
  base::Status status;
  auto file = file_copies_.begin();
  for (const CopyEntry& e : copy_out_) {
    if (e.offset & kFromWindow) {
      base::Status copied = CopyFromFile(e, *file++);
      if (!copied.ok()) status = copied;
      continue;
    }
    std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(slot_->out_area + e.offset),
                                     e.length);
    base::Result<size_t> n = process_->WriteMemory(e.addr, bytes);
    if (!n.ok() || *n != bytes.size()) status = base::Error(EFAULT);
  }
  UnpinCopies();
  copy_out_.clear();
  out_used_ = 0;
  return status;
}

void ThreadContext::UnpinCopies() {
  for (const FileCopy& file : file_copies_) process_->windows().Unpin(file.window);
  file_copies_.clear();
}

void ThreadContext::ReleaseWindows(bool failed) {
  if (failed) {
    // Pinned on, and not to be used again.
    copy_out_.swap(sent_copies_);
    out_used_ = kCopyOutSize;
    for (const FileCopy& file : file_copies_) process_->windows().Spoil(file.window);
  } else {
    UnpinCopies();
  }
  sent_copies_.clear();
}

}  // namespace platform
