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
  // `size` is a multiple of the page size. `charge` is what it counts for in KernelMemory: less
  // than `size` if most of its pages are rarely touched. ENFILE, EMFILE or ENOMEM as the host says,
  // ENOMEM if KernelMemory is full or too many are mapped.
  static Result<std::unique_ptr<RingMemory>> New(size_t size, size_t charge);
  static Result<std::unique_ptr<RingMemory>> New(size_t size) { return New(size, size); }
  ~RingMemory();
  RingMemory(const RingMemory&) = delete;
  RingMemory& operator=(const RingMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  const Ref<HostFd>& file() const { return file_; }

 private:
  RingMemory(Ref<HostFd> file, std::byte* data, size_t size, size_t charge)
      : file_(std::move(file)), data_(data), size_(size), charge_(charge) {}
  Ref<HostFd> file_;
  std::byte* data_;
  size_t size_, charge_;
};

}  // namespace base
