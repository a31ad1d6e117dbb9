// Guest memory as source and destination of file I/O, over one buffer or an iovec.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <vector>

#include "sentry/base/result.h"
#include "sentry/base/user_memory.h"
#include "sentry/vfs/types.h"

namespace sentry {

inline constexpr size_t kIovMax = 1024;                      // UIO_MAXIOV
inline constexpr uint64_t kMaxRwCount = 0x7ffff000;          // MAX_RW_COUNT
inline constexpr uint64_t kUserAddressEnd = 0x7ffffffff000;  // TASK_SIZE_MAX

// Guest ranges, checked: none leaves user space, lengths are cut so that their sum is at most
// MAX_RW_COUNT.
struct UserIovec {
  std::vector<iovec> parts;
  uint64_t total = 0;
};

// readv and friends: EINVAL for count > IOV_MAX or a negative length, EFAULT for a range outside of
// user space or an unreadable array (Linux: import_iovec).
base::Result<UserIovec> ImportIovec(base::UserMemory& memory, uint64_t addr, uint64_t count);
// read and write: EFAULT outside of user space (Linux: import_ubuf, access_ok).
base::Result<UserIovec> ImportRange(uint64_t addr, uint64_t length);
// EFAULT unless [addr, addr + length) lies in user space.
base::Status CheckUserRange(uint64_t addr, uint64_t length);

// `memory` must outlive it.
class UserIoDest : public IoDest {
 public:
  UserIoDest(base::UserMemory& memory, UserIovec iovec)
      : memory_(memory), iovec_(std::move(iovec)), left_(iovec_.total) {}
  size_t remaining() const override { return left_; }
  base::Result<size_t> Put(std::span<const std::byte> src) override;

 private:
  base::UserMemory& memory_;
  UserIovec iovec_;
  size_t part_ = 0, part_offset_ = 0;
  uint64_t left_;
};

class UserIoSource : public IoSource {
 public:
  UserIoSource(base::UserMemory& memory, UserIovec iovec)
      : memory_(memory), iovec_(std::move(iovec)), left_(iovec_.total) {}
  size_t remaining() const override { return left_; }
  base::Result<size_t> Get(std::span<std::byte> dst) override;

 private:
  base::UserMemory& memory_;
  UserIovec iovec_;
  size_t part_ = 0, part_offset_ = 0;
  uint64_t left_;
};

}  // namespace sentry
