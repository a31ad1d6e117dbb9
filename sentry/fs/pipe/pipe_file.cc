#include "sentry/fs/pipe/pipe_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <limits>
#include <string>

#include "sentry/kernel/task.h"

namespace sentry {
namespace {

bool Reads(uint32_t flags) { return (flags & O_ACCMODE) != O_WRONLY; }
bool Writes(uint32_t flags) {
  return (flags & O_ACCMODE) == O_WRONLY || (flags & O_ACCMODE) == O_RDWR;
}

// The name of the direction that an end does not have: no lane's, so that it is never ready.
constexpr uint64_t kNever = platform::LaneName(platform::kLanes, 0);

Filesystem* PipeFs() {
  static Filesystem* fs = base::MakeRef<Filesystem>("pipefs", PIPEFS_MAGIC).release();
  return fs;
}

base::Result<base::Ref<FileDescription>> OpenFifo(const OpenArgs& args) {
  base::Ref<Inode> inode = args.path.dentry->inode();
  if (inode == nullptr) return base::Error(ENOENT);
  base::Ref<Inode::Special> special = inode->special();
  if (special == nullptr) special = inode->SetSpecialIfNone(base::MakeRef<Pipe>());
  auto* raw = dynamic_cast<Pipe*>(special.get());
  if (raw == nullptr) return base::Error(ENXIO);
  base::Ref<Pipe> pipe(raw);
  uint32_t writers_seen;
  // A pipe without a name, opened through /proc, waits for nobody (Linux: fifo_open, is_pipe).
  bool fifo = inode->fs().magic() != PIPEFS_MAGIC;
  TRY(pipe->Open(Reads(args.flags), Writes(args.flags), fifo, (args.flags & O_NONBLOCK) != 0,
                 &writers_seen));
  return base::Ref<FileDescription>(
      base::MakeRef<PipeFile>(args.path, args.flags, std::move(pipe), writers_seen));
}

}  // namespace

PipeFile::PipeFile(Path path, uint32_t flags, base::Ref<Pipe> pipe, uint32_t writers_seen)
    : FileDescription(std::move(path), flags), pipe_(std::move(pipe)), writers_seen_(writers_seen) {
  // Who reads and writes a name in a file system changes its times, and tells who watches it.
  if (inode() != nullptr && inode()->fs().magic() == PIPEFS_MAGIC) {
    MayHaveLanes(/*early=*/false);
  }
}

PipeFile::~PipeFile() { pipe_->Close(readable(), writable()); }

bool PipeFile::packet() const { return (flags() & O_DIRECT) != 0; }

base::Result<size_t> PipeFile::Read(IoDest& dst, bool nonblock) {
  return pipe_->Read(dst, nonblock);
}

base::Result<size_t> PipeFile::Write(IoSource& src, bool nonblock) {
  bool broken = false;
  base::Result<size_t> n = pipe_->Write(src, nonblock, packet(), &broken);
  if (broken) RaiseSigpipe();
  return n;
}

void RaiseSigpipe() {
  Task* t = Task::Current();
  if (t == nullptr) return;
  siginfo_t info = MakeSiginfo(SIGPIPE, SI_USER);
  SetSender(&info, *t, *t);
  t->SendSignal(info);
}

base::Result<uint64_t> PipeFile::Ioctl(const IoctlArgs& args) {
  if (args.cmd != FIONREAD) return base::Error(ENOTTY);
  auto n =
      static_cast<int>(std::min<size_t>(pipe_->BytesReadable(), std::numeric_limits<int>::max()));
  TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, n));
  return uint64_t{0};
}

base::Result<uint64_t> PipeFile::Fcntl(int cmd, uint64_t arg) {
  if (cmd == F_GETPIPE_SZ) return uint64_t{pipe_->size()};
  if (cmd != F_SETPIPE_SZ) return base::Error(EINVAL);
  Task* t = Task::Current();
  bool privileged = t != nullptr && t->HasCap(CAP_SYS_RESOURCE);
  return uint64_t{TRY(pipe_->SetSize(static_cast<uint32_t>(arg), privileged))};
}

base::Status PipeFile::SetStatusFlags(uint32_t flags) {
  TRY(FileDescription::SetStatusFlags(flags));
  if (packet()) pipe_->LeaveLanes();
  return base::Ok();
}

uint32_t PipeFile::ReadinessFor(uint32_t wish) {
  return pipe_->Readiness(readable(), writable(), writers_seen_, wish);
}

void PipeFile::SetLanePatience(const Patience& patience) {
  if (readable()) pipe_->SetPatience(*this, /*reader=*/true, patience.reader);
  if (writable()) pipe_->SetPatience(*this, /*reader=*/false, patience.writer);
}

void PipeFile::WatchEdges(uint32_t wish) {
  if (readable()) pipe_->WatchEdges(wish);
}

FileDescription::LaneNames PipeFile::EnterLanes(LaneArena& arena) {
  const uint64_t name = packet() ? 0 : pipe_->EnterLane(arena);
  if (name == 0) return {};
  return {.in = readable() ? name : kNever, .out = writable() ? name : kNever};
}

std::string PipeFile::Describe() const {
  if (inode() == nullptr) return "pipe:[0]";
  return "pipe:[" + std::to_string(inode()->ino()) + "]";
}

base::Result<std::pair<base::Ref<FileDescription>, base::Ref<FileDescription>>> NewPipe(
    Vfs& vfs, const Credentials& creds, uint32_t flags) {
  auto pipe = base::MakeRef<Pipe>();
  base::Ref<Inode> inode =
      base::MakeRef<AnonInode>(PipeFs(), S_IFIFO | 0600, creds.fsuid, creds.fsgid);
  inode->SetSpecialIfNone(pipe);  // /proc/PID/fd/N opens the same pipe
  Path path = vfs.AnonymousPath(inode, "pipe:[" + std::to_string(inode->ino()) + "]");
  uint32_t seen;
  TRY(pipe->Open(true, true, /*fifo=*/false, false, &seen));
  base::Ref<FileDescription> reader =
      base::MakeRef<PipeFile>(path, O_RDONLY | (flags & O_NONBLOCK), pipe, seen);
  base::Ref<FileDescription> writer =
      base::MakeRef<PipeFile>(path, O_WRONLY | (flags & (O_NONBLOCK | O_DIRECT)), pipe, seen);
  return std::pair(std::move(reader), std::move(writer));
}

void RegisterFifos(Vfs& vfs) { vfs.special_files().set_fifo(OpenFifo); }

}  // namespace sentry
