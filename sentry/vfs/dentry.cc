#include "sentry/vfs/dentry.h"

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "sentry/vfs/inode.h"

namespace sentry {
namespace {

constexpr size_t kDefaultLimit = 50000;
// How far one Add looks for something to drop.
constexpr int kScan = 32;

std::atomic<uint64_t> g_rename_sequence{0};
std::atomic<uint64_t> g_numbers{1};

// Root dentries by root inode.
struct Roots {
  absl::Mutex mutex;
  absl::flat_hash_map<const Inode*, Dentry*> map ABSL_GUARDED_BY(mutex);
  static Roots& Get() {
    static Roots* const roots = new Roots;
    return *roots;
  }
};

}  // namespace

size_t Dentry::NameHash::operator()(std::string_view name) const { return absl::HashOf(name); }
size_t Dentry::NameHash::operator()(const Dentry* d) const {
  return absl::HashOf(std::string_view(d->name_));
}
bool Dentry::NameEq::operator()(const Dentry* a, std::string_view b) const { return a->name_ == b; }

Dentry::Dentry(base::Ref<Dentry> parent, std::string_view name, base::Ref<Inode> inode)
    : parent_(std::move(parent)),
      name_(name),
      inode_(inode.release()),
      kept_((parent_ == nullptr || parent_->kept_) &&
            (inode_ptr() == nullptr || inode_ptr()->keeps_dentries())) {}

Dentry::~Dentry() {
  if (registered_root_) {
    Roots& roots = Roots::Get();
    absl::MutexLock l(&roots.mutex);
    auto it = roots.map.find(inode_ptr());
    if (it != roots.map.end() && it->second == this) roots.map.erase(it);
  }
  if (Inode* inode = inode_ptr()) inode->DecRef();
}

base::Ref<Dentry> Dentry::NewRoot(base::Ref<Inode> inode, std::string name) {
  return base::MakeRef<Dentry>(base::Ref<Dentry>(), name, std::move(inode));
}

base::Ref<Dentry> Dentry::RootOf(const base::Ref<Inode>& inode) {
  Roots& roots = Roots::Get();
  absl::MutexLock l(&roots.mutex);
  Dentry*& slot = roots.map[inode.get()];
  if (slot != nullptr && slot->TryIncRef()) return base::Ref<Dentry>::Adopt(slot);
  base::Ref<Dentry> fresh = NewRoot(inode);
  fresh->registered_root_ = true;
  slot = fresh.get();
  return fresh;
}

base::Ref<Dentry> Dentry::parent() const {
  absl::MutexLock l(&mutex_);
  return parent_ ? parent_ : base::Ref<Dentry>(const_cast<Dentry*>(this));
}

std::string Dentry::name() const {
  absl::MutexLock l(&mutex_);
  return name_;
}

base::Ref<Inode> Dentry::inode() const { return base::Ref<Inode>(inode_ptr()); }

bool Dentry::IsAncestorOf(const Dentry& other) const {
  base::Ref<Dentry> d(const_cast<Dentry*>(&other));
  for (;;) {
    if (d.get() == this) return true;
    base::Ref<Dentry> up = d->parent();
    if (up == d) return false;
    d = std::move(up);
  }
}

void Dentry::Touch() {
  if (!recently_used_.load(std::memory_order_relaxed)) {
    recently_used_.store(true, std::memory_order_relaxed);
  }
}

base::Ref<Dentry> Dentry::FindChild(std::string_view name) const {
  absl::ReaderMutexLock l(&mutex_);
  auto it = children_.find(name);
  if (it == children_.end() || !(*it)->TryIncRef()) return nullptr;
  (*it)->Touch();
  return base::Ref<Dentry>::Adopt(*it);
}

base::Ref<Dentry> Dentry::AddChild(std::string_view name, base::Ref<Inode> inode_or_null) {
  auto fresh = base::MakeRef<Dentry>(base::Ref<Dentry>(this), name, std::move(inode_or_null));
  {
    absl::MutexLock l(&mutex_);
    auto it = children_.find(name);
    if (it != children_.end()) {
      if ((*it)->TryIncRef()) {
        (*it)->Touch();
        return base::Ref<Dentry>::Adopt(*it);
      }
      (*it)->word_.Changed();
      children_.erase(it);  // it is dying and will not find itself
    }
    children_.insert(fresh.get());
  }
  if (fresh->kept_) DentryCache::Get().Add(*fresh);
  return fresh;
}

void Dentry::Instantiate(base::Ref<Inode> inode) {
  Inode* expected = nullptr;
  Inode* p = inode.get();
  word_.Changing();
  if (inode_.compare_exchange_strong(expected, p, std::memory_order_acq_rel)) inode.release();
  word_.Changed();
}

uint64_t Dentry::number() {
  uint64_t number = number_.load(std::memory_order_acquire);
  if (number != 0) return number;
  const uint64_t fresh = g_numbers.fetch_add(1, std::memory_order_relaxed);
  return number_.compare_exchange_strong(number, fresh, std::memory_order_acq_rel) ? fresh : number;
}

bool Dentry::EraseChild(Dentry* child) {
  absl::MutexLock l(&mutex_);
  auto it = children_.find(std::string_view(child->name_));
  if (it == children_.end() || *it != child) return false;
  children_.erase(it);
  return true;
}

void Dentry::InsertChild(Dentry* child) {
  absl::MutexLock l(&mutex_);
  auto it = children_.find(std::string_view(child->name_));
  if (it != children_.end()) {
    if (*it == child) return;
    (*it)->word_.Changed();
    children_.erase(it);
  }
  children_.insert(child);
}

void Dentry::MarkUnlinked() {
  unlinked_.store(true, std::memory_order_release);
  parent()->EraseChild(this);
  word_.Changed();
  PruneChildren();
  DentryCache::Get().Remove(*this);
}

void Dentry::Invalidate() {
  if (is_mountpoint()) return;
  base::Ref<Dentry> up = parent();
  if (up.get() == this) return;
  up->EraseChild(this);
  word_.Changed();
  PruneChildren();
  DentryCache::Get().Remove(*this);
}

void Dentry::Move(Dentry& moved, Dentry& new_parent, std::string_view new_name) {
  g_rename_sequence.fetch_add(1, std::memory_order_acq_rel);
  moved.word_.Changing();
  base::Ref<Dentry> old_parent = moved.parent();
  if (base::Ref<Dentry> there = new_parent.FindChild(new_name); there && there.get() != &moved) {
    there->MarkUnlinked();
  }
  old_parent->EraseChild(&moved);
  {
    absl::MutexLock l(&moved.mutex_);
    moved.parent_ = base::Ref<Dentry>(&new_parent);
    moved.name_ = new_name;
  }
  new_parent.InsertChild(&moved);
  moved.word_.Changed();
  g_rename_sequence.fetch_add(1, std::memory_order_acq_rel);
}

void Dentry::Exchange(Dentry& a, Dentry& b) {
  g_rename_sequence.fetch_add(1, std::memory_order_acq_rel);
  a.word_.Changing();
  b.word_.Changing();
  base::Ref<Dentry> a_parent = a.parent(), b_parent = b.parent();
  const std::string a_name = a.name(), b_name = b.name();
  a_parent->EraseChild(&a);
  b_parent->EraseChild(&b);
  {
    absl::MutexLock l(&a.mutex_);
    a.parent_ = b_parent;
    a.name_ = b_name;
  }
  {
    absl::MutexLock l(&b.mutex_);
    b.parent_ = a_parent;
    b.name_ = a_name;
  }
  b_parent->InsertChild(&a);
  a_parent->InsertChild(&b);
  a.word_.Changed();
  b.word_.Changed();
  g_rename_sequence.fetch_add(1, std::memory_order_acq_rel);
}

std::vector<base::Ref<Dentry>> Dentry::CachedChildren() const {
  std::vector<base::Ref<Dentry>> result;
  absl::ReaderMutexLock l(&mutex_);
  for (Dentry* child : children_) {
    if (child->TryIncRef()) result.push_back(base::Ref<Dentry>::Adopt(child));
  }
  return result;
}

void Dentry::PruneChildren() {
  // Depth first without recursion: directories can be nested deeper than a stack is long.
  std::vector<base::Ref<Dentry>> stack = CachedChildren();
  for (size_t i = 0; i < stack.size(); i++) {
    std::vector<base::Ref<Dentry>> below = stack[i]->CachedChildren();
    for (auto& d : below) stack.push_back(std::move(d));
  }
  while (!stack.empty()) {
    DentryCache::Get().Remove(*stack.back());
    stack.pop_back();
  }
}

uint64_t Dentry::rename_sequence() { return g_rename_sequence.load(std::memory_order_acquire); }

void Dentry::OnZeroRefs() {
  // A parent may die with its last child, and so on upwards: done in a loop, since directories can
  // be nested deeper than a stack is long.
  static thread_local std::vector<Dentry*>* dying = nullptr;
  if (dying != nullptr) {
    dying->push_back(this);
    return;
  }
  std::vector<Dentry*> list{this};
  dying = &list;
  while (!list.empty()) {
    Dentry* d = list.back();
    list.pop_back();
    d->word_.Changed();  // while nobody else can have its name
    base::Ref<Dentry> up = std::move(d->parent_);
    if (up) up->EraseChild(d);
    delete d;
    up.reset();
  }
  dying = nullptr;
}

DentryCache& DentryCache::Get() {
  static DentryCache* const cache = new DentryCache;
  return *cache;
}

DentryCache::DentryCache() : limit_(kDefaultLimit) {}

void DentryCache::PushBack(Dentry& d) {
  d.lru_prev_ = tail_;
  d.lru_next_ = nullptr;
  (tail_ ? tail_->lru_next_ : head_) = &d;
  tail_ = &d;
  size_++;
}

void DentryCache::Unlink(Dentry& d) {
  (d.lru_prev_ ? d.lru_prev_->lru_next_ : head_) = d.lru_next_;
  (d.lru_next_ ? d.lru_next_->lru_prev_ : tail_) = d.lru_prev_;
  d.lru_prev_ = d.lru_next_ = nullptr;
  size_--;
}

void DentryCache::Add(Dentry& d) {
  std::vector<Dentry*> victims;
  {
    absl::MutexLock l(&mutex_);
    if (d.lru_prev_ != nullptr || head_ == &d) return;
    d.IncRef();
    PushBack(d);
    for (int i = 0; i < kScan && size_ > limit_; i++) {
      Dentry* oldest = head_;
      Unlink(*oldest);
      if (oldest->ref_count() == 1 && !oldest->recently_used_.load(std::memory_order_relaxed)) {
        victims.push_back(oldest);
      } else {
        oldest->recently_used_.store(false, std::memory_order_relaxed);
        PushBack(*oldest);
      }
    }
  }
  for (Dentry* v : victims) v->DecRef();
}

void DentryCache::Remove(Dentry& d) {
  {
    absl::MutexLock l(&mutex_);
    if (d.lru_prev_ == nullptr && head_ != &d) return;
    Unlink(d);
  }
  d.DecRef();
}

size_t DentryCache::size() const {
  absl::MutexLock l(&mutex_);
  return size_;
}

void DentryCache::set_limit(size_t limit) {
  absl::MutexLock l(&mutex_);
  limit_ = limit;
}

size_t DentryCache::limit() const {
  absl::MutexLock l(&mutex_);
  return limit_;
}

size_t DentryCache::DropUnused() {
  size_t dropped = 0;
  for (bool again = true; again;) {  // a parent becomes unused when its children have gone
    std::vector<Dentry*> victims;
    {
      absl::MutexLock l(&mutex_);
      for (Dentry* d = head_; d != nullptr;) {
        Dentry* next = d->lru_next_;
        if (d->ref_count() == 1) {
          Unlink(*d);
          victims.push_back(d);
        }
        d = next;
      }
    }
    for (Dentry* v : victims) v->DecRef();
    dropped += victims.size();
    again = !victims.empty();
  }
  return dropped;
}

}  // namespace sentry
