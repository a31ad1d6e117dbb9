#include "sentry/control/protocol.h"
#include "sentry/base/host_io.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>

namespace sentry {

using base::Error;
using base::LastError;
using base::Result;
using base::Status;
using base::UniqueFd;

namespace {
constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
}  // namespace

Result<UniqueFd> SealedFile(const char* name, std::string_view bytes) {
  UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return LastError();
  size_t done = 0;
  while (done < bytes.size()) {
    ssize_t n = base::HostWriteAt(fd.get(), bytes.data() + done, bytes.size() - done, done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0 ? Error(ENOSPC) : LastError();
    done += n;
  }
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return LastError();
  return fd;
}

Result<std::string> ReadSealedFile(int fd, size_t max) {
  int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) return Error(EPROTO);
  struct stat st;
  if (base::HostStat(fd, &st) != 0) return LastError();
  if (st.st_size < 0 || static_cast<uint64_t>(st.st_size) > max) return Error(EPROTO);
  std::string text(st.st_size, '\0');
  size_t done = 0;
  while (done < text.size()) {
    ssize_t n = base::HostReadAt(fd, text.data() + done, text.size() - done, done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0 ? Error(EPROTO) : LastError();
    done += n;
  }
  return text;
}

Status SendControl(int socket, const ControlMessage& message, const std::vector<int>& fds,
                   int flags) {
  if (message.payload.size() > kMaxControlPayload) return Error(E2BIG);
  ControlHeader header;
  header.op = static_cast<uint32_t>(message.op);
  header.id = message.id;
  header.error = static_cast<uint32_t>(message.error);
  std::vector<int> all;
  UniqueFd file;
  if (message.payload.size() > kMaxControlInline) {
    file = TRY(SealedFile("runsc-control", message.payload));
    all.push_back(file.get());
    header.flags |= ControlHeader::kPayloadInFile;
  } else {
    header.size = static_cast<uint32_t>(message.payload.size());
  }
  all.insert(all.end(), fds.begin(), fds.end());
  if (all.size() > kMaxControlFds) return Error(E2BIG);

  iovec iov[2] = {{&header, sizeof(header)},
                  {const_cast<char*>(message.payload.data()), header.size}};
  msghdr msg{};
  msg.msg_iov = iov;
  msg.msg_iovlen = 2;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxControlFds * sizeof(int))] = {};
  if (!all.empty()) {
    msg.msg_control = control;
    msg.msg_controllen = CMSG_SPACE(all.size() * sizeof(int));
    cmsghdr* cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(all.size() * sizeof(int));
    memcpy(CMSG_DATA(cmsg), all.data(), all.size() * sizeof(int));
  }
  for (;;) {
    ssize_t n = sendmsg(socket, &msg, flags | MSG_NOSIGNAL);
    if (n >= 0) return base::Ok();
    if (errno != EINTR) return LastError();
  }
}

Result<ControlMessage> RecvControl(int socket, int flags) {
  ControlMessage message;
  ControlHeader header;
  std::string inline_bytes(kMaxControlInline, '\0');
  iovec iov[2] = {{&header, sizeof(header)}, {inline_bytes.data(), inline_bytes.size()}};
  msghdr msg{};
  msg.msg_iov = iov;
  msg.msg_iovlen = 2;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxControlFds * sizeof(int))];
  msg.msg_control = control;
  msg.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = recvmsg(socket, &msg, flags | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return errno == ECONNRESET ? Error(EPIPE) : LastError();
  for (cmsghdr* c = CMSG_FIRSTHDR(&msg); c != nullptr; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      message.fds.emplace_back(fd);
    }
  }
  if (n == 0) return Error(EPIPE);
  if ((msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return Error(EPROTO);
  if (static_cast<size_t>(n) < sizeof(header) || header.magic != ControlHeader::kMagic ||
      header.size != static_cast<size_t>(n) - sizeof(header) ||
      header.op > static_cast<uint32_t>(ControlOp::kLast) || header.error > 4095 ||
      (header.flags & ~ControlHeader::kPayloadInFile) != 0) {
    return Error(EPROTO);
  }
  message.op = static_cast<ControlOp>(header.op);
  message.id = header.id;
  message.error = static_cast<int>(header.error);
  if ((header.flags & ControlHeader::kPayloadInFile) != 0) {
    if (message.fds.empty() || header.size != 0) return Error(EPROTO);
    message.payload = TRY(ReadSealedFile(message.fds[0].get(), kMaxControlPayload));
    message.fds.erase(message.fds.begin());
  } else {
    inline_bytes.resize(header.size);
    message.payload = std::move(inline_bytes);
  }
  return message;
}

}  // namespace sentry
