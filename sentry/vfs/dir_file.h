// DirFile: what open directories of all filesystems have in common.
#pragma once

#include <cstdint>
#include <cstdio>

#include "sentry/base/result.h"
#include "sentry/fiber/mutex.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

// An open directory whose position is an opaque cookie of its filesystem (Linux: dcache_dir_lseek
// without SEEK_END). The filesystem adds GetDents, which reads and moves pos_ under pos_mutex_.
class DirFile : public FileDescription {
 public:
  using FileDescription::FileDescription;

  bool CanPoll() const override { return false; }
  base::Result<size_t> Read(IoDest&, bool) override { return base::Error(EISDIR); }
  base::Result<size_t> PRead(IoDest&, uint64_t, bool) override { return base::Error(EISDIR); }
  base::Status Sync(bool) override { return base::Ok(); }

  // SEEK_SET and SEEK_CUR; EINVAL for others and for places before the start.
  base::Result<int64_t> Seek(int64_t offset, int whence) override {
    fiber::MutexLock l(&pos_mutex_);
    if (whence == SEEK_CUR) offset += static_cast<int64_t>(pos_);
    if ((whence != SEEK_SET && whence != SEEK_CUR) || offset < 0) return base::Error(EINVAL);
    pos_ = static_cast<uint64_t>(offset);
    OnSeek();
    return offset;
  }

 protected:
  ~DirFile() override = default;
  // The position was set; pos_mutex_ is held.
  virtual void OnSeek() {}
};

}  // namespace sentry
