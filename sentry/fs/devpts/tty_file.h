// Open ends of a pseudo-terminal.
#pragma once

#include <signal.h>

#include "sentry/fs/devpts/terminal.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

// What is told to who has O_ASYNC: that there is input.
inline int TtyBand(uint32_t events) { return (events & EPOLLIN) != 0 ? POLL_IN : 0; }
// A description with O_ASYNC and no owner gets one: the foreground group, or the current process
// (__tty_fasync).
void OwnTty(FileDescription& file, Terminal& terminal);

// The terminal itself (slave side).
class TtyFile : public FileDescription {
 public:
  // Takes over an open that Terminal::OpenSlave has counted.
  TtyFile(Path path, uint32_t flags, base::Ref<Terminal> terminal)
      : FileDescription(std::move(path), flags), terminal_(std::move(terminal)) {}
  static TtyFile* From(FileDescription& file) { return dynamic_cast<TtyFile*>(&file); }
  Terminal& terminal() const { return *terminal_; }

  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<size_t> Write(IoSource& src, bool nonblock) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override { return terminal_->Readiness(); }
  fiber::WaitQueue* wait_queue() override { return &terminal_->queue(); }
  bool CanAsync() const override { return true; }
  int AsyncBand(uint32_t events) const override { return TtyBand(events); }

 protected:
  void OnAsyncOn() override { OwnTty(*this, *terminal_); }

 private:
  ~TtyFile() override { terminal_->CloseSlave(); }
  const base::Ref<Terminal> terminal_;
};

// The master, from /dev/ptmx.
class PtyMasterFile : public FileDescription {
 public:
  PtyMasterFile(Path path, uint32_t flags, base::Ref<Terminal> terminal)
      : FileDescription(std::move(path), flags), terminal_(std::move(terminal)) {}
  static PtyMasterFile* From(FileDescription& file) { return dynamic_cast<PtyMasterFile*>(&file); }
  const base::Ref<Terminal>& terminal() const { return terminal_; }

  base::Result<size_t> Read(IoDest& dst, bool nonblock) override {
    return terminal_->MasterRead(dst, nonblock);
  }
  base::Result<size_t> Write(IoSource& src, bool nonblock) override {
    return terminal_->MasterWrite(src, nonblock);
  }
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override { return terminal_->MasterReadiness(); }
  fiber::WaitQueue* wait_queue() override { return &terminal_->master_queue(); }
  std::string FdInfo() const override;
  bool CanAsync() const override { return true; }
  int AsyncBand(uint32_t events) const override { return TtyBand(events); }

 protected:
  void OnAsyncOn() override { OwnTty(*this, *terminal_); }

 private:
  ~PtyMasterFile() override { terminal_->CloseMaster(); }
  // TIOCGPTPEER: opens the slave; returns its descriptor.
  base::Result<uint64_t> OpenPeer(uint32_t flags);
  const base::Ref<Terminal> terminal_;
};

}  // namespace sentry
