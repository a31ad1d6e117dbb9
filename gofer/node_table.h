// Handles: numbers by which the sentry names nodes that the gofer holds open.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "gofer/host_mutex.h"
#include "gofer/protocol.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace gofer {

// Something in a mount: an O_PATH descriptor. Immutable.
class FsNode : public base::RefCounted {
 public:
  FsNode(base::UniqueFd fd, uint32_t mount, mode_t type)
      : fd_(std::move(fd)), mount_(mount), type_(type) {}
  int fd() const { return fd_.get(); }
  uint32_t mount() const { return mount_; }
  // S_IFMT bits; they never change during an inode's life.
  mode_t type() const { return type_; }
  bool IsDir() const { return S_ISDIR(type_); }
  bool IsReg() const { return S_ISREG(type_); }

 private:
  const base::UniqueFd fd_;
  const uint32_t mount_;
  const mode_t type_;
};

// A bounded table. A handle is a slot number and that slot's generation, so one that was forgotten
// is recognised. A node in use by a request outlives its handle. Thread-safe.
class NodeTable {
 public:
  explicit NodeTable(uint32_t max) : max_(max) {}
  // ENFILE when full.
  base::Result<Handle> Add(base::Ref<FsNode> node);
  // EBADF if there is no such handle.
  base::Result<base::Ref<FsNode>> Get(Handle handle) const;
  void Forget(Handle handle);
  uint32_t size() const;
  // False if Add would fail now.
  bool HasRoom() const { return size() < max_; }

 private:
  struct Slot {
    base::Ref<FsNode> node;
    uint32_t generation = 1;
  };
  const uint32_t max_;
  mutable HostMutex mutex_;
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gofer
