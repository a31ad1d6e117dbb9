// Pieces of files that a stub has mapped, so that it copies what the guest reads of them by itself:
// one copy, from the host's page cache, without the sentry touching the bytes.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/mailbox.h"
#include "sentry/base/file_source.h"
#include "sentry/base/ref.h"

namespace platform {

// The windows of one stub: kFileWindows places of kFileWindowSize bytes each, which show a piece of
// a file at a multiple of that size. The table is the sentry's; what a hostile stub maps there
// instead is what its own guest reads. A window that is used by an answer under way is pinned, so
// that it shows the same until the copy is made. Thread-safe; the lock is a leaf.
class FileWindows {
 public:
  struct Place {
    uint32_t window;
    bool map;  // the caller has the window mapped (Mapped tells) before it is read
  };

  // What the windows show is told in `shown`, which is in the stub's mailbox. Once, before any use.
  void ShowIn(ShownWindow* shown) { shown_ = shown; }

  // A window with the piece that holds `offset`, pinned. Nothing if there is none and it does not
  // pay to make one for a read of `bytes`, or every window is in use.
  std::optional<Place> Pin(const base::Ref<base::FileSource>& source, uint64_t offset,
                           size_t bytes);
  // A window that Pin wanted to be mapped has been.
  void Mapped(uint32_t window);
  // Reading it met a fault: it is not used again.
  void Spoil(uint32_t window);
  void Unpin(uint32_t window);

  // Windows of files that have been retired, or that were there before this table (a fork), are to
  // be unmapped; pinned for the caller, who unpins them when that has been done.
  bool WantsUnmap() const {
    return unmap_.load(std::memory_order_relaxed) ||
           (used_.load(std::memory_order_relaxed) &&
            seen_retirements_.load(std::memory_order_relaxed) != base::FileSource::retirements());
  }
  std::vector<uint32_t> TakeUnmaps();
  // None is used any more, and all are to be unmapped: the process may see less than before.
  void DropAll();
  // The stub is, or will be, a copy of one that has `other`.
  void InheritFrom(FileWindows& other);

 private:
  struct Window {
    base::Ref<base::FileSource> source;  // null: not to be used
    uint64_t offset = 0;
    uint32_t pins = 0;
    bool mapped = false;   // by the caller of Pin
    bool present = false;  // something may be mapped there
    uint64_t used_at = 0;
  };
  // A piece that has been asked for and has no window.
  struct Candidate {
    const base::FileSource* source = nullptr;  // never followed
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint32_t reads = 0;
  };
  bool Pays(const base::FileSource* source, uint64_t offset, size_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Forget(Window& window) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void NoteUnused(const Window& window) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetRetired() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Those that the stub has copied from by itself have been used just now.
  void NoteUses() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Hide(const Window& window) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  std::atomic<bool> used_{false};   // there has been a window
  std::atomic<bool> unmap_{false};  // a window is present without a source or pins
  std::atomic<uint64_t> seen_retirements_{0};
  ShownWindow* shown_ = nullptr;
  absl::Mutex mu_;
  uint64_t clock_ ABSL_GUARDED_BY(mu_) = 0;
  std::array<Window, kFileWindows> windows_ ABSL_GUARDED_BY(mu_);
  std::array<Candidate, kFileWindows> candidates_ ABSL_GUARDED_BY(mu_);
};

}  // namespace platform
