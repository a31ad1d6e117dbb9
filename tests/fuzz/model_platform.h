// A platform without guests: memory is a model, and what a guest thread "runs" is the next system
// call of a script. With it the whole kernel runs in one instrumented process.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/platform.h"

namespace sentry::fuzz {

constexpr uint64_t kPage = 4096;

// Where the scripts' arguments point to: a data segment of the program.
constexpr uint64_t kArena = 0x500000, kArenaSize = 64 << 10;

struct Call {
  uint64_t nr = 0;
  std::array<uint64_t, 6> args{};
};

// The calls of one process and of all that it makes. Thread-safe.
class Script {
 public:
  virtual ~Script() = default;
  // The next call, given what the thread's last one returned. A script that is at its end ends the
  // thread.
  virtual Call Next(uint64_t last_result) = 0;
  // What the arena holds when a program starts.
  virtual std::span<const std::byte> ArenaBytes() const = 0;
};

class ModelMemory {
 public:
  base::Result<size_t> Read(uint64_t addr, std::span<std::byte> dst) { return Copy(addr, dst, {}); }
  base::Result<size_t> Write(uint64_t addr, std::span<const std::byte> src) {
    return Copy(addr, {}, src);
  }
  // 0 or an errno.
  int Apply(const platform::Order& order);
  void CopyFrom(ModelMemory& other);

 private:
  struct Area {
    uint64_t end;
    int prot;
    bool shared;
    base::Ref<base::HostFd> file;
    uint64_t offset;  // of the area's start
  };
  using PageBytes = std::array<std::byte, kPage>;

  base::Result<size_t> Copy(uint64_t addr, std::span<std::byte> dst,
                            std::span<const std::byte> src);
  const Area* Find(uint64_t addr, uint64_t* start) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Split(uint64_t addr) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Clear(uint64_t addr, uint64_t length) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  PageBytes& PageAt(const Area& area, uint64_t start, uint64_t page)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  std::map<uint64_t, Area> areas_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, std::unique_ptr<PageBytes>> pages_ ABSL_GUARDED_BY(mutex_);
};

class ModelPlatform : public platform::Platform {
 public:
  // Address spaces made from now on, and what is cloned from them, run this.
  void SetScript(std::shared_ptr<Script> script);

  const char* name() const override { return "model"; }
  base::Result<std::unique_ptr<platform::AddressSpace>> NewAddressSpace() override;
  std::span<const int> LaneCalls() const override { return {}; }
  size_t Poll() override;
  bool ShouldSpin() override { return false; }
  void Wait(int64_t deadline_ns) override;
  void Wake() override;

  // For contexts.
  void Trapped(platform::TrapListener* listener);

 private:
  absl::Mutex mutex_;
  std::shared_ptr<Script> script_ ABSL_GUARDED_BY(mutex_);
  std::deque<platform::TrapListener*> ready_ ABSL_GUARDED_BY(mutex_);
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
};

// A static program with the arena as its data.
std::string ModelProgram();

}  // namespace sentry::fuzz
