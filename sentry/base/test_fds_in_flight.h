// For tests: descriptors of this user that are on their way through a socket.
#pragma once

#include <sys/socket.h>

#include <cstring>

#include "sentry/base/host_fd.h"

namespace base {

// Sends 100 of them, which nobody receives while the object lives. To be made with privilege, for
// which the host knows no limit.
class HundredFdsInFlight {
 public:
  HundredFdsInFlight() {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return;
    sender_.reset(pair[0]);
    receiver_.reset(pair[1]);
    char byte = 0;
    iovec iov = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(kCount * sizeof(int))] = {};
    msghdr msg = {};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control;
    msg.msg_controllen = sizeof(control);
    cmsghdr* c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(kCount * sizeof(int));
    for (int i = 0; i < kCount; ++i) memcpy(CMSG_DATA(c) + i * sizeof(int), &pair[0], sizeof(int));
    sent_ = sendmsg(sender_.get(), &msg, MSG_NOSIGNAL) == 1;
  }
  bool sent() const { return sent_; }

 private:
  static constexpr int kCount = 100;
  UniqueFd sender_, receiver_;
  bool sent_ = false;
};

}  // namespace base
