// Look-ups of paths that the table of paths answers (platform/path_lane.h). Whatever it does not
// know is the sentry's, as are all errors about arguments.
#include "platform/path_lane.h"

#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr int kAtFdCwd = -100;
constexpr uint32_t kAtSymlinkNofollow = 0x100, kAtEaccess = 0x200, kAtNoAutomount = 0x800;
constexpr uint32_t kAtEmptyPath = 0x1000;
constexpr uint32_t kAtStatxForceSync = 0x2000, kAtStatxDontSync = 0x4000;
constexpr uint32_t kOpenWithName = 0100 | 020000000;  // O_CREAT, and the bit of O_TMPFILE
constexpr uint32_t kOpenNofollow = 0400000;
constexpr int32_t kEnoent = 2, kEinval = 22;
constexpr uint32_t kTypeMask = 0170000, kTypeLink = 0120000;

const PathTable* Table() { return reinterpret_cast<const PathTable*>(kPathBase); }

// The number of what descriptor `fd` leads to.
uint64_t PlaceOfFd(const Slot* s, int fd) {
  const uint64_t owner = PathLoad(&s->fd_places);
  if (owner == 0 || fd < 0 || static_cast<uint32_t>(fd) >= kPlaceFds) return kPathNowhere;
  const MailboxHeader* header = Header();
  if (FdIsClosed(&header->closes, static_cast<uint32_t>(fd))) return kPathNowhere;
  const FdPlace* entry = &header->fd_places[fd];
  return PathLoad(&entry->owner) == owner ? PathLoad(&entry->place) : kPathNowhere;
}

// A path of the guest's, and the place in the table where it would be.
class Lookup {
 public:
  explicit Lookup(const Slot* s) : slot_(s), place_(PathLoad(&s->path_place)) {}
  // False: the table is of no use for it.
  bool Begin(int dirfd, uint64_t path, bool follows) {
    if (place_ == 0 || path >= kRegionBase) return false;
    uint64_t directory = PathDirectory(Table(), place_);
    if (directory == kPathNowhere) return false;
    auto* bytes = reinterpret_cast<unsigned char*>(text_);
    const size_t n = StubCopyString(bytes, reinterpret_cast<const void*>(path), kPathMost + 1);
    if (n < 2 || bytes[n - 1] != 0) return false;
    for (size_t i = n; i % 8 != 0; i++) bytes[i] = 0;
    if (bytes[0] == '/') {
      directory = kPathAtRoot;
    } else if (dirfd != kAtFdCwd) {
      directory = PlaceOfFd(slot_, dirfd);
      if (directory == kPathNowhere) return false;
    }
    query_.length = static_cast<uint32_t>(n - 1);
    query_.text = text_;
    query_.directory = directory;
    query_.follows = follows;
    query_.hash = HashPath(directory, follows, text_, query_.length);
    return true;
  }
  // The table is the one in which the thread's own place is, at the end as at the beginning.
  template <typename F>
  bool Take(F take) const {
    return TakePath(Table(), query_, take) && PathDirectory(Table(), place_) != kPathNowhere;
  }

 private:
  const Slot* const slot_;
  const uint64_t place_;
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

bool Stat(Slot* s, const Lookup& lookup, uint64_t out) {
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

bool StatPath(Slot* s, bool follows) {
  Lookup lookup(s);
  return lookup.Begin(kAtFdCwd, s->rdi, follows) && Stat(s, lookup, s->rsi);
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

// From the words of struct stat (asm/stat.h), and what there is besides.
void FillStatx(Statx* x, const uint64_t* st, uint64_t btime_sec, uint32_t btime_nsec,
               uint64_t mount_id, bool mount_root) {
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
  if (btime_sec != 0) {
    x->mask |= kBtime;
    x->btime = StatxTime{static_cast<int64_t>(btime_sec), btime_nsec, 0};
  }
  x->rdev_major = Major(st[5]);
  x->rdev_minor = Minor(st[5]);
  x->dev_major = Major(st[0]);
  x->dev_minor = Minor(st[0]);
  x->mnt_id = mount_id;
  x->attributes_mask = kMountRoot;
  if (mount_root) x->attributes = kMountRoot;
}

// The attributes of what descriptor `fd` leads to, by take(attr) as in TakeFdAttr.
template <typename F>
bool TakeAttrAt(const Slot* s, int fd, F take) {
  const uint64_t path_place = PathLoad(&s->path_place);
  if (path_place == 0 || static_cast<uint32_t>(fd) >= kAttrFds) return false;
  const uint64_t place = PlaceOfFd(s, fd);
  if (place == kPathNowhere) return false;
  FdAttr* attr = &Header()->fd_attrs[fd];
  if (!TakeFdAttr(Table(), attr, place, path_place, take)) return false;
  if (attr->used == 0) __atomic_store_n(&attr->used, uint16_t{1}, __ATOMIC_RELAXED);
  return true;
}

bool StatAt(Slot* s, int fd, uint64_t out) {
  uint64_t stat[18];
  if (!TakeAttrAt(s, fd, [&](const FdAttr& attr) { Copy(stat, attr.stat, 18); })) return false;
  if (!Put(out, stat, sizeof(stat))) return false;
  s->rax = 0;
  return true;
}

bool StatxAt(Slot* s, int fd, uint64_t out) {
  Statx statx;
  const bool found = TakeAttrAt(s, fd, [&](const FdAttr& a) {
    FillStatx(&statx, a.stat, a.btime_sec, a.btime_nsec, a.mount_id, a.mount_root != 0);
  });
  if (!found || !Put(out, &statx, sizeof(statx))) return false;
  s->rax = 0;
  return true;
}

// With AT_EMPTY_PATH such a path means the descriptor itself.
bool IsEmptyPath(uint64_t path) {
  char first;
  return path < kRegionBase && StubCopy(&first, reinterpret_cast<const void*>(path), 1) == 0 &&
         first == 0;
}

bool Access(Slot* s, int dirfd, uint64_t path, uint32_t mode, bool follows) {
  if (mode > 7) return false;
  Lookup lookup(s);
  if (!lookup.Begin(dirfd, path, follows)) return false;
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
  Lookup lookup(s);
  if (size <= 0 || !lookup.Begin(dirfd, path, /*follows=*/false)) return false;
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
  Lookup lookup(s);
  if (!lookup.Begin(dirfd, path, (flags & kOpenNofollow) == 0)) return false;
  return lookup.Take([](const PathEntry& e, bool*) { return e.error == kEnoent; }) &&
         Fails(s, kEnoent);
}

int Dirfd(const Slot* s) { return static_cast<int>(s->rdi); }

}  // namespace

bool PathOpen(Slot* s) { return Open(s, kAtFdCwd, s->rdi, static_cast<uint32_t>(s->rsi)); }

bool PathOpenat(Slot* s) { return Open(s, Dirfd(s), s->rsi, static_cast<uint32_t>(s->rdx)); }

bool PathStat(Slot* s) { return StatPath(s, true); }

bool PathLstat(Slot* s) { return StatPath(s, false); }

bool PathFstat(Slot* s) { return StatAt(s, Dirfd(s), s->rsi); }

bool PathNewfstatat(Slot* s) {
  const uint32_t flags = static_cast<uint32_t>(s->r10);
  if ((flags & ~(kAtSymlinkNofollow | kAtNoAutomount | kAtEmptyPath)) != 0) return false;
  if ((flags & kAtEmptyPath) != 0 && IsEmptyPath(s->rsi)) return StatAt(s, Dirfd(s), s->rdx);
  Lookup lookup(s);
  return lookup.Begin(Dirfd(s), s->rsi, (flags & kAtSymlinkNofollow) == 0) &&
         Stat(s, lookup, s->rdx);
}

bool PathStatx(Slot* s) {
  constexpr uint32_t kReservedMask = 1u << 31, kUniqueMountId = 0x4000;
  const uint32_t flags = static_cast<uint32_t>(s->rdx), mask = static_cast<uint32_t>(s->r10);
  constexpr uint32_t kSync = kAtStatxForceSync | kAtStatxDontSync;
  constexpr uint32_t kKnown = kAtSymlinkNofollow | kAtNoAutomount | kAtEmptyPath | kSync;
  if ((flags & ~kKnown) != 0) return false;
  if ((flags & kSync) == kSync || (mask & (kReservedMask | kUniqueMountId)) != 0) return false;
  if ((flags & kAtEmptyPath) != 0 && IsEmptyPath(s->rsi)) return StatxAt(s, Dirfd(s), s->r8);
  Lookup lookup(s);
  if (!lookup.Begin(Dirfd(s), s->rsi, (flags & kAtSymlinkNofollow) == 0)) return false;
  int32_t error = 0;
  Statx statx;
  const bool found = lookup.Take([&](const PathEntry& e, bool* attr) {
    error = e.error;
    if (error != 0) return true;
    *attr = true;
    FillStatx(&statx, e.stat, e.btime_sec, e.btime_nsec, e.mount_id,
              (e.flags & kPathMountRoot) != 0);
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
