// Descriptions of the ends of pipes and FIFOs, and what system calls do with them.
#pragma once

#include <utility>

#include "sentry/base/result.h"
#include "sentry/fs/pipe/pipe.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/lanes/lane_ends.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

class PipeFile : public FileDescription, public LaneEnds {
 public:
  // Takes over the ends that Pipe::Open has counted, by the access mode in `flags`.
  PipeFile(Path path, uint32_t flags, base::Ref<Pipe> pipe, uint32_t writers_seen);

  Pipe& pipe() const { return *pipe_; }
  // The pipe of a description, or null if it is none.
  static PipeFile* From(FileDescription& file) { return dynamic_cast<PipeFile*>(&file); }

  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  // Sends SIGPIPE to the current task with EPIPE.
  base::Result<size_t> Write(IoSource& src, bool nonblock) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  base::Result<uint64_t> Fcntl(int cmd, uint64_t arg) override;  // F_GETPIPE_SZ, F_SETPIPE_SZ
  base::Status SetStatusFlags(uint32_t flags) override;
  uint32_t Readiness() override { return ReadinessFor(platform::kWish); }
  uint32_t ReadinessFor(uint32_t wish) override;
  void WatchEdges(uint32_t wish = platform::kWish) override;
  LaneNames EnterLanes(LaneArena& arena) override;
  bool HasOpenLanes() override { return pipe_->lane_open(); }
  uint64_t LaneCame() override { return readable() ? pipe_->came() : 0; }
  fiber::WaitQueue* wait_queue() override { return &pipe_->wait_queue(); }
  std::string Describe() const override;

 protected:
  Patience LanePatience() const override { return PatienceBy(nonblock()); }
  void SetLanePatience(const Patience& patience) override;
  void OnAsyncOn() override { pipe_->LeaveLanes(); }

 private:
  ~PipeFile() override;
  bool packet() const;

  const base::Ref<Pipe> pipe_;
  const uint32_t writers_seen_;
};

// SIGPIPE to the current task, as a write without readers raises it.
void RaiseSigpipe();

// pipe2(2): the reading and the writing end. flags: O_NONBLOCK, O_DIRECT.
base::Result<std::pair<base::Ref<FileDescription>, base::Ref<FileDescription>>> NewPipe(
    Vfs& vfs, const Credentials& creds, uint32_t flags);

// Lets the VFS open FIFOs.
void RegisterFifos(Vfs& vfs);

}  // namespace sentry
