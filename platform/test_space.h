// An address space without a host process, for tests of what is told about one.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "platform/platform.h"

namespace platform::test {

class HostlessSpace : public AddressSpace {
 public:
  explicit HostlessSpace(const Limits& limits = {}) : limits_(limits) {}

  const Limits& limits() const override { return limits_; }
  base::Result<std::unique_ptr<Context>> PrepareThread() override { return base::Error(ENOSYS); }
  base::Result<std::unique_ptr<AddressSpace>> PrepareFork() override { return base::Error(ENOSYS); }
  std::unique_ptr<Context> TakeMainContext() override { return nullptr; }
  int64_t ResidentBytes() const override { return -1; }
  int host_pid() const override { return 0; }
  void Kill() override {}
  base::Result<size_t> ReadPartial(uint64_t, std::span<std::byte>) override {
    return base::Error(EFAULT);
  }
  base::Result<size_t> WritePartial(uint64_t, std::span<const std::byte>) override {
    return base::Error(EFAULT);
  }

 private:
  const Limits limits_;
};

}  // namespace platform::test
