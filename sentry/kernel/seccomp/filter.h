// The filters of a task.
#pragma once

#include <linux/audit.h>

#include <array>
#include <cstdint>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/seccomp/bpf.h"

namespace sentry {

// Every call of a sandbox comes by this entry.
inline constexpr uint32_t kSeccompArch = AUDIT_ARCH_X86_64;

// Somebody to whom a filter leaves calls (SECCOMP_RET_USER_NOTIF).
class SeccompWatcher : public base::RefCounted {
 public:
  // Nothing has the filter any more. Any thread.
  virtual void OnFilterGone() = 0;
};

// A filter and those that were there before it (Linux: struct seccomp_filter). Immutable, so that
// tasks share them.
class SeccompFilter : public base::RefCounted {
 public:
  // ENOMEM if the whole chain is longer than Linux allows.
  static base::Result<base::Ref<SeccompFilter>> New(BpfProgram program,
                                                    base::Ref<const SeccompFilter> previous,
                                                    bool log,
                                                    base::Ref<SeccompWatcher> watcher = nullptr);

  // The verdict of the whole chain: of the strictest, the newest of equals (Linux:
  // seccomp_run_filters). `*log`: that filter wants what it does to be logged. `*watcher`: whom it
  // leaves calls to, or null.
  uint32_t Run(const seccomp_data& data, bool* log, SeccompWatcher** watcher = nullptr) const;
  // Does one of the chain leave calls to somebody?
  bool HasWatcher() const;
  // True if every filter allows call `nr` whatever its arguments are and wherever it comes from.
  bool AlwaysAllows(int nr) const {
    return nr >= 0 && nr < kCalls && (allowed_[nr / 64] >> (nr % 64) & 1);
  }
  // True if `this` is `other` or one of those that were there before it.
  bool IsAncestorOf(const SeccompFilter* other) const;
  int count() const { return count_; }

 private:
  static constexpr int kCalls = 512;
  SeccompFilter(BpfProgram program, base::Ref<const SeccompFilter> previous, bool log,
                base::Ref<SeccompWatcher> watcher);
  ~SeccompFilter() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  const BpfProgram program_;
  base::Ref<const SeccompFilter> previous_;
  const bool log_;
  const base::Ref<SeccompWatcher> watcher_;
  int count_ = 1;
  size_t instructions_ = 0;  // of the chain, with what Linux adds for each
  std::array<uint64_t, kCalls / 64> allowed_{};
};

}  // namespace sentry
