#include "sentry/fs/devpts/tty_file.h"

#include <fcntl.h>

#include "sentry/fs/devpts/devpts.h"
#include "sentry/kernel/async/sigio.h"
#include "sentry/kernel/task.h"

namespace sentry {

void OwnTty(FileDescription& file, Terminal& terminal) {
  Task* t = Task::Current();
  if (t == nullptr) return;
  if (base::Ref<ProcessGroup> group = terminal.foreground()) {
    SetAsyncOwnerIfNone(*t, file, F_OWNER_PGRP, group->pid());
  } else {
    SetAsyncOwnerIfNone(*t, file, F_OWNER_PID, t->thread_group().pid());
  }
}

base::Result<size_t> TtyFile::Read(IoDest& dst, bool nonblock) {
  return terminal_->Read(dst, nonblock);
}

base::Result<size_t> TtyFile::Write(IoSource& src, bool nonblock) {
  return terminal_->Write(src, nonblock);
}

base::Result<uint64_t> TtyFile::Ioctl(const IoctlArgs& args) {
  Task* t = Task::Current();
  if (t == nullptr) return base::Error(ENOTTY);
  return terminal_->Ioctl(*t, args, /*master=*/false);
}

base::Result<uint64_t> PtyMasterFile::Ioctl(const IoctlArgs& args) {
  Task* t = Task::Current();
  if (t == nullptr) return base::Error(ENOTTY);
  if (args.cmd == TIOCGPTPEER) return OpenPeer(static_cast<uint32_t>(args.arg));
  return terminal_->Ioctl(*t, args, /*master=*/true);
}

base::Result<uint64_t> PtyMasterFile::OpenPeer(uint32_t flags) {
  Task* t = Task::Current();
  Path path = TRY(terminal_->fs().SlavePath(*t, this->path(), terminal_->index()));
  OpenArgs args{path, flags & ~static_cast<uint32_t>(O_CLOEXEC), t->creds()};
  base::Ref<FileDescription> file = TRY(terminal_->Open(args));
  int fd = TRY(t->InstallFile(std::move(file), (flags & O_CLOEXEC) != 0));
  return static_cast<uint64_t>(fd);
}

std::string PtyMasterFile::FdInfo() const {
  return "tty-index:\t" + std::to_string(terminal_->index()) + "\n";
}

}  // namespace sentry
