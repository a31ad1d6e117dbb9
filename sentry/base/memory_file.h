// Files in the host's memory, with a description apart for who may only read.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace base {

// From now on memory files are made in `directory`: that of a tmpfs that nobody else can name,
// where a file can be opened again without /proc. Once, before the first file; before it (in unit
// tests) they are memfds.
void SetMemoryDirectory(UniqueFd directory);
int MemoryDirectory();  // -1: none

// A file that is gone with its last description. Thread-safe.
class MemoryFile {
 public:
  // The flags of the two openat(2), for the filter of host calls.
  static constexpr int kCreateFlags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  static constexpr int kReadOnlyFlags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC;

  static Result<std::unique_ptr<MemoryFile>> New();
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  // Reads and writes.
  const Ref<HostFd>& fd() const { return fd_; }
  // Another description of the file, which can only be read: for a process that must not write
  // whatever it does with the descriptor. Always the same.
  Result<Ref<HostFd>> ReadOnly();

 private:
  MemoryFile(Ref<HostFd> fd, uint64_t name) : fd_(std::move(fd)), name_(name) {}

  const Ref<HostFd> fd_;
  const uint64_t name_;  // 0: a memfd
  absl::Mutex mutex_;
  Ref<HostFd> read_only_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace base
