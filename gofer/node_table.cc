#include "gofer/node_table.h"

namespace gofer {

base::Result<Handle> NodeTable::Add(base::Ref<FsNode> node) {
  HostMutexLock lock(&mutex_);
  uint32_t index;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else {
    if (slots_.size() >= max_) return base::Error(ENFILE);
    index = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
  }
  slots_[index].node = std::move(node);
  return Handle{slots_[index].generation} << 32 | index;
}

base::Result<base::Ref<FsNode>> NodeTable::Get(Handle handle) const {
  const auto index = static_cast<uint32_t>(handle);
  HostMutexLock lock(&mutex_);
  if (index >= slots_.size() || slots_[index].generation != handle >> 32 || !slots_[index].node) {
    return base::Error(EBADF);
  }
  return slots_[index].node;
}

void NodeTable::Forget(Handle handle) {
  base::Ref<FsNode> node;  // closed after the lock is released
  const auto index = static_cast<uint32_t>(handle);
  HostMutexLock lock(&mutex_);
  if (index >= slots_.size() || slots_[index].generation != handle >> 32 || !slots_[index].node) {
    return;
  }
  std::swap(node, slots_[index].node);
  if (++slots_[index].generation == 0) slots_[index].generation = 1;
  free_.push_back(index);
}

uint32_t NodeTable::size() const {
  HostMutexLock lock(&mutex_);
  return static_cast<uint32_t>(slots_.size() - free_.size());
}

}  // namespace gofer
