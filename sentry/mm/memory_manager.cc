#include "sentry/mm/memory_manager.h"

#include <elf.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "sentry/mm/mm_impl.h"
#include "sentry/vfs/inode.h"

namespace sentry {

namespace {

constexpr uint64_t kVdsoBytesMax = 64 << 10;

// Bytes of the vDSO's image, from its ELF header; the same in every address space.
uint64_t VdsoSize(platform::AddressSpace& as) {
  static std::atomic<uint64_t> known{0};
  uint64_t size = known.load(std::memory_order_relaxed);
  if (size != 0 || as.limits().vdso_base == 0) return size;
  Elf64_Ehdr header;
  if (!as.Read(as.limits().vdso_base, std::as_writable_bytes(std::span(&header, 1))).ok()) return 0;
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return 0;
  size = PageUp(header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize);
  if (size == 0 || size > kVdsoBytesMax) size = kPageSize;
  known.store(size, std::memory_order_relaxed);
  return size;
}

void StopExecuting(const base::Ref<FileDescription>& file) {
  if (file && file->inode() != nullptr) file->inode()->AllowWriteAccess();
}

// The identity by which patched text of `file` may be shared; false if it has none.
bool GetIdentity(FileDescription& file, platform::FileIdentity* identity) {
  Inode* inode = file.inode();
  // What somebody may write, shows no change until it is written.
  if (inode == nullptr || !inode->IsReg() || inode->has_writers()) return false;
  identity->writes = inode->write_opens();
  auto attr = file.GetAttr();
  if (!attr.ok()) return false;
  constexpr int64_t kSecond = 1'000'000'000;
  identity->dev = attr->dev;
  identity->ino = attr->ino;
  identity->size = attr->size;
  identity->mtime_ns = attr->mtime.tv_sec * kSecond + attr->mtime.tv_nsec;
  identity->ctime_ns = attr->ctime.tv_sec * kSecond + attr->ctime.tv_nsec;
  return true;
}

}  // namespace

base::Result<std::vector<uint64_t>> OrderBatch::RunOrders(Orders orders) {
  QueueOrders(std::move(orders), nullptr);
  return std::vector<uint64_t>();
}

void OrderBatch::QueueOrders(Orders orders, std::function<int64_t(int)>) {
  for (platform::Order& order : orders) orders_.push_back(std::move(order));
}

MemoryManager::Impl::Impl(MemoryManager* owner, platform::AddressSpace* space)
    : self(owner),
      as(space),
      min_addr(PageUp(space->limits().min_address)),
      max_addr(PageDown(space->limits().max_address)),
      mmap_base(max_addr),
      legacy_base(PageUp(max_addr / 3)) {}

MemoryManager::MemoryManager(std::unique_ptr<platform::AddressSpace> as)
    : as_(std::move(as)),
      impl_(std::make_unique<Impl>(this, as_.get())),
      fd_places_(base::MakeRef<FdPlaces>(as_.get())) {}

MemoryManager::~MemoryManager() {
  StopExecuting(executable());
  lane_owner_.Retire();
  UnbindLanes();
}

base::Ref<LaneBinding> MemoryManager::TakeLanes() {
  absl::MutexLock lock(&lanes_mutex_);
  return std::move(lanes_);
}

base::Ref<LaneBinding> MemoryManager::lanes() {
  absl::MutexLock lock(&lanes_mutex_);
  return lanes_;
}

base::Ref<LaneBinding> MemoryManager::BindLanes(const std::string& domain) {
  absl::MutexLock lock(&lanes_mutex_);
  if (lanes_ != nullptr) return lanes_;
  auto arena = LaneArena::OfDomain(domain);
  if (!arena.ok()) return nullptr;
  as_->ClearLanes();
  lanes_ = base::MakeRef<LaneBinding>(as_.get(), *std::move(arena));
  return lanes_;
}

void MemoryManager::UnbindLanes() {
  fd_places_->Unbind();
  if (base::Ref<LaneBinding> lanes = TakeLanes()) lanes->Unbind();
}

void MemoryManager::DropLanes() {
  as_->DropLanes();
  if (base::Ref<LaneBinding> lanes = TakeLanes()) lanes->Unbind();
}

base::Result<base::Ref<MemoryManager>> MemoryManager::New(platform::Platform& platform) {
  return NewOn(TRY(platform.NewAddressSpace()));
}

base::Ref<MemoryManager> MemoryManager::NewOn(std::unique_ptr<platform::AddressSpace> as) {
  return base::MakeRef<MemoryManager>(std::move(as));
}

base::Result<base::Ref<MemoryManager>> MemoryManager::Fork(OrderRunner& runner) {
  Impl& parent = *impl_;
  fiber::MutexLock lock(&parent.mutex);
  base::Ref<MemoryManager> mm = NewOn(TRY(as_->PrepareFork()));
  Impl& child = *mm->impl_;
  TRY(mm->SetExecutable(executable()));
  {
    absl::MutexLock from(&parent.meta_mutex);
    absl::MutexLock to(&child.meta_mutex);
    child.layout = parent.layout;
    child.dumpable = parent.dumpable;
  }
  {
    fiber::MutexLock child_lock(&child.mutex);  // nobody else knows of it yet
    child.mmap_base = parent.mmap_base;
    child.legacy_base = parent.legacy_base;
    child.bottom_up = parent.bottom_up;
    child.randomize = parent.randomize;
    child.mdwe = InheritedMdwe(parent.mdwe);
    for (const auto& [end, vma] : parent.vmas) {
      if (vma.flags & kVmaDontFork) {
        Impl::AddMunmapOrder(child.pending, vma.host_start, vma.end);
        continue;
      }
      Vma copy = vma;
      copy.flags &= ~(kVmaLocked | kVmaLockOnFault);
      if (vma.flags & kVmaWipeOnFork) Impl::AddMapOrder(child.pending, copy);
      child.vmas.Insert(std::move(copy));
    }
  }
  Orders orders;
  orders.emplace_back(platform::order::Fork{mm->as_.get()});
  TRY(runner.RunOrders(std::move(orders)));
  return mm;
}

Orders MemoryManager::TakePendingOrders() {
  fiber::MutexLock lock(&impl_->mutex);
  return std::exchange(impl_->pending, {});
}

// --- orders ---

void MemoryManager::Impl::TakeBack(Undo& undo) {
  for (auto range = undo.ranges.rbegin(); range != undo.ranges.rend(); ++range) {
    vmas.Remove(range->lo, range->hi);
    for (Vma& vma : range->saved) vmas.Insert(std::move(vma));
  }
  if (undo.also) undo.also();
}

base::Status MemoryManager::Impl::Commit(OrderRunner& runner, Orders orders, Undo undo) {
  ++changes;
  if (orders.empty()) return base::Ok();
  if (runner.CanQueue()) {
    runner.QueueOrders(std::move(orders),
                       [mm = base::Ref<MemoryManager>(self),
                        undo = std::move(undo)](int error) mutable -> int64_t {
                         Impl& impl = *mm->impl_;
                         fiber::MutexLock lock(&impl.mutex);
                         impl.TakeBack(undo);
                         return undo.result.value_or(-error);
                       });
    return base::Ok();
  }
  auto done = runner.RunOrders(std::move(orders));
  if (done.ok()) return base::Ok();
  TakeBack(undo);
  return done.error();
}

void MemoryManager::Impl::AddMapOrder(Orders& orders, const Vma& vma) {
  platform::order::Mmap map{
      .addr = vma.start, .length = vma.size(), .prot = vma.prot, .shared = vma.shared};
  map.noreserve = (vma.flags & kVmaNoReserve) != 0;
  map.file = vma.host.file;
  map.offset = vma.host.offset;
  const bool text = (vma.prot & (PROT_EXEC | PROT_WRITE)) == PROT_EXEC && !vma.shared;
  if (text && vma.file && vma.host.file) {
    map.has_identity = GetIdentity(*vma.file, &map.identity);
  }
  orders.emplace_back(std::move(map));
}

void MemoryManager::Impl::AddMunmapOrder(Orders& orders, uint64_t lo, uint64_t hi) {
  if (lo >= hi) return;
  if (!orders.empty()) {
    auto* last = std::get_if<platform::order::Munmap>(&orders.back());
    if (last != nullptr && last->addr + last->length == lo) {
      last->length += hi - lo;
      return;
    }
  }
  orders.emplace_back(platform::order::Munmap{lo, hi - lo});
}

void MemoryManager::Impl::AddMprotectOrder(Orders& orders, uint64_t lo, uint64_t hi, int prot) {
  if (!orders.empty()) {
    auto* last = std::get_if<platform::order::Mprotect>(&orders.back());
    if (last != nullptr && last->addr + last->length == lo && last->prot == prot) {
      last->length += hi - lo;
      return;
    }
  }
  orders.emplace_back(platform::order::Mprotect{lo, hi - lo, prot});
}

void MemoryManager::Impl::AddMadviseOrder(Orders& orders, uint64_t lo, uint64_t hi, int advice) {
  if (!orders.empty()) {
    auto* last = std::get_if<platform::order::Madvise>(&orders.back());
    if (last != nullptr && last->addr + last->length == lo && last->advice == advice) {
      last->length += hi - lo;
      return;
    }
  }
  orders.emplace_back(platform::order::Madvise{lo, hi - lo, advice});
}

std::vector<Vma> MemoryManager::Impl::UnmapRange(Orders& orders, uint64_t lo, uint64_t hi) {
  std::vector<Vma> removed = vmas.Remove(lo, hi);
  // Mapped runs alone: what lies in the holes between them is none of ours.
  for (const Vma& vma : removed) AddMunmapOrder(orders, vma.host_start, vma.end);
  return removed;
}

void MemoryManager::Impl::ClaimRange(Orders& orders, uint64_t lo, uint64_t hi) {
  auto it = vmas.Find(hi - 1);
  if (it == vmas.end() || it->second.host_start >= hi) return;
  Vma& above = it->second;
  AddMunmapOrder(orders, above.host_start, lo);
  above.host_start = std::min(hi, above.start);
}

// --- limits ---

bool MemoryManager::Impl::MayExpand(const OrderRunner& runner, int prot, bool shared,
                                    uint32_t flags, uint64_t bytes) const {
  const MmStats& now = vmas.stats();
  if (now.total_vm + bytes > PageDown(runner.Rlimit(RLIMIT_AS))) return false;
  if (!IsDataMapping(prot, shared, flags)) return true;
  return now.data_vm + bytes <= PageDown(runner.Rlimit(RLIMIT_DATA));
}

bool MemoryManager::Impl::MayLock(const OrderRunner& runner, uint64_t bytes) const {
  return runner.MayLockMemory() ||
         vmas.stats().locked_vm + bytes <= PageDown(runner.Rlimit(RLIMIT_MEMLOCK));
}

// --- what others look at ---

void MemoryManager::ForEachVma(const std::function<void(const Vma&)>& f) const {
  const MmLayout layout = this->layout();
  const uint64_t vdso_size = VdsoSize(*as_);
  fiber::MutexLock lock(&impl_->mutex);
  for (const auto& [end, vma] : impl_->vmas) {
    // As vma_is_initial_heap and vma_is_initial_stack.
    const bool heap = vma.start < layout.brk && vma.end > layout.start_brk;
    const bool stack = vma.start <= layout.start_stack && vma.end >= layout.start_stack;
    if (vma.file || vma.host.file || !vma.name.empty() || (!heap && !stack)) {
      f(vma);
      continue;
    }
    Vma named = vma;
    named.name = heap ? "[heap]" : "[stack]";
    named.flags |= heap ? kVmaHeap : kVmaStack;
    f(named);
  }
  if (vdso_size == 0) return;
  Vma vdso;
  vdso.start = vdso.host_start = as_->limits().vdso_base;
  vdso.end = vdso.start + vdso_size;
  vdso.prot = PROT_READ | PROT_EXEC;
  vdso.name = "[vdso]";
  f(vdso);
}

MmStats MemoryManager::stats() const {
  // As install_special_mapping, Linux's for the vDSO, counts it.
  const uint64_t vdso_size = VdsoSize(*as_);
  fiber::MutexLock lock(&impl_->mutex);
  MmStats stats = impl_->vmas.stats();
  stats.total_vm += vdso_size;
  stats.exec_vm += vdso_size;
  stats.peak_vm += vdso_size;
  return stats;
}

int64_t MemoryManager::ResidentBytes() const { return as_->ResidentBytes(); }

MmLayout MemoryManager::layout() const {
  absl::MutexLock lock(&impl_->meta_mutex);
  return impl_->layout;
}

void MemoryManager::SetLayout(const MmLayout& layout) {
  absl::MutexLock lock(&impl_->meta_mutex);
  impl_->layout = layout;
}

base::Ref<FileDescription> MemoryManager::executable() const {
  absl::MutexLock lock(&impl_->meta_mutex);
  return impl_->executable;
}

base::Status MemoryManager::SetExecutable(base::Ref<FileDescription> file) {
  if (file && file->inode() != nullptr) TRY(file->inode()->DenyWriteAccess());
  base::Ref<FileDescription> old;
  {
    absl::MutexLock lock(&impl_->meta_mutex);
    old = std::exchange(impl_->executable, std::move(file));
  }
  StopExecuting(old);
  return base::Ok();
}

int MemoryManager::dumpable() const {
  absl::MutexLock lock(&impl_->meta_mutex);
  return impl_->dumpable;
}

void MemoryManager::SetDumpable(int value) {
  if (value != 1) DropLanes();  // it cannot be traced any more
  absl::MutexLock lock(&impl_->meta_mutex);
  impl_->dumpable = value;
}

}  // namespace sentry
