#include "sentry/fs/dev/dev.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "sentry/base/user_memory.h"
#include "sentry/vfs/file_description.h"

namespace sentry {
namespace {

constexpr unsigned kMemMajor = 1;
constexpr int kEntropyBits = 256;  // of a pool that is full, as /proc/sys/kernel/random has it
enum Minor : unsigned { kNull = 3, kZero = 5, kFull = 7, kRandom = 8, kUrandom = 9 };

// What the memory devices have in common: no position, no readiness to wait for.
class MemDevice : public FileDescription {
 public:
  using FileDescription::FileDescription;
  base::Result<size_t> PRead(IoDest& dst, uint64_t, bool nonblock) override {
    return Read(dst, nonblock);
  }
  base::Result<size_t> PWrite(IoSource& src, uint64_t, bool nonblock) override {
    return Write(src, nonblock);
  }
  base::Result<int64_t> Seek(int64_t, int) override { return int64_t{0}; }  // null_lseek
  bool CanPoll() const override { return false; }

 protected:
  ~MemDevice() override = default;
};

class NullFile : public MemDevice {
 public:
  using MemDevice::MemDevice;
  base::Result<size_t> Read(IoDest&, bool) override { return size_t{0}; }
  // The bytes are not even looked at (write_null).
  base::Result<size_t> Write(IoSource& src, bool) override { return src.remaining(); }

 private:
  ~NullFile() override = default;
};

class ZeroFile : public MemDevice {
 public:
  using MemDevice::MemDevice;
  base::Result<size_t> Read(IoDest& dst, bool) override { return dst.PutZeros(dst.remaining()); }
  base::Result<size_t> Write(IoSource& src, bool) override { return src.remaining(); }
  // Private mappings are anonymous memory, shared ones memory of their own (mmap_zero).
  base::Result<HostMapping> Mmap(uint64_t, uint64_t length, int, bool shared) override {
    HostMapping mapping;
    if (!shared) return mapping;
    int fd = memfd_create("zero", MFD_CLOEXEC);
    if (fd < 0) return base::LastError();
    mapping.file = base::MakeRef<base::HostFd>(fd);
    if (ftruncate(fd, static_cast<off_t>(length)) != 0) return base::LastError();
    return mapping;
  }

 private:
  ~ZeroFile() override = default;
};

class FullFile : public MemDevice {
 public:
  using MemDevice::MemDevice;
  base::Result<size_t> Read(IoDest& dst, bool) override { return dst.PutZeros(dst.remaining()); }
  base::Result<size_t> Write(IoSource&, bool) override { return base::Error(ENOSPC); }

 private:
  ~FullFile() override = default;
};

class UrandomFile : public MemDevice {
 public:
  using MemDevice::MemDevice;
  base::Result<size_t> Read(IoDest& dst, bool) override {
    size_t total = 0;
    while (dst.remaining() > 0) {
      std::byte buffer[4096];
      size_t want = std::min(sizeof(buffer), dst.remaining());
      ssize_t got = getrandom(buffer, want, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return base::Error(EIO);
      base::Result<size_t> n = dst.Put(std::span(buffer).first(static_cast<size_t>(got)));
      if (!n.ok()) return total > 0 ? base::Result<size_t>(total) : n;
      total += *n;
      if (*n < static_cast<size_t>(got)) break;
    }
    return total;
  }
  // The host's pool needs no stirring by us.
  base::Result<size_t> Write(IoSource& src, bool) override { return src.remaining(); }
  // random_ioctl(): what changes the pool is for who may change the machine.
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override {
    switch (args.cmd) {
      case RNDGETENTCNT:
        TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, kEntropyBits));
        return uint64_t{0};
      case RNDADDTOENTCNT:
      case RNDADDENTROPY:
      case RNDZAPENTCNT:
      case RNDCLEARPOOL:
      case RNDRESEEDCRNG:
        return base::Error(EPERM);
      default:
        return base::Error(EINVAL);
    }
  }

 protected:
  ~UrandomFile() override = default;
};

// The same but for poll, which urandom has not.
class RandomFile : public UrandomFile {
 public:
  using UrandomFile::UrandomFile;
  bool CanPoll() const override { return true; }

 private:
  ~RandomFile() override = default;
};

template <typename T>
base::Result<base::Ref<FileDescription>> OpenDevice(const OpenArgs& args, dev_t) {
  return base::Ref<FileDescription>(base::MakeRef<T>(args.path, args.flags));
}

struct Link {
  const char* path;
  const char* target;
};
constexpr Link kLinks[] = {
    {"/dev/fd", "/proc/self/fd"},       {"/dev/stdin", "/proc/self/fd/0"},
    {"/dev/stdout", "/proc/self/fd/1"}, {"/dev/stderr", "/proc/self/fd/2"},
    {"/dev/ptmx", "pts/ptmx"},
};

base::Status MakeNode(Vfs& vfs, const WalkContext& ctx, const DevNode& node) {
  base::Status made = vfs.Mknod(ctx, node.path, node.mode, node.rdev);
  if (!made.ok()) return made.error().code() == EEXIST ? base::Ok() : made;
  Path path = TRY(vfs.Walk(ctx, node.path, {.follow_last = false}));
  AttrChange change;
  change.set_mode = true;
  change.mode = node.mode & 07777;
  if (node.uid != 0 || node.gid != 0) {
    change.set_uid = change.set_gid = true;
    change.uid = node.uid;
    change.gid = node.gid;
  }
  return vfs.SetAttr(ctx.creds, path, change);
}

}  // namespace

void RegisterMemoryDevices(Vfs& vfs) {
  SpecialFiles& special = vfs.special_files();
  special.RegisterCharDevice(kMemMajor, kNull, OpenDevice<NullFile>);
  special.RegisterCharDevice(kMemMajor, kZero, OpenDevice<ZeroFile>);
  special.RegisterCharDevice(kMemMajor, kFull, OpenDevice<FullFile>);
  special.RegisterCharDevice(kMemMajor, kRandom, OpenDevice<RandomFile>);
  special.RegisterCharDevice(kMemMajor, kUrandom, OpenDevice<UrandomFile>);
}

base::Status PopulateDev(Vfs& vfs, const WalkContext& ctx, bool console,
                         std::span<const DevNode> nodes, std::string* failed) {
  std::vector<DevNode> all = {
      {"/dev/null", S_IFCHR | 0666, makedev(kMemMajor, kNull)},
      {"/dev/zero", S_IFCHR | 0666, makedev(kMemMajor, kZero)},
      {"/dev/full", S_IFCHR | 0666, makedev(kMemMajor, kFull)},
      {"/dev/random", S_IFCHR | 0666, makedev(kMemMajor, kRandom)},
      {"/dev/urandom", S_IFCHR | 0666, makedev(kMemMajor, kUrandom)},
      {"/dev/tty", S_IFCHR | 0666, makedev(5, 0)},
  };
  if (console) all.push_back({"/dev/console", S_IFCHR | 0620, makedev(5, 1)});
  all.insert(all.end(), nodes.begin(), nodes.end());
  for (const DevNode& node : all) {
    base::Status made = MakeNode(vfs, ctx, node);
    if (!made.ok()) {
      *failed = node.path;
      return made;
    }
  }
  for (const Link& link : kLinks) {
    base::Status made = vfs.Symlink(ctx, link.target, link.path);
    if (!made.ok() && made.error().code() != EEXIST) {
      *failed = link.path;
      return made;
    }
  }
  return base::Ok();
}

}  // namespace sentry
