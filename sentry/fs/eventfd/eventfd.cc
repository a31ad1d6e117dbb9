#include "sentry/fs/eventfd/eventfd.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <cstdio>
#include <limits>

namespace sentry {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

int NextId() {
  static std::atomic<int> next{0};
  return next.fetch_add(1);
}

}  // namespace

bool EventCounter::TryTake(uint64_t* value) {
  uint64_t n = count_.load();
  do {
    if (n == 0) return false;
    *value = semaphore_ ? 1 : n;
  } while (!count_.compare_exchange_weak(n, n - *value));
  queue_.Wake(EPOLLOUT);
  return true;
}

bool EventCounter::TryAdd(uint64_t value) {
  uint64_t n = count_.load();
  do {
    if (kMax - n <= value) return false;
  } while (!count_.compare_exchange_weak(n, n + value));
  queue_.Wake(EPOLLIN);
  return true;
}

uint32_t EventCounter::Readiness() const {
  uint64_t n = count_.load();
  uint32_t mask = 0;
  if (n > 0) mask |= EPOLLIN;
  if (n == kMax) mask |= EPOLLERR;
  if (n < kMax - 1) mask |= EPOLLOUT;
  return mask;
}

EventFile::EventFile(Vfs& vfs, uint64_t count, uint32_t flags)
    : AnonFile(vfs, "[eventfd]", O_RDWR | (flags & EFD_NONBLOCK)),
      counter_(count, (flags & EFD_SEMAPHORE) != 0),
      id_(NextId()) {}

base::Result<size_t> EventFile::Read(IoDest& dst, bool nonblock) {
  uint64_t value = 0;
  if (dst.remaining() < sizeof(value)) return base::Error(EINVAL);
  if (!counter_.TryTake(&value)) {
    if (nonblock) return base::Error(EAGAIN);
    auto reason = fiber::WaitUntil(
        counter_.queue(), EPOLLIN, [&] { return counter_.TryTake(&value); },
        {.interruptible = true}, /*exclusive=*/true);
    if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
    // A semaphore that is still positive has something for the next reader.
    if (counter_.count() > 0) counter_.queue().Wake(EPOLLIN);
  }
  size_t n = TRY(dst.Put(std::as_bytes(std::span(&value, 1))));
  if (n != sizeof(value)) return base::Error(EFAULT);
  return sizeof(value);
}

base::Result<size_t> EventFile::Write(IoSource& src, bool nonblock) {
  uint64_t value = 0;
  if (src.remaining() < sizeof(value)) return base::Error(EINVAL);
  size_t n = TRY(src.Get(std::as_writable_bytes(std::span(&value, 1))));
  if (n != sizeof(value)) return base::Error(EFAULT);
  if (value == kMax) return base::Error(EINVAL);
  if (!counter_.TryAdd(value)) {
    if (nonblock) return base::Error(EAGAIN);
    auto reason = fiber::WaitUntil(
        counter_.queue(), EPOLLOUT, [&] { return counter_.TryAdd(value); }, {.interruptible = true},
        /*exclusive=*/true);
    if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  }
  return sizeof(value);
}

std::string EventFile::FdInfo() const {
  char line[128];
  snprintf(line, sizeof(line), "eventfd-count: %16llx\neventfd-id: %d\neventfd-semaphore: %d\n",
           static_cast<unsigned long long>(counter_.count()), id_, counter_.semaphore() ? 1 : 0);
  return line;
}

}  // namespace sentry
