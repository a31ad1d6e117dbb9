// Files of the host whose bytes guest memory can be filled with by mapping them.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"

namespace base {

// One state of a file: made anew when the host's file behind it may be another one, as overlayfs
// puts a copy in the place of what is opened for writing. Immutable but for its end. Thread-safe.
class FileSource : public RefCounted {
 public:
  // `file` cannot write.
  explicit FileSource(Ref<HostFd> file) : file_(std::move(file)) {}
  const Ref<HostFd>& file() const { return file_; }
  // A number that no other has, and none has had.
  uint64_t id() const { return id_; }
  // Nothing more is read from it; who has it mapped lets it go soon, since a mapping keeps the
  // room of a file that has been removed.
  void Retire() {
    retired_.store(true, std::memory_order_release);
    retirements_.fetch_add(1, std::memory_order_release);
  }
  bool retired() const { return retired_.load(std::memory_order_acquire); }
  // How often Retire has been called, for those that look for retired ones.
  static uint64_t retirements() { return retirements_.load(std::memory_order_acquire); }

 private:
  static inline std::atomic<uint64_t> retirements_{0}, next_id_{1};
  const Ref<HostFd> file_;
  const uint64_t id_ = next_id_.fetch_add(1, std::memory_order_relaxed);
  std::atomic<bool> retired_{false};
};

}  // namespace base
