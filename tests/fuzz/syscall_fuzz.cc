// System calls with any arguments over any guest memory: every decoder of a struct that a guest
// passes (msghdr, cmsghdr, iovec, sigaction, timespec, epoll_event, paths, ...), and the kernel
// behind them, in one process. An input is a list of calls and the bytes that their pointers see.
//
// What is asked for: no sanitizer report, and that SIGKILL ends whatever the calls have made.
#include <fcntl.h>
#include <fuzzer/FuzzedDataProvider.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "sentry/boot/filesystems.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/kernel/fs_context.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/poller.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/syscalls/syscall.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/vfs.h"
#include "tests/fuzz/model_platform.h"

namespace sentry::fuzz {
namespace {

constexpr int kPatienceMs = 20;      // for calls that wait
constexpr int kKillLimitMs = 20000;  // from SIGKILL to the end
constexpr size_t kMaxCalls = 40;
constexpr uint64_t kFuzzBytesAt = 0x1000;  // of the arena; below are the prelude's

// Strings and results of the prelude, by their place in the arena.
constexpr std::pair<uint64_t, const char*> kStrings[] = {
    {0x00, "/f"},     {0x10, "/proc"},     {0x20, "proc"}, {0x30, "/pts"},
    {0x40, "devpts"}, {0x50, "/pts/ptmx"}, {0x60, "/"},    {0x70, "/proc/self/maps"},
    {0x80, "/bin/p"}, {0x90, "user.name"}, {0xa0, "/d"},   {0xb0, "/proc/self/mem"},
    {0xc0, "tmpfs"},
};

// Makes /proc, /pts, a directory and a descriptor of each kind.
std::vector<Call> Prelude() {
  const auto at = [](uint64_t offset) { return kArena + offset; };
  return {
      {SYS_mkdir, {at(0x10), 0755}},
      {SYS_mkdir, {at(0x30), 0755}},
      {SYS_mkdir, {at(0xa0), 0755}},
      {SYS_mount, {at(0x20), at(0x10), at(0x20), 0, 0}},
      {SYS_mount, {at(0x40), at(0x30), at(0x40), 0, 0}},
      {SYS_open, {at(0x00), O_RDWR | O_CREAT, 0644}},                          // 0
      {SYS_socketpair, {AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, at(0x800)}},   // 1, 2
      {SYS_pipe2, {at(0x810), O_NONBLOCK}},                                    // 3, 4
      {SYS_eventfd2, {1, O_NONBLOCK}},                                         // 5
      {SYS_epoll_create1, {0}},                                                // 6
      {SYS_timerfd_create, {CLOCK_MONOTONIC, O_NONBLOCK}},                     // 7
      {SYS_inotify_init1, {O_NONBLOCK}},                                       // 8
      {SYS_memfd_create, {at(0x20), 3}},                                       // 9
      {SYS_open, {at(0x60), O_DIRECTORY}},                                     // 10
      {SYS_socketpair, {AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, at(0x820)}},  // 11, 12
      {SYS_open, {at(0x50), O_RDWR | O_NONBLOCK | O_NOCTTY}},                  // 13
      {SYS_open, {at(0x70), O_RDONLY}},                                        // 14
      {SYS_write, {0, at(0), 0x100}},
  };
}

class FuzzScript : public Script {
 public:
  FuzzScript(const uint8_t* data, size_t size) : calls_(Prelude()), arena_(kArenaSize) {
    for (const auto& [offset, text] : kStrings) {
      memcpy(arena_.data() + offset, text, strlen(text) + 1);
    }
    FuzzedDataProvider in(data, size);
    const size_t count = in.ConsumeIntegralInRange<size_t>(1, kMaxCalls);
    for (size_t i = 0; i < count && in.remaining_bytes() > 0; ++i) calls_.push_back(NextCall(in));
    const std::string rest = in.ConsumeRemainingBytesAsString();
    memcpy(arena_.data() + kFuzzBytesAt, rest.data(),
           std::min(rest.size(), arena_.size() - kFuzzBytesAt));
  }
  Call Next(uint64_t last_result) override {
    absl::MutexLock lock(&mutex_);
    if (next_ == calls_.size()) return {SYS_exit_group, {0}};
    Call call = calls_[next_++];
    for (uint64_t& arg : call.args) {
      if (arg == kLastResult) arg = last_result;
    }
    return call;
  }
  std::span<const std::byte> ArenaBytes() const override { return arena_; }

 private:
  static constexpr uint64_t kLastResult = 0xfeed'face'cafe'f00d;

  static Call NextCall(FuzzedDataProvider& in) {
    Call call;
    call.nr = in.ConsumeIntegralInRange<uint64_t>(0, 470);
    for (uint64_t& arg : call.args) {
      switch (in.ConsumeIntegralInRange<int>(0, 7)) {
        case 0:
        case 1:
          arg = in.ConsumeIntegral<uint8_t>() % 32;
          break;
        case 2:
        case 3:
          arg = kArena + kFuzzBytesAt + in.ConsumeIntegral<uint8_t>() * 8;
          break;
        case 4:
          arg = kArena + in.ConsumeIntegralInRange<uint64_t>(0, 15) * 0x10;  // a string
          break;
        case 5:
          arg = in.ConsumeIntegral<uint64_t>();
          break;
        case 6:
          arg = in.ConsumeBool() ? kLastResult : static_cast<uint64_t>(int64_t{AT_FDCWD});
          break;
        case 7:
          arg = in.ConsumeIntegral<uint16_t>();
          break;
      }
    }
    return call;
  }

  absl::Mutex mutex_;
  std::vector<Call> calls_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::byte> arena_;
};

// Ignores its children and sleeps.
class InitScript : public Script {
 public:
  InitScript() : arena_(64) {
    const uint64_t ignore = 1;  // SIG_IGN, as sigaction's first word
    memcpy(arena_.data(), &ignore, sizeof(ignore));
  }
  Call Next(uint64_t /*last_result*/) override {
    if (!std::exchange(begun_, true)) return {SYS_rt_sigaction, {SIGCHLD, kArena, 0, 8}};
    return {SYS_pause, {}};
  }
  std::span<const std::byte> ArenaBytes() const override { return arena_; }

 private:
  bool begun_ = false;
  std::vector<std::byte> arena_;
};

// A sentry without a host.
class World {
 public:
  World()
      : platform_(new ModelPlatform),
        kernel_(std::unique_ptr<platform::Platform>(platform_),
                Cgroup::Limits{.pids = 200, .memory = 1 << 30, .cpu = 2}),
        poller_(*platform_),
        scheduler_({.workers = 2, .poller = &poller_}) {
    kernel_.set_dispatch(&DispatchSyscall);
    RegisterFilesystems(kernel_);
    Start(std::make_shared<InitScript>());
  }

  // Runs a script to its end.
  void Run(std::shared_ptr<Script> script) {
    Start(std::move(script));
    if (AwaitEnd(kPatienceMs)) return;
    Kill();
    for (int waited = 0; !AwaitEnd(100); waited += 100) {
      if (waited >= kKillLimitMs) {
        fprintf(stderr, "SIGKILL did not end every process\n");
        abort();
      }
      Kill();  // what has been forked meanwhile
    }
  }

 private:
  void Start(std::shared_ptr<Script> script) {
    platform_->SetScript(std::move(script));
    absl::Notification done;
    fiber::Spawn(
        "start",
        [&] {
          StartOnFiber();
          done.Notify();
        },
        nullptr);
    done.WaitForNotification();
  }

  void StartOnFiber() {
    base::Ref<Credentials> creds = Credentials::NewRoot(kernel_.root_user_ns());
    auto ns =
        MountNamespace::New(Vfs::NewMount(NewTmpfs({.size = 64 << 20, .inodes = 1000}), 0, "root"));
    const Path root{ns->root_mount(), ns->root_mount()->root()};
    const WalkContext ctx{*creds, *ns, root, root, 022, 0};
    Vfs& vfs = kernel_.vfs();
    if (!vfs.Mkdir(ctx, "/bin", 0755).ok()) abort();
    {
      auto file = vfs.Open(ctx, "/bin/p", O_WRONLY | O_CREAT, 0755);
      if (!file.ok()) abort();
      const std::string program = ModelProgram();
      BufferSource source(std::as_bytes(std::span(program)));
      if (!(*file)->PWrite(source, 0, false).ok()) abort();
    }
    Kernel::NewProcess process;
    process.creds = creds;
    process.fs = base::MakeRef<FsContext>(root, root, 022);
    process.fds = base::MakeRef<FdTable>();
    process.mount_ns = ns;
    process.path = "/bin/p";
    process.argv = {"p"};
    process.rlimits = {{RLIMIT_NOFILE, {256, 256}}, {RLIMIT_FSIZE, {16 << 20, 16 << 20}}};
    auto group = kernel_.CreateProcess(std::move(process));
    if (!group.ok()) {
      fprintf(stderr, "no process: error %d\n", group.error().code());
      abort();
    }
    kernel_.StartProcess(**group);
  }

  std::vector<base::Ref<ThreadGroup>> Processes() {
    return kernel_.ThreadGroups(*kernel_.root_pid_ns());
  }
  bool AwaitEnd(int limit_ms) {
    for (int waited_us = 0; waited_us < limit_ms * 1000; waited_us += 200) {
      if (Processes().size() == 1) return true;
      usleep(200);
    }
    return false;
  }
  void Kill() {
    for (const auto& group : Processes()) {
      if (group->PidIn(*kernel_.root_pid_ns()) != 1) group->SendKernelSignal(SIGKILL);
    }
  }

  ModelPlatform* const platform_;
  Kernel kernel_;
  PlatformPoller poller_;
  fiber::Scheduler scheduler_;
};

}  // namespace
}  // namespace sentry::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto* world = new sentry::fuzz::World;
  world->Run(std::make_shared<sentry::fuzz::FuzzScript>(data, size));
  return 0;
}
