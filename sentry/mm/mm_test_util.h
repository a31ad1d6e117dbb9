// An address space and a runner for tests: orders are applied to a model of pages.
#pragma once

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "platform/test_space.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/mm/vma_set.h"

namespace sentry::test {

// One page as the host would have it.
struct Page {
  int prot = 0;
  bool shared = false;
  const base::HostFd* file = nullptr;
  uint64_t offset = 0;
  friend bool operator==(const Page&, const Page&) = default;
};

class FakeAddressSpace : public platform::test::HostlessSpace {
 public:
  explicit FakeAddressSpace(uint64_t min = 0x10000, uint64_t max = 0x7fff'0000'0000,
                            uint64_t vdso = 0)
      : HostlessSpace({.min_address = min, .max_address = max, .vdso_base = vdso}) {}

  base::Result<std::unique_ptr<platform::AddressSpace>> PrepareFork() override {
    auto child = std::make_unique<FakeAddressSpace>(limits().min_address, limits().max_address);
    return std::unique_ptr<platform::AddressSpace>(std::move(child));
  }
  int64_t ResidentBytes() const override { return 0; }
  std::vector<std::pair<uint64_t, uint64_t>> ReservedRanges() const override { return reserved; }

  base::Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) override {
    for (size_t i = 0; i < dst.size(); ++i) {
      if (!pages.contains(PageDown(addr + i))) {
        if (i == 0) return base::Error(EFAULT);
        return i;
      }
      auto it = written.find(addr + i);
      dst[i] = it == written.end() ? std::byte{0} : it->second;
    }
    return dst.size();
  }
  base::Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) override {
    for (size_t i = 0; i < src.size(); ++i) {
      auto page = pages.find(PageDown(addr + i));
      if (page == pages.end() || !(page->second.prot & PROT_WRITE)) {
        if (i == 0) return base::Error(EFAULT);
        return i;
      }
      written[addr + i] = src[i];
    }
    return src.size();
  }

  // Carries one order out on the model; an errno, or 0.
  int Apply(const platform::Order& order) {
    namespace o = platform::order;
    if (const auto* map = std::get_if<o::Mmap>(&order)) {
      if (!Inside(map->addr, map->length) || map->offset % kPageSize) return EINVAL;
      for (uint64_t at = 0; at < map->length; at += kPageSize) {
        Page page{map->prot, map->shared, map->file.get(), 0};
        if (map->file) page.offset = map->offset + at;
        SetPage(map->addr + at, page);
      }
    } else if (const auto* unmap = std::get_if<o::Munmap>(&order)) {
      if (!Inside(unmap->addr, unmap->length)) return EINVAL;
      Erase(unmap->addr, unmap->length);
    } else if (const auto* protect = std::get_if<o::Mprotect>(&order)) {
      if (!Inside(protect->addr, protect->length)) return EINVAL;
      for (uint64_t at = 0; at < protect->length; at += kPageSize) {
        auto it = pages.find(protect->addr + at);
        if (it == pages.end()) return ENOMEM;
        it->second.prot = protect->prot;
      }
    } else if (const auto* move = std::get_if<o::Mremap>(&order)) {
      return ApplyMremap(*move);
    } else if (const auto* write = std::get_if<o::Write>(&order)) {
      if (write->bytes.size() > 4096) return EINVAL;
      if (!Write(write->addr, write->bytes).ok()) return EFAULT;
    }
    return 0;
  }

  std::vector<std::pair<uint64_t, uint64_t>> reserved;
  std::map<uint64_t, Page> pages;
  std::map<uint64_t, std::byte> written;

 private:
  bool Inside(uint64_t addr, uint64_t length) const {
    return addr % kPageSize == 0 && length % kPageSize == 0 && length > 0 &&
           addr >= limits().min_address && addr + length <= limits().max_address;
  }
  void SetPage(uint64_t addr, const Page& page) {
    ForgetBytes(addr, kPageSize);
    pages[addr] = page;
  }
  void ForgetBytes(uint64_t addr, uint64_t length) {
    written.erase(written.lower_bound(addr), written.lower_bound(addr + length));
  }
  void Erase(uint64_t addr, uint64_t length) {
    pages.erase(pages.lower_bound(addr), pages.lower_bound(addr + length));
    ForgetBytes(addr, length);
  }
  int ApplyMremap(const platform::order::Mremap& move) {
    if (!Inside(move.old_addr, move.old_length) || !Inside(move.new_addr, move.new_length)) {
      return EINVAL;
    }
    std::vector<Page> moved;
    for (uint64_t at = 0; at < move.old_length; at += kPageSize) {
      auto it = pages.find(move.old_addr + at);
      if (it == pages.end()) return EFAULT;
      moved.push_back(it->second);
    }
    while (moved.size() < move.new_length / kPageSize) {
      Page page = moved.back();
      if (page.file) page.offset += kPageSize;
      moved.push_back(page);
    }
    Erase(move.old_addr, move.old_length);
    Erase(move.new_addr, move.new_length);
    for (uint64_t at = 0; at < move.new_length; at += kPageSize) {
      pages[move.new_addr + at] = moved[at / kPageSize];
    }
    return 0;
  }
};

// Runs orders on the model at once, or queues them until Flush.
class FakeRunner : public OrderRunner {
 public:
  explicit FakeRunner(FakeAddressSpace* as) : as_(as) {}

  base::Result<std::vector<uint64_t>> RunOrders(std::vector<platform::Order> orders) override {
    for (const platform::Order& order : orders) {
      all.push_back(order);
      const int error = fail_next ? std::exchange(fail_next, 0) : model ? as_->Apply(order) : 0;
      if (error != 0) return base::Error(error);
    }
    return std::vector<uint64_t>(orders.size());
  }
  void QueueOrders(std::vector<platform::Order> orders,
                   std::function<int64_t(int)> on_failure) override {
    queued_.emplace_back(std::move(orders), std::move(on_failure));
  }
  bool CanQueue() const override { return can_queue; }
  uint64_t Rlimit(int resource) const override {
    auto it = limits.find(resource);
    return it == limits.end() ? RLIM_INFINITY : it->second;
  }
  bool MayLockMemory() const override { return may_lock; }

  // The way back to the guest: 0, or what on_failure says.
  int64_t Flush() {
    int64_t result = 0;
    auto queued = std::exchange(queued_, {});
    for (auto& [orders, on_failure] : queued) {
      auto done = RunOrders(std::move(orders));
      if (!done.ok()) result = on_failure(done.error().code());
    }
    return result;
  }

  bool can_queue = false;
  bool model = true;  // apply orders to the pages
  bool may_lock = false;
  int fail_next = 0;  // errno of the next order
  std::map<int, uint64_t> limits{{RLIMIT_STACK, 8 << 20}};
  std::vector<platform::Order> all;

 private:
  FakeAddressSpace* const as_;
  std::vector<std::pair<std::vector<platform::Order>, std::function<int64_t(int)>>> queued_;
};

// A file over a host descriptor.
class FakeFile : public FileDescription {
 public:
  FakeFile(base::Ref<base::HostFd> host, uint32_t flags)
      : FileDescription(Path{}, flags), host_(std::move(host)) {}
  base::Result<HostMapping> Mmap(uint64_t offset, uint64_t, int, bool) override {
    return HostMapping{host_, offset};
  }

 private:
  const base::Ref<base::HostFd> host_;
};

}  // namespace sentry::test
