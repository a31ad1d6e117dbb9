#include "platform/systrap/address_space.h"

#include <atomic>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>

#include "platform/systrap/platform.h"

namespace platform {

SystrapAddressSpace::~SystrapAddressSpace() {
  main_.reset();
  SystrapPlatform& platform = process_->platform();
  if (!IsCurrent()) return;
  process_->Abandon();
  platform.chores().Kill(std::move(process_));
}

void SystrapAddressSpace::PrepareMain(uint32_t index) {
  main_index_ = index;
  process_->ClearSlot(index);
  process_->slot(index)->answer_seq = 1;
}

ThreadContext* SystrapAddressSpace::MakeMain() {
  process_->ReserveSlot(main_index_);
  main_ = std::make_unique<ThreadContext>(process_, this, main_index_);
  main_->Start(process_->pid());
  process_->slot(main_index_)->host_tid = static_cast<uint32_t>(process_->pid());
  return main_.get();
}

base::Result<std::unique_ptr<Context>> SystrapAddressSpace::PrepareThread() {
  const std::optional<StubProcess::ParkedThread> parked = process_->TakeParked();
  const uint32_t index = parked ? parked->slot : TRY(process_->AllocateSlot());
  auto context = std::make_unique<ThreadContext>(process_, this, index);
  if (parked) {
    context->StartParked(parked->tid);
    process_->AddThread(parked->tid);
  }
  process_->platform().AddContext(context.get());
  return std::unique_ptr<Context>(std::move(context));
}

std::unique_ptr<AddressSpace> SystrapAddressSpace::PrepareExec() {
  if (!process_->MayExecute()) return nullptr;
  return std::unique_ptr<AddressSpace>(new SystrapAddressSpace(process_, limits_, kNotYet));
}

void SystrapAddressSpace::TakeThread(Context& thread) {
  static_cast<ThreadContext&>(thread).MoveTo(this);
  program_ = process_->BeginProgram();
}

base::Result<std::unique_ptr<AddressSpace>> SystrapAddressSpace::PrepareFork() {
  base::Ref<StubProcess> child = TRY(process_->CreateChild());
  child->windows().InheritFrom(process_->windows());
  child->lanes().InheritFrom(process_->lanes());
  child->paths().InheritFrom(process_->paths());
  return std::unique_ptr<AddressSpace>(
      std::make_unique<SystrapAddressSpace>(std::move(child), limits_));
}

bool SystrapAddressSpace::MapLanes(const base::Ref<base::HostFd>& arena) {
  return process_->platform().lanes() && process_->lanes().Want(arena);
}

bool SystrapAddressSpace::MayMapPaths() const { return process_->platform().lanes(); }

bool SystrapAddressSpace::MapPaths(const base::Ref<base::HostFd>& table) {
  return MayMapPaths() && process_->paths().Want(table);
}

void SystrapAddressSpace::ClearLanes() {
  // A mailbox that nobody had before is empty, but for what its own process has made of it.
  if (!process_->had_other_program()) return;
  MailboxHeader* header = process_->header();
  memset(header->lane_fds, 0, sizeof(header->lane_fds));
  for (LaneEpoll& epoll : header->lane_epolls) epoll.fd_plus_one = 0;
  memset(header->files, 0, sizeof(header->files));
}

FileLane* SystrapAddressSpace::FileLaneAt(int fd) {
  if (fd < 0 || static_cast<uint32_t>(fd) >= kFileLanes || !process_->platform().lanes()) {
    return nullptr;
  }
  return &process_->header()->files[fd];
}

std::span<std::byte> SystrapAddressSpace::FileBeginAt(uint32_t place) {
  if (place >= kFileBegins || !process_->platform().lanes()) return {};
  return process_->UseFileBegin(place);
}

void SystrapAddressSpace::SetLaneOfFd(int fd, uint64_t in, uint64_t out) {
  if (fd < 0 || static_cast<uint32_t>(fd) >= kLaneFds) return;
  for (LaneEpoll& epoll : process_->header()->lane_epolls) {
    uint32_t same = static_cast<uint32_t>(fd) + 1;
    __atomic_compare_exchange_n(&epoll.fd_plus_one, &same, 0u, false, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
  }
  LaneFd& entry = process_->header()->lane_fds[fd];
  __atomic_store_n(&entry.in, in, __ATOMIC_SEQ_CST);
  __atomic_store_n(&entry.out, out, __ATOMIC_SEQ_CST);
}

void SystrapAddressSpace::SetPlaceOfFd(int fd, uint64_t owner, uint64_t place) {
  if (fd < 0 || static_cast<uint32_t>(fd) >= kPlaceFds) return;
  FdPlace& entry = process_->header()->fd_places[fd];
  // Who finds the owner finds the place that belongs to it. Nobody waits for the line to come from
  // the guest's core: what is written is seen before the answer to the call is.
  __atomic_store_n(&entry.place, place, __ATOMIC_RELEASE);
  __atomic_store_n(&entry.owner, owner, __ATOMIC_RELEASE);
}

void SystrapAddressSpace::SetAttrOfFd(int fd, const FdAttr& attr) {
  if (fd < 0 || static_cast<uint32_t>(fd) >= kAttrFds) return;
  FdAttr* entry = &process_->header()->fd_attrs[fd];
  absl::MutexLock lock(&attrs_mutex_);
  // The guest may write there too, and deceives nobody but itself.
  const uint32_t sequence = __atomic_load_n(&entry->sequence, __ATOMIC_RELAXED) | 1;
  __atomic_store_n(&entry->sequence, sequence, __ATOMIC_RELAXED);
  std::atomic_thread_fence(std::memory_order_release);
  constexpr size_t kSkip = offsetof(FdAttr, steps);
  memcpy(reinterpret_cast<char*>(entry) + kSkip, reinterpret_cast<const char*>(&attr) + kSkip,
         sizeof(attr) - kSkip);
  __atomic_store_n(&entry->sequence, sequence + 1, __ATOMIC_RELEASE);
}

bool SystrapAddressSpace::UsedAttrOfFd(int fd) const {
  return fd >= 0 && static_cast<uint32_t>(fd) < kAttrFds &&
         __atomic_load_n(&process_->header()->fd_attrs[fd].used, __ATOMIC_RELAXED) != 0;
}

FdCloses* SystrapAddressSpace::Closes() {
  return process_->platform().lanes() ? &process_->header()->closes : nullptr;
}

base::Result<size_t> SystrapAddressSpace::ReadPartial(uint64_t addr, std::span<std::byte> dst) {
  return process_->ReadMemory(addr, dst, program_);
}

base::Result<size_t> SystrapAddressSpace::WritePartial(uint64_t addr,
                                                       std::span<const std::byte> src) {
  return process_->WriteMemory(addr, src, program_);
}

std::vector<std::pair<uint64_t, uint64_t>> SystrapAddressSpace::ReservedRanges() const {
  if (!process_->patcher().ReservesTable()) return {};
  return {{kJumpTable, kJumpTable + kJumpTableSize}};
}

int64_t SystrapAddressSpace::ResidentBytes() const { return -1; }

}  // namespace platform
