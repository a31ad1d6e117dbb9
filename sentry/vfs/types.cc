#include "sentry/vfs/types.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "sentry/auth/credentials.h"

namespace sentry {

base::Result<size_t> IoDest::PutZeros(size_t n) {
  static constexpr std::array<std::byte, 4096> kZeros{};
  size_t done = 0;
  while (done < n) {
    const size_t part = std::min(n - done, kZeros.size());
    auto put = Put(std::span(kZeros).first(part));
    if (!put.ok()) return done > 0 ? base::Result<size_t>(done) : put;
    done += *put;
    if (*put < part) break;
  }
  return done;
}

base::Result<size_t> BufferDest::Put(std::span<const std::byte> src) {
  const size_t n = std::min(src.size(), left_.size());
  if (n > 0) memcpy(left_.data(), src.data(), n);
  left_ = left_.subspan(n);
  return n;
}

base::Result<size_t> BufferSource::Get(std::span<std::byte> dst) {
  const size_t n = std::min(dst.size(), left_.size());
  if (n > 0) memcpy(dst.data(), left_.data(), n);
  left_ = left_.subspan(n);
  return n;
}

struct stat ToStat(const UserNamespace& ns, const InodeAttr& attr) {
  struct stat st;
  memset(&st, 0, sizeof(st));
  st.st_dev = attr.dev;
  st.st_ino = attr.ino;
  st.st_nlink = attr.nlink;
  st.st_mode = attr.mode;
  st.st_uid = ns.MapUidOut(attr.uid);
  st.st_gid = ns.MapGidOut(attr.gid);
  st.st_rdev = attr.rdev;
  st.st_size = static_cast<off_t>(attr.size);
  st.st_blksize = attr.blksize;
  st.st_blocks = static_cast<blkcnt_t>(attr.blocks);
  st.st_atim = attr.atime;
  st.st_mtim = attr.mtime;
  st.st_ctim = attr.ctime;
  return st;
}

}  // namespace sentry
