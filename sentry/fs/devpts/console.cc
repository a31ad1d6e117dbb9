#include "sentry/fs/devpts/console.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "sentry/base/host_io.h"
#include "sentry/fiber/fd_watch.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fs/devpts/devpts.h"
#include "sentry/fs/devpts/tty_file.h"
#include "sentry/kernel/kernel.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

constexpr int64_t kFlushLimitNs = 2'000'000'000;

int64_t MonotonicNs() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000 + ts.tv_nsec;
}

// As cfmakeraw(3).
base::Status MakeRaw(int fd, bool* utf8) {
  struct termios t;
  if (ioctl(fd, TCGETS, &t) != 0) return base::LastError();
  *utf8 = (t.c_iflag & IUTF8) != 0;
  t.c_iflag &= IUTF8;
  t.c_oflag &= ~static_cast<tcflag_t>(OPOST);
  t.c_lflag &= ~static_cast<tcflag_t>(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
  t.c_cflag = (t.c_cflag & ~static_cast<tcflag_t>(CSIZE | PARENB)) | CS8;
  t.c_cc[VMIN] = 1;
  t.c_cc[VTIME] = 0;
  if (ioctl(fd, TCSETS, &t) != 0) return base::LastError();
  return base::Ok();
}

}  // namespace

base::Result<base::Ref<Console>> Console::New(Kernel& kernel, Vfs& vfs, const Path& devpts,
                                              base::UniqueFd host, const Credentials& creds) {
  int fd = host.get();
  bool utf8 = false;
  TRY(MakeRaw(fd, &utf8));
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return base::LastError();

  base::Ref<DevptsFs> fs;
  if (devpts.mount != nullptr) {
    auto* mounted = dynamic_cast<DevptsFs*>(&devpts.mount->fs());
    if (mounted == nullptr) return base::Error(EINVAL);
    fs = base::Ref<DevptsFs>(mounted);
  } else {
    fs = base::MakeRef<DevptsFs>(&kernel, DevptsFs::Options{});
  }
  base::Ref<Terminal> terminal = TRY(fs->NewTerminal(creds));
  terminal->Unlock();
  std::string name = std::to_string(terminal->index());
  Path slave;
  if (devpts.mount != nullptr) {
    base::Ref<Inode> dir = devpts.dentry->inode();
    fiber::ReaderLock lock(&dir->lock());
    slave = {devpts.mount, devpts.dentry->AddChild(name, TRY(dir->Lookup(name)))};
  } else {
    base::Ref<Inode> root = DevptsFs::NewRoot(fs);
    slave = vfs.AnonymousPath(TRY(root->Lookup(name)), "/dev/pts/" + name);
  }
  if (utf8) {
    KTermios t = terminal->termios();
    t.c_iflag |= IUTF8;
    terminal->SetTermios(t, false);
  }
  auto console = base::MakeRef<Console>(std::move(slave), std::move(terminal), std::move(host));
  (void)console->SetWindowSize(0, 0);  // a terminal without a size keeps 0 by 0
  fiber::Spawn("console-in", [console] { console->PumpIn(); });
  fiber::Spawn("console-out", [console] { console->PumpOut(); });
  return console;
}

base::Result<base::Ref<FileDescription>> Console::OpenSlave(const Credentials& creds) {
  return terminal_->Open({slave_, O_RDWR | O_NOCTTY, creds});
}

base::Status Console::SetWindowSize(uint16_t rows, uint16_t cols) {
  struct winsize size = {rows, cols, 0, 0};
  if (rows == 0 && cols == 0 && ioctl(host_.get(), TIOCGWINSZ, &size) != 0) {
    return base::LastError();
  }
  terminal_->SetWindowSize(size);
  return base::Ok();
}

void Console::RegisterAsSystemConsole(Cgroup& cgroup) { cgroup.set_console(terminal_); }

void Console::PumpIn() {
  std::byte buffer[1024];
  while (true) {
    ssize_t n = base::HostRead(host_.get(), buffer, sizeof(buffer));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      fiber::WaitFd(host_.get(), EPOLLIN);
      continue;
    }
    if (n <= 0) break;  // hung up
    BufferSource src{std::span(buffer).first(static_cast<size_t>(n))};
    if (!terminal_->MasterWrite(src, /*nonblock=*/false).ok()) break;
  }
  gone_.store(true);
  terminal_->CloseMaster();
}

void Console::PumpOut() {
  std::byte buffer[4096];
  while (!gone_.load()) {
    writing_.store(true);
    BufferDest dst{std::span(buffer)};
    auto got = terminal_->MasterRead(dst, /*nonblock=*/true);
    if (!got.ok()) {
      // Nothing, or nobody has the terminal open: somebody may open it again.
      writing_.store(false);
      terminal_->master_queue().WakeAll(EPOLLMSG);
      fiber::WaitUntil(terminal_->master_queue(), EPOLLIN | EPOLLHUP, [this] {
        return gone_.load() || (terminal_->MasterReadiness() & EPOLLIN) != 0;
      });
      continue;
    }
    for (size_t done = 0; done < *got;) {
      ssize_t n = write(host_.get(), buffer + done, *got - done);
      if (n > 0) {
        done += static_cast<size_t>(n);
      } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        fiber::WaitFd(host_.get(), EPOLLOUT);
      } else {
        gone_.store(true);
        break;
      }
    }
  }
}

void Console::Flush() {
  fiber::WaitUntil(terminal_->master_queue(), EPOLLMSG,
                   [this] {
                     return gone_.load() ||
                            (!writing_.load() && (terminal_->MasterReadiness() & EPOLLIN) == 0);
                   },
                   {.deadline_ns = MonotonicNs() + kFlushLimitNs});
}

}  // namespace sentry
