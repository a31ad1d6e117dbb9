#include "sentry/fs/gofer/fs.h"

#include <linux/magic.h>

#include <algorithm>
#include <cstring>

#include "sentry/fs/gofer/inode.h"
#include "sentry/vfs/dentry.h"

namespace sentry {
namespace {

// Host descriptors of files that nobody has open, kept for the next open: at most so many, and a
// part of what the gofer may have open, whose limit is the sentry's too.
constexpr size_t kMaxIdle = 16 * 1024;
constexpr size_t kIdlePart = 8;
constexpr size_t kMaxNamed = 32;
// Entries of all listings that are kept.
constexpr size_t kMaxListed = 32 * 1024;
// How many files are looked for under one lock.
constexpr size_t kIntroducedAtOnce = 256;
// What /proc/filesystems and statfs have no name for otherwise.
constexpr uint64_t kGoferMagic = 0x676f6672;

}  // namespace

GoferFilesystem::GoferFilesystem(base::Ref<GoferConnection> connection, GoferCache cache)
    : Filesystem("gofer", kGoferMagic),
      connection_(std::move(connection)),
      cache_(cache),
      max_prefetch_(std::min<size_t>(kMaxNames, connection_->max_handles() / 32)),
      max_idle_(std::min<size_t>(kMaxIdle, connection_->max_handles() / kIdlePart)) {}

GoferFilesystem::~GoferFilesystem() = default;

GoferFilesystem::Key GoferFilesystem::KeyOf(const gofer::Attr& attr) {
  return {uint64_t{attr.dev_major} << 32 | attr.dev_minor, attr.ino};
}

uint64_t GoferFilesystem::InoOf(const Key& key) {
  size_t index = 0;
  while (index < devices_.size() && devices_[index] != key.first) ++index;
  if (index == devices_.size()) devices_.push_back(key.first);
  return key.second ^ static_cast<uint64_t>(index) << 48;
}

base::Ref<GoferInode> GoferFilesystem::MakeRoot(const gofer::AttachReply& attach) {
  root_handle_ = attach.root.handle;
  readonly_ = (attach.mount_flags & gofer::kMountReadonly) != 0;
  auto stat =
      gofer::ParseStatFs(connection_->Call(gofer::MakeOn(gofer::Op::kStatFs, attach.root.handle)));
  in_memory_ = stat.ok() && (stat->type == TMPFS_MAGIC || stat->type == RAMFS_MAGIC);
  return Obtain(attach.root, "");
}

base::Ref<GoferInode> GoferFilesystem::Obtain(const gofer::Node& node, std::string link) {
  base::Ref<GoferInode> inode;
  bool known = true;
  {
    absl::MutexLock l(&mutex_);
    const Key key = KeyOf(node.attr);
    GoferInode*& slot = inodes_[key];
    // One whose last reference is going is replaced; its destructor sees that.
    if (slot != nullptr && slot->type() == (node.attr.mode & S_IFMT) && slot->TryIncRef()) {
      inode = base::Ref<GoferInode>::Adopt(slot);
    } else {
      inode = base::MakeRef<GoferInode>(this, InoOf(key), node, std::move(link));
      slot = inode.get();
      known = false;
    }
  }
  if (known) {
    connection_->Forget(node.handle);
    if (!exclusive()) inode->Apply(node.attr);
  }
  return inode;
}

void GoferFilesystem::Renumber(GoferInode* inode, const gofer::Attr& attr) {
  const Key key = KeyOf(attr);
  absl::MutexLock l(&mutex_);
  const auto it = inodes_.find(Key{inode->host_dev_, inode->host_ino_});
  if (it != inodes_.end() && it->second == inode) inodes_.erase(it);
  inode->host_dev_ = key.first;
  inode->host_ino_ = key.second;
  inodes_.try_emplace(key, inode);
}

std::vector<base::Ref<GoferInode>> GoferFilesystem::FindFiles(uint64_t dev,
                                                              std::span<const uint64_t> inos,
                                                              mode_t type) {
  std::vector<base::Ref<GoferInode>> found(inos.size());
  absl::MutexLock l(&mutex_);
  for (size_t i = 0; i < inos.size(); ++i) {
    const auto it = inodes_.find(Key{dev, inos[i]});
    if (it == inodes_.end() || it->second->type() != type || !it->second->TryIncRef()) continue;
    found[i] = base::Ref<GoferInode>::Adopt(it->second);
  }
  return found;
}

void GoferFilesystem::Introduce(uint64_t dev,
                                const std::shared_ptr<const GoferSiblings>& siblings) {
  const std::vector<uint64_t>& inos = siblings->files;
  if (inos.empty()) return;
  if (siblings->known.load(std::memory_order_relaxed) == inos.size()) {
    // Unless others have been told to them since, from another listing, there is nothing new.
    const size_t sample = inos.size() / 2;
    const auto file =
        std::move(FindFiles(dev, std::span(inos).subspan(sample, 1), siblings->type)[0]);
    if (file && file->IsAmong(siblings)) return;
  }
  size_t known = 0;
  for (size_t begin = 0; begin < inos.size(); begin += kIntroducedAtOnce) {
    const size_t count = std::min(kIntroducedAtOnce, inos.size() - begin);
    const auto files = FindFiles(dev, std::span(inos).subspan(begin, count), siblings->type);
    for (size_t i = 0; i < count; ++i) {
      if (!files[i]) continue;
      files[i]->SetSiblings(siblings, begin + i);
      known++;
    }
  }
  siblings->known.store(known, std::memory_order_relaxed);
}

void GoferFilesystem::Drop(GoferInode* inode, gofer::Handle handle) {
  if (inode->changed_.load(std::memory_order_relaxed)) tree_walk_.DroppedChanged();
  LeaveIdle(inode);
  contents_.Leave(inode);
  {
    absl::MutexLock l(&idle_mutex_);
    if (inode->named_at_) named_.erase(*inode->named_at_);
  }
  {
    absl::MutexLock l(&mutex_);
    const auto it = inodes_.find(Key{inode->host_dev_, inode->host_ino_});
    if (it != inodes_.end() && it->second == inode) inodes_.erase(it);
  }
  // When nothing is under way that needs it.
  const auto use =
      base::MakeRef<GoferLastUse>(connection_.get(), handle, /*now=*/inode->HoldsRoom());
  for (const auto& late : inode->TakeLateChanges()) late->Hold(use);
}

void GoferFilesystem::EnterIdle(GoferInode* inode) {
  base::Ref<GoferInode> victim;
  {
    absl::MutexLock l(&idle_mutex_);
    if (inode->idle_at_) return;
    idle_.push_back(inode);
    inode->idle_at_ = std::prev(idle_.end());
    if (idle_.size() <= max_idle_) return;
    GoferInode* oldest = idle_.front();
    idle_.pop_front();
    oldest->idle_at_.reset();
    if (oldest->TryIncRef()) victim = base::Ref<GoferInode>::Adopt(oldest);
  }
  if (victim) victim->CloseIdle();
}

void GoferFilesystem::LeaveIdle(GoferInode* inode) {
  absl::MutexLock l(&idle_mutex_);
  if (!inode->idle_at_) return;
  idle_.erase(*inode->idle_at_);
  inode->idle_at_.reset();
}

void GoferFilesystem::EnterNamed(GoferInode* inode) {
  base::Ref<GoferInode> victim;
  {
    absl::MutexLock l(&idle_mutex_);
    if (inode->named_at_) named_.erase(*inode->named_at_);
    named_.push_back(inode);
    inode->named_at_ = std::prev(named_.end());
    if (named_.size() <= kMaxNamed) return;
    GoferInode* oldest = named_.front();
    named_.pop_front();
    oldest->named_at_.reset();
    if (oldest->TryIncRef()) victim = base::Ref<GoferInode>::Adopt(oldest);
  }
  if (victim) victim->DropNames();
}

void GoferFilesystem::KeepOpening(const std::shared_ptr<const GoferSiblings>& siblings,
                                  base::Ref<GoferOpening> opening) {
  // What was kept before is freed, and its descriptors closed, after the lock.
  absl::MutexLock l(&idle_mutex_);
  std::swap(opening_, opening);
  opening_of_ = siblings;
}

base::Ref<GoferOpening> GoferFilesystem::TakeOpening(
    const std::shared_ptr<const GoferSiblings>& siblings) {
  absl::MutexLock l(&idle_mutex_);
  if (!opening_ || opening_of_.lock() != siblings) return nullptr;
  return std::move(opening_);
}

bool GoferFilesystem::CanChange(uint64_t dev, uint32_t uid, uint32_t mask) {
  absl::MutexLock l(&changes_mutex_);
  return changed_ == std::pair(dev, uid) && (mask & ~can_change_) == 0;
}

void GoferFilesystem::NoteChange(uint64_t dev, uint32_t uid, uint32_t mask, bool done) {
  absl::MutexLock l(&changes_mutex_);
  if (changed_ != std::pair(dev, uid)) can_change_ = 0;
  changed_ = {dev, uid};
  can_change_ = done ? can_change_ | mask : can_change_ & ~mask;
}

bool GoferFilesystem::ExpectsTreeRead() {
  const int left = tree_reads_.load(std::memory_order_relaxed);
  if (left <= 0) return false;
  tree_reads_.store(left - 1, std::memory_order_relaxed);
  return true;
}

void GoferFilesystem::KeepListing(std::shared_ptr<const GoferListing> listing) {
  const size_t size = listing->items.size() + 1;
  if (size > kMaxListed / 4) return;
  std::vector<std::shared_ptr<const GoferListing>> dropped;  // freed after the lock
  absl::MutexLock l(&idle_mutex_);
  listings_.push_back(std::move(listing));
  listed_entries_ += size;
  while (listed_entries_ > kMaxListed) {
    listed_entries_ -= listings_.front()->items.size() + 1;
    dropped.push_back(std::move(listings_.front()));
    listings_.pop_front();
  }
}

void GoferFilesystem::Reclaim() {
  for (;;) {
    base::Ref<GoferInode> inode;
    {
      absl::MutexLock l(&idle_mutex_);
      if (named_.empty()) break;
      GoferInode* oldest = named_.front();
      named_.pop_front();
      oldest->named_at_.reset();
      if (!oldest->TryIncRef()) continue;
      inode = base::Ref<GoferInode>::Adopt(oldest);
    }
    inode->DropNames();
  }
  tree_walk_.Keep(nullptr);
  DentryCache::Get().DropUnused();
  connection_->FlushForgotten();
}

base::Result<struct statfs> GoferFilesystem::StatFs() {
  const gofer::StatFsReply r =
      TRY(gofer::ParseStatFs(connection_->Call(gofer::MakeOn(gofer::Op::kStatFs, root_handle_))));
  struct statfs out;
  memset(&out, 0, sizeof(out));
  out.f_type = static_cast<decltype(out.f_type)>(r.type);
  out.f_bsize = static_cast<decltype(out.f_bsize)>(r.bsize);
  out.f_blocks = r.blocks;
  out.f_bfree = r.bfree;
  out.f_bavail = r.bavail;
  out.f_files = r.files;
  out.f_ffree = r.ffree;
  out.f_namelen = static_cast<decltype(out.f_namelen)>(r.namelen);
  out.f_frsize = static_cast<decltype(out.f_frsize)>(r.frsize);
  return out;
}

base::Status GoferFilesystem::Sync() {
  connection_->AwaitLateCalls();
  return gofer::ParseEmpty(connection_->Call(gofer::MakeOn(gofer::Op::kSyncFs, root_handle_)));
}

base::Result<base::Ref<GoferConnection>> ConnectGofer(base::UniqueFd socket,
                                                      std::function<void()> on_broken) {
  return GoferConnection::Connect(std::move(socket), std::move(on_broken));
}

base::Result<base::Ref<Inode>> MountGofer(const base::Ref<GoferConnection>& connection,
                                          uint32_t index, GoferCache cache) {
  const gofer::AttachReply attach =
      TRY(gofer::ParseAttach(connection->Call(gofer::MakeAttach(index))));
  // A cached dentry holds a handle; what is open, and children looked up but not asked for yet,
  // need some as well. A little too many is no harm (Reclaim), too few make every walk start anew.
  DentryCache& dentries = DentryCache::Get();
  dentries.set_limit(std::min<size_t>(dentries.limit(), connection->max_handles() / 8 * 7));
  auto fs = base::MakeRef<GoferFilesystem>(connection, cache);
  return base::Ref<Inode>(fs->MakeRoot(attach));
}

bool GoferMountReadonly(const Inode& root) {
  return static_cast<GoferFilesystem&>(root.fs()).readonly();
}

}  // namespace sentry
