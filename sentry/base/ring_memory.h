// Memory files that hold ring buffers (ring.h), pooled by size.
#pragma once

#include <cstddef>
#include <memory>

#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace base {

// One memory file, mapped shared and writable in the sentry. Goes back to a bounded pool when it
// is destroyed (a few of each size), so that short-lived pipes cost no host calls. What a pooled
// one holds is old: the user resets its ring before anybody reads.
class RingMemory {
 public:
  // `size` is a multiple of the page size. ENFILE, EMFILE or ENOMEM as the host says.
  static Result<std::unique_ptr<RingMemory>> New(size_t size);
  ~RingMemory();
  RingMemory(const RingMemory&) = delete;
  RingMemory& operator=(const RingMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  const Ref<HostFd>& file() const { return file_; }

 private:
  RingMemory(Ref<HostFd> file, std::byte* data, size_t size)
      : file_(std::move(file)), data_(data), size_(size) {}
  Ref<HostFd> file_;
  std::byte* data_;
  size_t size_;
};

}  // namespace base
