#include "sentry/net/inet/zero_copy.h"

#include <netinet/in.h>
#include <time.h>

// After <time.h>, which it needs.
#include <linux/errqueue.h>

#include <span>

namespace sentry {

void ZeroCopyNotices::Complete() {
  absl::MutexLock lock(&mutex_);
  ++next_;
  pending_ = true;
}

base::Result<size_t> ZeroCopyNotices::Take(bool v6, RecvArgs* args) {
  struct {
    sock_extended_err error;
    sockaddr_storage offender;
  } entry{};
  {
    absl::MutexLock lock(&mutex_);
    if (!pending_.exchange(false)) return base::Error(EAGAIN);
    entry.error.ee_info = first_;
    entry.error.ee_data = next_ - 1;
    first_ = next_;
  }
  entry.error.ee_origin = SO_EE_ORIGIN_ZEROCOPY;
  entry.error.ee_code = SO_EE_CODE_ZEROCOPY_COPIED;
  auto bytes = std::as_bytes(std::span(&entry, 1))
                   .first(sizeof(entry.error) + (v6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in)));
  args->control.push_back({v6 ? int{IPPROTO_IPV6} : int{IPPROTO_IP},
                           v6 ? IPV6_RECVERR : IP_RECVERR,
                           {bytes.begin(), bytes.end()}});
  args->out_flags |= MSG_ERRQUEUE;
  return size_t{0};
}

}  // namespace sentry
