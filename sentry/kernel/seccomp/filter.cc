#include "sentry/kernel/seccomp/filter.h"

#include <utility>

namespace sentry {
namespace {

constexpr size_t kMaxInstructions = (1 << 18) / sizeof(sock_filter);  // MAX_INSNS_PER_PATH
constexpr size_t kFilterPenalty = 4;

// The lower, the stricter; KILL_PROCESS has the sign bit.
int32_t ActionOf(uint32_t verdict) {
  return static_cast<int32_t>(verdict & SECCOMP_RET_ACTION_FULL);
}

}  // namespace

SeccompFilter::SeccompFilter(BpfProgram program, base::Ref<const SeccompFilter> previous, bool log,
                             base::Ref<SeccompWatcher> watcher)
    : program_(std::move(program)),
      previous_(std::move(previous)),
      log_(log),
      watcher_(std::move(watcher)) {
  instructions_ = program_.size();
  if (previous_) {
    count_ += previous_->count_;
    instructions_ += previous_->instructions_ + kFilterPenalty;
  }
  for (int nr = 0; nr < kCalls; ++nr) {
    if (previous_ && !previous_->AlwaysAllows(nr)) continue;
    std::optional<uint32_t> verdict = program_.RunConstant(nr, kSeccompArch);
    if (verdict && *verdict == SECCOMP_RET_ALLOW) allowed_[nr / 64] |= uint64_t{1} << (nr % 64);
  }
}

SeccompFilter::~SeccompFilter() {
  if (watcher_ != nullptr) watcher_->OnFilterGone();
  // One after the other: a long chain must not become a deep recursion.
  base::Ref<const SeccompFilter> next = std::move(previous_);
  while (next && next->ref_count() == 1) {
    next = std::exchange(const_cast<SeccompFilter*>(next.get())->previous_, nullptr);
  }
}

base::Result<base::Ref<SeccompFilter>> SeccompFilter::New(BpfProgram program,
                                                          base::Ref<const SeccompFilter> previous,
                                                          bool log,
                                                          base::Ref<SeccompWatcher> watcher) {
  base::Ref<SeccompFilter> filter = base::MakeRef<SeccompFilter>(
      std::move(program), std::move(previous), log, std::move(watcher));
  if (filter->instructions_ > kMaxInstructions) return base::Error(ENOMEM);
  return filter;
}

bool SeccompFilter::HasWatcher() const {
  for (const SeccompFilter* f = this; f != nullptr; f = f->previous_.get()) {
    if (f->watcher_ != nullptr) return true;
  }
  return false;
}

uint32_t SeccompFilter::Run(const seccomp_data& data, bool* log, SeccompWatcher** watcher) const {
  uint32_t verdict = SECCOMP_RET_ALLOW;
  *log = false;
  for (const SeccompFilter* f = this; f != nullptr; f = f->previous_.get()) {
    uint32_t one = f->program_.Run(data);
    if (ActionOf(one) < ActionOf(verdict)) {
      verdict = one;
      *log = f->log_;
      if (watcher != nullptr) *watcher = f->watcher_.get();
    }
  }
  return verdict;
}

bool SeccompFilter::IsAncestorOf(const SeccompFilter* other) const {
  for (; other != nullptr; other = other->previous_.get()) {
    if (other == this) return true;
  }
  return false;
}

}  // namespace sentry
