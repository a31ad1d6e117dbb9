#include "tests/fuzz/model_platform.h"

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace sentry::fuzz {

namespace {

namespace o = platform::order;

constexpr uint64_t kMinAddress = 0x10000, kMaxAddress = 0x7fff'0000'0000;

bool Inside(uint64_t addr, uint64_t length) {
  return addr % kPage == 0 && length % kPage == 0 && length > 0 && addr >= kMinAddress &&
         addr < kMaxAddress && length <= kMaxAddress - addr;
}

class ModelAddressSpace;

constexpr size_t kFpuSize = 832;

class ModelContext : public platform::Context {
 public:
  ModelContext(ModelPlatform& platform, ModelAddressSpace& as) : platform_(platform), as_(as) {}
  void set_listener(platform::TrapListener* listener) override { listener_ = listener; }
  platform::Regs& regs() override { return regs_; }
  const Call& call() override {
    const platform::Regs& r = regs_;
    call_ = {r.orig_rax, {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9}};
    return call_;
  }
  void SetResult(uint64_t value) override { regs_.rax = value; }
  const platform::Trap& trap() const override { return trap_; }
  platform::AddressSpace& address_space() override;
  void QueueOrder(platform::Order order) override { orders_.push_back(std::move(order)); }
  void Resume(platform::ResumeMode mode) override;
  void Interrupt() override { interrupted_.store(true); }
  bool WaitsInFutex() const override { return false; }
  size_t fpu_frame_size() const override { return kFpuSize; }
  void RereadCall() override {}  // call() does each time
  std::span<const std::byte> saved_fpu() const override {
    static constexpr std::byte kInitial[kFpuSize] = {};
    return kInitial;
  }
  int64_t CpuTimeNs() const override { return 0; }
  int host_tid() const override { return 0; }
  base::Status FlushWrites() override { return base::Ok(); }
  void Exit() override {}
  // Nobody sleeps in a script: futex(2), the one call that comes here, finds another value.
  void AnswerInLane(int /*nr*/, int64_t /*remaining_ns*/, bool /*then_trap*/) override {
    in_lane_ = true;
  }
  void Publish(const Identity& /*identity*/) override {}
  base::Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) override;
  base::Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) override;

 private:
  // Carries the orders out; false: one failed, and trap_ says which.
  bool RunOrders();

  ModelPlatform& platform_;
  ModelAddressSpace& as_;
  platform::TrapListener* listener_ = nullptr;
  platform::Regs regs_{};
  Call call_;
  platform::Trap trap_{};
  std::vector<platform::Order> orders_;
  std::atomic<bool> interrupted_{false};
  bool in_lane_ = false;
};

class ModelAddressSpace : public platform::AddressSpace {
 public:
  ModelAddressSpace(ModelPlatform& platform, std::shared_ptr<Script> script)
      : script(std::move(script)),
        platform_(platform),
        main_(std::make_unique<ModelContext>(platform, *this)) {}
  const platform::Limits& limits() const override { return limits_; }
  base::Result<std::unique_ptr<platform::Context>> PrepareThread() override {
    return std::unique_ptr<platform::Context>(std::make_unique<ModelContext>(platform_, *this));
  }
  base::Result<std::unique_ptr<platform::AddressSpace>> PrepareFork() override {
    auto child = std::make_unique<ModelAddressSpace>(platform_, script);
    child->filled = true;
    return std::unique_ptr<platform::AddressSpace>(std::move(child));
  }
  std::unique_ptr<platform::Context> TakeMainContext() override { return std::move(main_); }
  int64_t ResidentBytes() const override { return -1; }
  int host_pid() const override { return 0; }
  void Kill() override { gone.store(true); }
  base::Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) override {
    return memory.Read(addr, dst);
  }
  base::Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) override {
    return memory.Write(addr, src);
  }

  ModelMemory memory;
  const std::shared_ptr<Script> script;
  std::atomic<bool> filled{false};  // the arena has its bytes
  std::atomic<bool> gone{false};

 private:
  const platform::Limits limits_{
      .min_address = kMinAddress, .max_address = kMaxAddress, .vdso_base = 0};
  ModelPlatform& platform_;
  std::unique_ptr<platform::Context> main_;
};

platform::AddressSpace& ModelContext::address_space() { return as_; }

base::Result<size_t> ModelContext::ReadPartial(uint64_t addr, std::span<std::byte> dst) {
  return as_.memory.Read(addr, dst);
}
base::Result<size_t> ModelContext::WritePartial(uint64_t addr, std::span<const std::byte> src) {
  return as_.memory.Write(addr, src);
}

bool ModelContext::RunOrders() {
  std::vector<platform::Order> orders = std::exchange(orders_, {});
  trap_.results.clear();
  for (size_t i = 0; i < orders.size(); ++i) {
    uint64_t result = 0;
    int error = 0;
    if (auto* fork = std::get_if<o::Fork>(&orders[i])) {
      static_cast<ModelAddressSpace*>(fork->child)->memory.CopyFrom(as_.memory);
    } else {
      error = as_.memory.Apply(orders[i]);
      if (auto* move = std::get_if<o::Mremap>(&orders[i])) result = move->new_addr;
    }
    if (error != 0) {
      trap_.kind = platform::TrapKind::kOrderFailed;
      trap_.order_index = i;
      trap_.error = error;
      return false;
    }
    trap_.results.push_back(result);
  }
  return true;
}

void ModelContext::Resume(platform::ResumeMode mode) {
  const bool in_lane = std::exchange(in_lane_, false);
  if (as_.gone.load()) {
    trap_.kind = platform::TrapKind::kGone;
  } else if (RunOrders()) {
    if (in_lane) regs_.rax = static_cast<uint64_t>(-int64_t{EAGAIN});
    if (mode == platform::ResumeMode::kOrdersOnly) {
      trap_.kind = platform::TrapKind::kOrdersDone;
    } else if (interrupted_.exchange(false)) {
      trap_.kind = platform::TrapKind::kInterrupt;
      regs_.orig_rax = UINT64_MAX;
    } else {
      if (!as_.filled.exchange(true)) (void)as_.memory.Write(kArena, as_.script->ArenaBytes());
      const fuzz::Call call = as_.script->Next(regs_.rax);
      trap_.kind = platform::TrapKind::kSyscall;
      regs_.orig_rax = call.nr;
      regs_.rax = static_cast<uint64_t>(-int64_t{ENOSYS});
      regs_.rdi = call.args[0];
      regs_.rsi = call.args[1];
      regs_.rdx = call.args[2];
      regs_.r10 = call.args[3];
      regs_.r8 = call.args[4];
      regs_.r9 = call.args[5];
    }
  }
  platform_.Trapped(listener_);
}

}  // namespace

// --- memory ---

const ModelMemory::Area* ModelMemory::Find(uint64_t addr, uint64_t* start) {
  auto it = areas_.upper_bound(addr);
  if (it == areas_.begin()) return nullptr;
  --it;
  if (it->second.end <= addr) return nullptr;
  *start = it->first;
  return &it->second;
}

ModelMemory::PageBytes& ModelMemory::PageAt(const Area& area, uint64_t start, uint64_t page) {
  std::unique_ptr<PageBytes>& bytes = pages_[page];
  if (bytes == nullptr) {
    bytes = std::make_unique<PageBytes>();
    bytes->fill(std::byte{0});
    if (area.file) {
      (void)!pread(area.file->get(), bytes->data(), kPage,
                   static_cast<off_t>(area.offset + (page - start)));
    }
  }
  return *bytes;
}

base::Result<size_t> ModelMemory::Copy(uint64_t addr, std::span<std::byte> dst,
                                       std::span<const std::byte> src) {
  absl::MutexLock lock(&mutex_);
  const size_t size = std::max(dst.size(), src.size());
  size_t done = 0;
  while (done < size) {
    const uint64_t at = addr + done;
    uint64_t start = 0;
    const Area* area = Find(at, &start);
    if (area == nullptr || !(area->prot & (src.empty() ? PROT_READ : PROT_WRITE))) break;
    const uint64_t page = at / kPage * kPage;
    const size_t n = std::min<size_t>(size - done, page + kPage - at);
    PageBytes& bytes = PageAt(*area, start, page);
    if (src.empty()) {
      memcpy(dst.data() + done, bytes.data() + (at - page), n);
    } else {
      memcpy(bytes.data() + (at - page), src.data() + done, n);
    }
    done += n;
  }
  if (done == 0 && size > 0) return base::Error(EFAULT);
  return done;
}

void ModelMemory::Split(uint64_t addr) {
  uint64_t start = 0;
  const Area* found = Find(addr, &start);
  if (found == nullptr || start == addr) return;
  Area upper = *found;
  upper.offset += addr - start;
  areas_[start].end = addr;
  areas_[addr] = std::move(upper);
}

void ModelMemory::Clear(uint64_t addr, uint64_t length) {
  Split(addr);
  Split(addr + length);
  areas_.erase(areas_.lower_bound(addr), areas_.lower_bound(addr + length));
  pages_.erase(pages_.lower_bound(addr), pages_.lower_bound(addr + length));
}

int ModelMemory::Apply(const platform::Order& order) {
  if (const auto* write = std::get_if<o::Write>(&order)) {
    if (write->bytes.size() > kPage) return EINVAL;
    auto n = Write(write->addr, write->bytes);
    return n.ok() && *n == write->bytes.size() ? 0 : EFAULT;
  }
  absl::MutexLock lock(&mutex_);
  if (const auto* map = std::get_if<o::Mmap>(&order)) {
    if (!Inside(map->addr, map->length) || map->offset % kPage != 0) return EINVAL;
    Clear(map->addr, map->length);
    areas_[map->addr] = {map->addr + map->length, map->prot, map->shared, map->file, map->offset};
  } else if (const auto* unmap = std::get_if<o::Munmap>(&order)) {
    if (!Inside(unmap->addr, unmap->length)) return EINVAL;
    Clear(unmap->addr, unmap->length);
  } else if (const auto* protect = std::get_if<o::Mprotect>(&order)) {
    if (!Inside(protect->addr, protect->length)) return EINVAL;
    Split(protect->addr);
    Split(protect->addr + protect->length);
    for (auto it = areas_.lower_bound(protect->addr);
         it != areas_.end() && it->first < protect->addr + protect->length; ++it) {
      it->second.prot = protect->prot;
    }
  } else if (const auto* advise = std::get_if<o::Madvise>(&order)) {
    if (!Inside(advise->addr, advise->length)) return EINVAL;
  } else if (const auto* move = std::get_if<o::Mremap>(&order)) {
    if (!Inside(move->old_addr, move->old_length) || !Inside(move->new_addr, move->new_length)) {
      return EINVAL;
    }
    uint64_t start = 0;
    const Area* found = Find(move->old_addr, &start);
    if (found == nullptr) return EFAULT;
    Area area = *found;
    area.offset += move->old_addr - start;
    area.end = move->new_addr + move->new_length;
    Clear(move->old_addr, move->old_length);
    Clear(move->new_addr, move->new_length);
    areas_[move->new_addr] = std::move(area);
  }
  return 0;
}

void ModelMemory::CopyFrom(ModelMemory& other) {
  std::map<uint64_t, Area> areas;
  std::map<uint64_t, std::unique_ptr<PageBytes>> pages;
  {
    absl::MutexLock lock(&other.mutex_);
    areas = other.areas_;
    for (const auto& [at, bytes] : other.pages_) pages[at] = std::make_unique<PageBytes>(*bytes);
  }
  absl::MutexLock lock(&mutex_);
  areas_ = std::move(areas);
  pages_ = std::move(pages);
}

// --- platform ---

void ModelPlatform::SetScript(std::shared_ptr<Script> script) {
  absl::MutexLock lock(&mutex_);
  script_ = std::move(script);
}

base::Result<std::unique_ptr<platform::AddressSpace>> ModelPlatform::NewAddressSpace() {
  absl::MutexLock lock(&mutex_);
  return std::unique_ptr<platform::AddressSpace>(
      std::make_unique<ModelAddressSpace>(*this, script_));
}

void ModelPlatform::Trapped(platform::TrapListener* listener) {
  absl::MutexLock lock(&mutex_);
  ready_.push_back(listener);
}

size_t ModelPlatform::Poll() {
  std::deque<platform::TrapListener*> ready;
  {
    absl::MutexLock lock(&mutex_);
    ready.swap(ready_);
  }
  for (platform::TrapListener* listener : ready) listener->OnTrap();
  return ready.size();
}

void ModelPlatform::Wait(int64_t deadline_ns) {
  {
    absl::MutexLock lock(&mutex_);
    const auto event = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return woken_ || !ready_.empty();
    };
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const int64_t now_ns = now.tv_sec * 1'000'000'000 + now.tv_nsec;
    const absl::Duration left = deadline_ns == INT64_MAX ? absl::InfiniteDuration()
                                                         : absl::Nanoseconds(deadline_ns - now_ns);
    mutex_.AwaitWithTimeout(absl::Condition(&event), left);
    woken_ = false;
  }
  Poll();
}

void ModelPlatform::Wake() {
  absl::MutexLock lock(&mutex_);
  woken_ = true;
}

std::string ModelProgram() {
  Elf64_Ehdr header{};
  memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_ehsize = sizeof(header);
  header.e_phoff = sizeof(header);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 2;
  header.e_entry = 0x400100;
  Elf64_Phdr segments[2] = {};
  segments[0] = {PT_LOAD, PF_R | PF_X, 0, 0x400000, 0x400000, 0x200, 0x200, kPage};
  segments[1] = {PT_LOAD, PF_R | PF_W, 0x1000, kArena, kArena, 0, kArenaSize, kPage};
  std::string out(0x1000, '\x90');
  memcpy(out.data(), &header, sizeof(header));
  memcpy(out.data() + sizeof(header), segments, sizeof(segments));
  return out;
}

}  // namespace sentry::fuzz
