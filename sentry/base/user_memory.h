// Guest memory as the sentry sees it: never dereferenced, only copied, each value once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "sentry/base/file_source.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace base {

// The memory of one guest address space. Implemented by the platform; a call may make a host call
// (process_vm_readv) and so costs microseconds when the mailbox does not hold the bytes.
class UserMemory {
 public:
  virtual ~UserMemory() = default;
  // Copies guest bytes at `addr` into `dst`; returns how many were copied before the first
  // inaccessible byte. EFAULT if none could be (and dst is not empty).
  virtual Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) = 0;
  // At least one byte and at most what ReadPartial would: what is at hand without a host call.
  virtual Result<size_t> ReadSome(uint64_t addr, std::span<std::byte> dst) {
    return ReadPartial(addr, dst);
  }
  // As ReadPartial, to the guest.
  virtual Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) = 0;
  // Leaves it to the memory's owner to fill [addr, addr + length) with the bytes of a file at
  // `offset` on its way back to user code. Returns how many of them it will, from the first on; 0
  // if the caller is to copy them. The file must have them, and the memory must be mapped, writable
  // and anonymous, so that the copy cannot stop half-way for a reason that user code would see.
  virtual size_t WriteFromFile(uint64_t /*addr*/, const Ref<FileSource>& /*source*/,
                               uint64_t /*offset*/, size_t /*length*/) {
    return 0;
  }

  // All or EFAULT.
  Status Read(uint64_t addr, std::span<std::byte> dst) {
    size_t n = TRY(ReadPartial(addr, dst));
    return n == dst.size() ? Status() : Status(Error(EFAULT));
  }
  Status Write(uint64_t addr, std::span<const std::byte> src) {
    size_t n = TRY(WritePartial(addr, src));
    return n == src.size() ? Status() : Status(Error(EFAULT));
  }
  // Copies a NUL-terminated string of at most `max` bytes, the NUL included.
  // ENAMETOOLONG if there is no NUL within `max`; EFAULT as above.
  Result<std::string> ReadString(uint64_t addr, size_t max);
};

// A guest pointer to a T: an address that cannot be dereferenced.
template <typename T>
class UserPtr {
 public:
  UserPtr() = default;
  explicit UserPtr(uint64_t addr) : addr_(addr) {}
  uint64_t addr() const { return addr_; }
  explicit operator bool() const { return addr_ != 0; }

  Result<T> CopyIn(UserMemory& m) const
    requires(std::is_trivially_copyable_v<T>)
  {
    T value;
    TRY(m.Read(addr_, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }
  Status CopyOut(UserMemory& m, const T& value) const
    requires(std::is_trivially_copyable_v<T>)
  {
    return m.Write(addr_, std::as_bytes(std::span(&value, 1)));
  }
  UserPtr<T> operator+(uint64_t n) const { return UserPtr<T>(addr_ + n * sizeof(T)); }

 private:
  uint64_t addr_ = 0;
};

}  // namespace base
