#include "platform/systrap/stub_shell.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "platform/mailbox.h"
#include "sentry/base/host_io.h"

namespace platform {
namespace {

// More pages than a stub with few threads uses, or more slots, are better given back.
constexpr int64_t kMostBytes = 256 * 1024;
constexpr uint32_t kMostSlots = 4;
constexpr int kMostMessages = 64;
constexpr int64_t kBlockSize = 512;  // of st_blocks

// Takes what is left in the stub's socket, with its descriptors. False if there is much.
bool Drain(int socket) {
  for (int i = 0; i < kMostMessages; i++) {
    char byte;
    iovec iov{&byte, 1};
    msghdr msg{};  // without room for descriptors, which the host then closes
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    if (recvmsg(socket, &msg, MSG_DONTWAIT) < 0) return errno == EAGAIN;
  }
  return false;
}

}  // namespace

StubShell& StubShell::operator=(StubShell&& other) noexcept {
  std::swap(mailbox_file_, other.mailbox_file_);
  std::swap(stub_socket_, other.stub_socket_);
  std::swap(socket_, other.socket_);
  std::swap(mailbox_, other.mailbox_);
  std::swap(used_, other.used_);
  begins_ = other.begins_.exchange(begins_);
  return *this;
}

StubShell::~StubShell() {
  if (mailbox_) munmap(mailbox_, kMailboxSize);
}

base::Result<StubShell> StubShell::Create() {
  StubShell shell;
  int fd = memfd_create("runsc-mailbox", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return base::LastError();
  shell.mailbox_file_ = base::MakeRef<base::HostFd>(fd);
  if (ftruncate(fd, static_cast<off_t>(kMailboxSize)) != 0) return base::LastError();
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return base::LastError();
  }
  void* map = mmap(nullptr, kMailboxSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return base::LastError();
  shell.mailbox_ = static_cast<unsigned char*>(map);
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return base::LastError();
  shell.socket_.reset(pair[0]);
  shell.stub_socket_.reset(pair[1]);
  return shell;
}

void StubShell::CloseStubsPart() {
  mailbox_file_.reset();
  stub_socket_.reset();
}

void StubShell::ClearFileBegins() {
  const uint32_t begins = begins_.exchange(0, std::memory_order_seq_cst);
  auto* header = reinterpret_cast<MailboxHeader*>(mailbox_);
  for (uint32_t i = 0; i < kFileBegins; i++) {
    if ((begins & (1u << i)) != 0) memset(header->file_begins[i], 0, kFileBeginSize);
  }
}

bool StubShell::Clean(uint32_t slots) {
  struct stat st {};
  if (!mailbox_file_ || !stub_socket_.valid() || slots > kMostSlots ||
      base::HostStat(mailbox_file_->get(), &st) != 0 || st.st_blocks > kMostBytes / kBlockSize ||
      !Drain(stub_socket_.get())) {
    return false;
  }
  memset(mailbox_, 0, offsetof(MailboxHeader, sites));
  ClearFileBegins();
  for (uint32_t i = 0; i < slots; i++) memset(mailbox_ + SlotOffset(i), 0, kPageSize);
  used_ = true;
  return true;
}

std::optional<StubShell> SpareShells::Take() {
  absl::MutexLock lock(&mu_);
  if (shells_.empty()) return std::nullopt;
  StubShell shell = std::move(shells_.back());
  shells_.pop_back();
  return shell;
}

bool SpareShells::Put(StubShell* shell) {
  absl::MutexLock lock(&mu_);
  if (closed_ || shells_.size() >= kMost) return false;
  shells_.push_back(std::move(*shell));
  return true;
}

std::vector<StubShell> SpareShells::Close() {
  absl::MutexLock lock(&mu_);
  closed_ = true;
  return std::exchange(shells_, {});
}

}  // namespace platform
