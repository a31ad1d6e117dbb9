// Bytes of host files and waiting for them, each by the one host call that the sentry's filter has
// for the purpose. As their namesakes: -1 and errno on failure.
#pragma once

#include <poll.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstddef>
#include <ctime>

namespace base {

// read(2), write(2): at the file's own position, which -1 stands for.
inline ssize_t HostRead(int fd, void* data, size_t size) {
  const iovec iov = {data, size};
  return preadv2(fd, &iov, 1, -1, 0);
}
inline ssize_t HostWrite(int fd, const void* data, size_t size) {
  const iovec iov = {const_cast<void*>(data), size};
  return pwritev2(fd, &iov, 1, -1, 0);
}

// pread(2), pwrite(2).
inline ssize_t HostReadAt(int fd, void* data, size_t size, off_t offset) {
  const iovec iov = {data, size};
  return preadv2(fd, &iov, 1, offset, 0);
}
inline ssize_t HostWriteAt(int fd, const void* data, size_t size, off_t offset) {
  const iovec iov = {const_cast<void*>(data), size};
  return pwritev2(fd, &iov, 1, offset, 0);
}

// fstat(2), which libc makes by another call in some of its versions.
inline int HostStat(int fd, struct stat* st) {
  return static_cast<int>(syscall(SYS_fstat, fd, st));
}

// poll(2). A negative timeout waits for ever.
inline int HostPoll(pollfd* fds, nfds_t count, int timeout_ms) {
  const timespec timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1'000'000};
  return ppoll(fds, count, timeout_ms < 0 ? nullptr : &timeout, nullptr);
}

// epoll_wait(2).
inline int HostEpollWait(int epoll, epoll_event* events, int count, int timeout_ms) {
  return epoll_pwait(epoll, events, count, timeout_ms, nullptr);
}

}  // namespace base
