// What a fault means. Follows Linux's arch/x86/mm/fault.c and expand_stack of mm/mmap.c.
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>

#include "sentry/mm/mm_impl.h"

namespace sentry {

namespace {

constexpr uint64_t kPageFault = 14;  // x86 exception number
constexpr uint64_t kErrorWrite = 1 << 1, kErrorFetch = 1 << 4;
// Host memory made ready below a stack when it grows, so that a deep recursion asks seldom.
constexpr uint64_t kGrowChunk = 128 << 10;
// An allowed access that faults again and again with nothing changed is the host's last word.
constexpr int kMaxRefaults = 4;

// Linux: access_error. Any access right makes a page readable on x86.
bool Allows(const Vma& vma, uint64_t error_code) {
  if (error_code & kErrorFetch) return (vma.prot & PROT_EXEC) != 0;
  if (error_code & kErrorWrite) return (vma.prot & PROT_WRITE) != 0;
  return vma.prot != 0;
}

}  // namespace

uint64_t MemoryManager::Impl::StackFloor(uint64_t start) {
  auto it = vmas.Find(start);
  if (it == vmas.begin()) return min_addr;
  const Vma& below = std::prev(it)->second;
  const bool gap = !(below.flags & kVmaGrowsDown) && below.prot != 0;
  return std::max(min_addr, below.end + (gap ? kStackGuardGap : 0));
}

void MemoryManager::Impl::MakeReady(const OrderRunner& runner, Orders& orders, Vma& vma) {
  const uint64_t limit =
      std::min({PageDown(runner.Rlimit(RLIMIT_STACK)), kStackReadyMax, vma.end - min_addr});
  const uint64_t low = std::max(vma.end - limit, StackFloor(vma.start));
  if (low >= vma.host_start) return;
  orders.emplace_back(platform::order::Mmap{.addr = low,
                                            .length = vma.host_start - low,
                                            .prot = vma.prot,
                                            .shared = false,
                                            .noreserve = true});
  vma.host_start = low;
}

void MemoryManager::ReadyMainStack(OrderRunner& runner) {
  const uint64_t inside = layout().start_stack;
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  Vma* stack = impl.vmas.At(inside);
  if (stack == nullptr || !(stack->flags & kVmaGrowsDown)) return;
  Orders orders;
  const uint64_t before = stack->host_start;
  impl.MakeReady(runner, orders, *stack);
  if (orders.empty()) return;
  // Without it the stack grows by faults.
  if (!runner.RunOrders(std::move(orders)).ok()) stack->host_start = before;
}

bool MemoryManager::Impl::GrowDown(OrderRunner& runner, uint64_t addr) {
  const uint64_t page = PageDown(addr);
  auto it = vmas.Find(addr);
  if (it == vmas.end() || !(it->second.flags & kVmaGrowsDown) || page < min_addr) return false;
  Vma& vma = it->second;
  if (vma.start <= page) return false;
  const uint64_t grow = vma.start - page;
  // Linux: acct_stack_growth.
  const uint64_t stack_limit = runner.Rlimit(RLIMIT_STACK);
  if (vma.end - page > stack_limit) return false;
  if (!MayExpand(runner, vma.prot, vma.shared, vma.flags, grow)) return false;
  if ((vma.flags & kVmaLocked) && !MayLock(runner, grow)) return false;
  const uint64_t floor = StackFloor(vma.start);
  if (page < floor) return false;
  if (page < vma.host_start) {
    uint64_t low = page - std::min(page, kGrowChunk);
    low = std::max({low, floor, vma.end - std::min(PageDown(stack_limit), vma.end)});
    low = std::min(low, page);
    Orders orders;
    orders.emplace_back(platform::order::Mmap{.addr = low,
                                              .length = vma.host_start - low,
                                              .prot = vma.prot,
                                              .shared = false,
                                              .noreserve = true});
    if (!runner.RunOrders(std::move(orders)).ok()) return false;
    vma.host_start = low;
  }
  ++changes;
  vmas.Update(vma.start, vma.end, [page](Vma& v) { v.start = page; });
  return true;
}

FaultOutcome MemoryManager::HandleFault(OrderRunner& runner, const platform::Trap& trap) {
  const FaultOutcome as_host{.signo = trap.signo, .si_code = trap.si_code};
  if (trap.trapno != kPageFault || (trap.signo != SIGSEGV && trap.signo != SIGBUS)) return as_host;
  const FaultOutcome unmapped{.signo = SIGSEGV, .si_code = SEGV_MAPERR};
  const uint64_t addr = trap.fault_addr;
  if (addr >= impl_->max_addr) return unmapped;

  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  const Vma* vma = impl.vmas.At(addr);
  if (vma == nullptr) {
    if (!impl.GrowDown(runner, addr)) return unmapped;
    return {.retry = true};
  }
  if (!Allows(*vma, trap.error_code)) return {.signo = SIGSEGV, .si_code = SEGV_ACCERR};
  // Past the end of the file, or the host could not read it.
  if (trap.signo == SIGBUS) return as_host;

  // Allowed, and yet it faulted: mapped or changed a moment ago by another thread, or not as the
  // host has it. From the second time on the host is told again. A refusal shows at the next fault.
  const uint64_t page = PageDown(addr);
  auto& seen = impl.refaults[(page / kPageSize) % impl.refaults.size()];
  if (seen.page != page || seen.changes != impl.changes) seen = {page, impl.changes, 0};
  if (++seen.count > kMaxRefaults) return as_host;
  if (seen.count > 1) {
    Orders protect;
    Impl::AddMprotectOrder(protect, page, page + kPageSize, vma->prot);
    auto done = runner.RunOrders(std::move(protect));
    if (!done.ok() && done.error().code() == ENOMEM) {  // the host has nothing there
      Orders map;
      Impl::AddMapOrder(map, VmaSet::Cut(*vma, page, page + kPageSize));
      (void)runner.RunOrders(std::move(map));
    }
  }
  return {.retry = true};
}

}  // namespace sentry
