#include "sentry/kernel/user_io.h"

#include <algorithm>

namespace sentry {

base::Status CheckUserRange(uint64_t addr, uint64_t length) {
  if (length > kUserAddressEnd || addr > kUserAddressEnd - length) return base::Error(EFAULT);
  return base::Ok();
}

base::Result<UserIovec> ImportRange(uint64_t addr, uint64_t length) {
  length = std::min(length, kMaxRwCount);
  TRY(CheckUserRange(addr, length));
  UserIovec result;
  result.total = length;
  result.parts.push_back({reinterpret_cast<void*>(addr), length});
  return result;
}

base::Result<UserIovec> ImportIovec(base::UserMemory& memory, uint64_t addr, uint64_t count) {
  if (count > kIovMax) return base::Error(EINVAL);
  UserIovec result;
  result.parts.resize(count);
  if (count == 0) return result;
  TRY(memory.Read(addr, std::as_writable_bytes(std::span(result.parts))));
  for (iovec& part : result.parts) {
    if (static_cast<int64_t>(part.iov_len) < 0) return base::Error(EINVAL);
    TRY(CheckUserRange(reinterpret_cast<uint64_t>(part.iov_base), part.iov_len));
    part.iov_len = std::min<uint64_t>(part.iov_len, kMaxRwCount - result.total);
    result.total += part.iov_len;
  }
  return result;
}

namespace {

// Calls `move(addr, offset, n)` for the next guest ranges of up to `want` bytes in all, until one
// moves less than it was asked; returns the bytes moved, EFAULT if a fault left nothing moved.
template <typename Move>
base::Result<size_t> ForNextRanges(const UserIovec& iovec, size_t* part, size_t* part_offset,
                                   uint64_t* left, size_t want, Move&& move) {
  size_t done = 0;
  want = std::min<uint64_t>(want, *left);
  while (done < want) {
    const struct iovec& v = iovec.parts[*part];
    size_t room = v.iov_len - *part_offset;
    if (room == 0) {
      ++*part;
      *part_offset = 0;
      continue;
    }
    size_t n = std::min(room, want - done);
    base::Result<size_t> moved =
        move(reinterpret_cast<uint64_t>(v.iov_base) + *part_offset, done, n);
    if (!moved.ok() && done == 0) return moved.error();
    size_t got = moved.ok() ? *moved : 0;
    done += got;
    *part_offset += got;
    *left -= got;
    if (got < n) {
      if (done == 0) return base::Error(EFAULT);
      break;
    }
  }
  return done;
}

}  // namespace

base::Result<size_t> UserIoDest::Put(std::span<const std::byte> src) {
  return ForNextRanges(iovec_, &part_, &part_offset_, &left_, src.size(),
                       [&](uint64_t addr, size_t offset, size_t n) {
                         return memory_.WritePartial(addr, src.subspan(offset, n));
                       });
}

base::Result<size_t> UserIoSource::Get(std::span<std::byte> dst) {
  return ForNextRanges(iovec_, &part_, &part_offset_, &left_, dst.size(),
                       [&](uint64_t addr, size_t offset, size_t n) {
                         return memory_.ReadPartial(addr, dst.subspan(offset, n));
                       });
}

}  // namespace sentry
