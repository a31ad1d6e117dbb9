// What the sentry makes before it makes a stub: the mailbox and the socket. Both can serve again
// when the stub has ended.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace platform {

// A mailbox's memory file, its mapping here, and the two ends of the stub's socket.
class StubShell {
 public:
  StubShell() = default;
  StubShell(StubShell&& other) noexcept { *this = std::move(other); }
  StubShell& operator=(StubShell&& other) noexcept;
  ~StubShell();
  static base::Result<StubShell> Create();

  unsigned char* mailbox() const { return mailbox_; }
  const base::Ref<base::HostFd>& mailbox_file() const { return mailbox_file_; }
  int socket() const { return socket_.get(); }
  int stub_socket() const { return stub_socket_.get(); }
  // Whether a stub had it before: what it has left in slots that are not below `slots` of Clean is
  // there still.
  bool used() const { return used_; }
  // Closes what the stub has by now, after which it cannot serve again.
  void CloseStubsPart();
  // All who could write to it have ended, or may harm the next stub anyway. Makes it as good as
  // new, whose slots below `slots` have been in use; false if that is not worth it.
  bool Clean(uint32_t slots);

  // Bytes of files are put at MailboxHeader::file_begins[place] from now on.
  void UseFileBegin(uint32_t place) { begins_.fetch_or(1u << place, std::memory_order_seq_cst); }
  // What has been put there goes. Nobody reads it any more.
  void ClearFileBegins();

 private:
  base::Ref<base::HostFd> mailbox_file_;
  base::UniqueFd stub_socket_, socket_;
  unsigned char* mailbox_ = nullptr;
  bool used_ = false;
  std::atomic<uint32_t> begins_{0};  // a bit for each place that has been used
};

// Shells for one maker's stubs to come. Whoever can reach into one of them is that maker, or a fork
// of it that could reach into the next one's as well: so a stub's shell serves its maker again, and
// nobody else. Thread-safe.
class SpareShells : public base::RefCounted {
 public:
  std::optional<StubShell> Take();
  // False if there are enough; then it stays the caller's.
  bool Put(StubShell* shell);
  // The maker has ended: what there is goes to the caller, and no more is taken.
  std::vector<StubShell> Close();

 private:
  // Several come back at once when the host has been busy.
  static constexpr size_t kMost = 4;
  absl::Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<StubShell> shells_ ABSL_GUARDED_BY(mu_);
};

}  // namespace platform
