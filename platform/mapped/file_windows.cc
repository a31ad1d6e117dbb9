#include "platform/mapped/file_windows.h"

#include "absl/hash/hash.h"

namespace platform {
namespace {

// A window costs about as much as it saves on so many bytes, or reads.
constexpr uint64_t kPayingBytes = 96 * 1024;
constexpr uint32_t kPayingReads = 4;

constexpr uint64_t PieceOf(uint64_t offset) { return offset & ~(kFileWindowSize - 1); }

}  // namespace

bool FileWindows::Pays(const base::FileSource* source, uint64_t offset, size_t bytes) {
  Candidate& c = candidates_[absl::HashOf(source, offset) % kFileWindows];
  if (c.source != source || c.offset != offset) c = {.source = source, .offset = offset};
  c.bytes += bytes;
  c.reads++;
  if (c.bytes < kPayingBytes && c.reads < kPayingReads) return false;
  c = {};
  return true;
}

// Not to be used any more; unmapped when nobody reads it.
void FileWindows::Forget(Window& window) {
  Hide(window);
  window.source.reset();
  window.mapped = false;
  NoteUnused(window);
}

void FileWindows::Hide(const Window& window) {
  if (shown_ != nullptr) HideWindow(&shown_[&window - windows_.data()], ++clock_);
}

void FileWindows::NoteUses() {
  if (shown_ == nullptr) return;
  for (size_t i = 0; i < windows_.size(); i++) {
    if (__atomic_exchange_n(&shown_[i].used, uint64_t{0}, __ATOMIC_RELAXED) != 0) {
      windows_[i].used_at = ++clock_;
    }
  }
}

void FileWindows::NoteUnused(const Window& window) {
  if (window.present && !window.source && window.pins == 0) {
    unmap_.store(true, std::memory_order_relaxed);
  }
}

void FileWindows::ForgetRetired() {
  const uint64_t now = base::FileSource::retirements();
  if (seen_retirements_.load(std::memory_order_relaxed) == now) return;
  seen_retirements_.store(now, std::memory_order_relaxed);
  for (Window& w : windows_) {
    if (w.source && w.source->retired()) Forget(w);
  }
}

std::optional<FileWindows::Place> FileWindows::Pin(const base::Ref<base::FileSource>& source,
                                                   uint64_t offset, size_t bytes) {
  offset = PieceOf(offset);
  absl::MutexLock lock(&mu_);
  ForgetRetired();
  for (Window& w : windows_) {
    if (w.source == source && w.offset == offset) {
      if (!w.mapped) return std::nullopt;  // another thread is about to map it
      w.pins++;
      w.used_at = ++clock_;
      return Place{static_cast<uint32_t>(&w - windows_.data()), false};
    }
  }
  if (source->retired() || !Pays(source.get(), offset, bytes)) return std::nullopt;
  NoteUses();
  Window* free = nullptr;
  for (Window& w : windows_) {
    if (w.pins == 0 && (!free || w.used_at < free->used_at)) free = &w;
  }
  if (!free) return std::nullopt;
  Hide(*free);
  *free = {.source = source, .offset = offset, .pins = 1, .present = true, .used_at = ++clock_};
  used_.store(true, std::memory_order_relaxed);
  return Place{static_cast<uint32_t>(free - windows_.data()), true};
}

void FileWindows::Mapped(uint32_t window) {
  absl::MutexLock lock(&mu_);
  Window& w = windows_[window];
  w.mapped = w.source != nullptr;
  if (w.mapped && shown_ != nullptr) ShowWindow(&shown_[window], w.source->id(), w.offset);
}

void FileWindows::Spoil(uint32_t window) {
  absl::MutexLock lock(&mu_);
  Forget(windows_[window]);
}

void FileWindows::Unpin(uint32_t window) {
  absl::MutexLock lock(&mu_);
  Window& w = windows_[window];
  w.pins--;
  if (w.source && !w.mapped) return Forget(w);
  NoteUnused(w);
}

std::vector<uint32_t> FileWindows::TakeUnmaps() {
  std::vector<uint32_t> windows;
  absl::MutexLock lock(&mu_);
  ForgetRetired();
  for (Window& w : windows_) {
    if (!w.present || w.source || w.pins != 0) continue;
    w = {.pins = 1, .used_at = w.used_at};
    windows.push_back(static_cast<uint32_t>(&w - windows_.data()));
  }
  unmap_.store(false, std::memory_order_relaxed);
  return windows;
}

void FileWindows::DropAll() {
  if (!used_.load(std::memory_order_relaxed)) return;
  absl::MutexLock lock(&mu_);
  for (Window& w : windows_) {
    if (w.source) Forget(w);
  }
}

void FileWindows::InheritFrom(FileWindows& other) {
  if (!other.used_.load(std::memory_order_relaxed)) return;
  std::array<bool, kFileWindows> present;
  {
    absl::MutexLock lock(&other.mu_);
    for (uint32_t i = 0; i < kFileWindows; i++) present[i] = other.windows_[i].present;
  }
  absl::MutexLock lock(&mu_);
  used_.store(true, std::memory_order_relaxed);
  for (uint32_t i = 0; i < kFileWindows; i++) {
    windows_[i].present |= present[i];
    NoteUnused(windows_[i]);
  }
}

}  // namespace platform
