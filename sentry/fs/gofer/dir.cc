// Directories: names, their changes, and listings.
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>

#include <algorithm>
#include <utility>

#include "sentry/base/time.h"
#include "sentry/fs/gofer/inode.h"

namespace sentry {
namespace {

// A directory with more entries than this cannot be listed: the sentry's memory is bounded.
constexpr size_t kMaxListing = 2'000'000;
// How many single lookups in a directory make all children worth it: after it was listed, and else
// with its size taken into account.
constexpr uint32_t kListedLookups = 2;
constexpr uint32_t kLookups = 4;
constexpr uint64_t kBytesPerLookup = 1024;
// Each time that came to nothing doubles that, up to so many times.
constexpr uint32_t kMaxVain = 20;
// What a file without names may keep from the host's disk until some more handles are given back.
constexpr uint64_t kLittleRoom = 64 * 1024;

}  // namespace

void GoferInode::NamesChanged() {
  names_version_.fetch_add(1, std::memory_order_acq_rel);
  MarkStale();
}

void GoferInode::NameAdded(std::string_view name) {
  NamesChanged();
  std::unique_ptr<GoferNames> too_many;  // freed after the lock
  base::Ref<Inode> old;
  absl::MutexLock l(&mutex_);
  if (!names_ || name.empty()) return;  // O_TMPFILE
  if (names_->ended && !names_->complete) {
    const auto it = names_->children.find(name);
    if (it != names_->children.end()) std::swap(old, it->second);
    return;
  }
  std::swap(old, names_->children[std::string(name)]);
  if (names_->children.size() > GoferFilesystem::kMaxNames) too_many.swap(names_);
}

void GoferInode::NameGone(std::string_view name) {
  NamesChanged();
  base::Ref<Inode> old;  // freed after the lock
  absl::MutexLock l(&mutex_);
  if (!names_) return;
  const auto it = names_->children.find(name);
  if (it == names_->children.end()) return;
  std::swap(old, it->second);
  names_->children.erase(it);
}

void GoferInode::SetNewDirectory() {
  if (!gofer_fs().exclusive()) return;
  {
    absl::MutexLock l(&mutex_);
    names_ = std::make_unique<GoferNames>();
    names_->complete = names_->ended = true;
  }
  gofer_fs().EnterNamed(this);
}

bool GoferInode::HoldsRoom() const {
  if (!lost_name()) return false;
  absl::MutexLock l(&mutex_);
  return std::max(reach_.load(std::memory_order_relaxed), attr_.size) > kLittleRoom;
}

void GoferInode::LostName() {
  lost_name_.store(true, std::memory_order_relaxed);
  MarkStale();
  CloseIdle();  // if that was the last name, the host is to have the room back
}

void GoferInode::DropNames() {
  std::unique_ptr<GoferNames> old;  // freed after the lock
  absl::MutexLock l(&mutex_);
  old.swap(names_);
}

std::optional<base::Ref<Inode>> GoferInode::FindKnown(std::string_view name) {
  absl::MutexLock l(&mutex_);
  if (!names_) return std::nullopt;
  const auto it = names_->children.find(name);
  if (it == names_->children.end() && names_->complete) return nullptr;
  if (it == names_->children.end() || !it->second) return std::nullopt;
  return it->second;
}

// Walking a tree (find, ls -lR, git status) lists a directory and looks at each name; or it looks
// at many names of it. One exchange for a page of them costs as much as a few single ones. A large
// directory is looked at page by page, as long as names are asked for that are not known.
void GoferInode::CountLookup() {
  const uint32_t n = lookups_.fetch_add(1, std::memory_order_relaxed) + 1;
  uint64_t enough = kListedLookups;
  {
    absl::MutexLock l(&mutex_);
    if (names_ && names_->ended) return;
    if (!names_ && !listed_.load(std::memory_order_relaxed)) {
      enough = kLookups + attr_.size / kBytesPerLookup;
    }
  }
  enough <<= std::min(vain_prefetches_.load(std::memory_order_relaxed), kMaxVain);
  if (n < enough) return;
  lookups_.store(0, std::memory_order_relaxed);
  if (listed_.load(std::memory_order_relaxed)) gofer_fs().tree_walk().SawLookups();
  if (!Prefetch()) vain_prefetches_.fetch_add(1, std::memory_order_relaxed);
}

bool GoferInode::Prefetch() {
  const uint64_t version = names_version_.load(std::memory_order_acquire);
  std::unique_ptr<GoferNames> names;
  {
    // Nobody keeps what is taken out up to date: it is lost if the directory changes meanwhile.
    absl::MutexLock l(&mutex_);
    if (names_ && !names_->ended && names_->version == version) names.swap(names_);
  }
  if (!names) {
    names = std::make_unique<GoferNames>();
    names->version = version;
  }
  auto page = gofer::ParseDir(
      Call(gofer::MakeReadDir(handle_, names->cursor, gofer::kMaxMessage, gofer::kReadDirNodes)));
  if (!page.ok()) return false;
  auto siblings = std::make_shared<GoferSiblings>(S_IFREG);
  for (const gofer::Entry& e : page->entries) {
    if (e.with == gofer::kWithNode && S_ISREG(e.node.attr.mode)) {
      siblings->files.push_back(e.node.attr.ino);
    }
  }
  TakeNodes(*page, names.get());
  names->siblings.push_back(siblings);
  gofer_fs().Introduce(host_dev_, siblings);
  return KeepNames(std::move(names), version);
}

void GoferInode::TakeNodes(const gofer::DirResult& page, GoferNames* names) {
  bool all = true;
  for (const gofer::Entry& e : page.entries) {
    if (e.with != gofer::kWithNode) {
      all = false;
      continue;
    }
    names->children.emplace(e.name, gofer_fs().Obtain(e.node, ""));
  }
  names->cursor = page.next;
  names->complete = all && page.eof;
  names->ended = !all || page.eof || names->children.size() > gofer_fs().max_prefetch();
}

bool GoferInode::KeepNames(std::unique_ptr<GoferNames> names, uint64_t version) {
  {
    absl::MutexLock l(&mutex_);
    if (version != names_version_.load(std::memory_order_acquire)) return false;
    names_.swap(names);  // what was known before is freed after the lock
  }
  gofer_fs().EnterNamed(this);
  return true;
}

bool GoferInode::NamesEnded() const {
  absl::MutexLock l(&mutex_);
  return names_ && names_->ended;
}

base::Result<base::Ref<Inode>> GoferInode::Lookup(std::string_view name) {
  const std::string_view names[] = {name};
  auto found = TRY(LookupMany(names));
  if (found.empty() || !found[0]) return base::Error(ENOENT);
  return std::move(found[0]);
}

base::Result<std::vector<base::Ref<Inode>>> GoferInode::LookupMany(
    std::span<const std::string_view> names) {
  if (!IsDir()) return base::Error(ENOTDIR);
  std::vector<base::Ref<Inode>> result;
  if (gofer_fs().exclusive()) {
    auto known = FindKnown(names[0]);
    if (!known && names.size() == 1) {
      CountLookup();
      known = FindKnown(names[0]);
    }
    if (known) {
      if (*known && !(*known)->IsDir() && listed_.load(std::memory_order_relaxed)) {
        gofer_fs().tree_walk().SawLookup();
      }
      result.push_back(*std::move(known));
      return result;
    }
  }
  const std::vector<std::string_view> list(
      names.begin(),
      names.begin() + static_cast<ptrdiff_t>(std::min<size_t>(names.size(), gofer::kMaxWalk)));
  const gofer::Request request = gofer::MakeWalk(handle_, list, 0, 0);
  auto walk = gofer::ParseWalk(Call(request), list.size(), 0);
  if (walk.ok() && walk->stop == ENFILE && walk->nodes.empty()) {
    gofer_fs().Reclaim();
    walk = gofer::ParseWalk(Call(request), list.size(), 0);
  }
  if (!walk.ok()) return walk.error();
  for (size_t i = 0; i < walk->nodes.size(); ++i) {
    const bool last = i + 1 == walk->nodes.size();
    result.push_back(gofer_fs().Obtain(walk->nodes[i], last ? std::move(walk->link) : ""));
  }
  if (walk->stop == ENOENT) {
    result.push_back(nullptr);
  } else if (walk->stop != 0 && result.empty()) {
    return base::Error(walk->stop);
  }
  return result;
}

base::Result<base::Ref<Inode>> GoferInode::MakeNode(std::string_view name,
                                                    const gofer::Request& request, bool want_fd,
                                                    std::string link) {
  if (!IsDir()) return base::Error(ENOTDIR);
  auto made = gofer::ParseNode(Call(request), want_fd);
  const int error = made.ok() ? 0 : made.error().code();
  if (error == ENFILE) gofer_fs().Reclaim();
  // Files that have no name any more take room until their handles are given back.
  if (error == ENOSPC || error == EDQUOT) gofer_fs().connection().FlushForgotten();
  if (error == ENFILE || error == ENOSPC || error == EDQUOT) {
    made = gofer::ParseNode(Call(request), want_fd);
  }
  if (!made.ok()) return made.error();
  NameAdded(name);
  base::Ref<GoferInode> inode = gofer_fs().Obtain(made->node, std::move(link));
  if (made->fd.valid()) {
    inode->AdoptFd(std::move(made->fd));
    gofer_fs().EnterIdle(inode.get());
  }
  return base::Ref<Inode>(std::move(inode));
}

base::Result<base::Ref<Inode>> GoferInode::Create(std::string_view name, const NewInode& args) {
  if (S_ISREG(args.mode)) {
    return MakeNode(name,
                    gofer::MakeMake(gofer::Op::kCreate, handle_, name, args.mode & 07777, args.uid,
                                    args.gid, O_RDWR),
                    true, "");
  }
  return MakeNode(
      name, gofer::MakeMake(gofer::Op::kMknod, handle_, name, args.mode, args.uid, args.gid, 0),
      false, "");
}

base::Result<base::Ref<Inode>> GoferInode::Mkdir(std::string_view name, const NewInode& args) {
  base::Ref<Inode> made = TRY(MakeNode(
      name,
      gofer::MakeMake(gofer::Op::kMkdir, handle_, name, args.mode & 07777, args.uid, args.gid, 0),
      false, ""));
  From(*made).SetNewDirectory();
  return made;
}

base::Result<base::Ref<Inode>> GoferInode::Symlink(std::string_view name, std::string_view target,
                                                   const NewInode& args) {
  if (target.size() > gofer::kMaxLink) return base::Error(ENAMETOOLONG);
  return MakeNode(name, gofer::MakeSymlink(handle_, name, target, args.uid, args.gid), false,
                  std::string(target));
}

base::Result<base::Ref<Inode>> GoferInode::Tmpfile(const NewInode& args) {
  return MakeNode("",
                  gofer::MakeMake(gofer::Op::kTmpfile, handle_, "", args.mode & 07777, args.uid,
                                  args.gid, O_RDWR),
                  true, "");
}

base::Status GoferInode::Link(std::string_view name, Inode& target) {
  if (!IsDir()) return base::Error(ENOTDIR);
  GoferInode& to = From(target);
  if (to.never_linked_.load(std::memory_order_relaxed)) return base::Error(ENOENT);
  const gofer::Attr attr = TRY(gofer::ParseAttr(Call(gofer::MakeLink(to.handle_, handle_, name))));
  NameAdded(name);
  to.Apply(attr);
  return base::Ok();
}

base::Status GoferInode::Unlink(std::string_view name, Inode& victim) {
  TRY(gofer::ParseEmpty(Call(gofer::MakeUnlink(handle_, name, false))));
  NameGone(name);
  From(victim).LostName();
  return base::Ok();
}

base::Status GoferInode::Rmdir(std::string_view name, Inode& victim) {
  TRY(gofer::ParseEmpty(Call(gofer::MakeUnlink(handle_, name, true))));
  NameGone(name);
  From(victim).LostName();
  return base::Ok();
}

base::Status GoferInode::Rename(std::string_view name, Inode& moved, Inode& new_dir,
                                std::string_view new_name, Inode* replaced, uint32_t flags) {
  if ((flags & ~static_cast<uint32_t>(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0) {
    return base::Error(EINVAL);
  }
  GoferInode& to = From(new_dir);
  TRY(gofer::ParseEmpty(Call(gofer::MakeRename(handle_, name, to.handle_, new_name, flags))));
  if ((flags & RENAME_EXCHANGE) != 0) {
    NameAdded(name);
  } else {
    NameGone(name);
  }
  to.NameAdded(new_name);
  From(moved).MarkStale();
  if (replaced != nullptr) {
    // An exchange only gives it another name.
    (flags & RENAME_EXCHANGE) != 0 ? From(*replaced).MarkStale() : From(*replaced).LostName();
  }
  return base::Ok();
}

bool GoferInode::Revalidate(std::string_view name, Inode* child) {
  GoferInode* known = child != nullptr ? &From(*child) : nullptr;
  if (known != nullptr) {
    absl::MutexLock l(&known->mutex_);
    if (known->seen_parent_ == this && base::MonotonicNs() - known->seen_ns_ < kSharedNs &&
        known->seen_name_ == name) {
      return true;
    }
  }
  auto attr = gofer::ParseAttr(Call(gofer::MakeStatAt(handle_, name)));
  if (!attr.ok()) return known == nullptr && attr.error().code() == ENOENT;
  if (known == nullptr || !known->Is(*attr)) return false;
  known->Apply(*attr);
  absl::MutexLock l(&known->mutex_);
  known->seen_parent_ = this;
  known->seen_ns_ = base::MonotonicNs();
  known->seen_name_ = name;
  return true;
}

base::Result<std::shared_ptr<const GoferListing>> GoferInode::List() {
  const uint64_t version = names_version_.load(std::memory_order_acquire);
  std::shared_ptr<const GoferListing> listing;
  if (gofer_fs().exclusive()) {
    absl::MutexLock l(&mutex_);
    if (listing_version_ == version) {
      listing = listing_.lock();
    }
  }
  if (listing) {
    gofer_fs().Introduce(host_dev_, listing->siblings);
    return listing;
  }
  listed_.store(true, std::memory_order_relaxed);
  listing = TRY(ReadAll(version));
  gofer_fs().Introduce(host_dev_, listing->siblings);
  gofer_fs().KeepListing(listing);
  {
    absl::MutexLock l(&mutex_);
    listing_ = listing;
    listing_version_ = version;
  }
  if (gofer_fs().exclusive()) ReadAhead(*listing);
  return listing;
}

base::Result<std::shared_ptr<const GoferListing>> GoferInode::ReadAll(uint64_t version) {
  auto listing = std::make_shared<GoferListing>();
  auto files = std::make_shared<GoferSiblings>(S_IFREG);
  auto directories = std::make_shared<GoferSiblings>(S_IFDIR);
  std::unique_ptr<GoferNames> names;  // with nodes
  base::Ref<GoferReading> reading;
  if (GoferTreeWalk& walk = gofer_fs().tree_walk(); gofer_fs().exclusive()) {
    reading = walk.BeginList(host_ino_);
    if ((walk.WantsNodes() || reading) && !NamesEnded()) {
      names = std::make_unique<GoferNames>();
      names->version = version;
    }
  }
  uint64_t cursor = 0;
  for (bool eof = false; !eof;) {
    base::Result<gofer::DirResult> page = base::Error(EAGAIN);
    if (names && reading) page = TakeReading(*std::exchange(reading, nullptr), version);
    // Of a large directory the first part, lest they are not asked for; the rest as by CountLookup.
    const bool nodes = names && cursor == 0;
    if (!page.ok()) {
      page = gofer::ParseDir(Call(gofer::MakeReadDir(handle_, cursor, gofer::kMaxMessage,
                                                     nodes ? uint32_t{gofer::kReadDirNodes} : 0)));
    }
    if (!page.ok()) return page.error();
    if (nodes) TakeNodes(*page, names.get());
    for (gofer::Entry& e : page->entries) {
      const uint64_t ino = e.with == gofer::kWithNode ? e.node.attr.ino : e.ino;
      if (e.type == DT_REG) files->files.push_back(ino);
      if (e.type == DT_DIR) directories->files.push_back(ino);
      listing->items.push_back({std::move(e.name), e.ino, e.type});
    }
    if (listing->items.size() > kMaxListing) return base::Error(ENOMEM);
    eof = page->eof;
    cursor = page->next;
  }
  if (names) (void)KeepNames(std::move(names), version);
  {
    absl::MutexLock l(&mutex_);
    directories->up = siblings_;
    directories->up_index = sibling_index_;
  }
  listing->siblings = std::move(files);
  listing->directories = std::move(directories);
  return std::shared_ptr<const GoferListing>(std::move(listing));
}

base::Result<gofer::DirResult> GoferInode::TakeReading(const GoferReading& reading,
                                                       uint64_t version) {
  gofer_fs().connection().Await(*reading.call);
  // If it is not taken its handles go back with it.
  if (reading.version != version || reading.outdated != gofer_fs().tree_walk().outdated()) {
    return base::Error(EAGAIN);
  }
  return gofer::ParseDir(reading.call->TakeReply());
}

base::Ref<GoferInode> GoferInode::NextDirectory(const GoferListing& listing) const {
  const auto find = [this](const GoferSiblings& directories, size_t index) {
    return std::move(gofer_fs().FindFiles(host_dev_, std::span(directories.files).subspan(index, 1),
                                          S_IFDIR)[0]);
  };
  if (!listing.directories->files.empty()) return find(*listing.directories, 0);
  size_t index = listing.directories->up_index;
  for (auto above = listing.directories->up.lock(); above; above = above->up.lock()) {
    if (index + 1 < above->files.size()) return find(*above, index + 1);
    index = above->up_index;
  }
  return nullptr;
}

void GoferInode::ReadAhead(const GoferListing& listing) {
  GoferFilesystem& fs = gofer_fs();
  fs.Introduce(host_dev_, listing.directories);
  const base::Ref<GoferInode> next = NextDirectory(listing);
  if (!next || !fs.tree_walk().Foresee(next->host_ino_) || next->NamesEnded()) return;
  auto reading = base::MakeRef<GoferReading>();
  reading->ino = next->host_ino_;
  reading->version = next->names_version_.load(std::memory_order_acquire);
  reading->outdated = fs.tree_walk().outdated();
  reading->call = GoferLateNodes::Begin(&fs.connection(), next->handle_);
  fs.tree_walk().Keep(std::move(reading));
}

}  // namespace sentry
