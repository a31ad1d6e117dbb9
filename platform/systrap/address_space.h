// A guest address space of the systrap platform.
#pragma once

#include <atomic>
#include <memory>
#include <span>

#include "absl/synchronization/mutex.h"
#include "platform/exec_in_place.h"
#include "platform/fd_lane.h"
#include "platform/platform.h"
#include "platform/systrap/context.h"
#include "platform/systrap/stub_process.h"
#include "sentry/base/ref.h"

namespace platform {

class SystrapAddressSpace final : public AddressSpace,
                                  public ExecInPlace,
                                  public FdAttrs,
                                  public ClosesFds {
 public:
  // `process` has a host process already, with its first thread in slot 0, or gets one by a fork.
  SystrapAddressSpace(base::Ref<StubProcess> process, const Limits& limits)
      : SystrapAddressSpace(std::move(process), limits, 1) {}
  ~SystrapAddressSpace() override;

  const Limits& limits() const override { return limits_; }
  base::Result<std::unique_ptr<Context>> PrepareThread() override;
  base::Result<std::unique_ptr<AddressSpace>> PrepareFork() override;
  std::unique_ptr<Context> TakeMainContext() override { return std::move(main_); }
  void LeaveText() override { process_->patcher().Disable(); }
  std::unique_ptr<AddressSpace> PrepareExec() override;
  int64_t ResidentBytes() const override;
  int host_pid() const override { return process_->pid(); }
  void Kill() override {
    if (IsCurrent()) process_->Kill();
  }
  std::vector<std::pair<uint64_t, uint64_t>> ReservedRanges() const override;
  void DropFileWindows() override {
    process_->NoteOtherCredentials();
    process_->windows().DropAll();
    process_->ClearFileBegins();
  }
  void TakeThread(Context& thread) override;
  bool MapLanes(const base::Ref<base::HostFd>& arena) override;
  bool HasLanes(const base::Ref<base::HostFd>& arena) const override {
    return process_->lanes().Has(arena);
  }
  void ClearLanes() override;
  void DropLanes() override { process_->lanes().Drop(); }
  bool MayMapPaths() const override;
  bool MapPaths(const base::Ref<base::HostFd>& table) override;
  bool HasPaths(const base::Ref<base::HostFd>& table) const override {
    return process_->paths().Has(table);
  }
  void DropPaths() override { process_->paths().Drop(); }
  void SetPlaceOfFd(int fd, uint64_t owner, uint64_t place) override;
  void SetAttrOfFd(int fd, const FdAttr& attr) override;
  bool UsedAttrOfFd(int fd) const override;
  FdCloses* Closes() override;
  void SetLaneOfFd(int fd, uint64_t in, uint64_t out) override;
  LaneEpoll* LaneEpollAt(uint32_t index) override {
    return index < kLaneEpolls ? &process_->header()->lane_epolls[index] : nullptr;
  }
  FileLane* FileLaneAt(int fd) override;
  std::span<std::byte> FileBeginAt(uint32_t place) override;
  base::Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) override;
  base::Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) override;

  // The first thread will be in slot `index`, after a fork.
  void PrepareMain(uint32_t index);
  uint32_t main_index() const { return main_index_; }
  // The process exists: makes its first context, which the caller adds to the platform.
  ThreadContext* MakeMain();
  ThreadContext* main() const { return main_.get(); }
  StubProcess& process() const { return *process_; }

 private:
  static constexpr uint32_t kNotYet = ~0u;
  SystrapAddressSpace(base::Ref<StubProcess> process, const Limits& limits, uint32_t program)
      : process_(std::move(process)), program_(program), limits_(limits) {}
  // The process has not gone on to another program, and is with this one already.
  bool IsCurrent() const { return program_ == process_->program(); }

  base::Ref<StubProcess> process_;
  // Which of those that the process executes one behind the other is here.
  std::atomic<uint32_t> program_;
  const Limits limits_;
  uint32_t main_index_ = 0;
  std::unique_ptr<ThreadContext> main_;
  absl::Mutex attrs_mutex_;  // who writes attributes of descriptors; a leaf
};

}  // namespace platform
