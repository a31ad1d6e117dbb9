// eventfd(2): a counter that can be waited for. Follows fs/eventfd.c.
#pragma once

#include <atomic>
#include <cstdint>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/fs/anon/anon.h"

namespace sentry {

// The counter without the file. Thread-safe, lock-free but for the wait queue.
class EventCounter {
 public:
  EventCounter(uint64_t count, bool semaphore) : semaphore_(semaphore), count_(count) {}
  // Takes the whole count, or 1 of a semaphore; false if it is 0.
  bool TryTake(uint64_t* value);
  // Adds unless the sum would reach the maximum (2^64 - 1).
  bool TryAdd(uint64_t value);
  uint32_t Readiness() const;
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  bool semaphore() const { return semaphore_; }
  fiber::WaitQueue& queue() { return queue_; }

 private:
  const bool semaphore_;
  std::atomic<uint64_t> count_;
  fiber::WaitQueue queue_;
};

class EventFile : public AnonFile {
 public:
  // flags: EFD_NONBLOCK, EFD_SEMAPHORE.
  EventFile(Vfs& vfs, uint64_t count, uint32_t flags);
  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<size_t> Write(IoSource& src, bool nonblock) override;
  uint32_t Readiness() override { return counter_.Readiness(); }
  fiber::WaitQueue* wait_queue() override { return &counter_.queue(); }
  std::string FdInfo() const override;

 private:
  ~EventFile() override = default;
  EventCounter counter_;
  const int id_;
};

}  // namespace sentry
