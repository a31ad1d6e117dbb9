// What the socket system calls share.
#pragma once

#include <cstdint>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/net/socket.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Task;

struct SocketRef {
  base::Ref<FileDescription> file;
  Socket* socket = nullptr;
};
// EBADF, ENOTSOCK.
base::Result<SocketRef> GetSocket(Task& t, int fd);
// EINVAL for a length that no address has, EFAULT.
base::Result<SockAddr> CopyInAddress(Task& t, uint64_t addr, int length);
// Cuts the address to the int at `length_addr` and stores its full length there
// (move_addr_to_user).
base::Status CopyOutAddress(Task& t, const SockAddr& a, uint64_t addr, uint64_t length_addr);

}  // namespace sentry
