#include "platform/systrap/fds.h"

#include <sys/socket.h>

#include <cstring>

#include "platform/mailbox.h"

namespace platform {

base::Status SendWithFds(int socket, const void* data, size_t size, std::span<const int> fds) {
  if (fds.size() > kMaxOrderFds) return base::Error(EINVAL);
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxOrderFds * sizeof(int))] = {};
  iovec iov{const_cast<void*>(data), size};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = CMSG_SPACE(fds.size_bytes());
  cmsghdr* header = CMSG_FIRSTHDR(&msg);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(fds.size_bytes());
  memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  ssize_t n;
  do {
    n = sendmsg(socket, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return base::LastError();
  return n == static_cast<ssize_t>(size) ? base::Status() : base::Status(base::Error(EIO));
}

}  // namespace platform
