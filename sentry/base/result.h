// Result<T>: a value or a Linux errno. Errors are values everywhere in this project; exceptions
// are not used for control flow.
#pragma once

#include <cerrno>
#include <cstdlib>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

namespace base {

// A Linux errno (positive, from <cerrno>) or one of the restart codes below. Never zero.
class [[nodiscard]] Error {
 public:
  constexpr explicit Error(int code) : code_(code) {}
  constexpr int code() const { return code_; }
  friend constexpr bool operator==(Error a, Error b) { return a.code_ == b.code_; }

 private:
  int code_;
};

// Codes by which an interrupted system call asks for its restart, as in Linux's
// include/linux/errno.h. They never reach the application.
inline constexpr int kERESTARTSYS = 512;            // restart if the handler has SA_RESTART
inline constexpr int kERESTARTNOINTR = 513;         // restart always
inline constexpr int kERESTARTNOHAND = 514;         // restart if no handler ran
inline constexpr int kERESTART_RESTARTBLOCK = 516;  // restart through restart_syscall(2)

// The Error for the calling thread's `errno`.
inline Error LastError() { return Error(errno); }

template <typename T = void>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)), code_(0) {}  // NOLINT(google-explicit-constructor)
  Result(Error error) : code_(error.code()) {}             // NOLINT(google-explicit-constructor)
  template <typename U>
    requires(std::is_convertible_v<U &&, T> && !std::is_same_v<std::remove_cvref_t<U>, Result> &&
             !std::is_same_v<std::remove_cvref_t<U>, Error> &&
             !std::is_same_v<std::remove_cvref_t<U>, T>)
  Result(U&& value) : value_(std::forward<U>(value)), code_(0) {}  // NOLINT

  bool ok() const { return code_ == 0; }
  explicit operator bool() const { return ok(); }
  // Precondition of error(): !ok(). Precondition of value(), * and ->: ok(); aborts otherwise.
  Error error() const { return Error(code_); }
  T& value() & { return Check(), *value_; }
  const T& value() const& { return Check(), *value_; }
  T&& value() && { return Check(), std::move(*value_); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return Check(), &*value_; }
  const T* operator->() const { return Check(), &*value_; }
  T value_or(T other) && { return ok() ? std::move(*value_) : std::move(other); }

 private:
  void Check() const {
    if (!ok()) abort();
  }
  std::optional<T> value_;
  int code_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() : code_(0) {}
  Result(Error error) : code_(error.code()) {}  // NOLINT(google-explicit-constructor)
  bool ok() const { return code_ == 0; }
  explicit operator bool() const { return ok(); }
  Error error() const { return Error(code_); }
  void value() const {
    if (!ok()) abort();
  }

 private:
  int code_;
};

using Status = Result<void>;
inline Status Ok() { return Status(); }

}  // namespace base

// Evaluates `expr` (a Result); returns its error from the enclosing function, else is its value.
#define TRY(expr)                                      \
  ({                                                   \
    auto&& try_result_ = (expr);                       \
    if (!try_result_.ok()) return try_result_.error(); \
    std::move(try_result_).value();                    \
  })
