// signalfd(2): pending signals as a file. Follows fs/signalfd.c.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/result.h"
#include "sentry/fs/anon/anon.h"
#include "sentry/kernel/signal.h"

namespace sentry {

class ThreadGroup;

// Reads the signals of whoever reads, as in Linux, not those of its maker.
class SignalFile : public AnonFile {
 public:
  // flags: SFD_NONBLOCK.
  SignalFile(Vfs& vfs, SigSet mask, uint32_t flags);
  static SignalFile* From(FileDescription& file) { return dynamic_cast<SignalFile*>(&file); }

  // SIGKILL and SIGSTOP are left out.
  void SetMask(SigSet mask);

  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  uint32_t Readiness() override;
  fiber::WaitQueue* wait_queue() override;
  std::string FdInfo() const override;

 private:
  ~SignalFile() override;

  std::atomic<SigSet> mask_;
  absl::Mutex mutex_;
  // The processes that have waited with it: a waiter may stay registered with their queues for as
  // long as this lives.
  std::vector<base::Ref<ThreadGroup>> groups_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
