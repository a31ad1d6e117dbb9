// Arithmetic on numbers that come from the guest or a peer: overflow is an answer, not a wrap.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

namespace base {

// a + b, a - b, a * b; nothing if the result does not fit T.
template <std::integral T>
constexpr std::optional<T> CheckedAdd(T a, std::type_identity_t<T> b) {
  T r;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}
template <std::integral T>
constexpr std::optional<T> CheckedSub(T a, std::type_identity_t<T> b) {
  T r;
  if (__builtin_sub_overflow(a, b, &r)) return std::nullopt;
  return r;
}
template <std::integral T>
constexpr std::optional<T> CheckedMul(T a, std::type_identity_t<T> b) {
  T r;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}
// a + b, the largest or smallest T if that does not fit.
template <std::integral T>
constexpr T SaturatingAdd(T a, std::type_identity_t<T> b) {
  T r;
  if (!__builtin_add_overflow(a, b, &r)) return r;
  return b < 0 ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max();
}
template <std::integral T>
constexpr T SaturatingMul(T a, std::type_identity_t<T> b) {
  T r;
  if (!__builtin_mul_overflow(a, b, &r)) return r;
  return (a < 0) != (b < 0) ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max();
}
// `v` as To; nothing if it does not fit.
template <std::integral To, std::integral From>
constexpr std::optional<To> CheckedCast(From v) {
  if (!std::in_range<To>(v)) return std::nullopt;
  return static_cast<To>(v);
}

// Pages of amd64.
inline constexpr uint64_t kPageShift = 12;
inline constexpr uint64_t kPageSize = uint64_t{1} << kPageShift;
inline constexpr uint64_t kPageMask = ~(kPageSize - 1);

constexpr bool IsPageAligned(uint64_t v) { return (v & ~kPageMask) == 0; }
constexpr uint64_t PageRoundDown(uint64_t v) { return v & kPageMask; }
// Nothing if the next page boundary is beyond 2^64.
constexpr std::optional<uint64_t> PageRoundUp(uint64_t v) {
  if (v > kPageMask) return std::nullopt;
  return (v + kPageSize - 1) & kPageMask;
}
// `v` rounded up to a multiple of `alignment`, a power of two. Precondition: it fits.
constexpr uint64_t AlignUp(uint64_t v, uint64_t alignment) {
  return (v + alignment - 1) & ~(alignment - 1);
}

// The address one past `length` bytes at `addr`; nothing if that wraps.
constexpr std::optional<uint64_t> RangeEnd(uint64_t addr, uint64_t length) {
  return CheckedAdd(addr, length);
}

}  // namespace base
