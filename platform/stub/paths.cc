// Look-ups of paths that the table of paths answers (platform/path_lane.h). Whatever it does not
// know is the sentry's, as are all errors about arguments.
#include "platform/path_lane.h"

#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr int kAtFdCwd = -100;
constexpr uint32_t kAtSymlinkNofollow = 0x100, kAtEaccess = 0x200, kAtNoAutomount = 0x800;
constexpr uint32_t kAtStatxForceSync = 0x2000, kAtStatxDontSync = 0x4000;
constexpr uint32_t kOpenWithName = 0100 | 020000000;  // O_CREAT, and the bit of O_TMPFILE
constexpr uint32_t kOpenNofollow = 0400000;
constexpr int32_t kEnoent = 2, kEinval = 22;
constexpr uint32_t kTypeMask = 0170000, kTypeLink = 0120000;

const PathTable* Table() { return reinterpret_cast<const PathTable*>(kPathBase); }

// A path of the guest's, and the place in the table where it would be.
class Lookup {
 public:
  // False: the table is of no use for it.
  bool Begin(const Slot* s, int dirfd, uint64_t path, bool follows) {
    const uint64_t place = PathLoad(&s->path_place);
    if (place == 0 || path >= kRegionBase) return false;
    uint64_t directory = PathDirectory(Table(), place);
    if (directory == kPathNowhere) return false;
    auto* bytes = reinterpret_cast<unsigned char*>(text_);
    unsigned char first;
    if (dirfd != kAtFdCwd &&
        (StubCopy(&first, reinterpret_cast<const void*>(path), 1) != 0 || first != '/')) {
      return false;
    }
    const size_t n = StubCopyString(bytes, reinterpret_cast<const void*>(path), kPathMost + 1);
    if (n < 2 || bytes[n - 1] != 0) return false;
    for (size_t i = n; i % 8 != 0; i++) bytes[i] = 0;
    if (bytes[0] == '/') directory = kPathAtRoot;
    query_.length = static_cast<uint32_t>(n - 1);
    query_.text = text_;
    query_.directory = directory;
    query_.follows = follows;
    query_.hash = HashPath(directory, follows, text_, query_.length);
    return true;
  }
  template <typename F>
  bool Take(F take) const {
    return TakePath(Table(), query_, take);
  }

 private:
  uint64_t text_[kPathBuffer / 8];
  PathQuery query_;
};

void Copy(uint64_t* to, const uint64_t* from, size_t words) {
  for (size_t i = 0; i < words; i++) to[i] = from[i];
}

bool Put(uint64_t to, const void* from, size_t n) {
  return to < kRegionBase && n <= kRegionBase - to &&
         StubCopy(reinterpret_cast<void*>(to), from, n) == 0;
}

bool Fails(Slot* s, int32_t error) {
  s->rax = static_cast<uint64_t>(-int64_t{error});
  return true;
}

bool Stat(Slot* s, int dirfd, uint64_t path, uint64_t out, bool follows) {
  Lookup lookup;
  if (!lookup.Begin(s, dirfd, path, follows)) return false;
  int32_t error = 0;
  uint64_t stat[18];
  const bool found = lookup.Take([&](const PathEntry& e, bool* attr) {
    error = e.error;
    if (error != 0) return true;
    *attr = true;
    Copy(stat, e.stat, 18);
    return (e.flags & kPathHasAttr) != 0;
  });
  if (!found) return false;
  if (error != 0) return Fails(s, error);
  if (!Put(out, stat, sizeof(stat))) return false;
  s->rax = 0;
  return true;
}

struct StatxTime {
  int64_t sec;
  uint32_t nsec;
  int32_t pad;
};
struct Statx {  // struct statx, of linux/stat.h
  uint32_t mask, blksize;
  uint64_t attributes;
  uint32_t nlink, uid, gid;
  uint16_t mode, pad;
  uint64_t ino, size, blocks, attributes_mask;
  StatxTime atime, btime, ctime, mtime;
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
  uint64_t mnt_id;
  uint64_t spare[13];
};
static_assert(sizeof(Statx) == 256);

// makedev(3), the other way.
constexpr uint32_t Major(uint64_t dev) {
  return static_cast<uint32_t>((dev >> 8 & 0xfff) | (dev >> 32 & 0xfffff000));
}
constexpr uint32_t Minor(uint64_t dev) {
  return static_cast<uint32_t>((dev & 0xff) | (dev >> 12 & 0xffffff00));
}

// From the words of struct stat (asm/stat.h) and what an entry has besides.
void FillStatx(Statx* x, const uint64_t* st, const PathEntry& e) {
  constexpr uint32_t kBasic = 0x7ff, kBtime = 0x800, kMountId = 0x1000;
  constexpr uint64_t kMountRoot = 0x2000;
  auto* words = reinterpret_cast<uint64_t*>(x);
  for (size_t i = 0; i < sizeof(*x) / 8; i++) words[i] = 0;
  auto time = [st](size_t at) {
    return StatxTime{static_cast<int64_t>(st[at]), static_cast<uint32_t>(st[at + 1]), 0};
  };
  x->mask = kBasic | kMountId;
  x->blksize = static_cast<uint32_t>(st[7]);
  x->nlink = static_cast<uint32_t>(st[2]);
  x->mode = static_cast<uint16_t>(st[3]);
  x->uid = static_cast<uint32_t>(st[3] >> 32);
  x->gid = static_cast<uint32_t>(st[4]);
  x->ino = st[1];
  x->size = st[6];
  x->blocks = st[8];
  x->atime = time(9);
  x->mtime = time(11);
  x->ctime = time(13);
  if (e.btime_sec != 0) {
    x->mask |= kBtime;
    x->btime = StatxTime{static_cast<int64_t>(e.btime_sec), e.btime_nsec, 0};
  }
  x->rdev_major = Major(st[5]);
  x->rdev_minor = Minor(st[5]);
  x->dev_major = Major(st[0]);
  x->dev_minor = Minor(st[0]);
  x->mnt_id = e.mount_id;
  x->attributes_mask = kMountRoot;
  if ((e.flags & kPathMountRoot) != 0) x->attributes = kMountRoot;
}

bool Access(Slot* s, int dirfd, uint64_t path, uint32_t mode, bool follows) {
  if (mode > 7) return false;
  Lookup lookup;
  if (!lookup.Begin(s, dirfd, path, follows)) return false;
  int32_t error = 0;
  const bool found = lookup.Take([&](const PathEntry& e, bool* attr) {
    error = e.error;
    if ((e.flags & kPathHasAccess) == 0) return false;
    if (error != 0) return true;
    *attr = true;
    error = e.access[mode];
    return true;
  });
  return found && Fails(s, error);
}

bool Readlink(Slot* s, int dirfd, uint64_t path, uint64_t out, int32_t size) {
  Lookup lookup;
  if (size <= 0 || !lookup.Begin(s, dirfd, path, /*follows=*/false)) return false;
  int32_t error = 0;
  uint32_t n = 0;
  unsigned char link[kPathText];
  const bool found = lookup.Take([&](const PathEntry& e, bool*) {
    error = e.error;
    if (error != 0) return true;
    if ((e.type & kTypeMask) != kTypeLink) {
      error = kEinval;
      return true;
    }
    n = e.link_length;
    const uint32_t skip = PathLinkAt(e.path_length);
    if ((e.flags & kPathHasLink) == 0 || n > kPathText || skip > kPathText - n) return false;
    for (uint32_t i = 0; i < n; i++)
      link[i] = reinterpret_cast<const unsigned char*>(e.text)[skip + i];
    return true;
  });
  if (!found) return false;
  if (error != 0) return Fails(s, error);
  if (n > static_cast<uint32_t>(size)) n = static_cast<uint32_t>(size);
  if (!Put(out, link, n)) return false;
  s->rax = n;
  return true;
}

// What is not there is found out here; what is, the sentry opens.
bool Open(Slot* s, int dirfd, uint64_t path, uint32_t flags) {
  if ((flags & kOpenWithName) != 0) return false;
  Lookup lookup;
  if (!lookup.Begin(s, dirfd, path, (flags & kOpenNofollow) == 0)) return false;
  return lookup.Take([](const PathEntry& e, bool*) { return e.error == kEnoent; }) &&
         Fails(s, kEnoent);
}

int Dirfd(const Slot* s) { return static_cast<int>(s->rdi); }

}  // namespace

bool PathOpen(Slot* s) { return Open(s, kAtFdCwd, s->rdi, static_cast<uint32_t>(s->rsi)); }

bool PathOpenat(Slot* s) { return Open(s, Dirfd(s), s->rsi, static_cast<uint32_t>(s->rdx)); }

bool PathStat(Slot* s) { return Stat(s, kAtFdCwd, s->rdi, s->rsi, true); }

bool PathLstat(Slot* s) { return Stat(s, kAtFdCwd, s->rdi, s->rsi, false); }

bool PathNewfstatat(Slot* s) {
  const uint32_t flags = static_cast<uint32_t>(s->r10);
  if ((flags & ~(kAtSymlinkNofollow | kAtNoAutomount)) != 0) return false;
  return Stat(s, Dirfd(s), s->rsi, s->rdx, (flags & kAtSymlinkNofollow) == 0);
}

bool PathStatx(Slot* s) {
  constexpr uint32_t kReservedMask = 1u << 31, kUniqueMountId = 0x4000;
  const uint32_t flags = static_cast<uint32_t>(s->rdx), mask = static_cast<uint32_t>(s->r10);
  constexpr uint32_t kSync = kAtStatxForceSync | kAtStatxDontSync;
  if ((flags & ~(kAtSymlinkNofollow | kAtNoAutomount | kSync)) != 0) return false;
  if ((flags & kSync) == kSync || (mask & (kReservedMask | kUniqueMountId)) != 0) return false;
  Lookup lookup;
  if (!lookup.Begin(s, Dirfd(s), s->rsi, (flags & kAtSymlinkNofollow) == 0)) return false;
  int32_t error = 0;
  Statx statx;
  const bool found = lookup.Take([&](const PathEntry& e, bool* attr) {
    error = e.error;
    if (error != 0) return true;
    *attr = true;
    FillStatx(&statx, e.stat, e);
    return (e.flags & kPathHasAttr) != 0;
  });
  if (!found) return false;
  if (error != 0) return Fails(s, error);
  if (!Put(s->r8, &statx, sizeof(statx))) return false;
  s->rax = 0;
  return true;
}

bool PathAccess(Slot* s) {
  return Access(s, kAtFdCwd, s->rdi, static_cast<uint32_t>(s->rsi), true);
}

bool PathFaccessat(Slot* s) {
  return Access(s, Dirfd(s), s->rsi, static_cast<uint32_t>(s->rdx), true);
}

bool PathFaccessat2(Slot* s) {
  const uint32_t flags = static_cast<uint32_t>(s->r10);
  if ((flags & ~(kAtEaccess | kAtSymlinkNofollow)) != 0) return false;
  return Access(s, Dirfd(s), s->rsi, static_cast<uint32_t>(s->rdx),
                (flags & kAtSymlinkNofollow) == 0);
}

bool PathReadlink(Slot* s) {
  return Readlink(s, kAtFdCwd, s->rdi, s->rsi, static_cast<int32_t>(s->rdx));
}

bool PathReadlinkat(Slot* s) {
  return Readlink(s, Dirfd(s), s->rsi, s->rdx, static_cast<int32_t>(s->r10));
}

}  // namespace platform::stub
