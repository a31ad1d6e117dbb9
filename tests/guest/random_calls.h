// What random_calls makes its calls of: numbers, and arguments by the shapes of the one table of
// system calls.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <iterator>
#include <vector>

namespace random_calls {

inline constexpr int kCallCount = 470;

inline uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

enum class Kind : uint8_t { kNone, kNumber, kLength, kFlags, kPid, kSignal, kFd, kPath, kPointer };

struct Shape {
  const char* name = nullptr;
  std::array<Kind, 6> args{};
};

#define VAL(n) Kind::kNumber
#define PTR(n) Kind::kPointer
#define LEN(n) Kind::kLength
#define OFF(n) Kind::kLength
#define FLAGS(n) Kind::kFlags
#define MODE(n) Kind::kFlags
#define ID(n) Kind::kNumber
#define PID(n) Kind::kPid
#define SIG(n) Kind::kSignal
#define FD(n) Kind::kFd
#define DIRFD(n) Kind::kFd
#define PATH(n) Kind::kPath
#define STR(n) Kind::kPath
#define ARGV(n) Kind::kPointer
#define IN(n, size) Kind::kPointer
#define OUT(n, size) Kind::kPointer
#define INOUT(n, size) Kind::kPointer
#define IN_LEN(n, a) Kind::kPointer
#define OUT_LEN(n, a) Kind::kPointer
#define IN_CNT(n, a, size) Kind::kPointer
#define OUT_CNT(n, a, size) Kind::kPointer
#define INOUT_CNT(n, a, size) Kind::kPointer
#define IOV_IN(n, a) Kind::kPointer
#define IOV_OUT(n, a) Kind::kPointer
#define SOCKADDR_IN(n, a) Kind::kPointer
#define SOCKADDR_OUT(n, a) Kind::kPointer
#define MSG_IN(n) Kind::kPointer
#define MSG_OUT(n) Kind::kPointer
#define FUTEX(n) Kind::kPointer
struct Table {
  Shape shape[kCallCount] = {};
  Table() {
#define SYSCALL(nr, call, handler, support, note, ...) shape[nr] = {#call, {__VA_ARGS__}};
#include "sentry/base/syscalls.def"
#undef SYSCALL
  }
};
#undef VAL
#undef PTR
#undef LEN
#undef OFF
#undef FLAGS
#undef MODE
#undef ID
#undef PID
#undef SIG
#undef FD
#undef DIRFD
#undef PATH
#undef STR
#undef ARGV
#undef IN
#undef OUT
#undef INOUT
#undef IN_LEN
#undef OUT_LEN
#undef IN_CNT
#undef OUT_CNT
#undef INOUT_CNT
#undef IOV_IN
#undef IOV_OUT
#undef SOCKADDR_IN
#undef SOCKADDR_OUT
#undef MSG_IN
#undef MSG_OUT
#undef FUTEX

struct Call {
  int nr = 0;
  std::array<uint64_t, 6> args{};
  long Make() const { return syscall(nr, args[0], args[1], args[2], args[3], args[4], args[5]); }
};

// What would end or stop the worker and nothing else: its own exit, a return from no signal, a
// child on its own stack; and what the sandbox's other processes are stopped by.
inline constexpr int kExcluded[] = {SYS_exit,  SYS_exit_group, SYS_rt_sigreturn,
                                    SYS_vfork, SYS_reboot,     SYS_kexec_load};
// Their first argument names a process, or many: it is one of the worker's own. (For some of them
// -1 is everybody.)
inline constexpr int kSignalling[] = {SYS_kill,           SYS_tkill,
                                      SYS_tgkill,         SYS_rt_sigqueueinfo,
                                      SYS_setpriority,    SYS_rt_tgsigqueueinfo,
                                      SYS_ptrace,         SYS_process_vm_writev,
                                      SYS_prlimit64,      SYS_sched_setscheduler,
                                      SYS_sched_setparam, SYS_sched_setaffinity,
                                      SYS_sched_setattr,  SYS_migrate_pages,
                                      SYS_setpgid,        SYS_move_pages};

inline constexpr const char* kQueueNames[] = {"q0", "q1", "q2"};

// The memory, descriptors and numbers that a worker's calls are made of. Memory is laid out anew
// where a call has taken it away.
class Pool {
 public:
  // `root`: only paths below the current directory, since nothing else would be refused.
  Pool(uint64_t seed, bool root) : state_(seed), root_(root) {
    MakeMemory();
    MakeFds();
  }

  // A thread that changes the scratch memory, and what may be done with it, all the time.
  void StartRacing() {
    if (pipe(race_pipe_) != 0) return;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    pthread_t thread;
    pthread_create(&thread, &attributes, &Pool::Race, this);
  }

  Call Next() {
    Call call;
    do {
      call.nr = static_cast<int>(Random(kCallCount));
    } while (!CallTable().shape[call.nr].name ||
             std::count(std::begin(kExcluded), std::end(kExcluded), call.nr) != 0);
    const Shape& shape = CallTable().shape[call.nr];
    for (size_t i = 0; i < call.args.size(); i++) call.args[i] = Argument(shape.args[i]);
    Tame(&call);
    return call;
  }

 private:
  static constexpr uint64_t kPages = 16, kPage = 4096;

  static const Table& CallTable() {
    static const Table table;
    return table;
  }

  uint64_t Next64() { return state_ = Mix(state_); }
  uint64_t Random(uint64_t below) { return Next64() % below; }
  template <typename T>
  T OneOf(std::initializer_list<T> values) {
    return values.begin()[Random(values.size())];
  }

  // scratch_: read and write; then a page that is read-only, one that is not there, one without
  // rights.
  void MakeMemory() {
    char* area = static_cast<char*>(mmap(nullptr, (kPages + 3) * kPage, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (area == MAP_FAILED) _exit(1);
    scratch_ = area;
    for (uint64_t i = 0; i < kPages * kPage; i += 8) {
      const uint64_t value = Random(4) == 0 ? Pointer() : Random(64);
      memcpy(scratch_ + i, &value, sizeof value);
    }
    static const char* const names[] = {"a", "b", "dir", "dir/c", "link", ".", "", "..", "a/b"};
    for (size_t i = 0; i < std::size(names); i++) strcpy(scratch_ + i * 64, names[i]);
    memset(scratch_ + kPage, 'x', kPage);  // a name without an end, as long as one may be
    readonly_ = area + kPages * kPage;
    mprotect(readonly_, kPage, PROT_READ);
    munmap(readonly_ + kPage, kPage);
    mprotect(readonly_ + 2 * kPage, kPage, PROT_NONE);
  }

  void MakeFds() {
    mkdir("dir", 0777);
    symlink("a", "link");
    auto keep = [&](long fd) {
      if (fd >= 0) fds_.push_back(static_cast<int>(fd));
    };
    keep(open("a", O_RDWR | O_CREAT, 0666));
    keep(open("b", O_RDONLY | O_CREAT, 0666));
    keep(open("dir", O_RDONLY | O_DIRECTORY));
    keep(open("dir", O_PATH));
    keep(open(".", O_TMPFILE | O_RDWR, 0600));
    for (const char* path : {"/proc/self/mem", "/proc/self/maps", "/proc/self/fd",
                             "/proc/self/oom_score_adj", "/dev/null", "/dev/zero", "/dev/ptmx"}) {
      if (root_ && strncmp(path, "/dev", 4) == 0) continue;  // it could change their modes
      keep(open(path, O_RDWR | O_NONBLOCK));
      keep(open(path, O_RDONLY | O_NONBLOCK));
    }
    int pair[2];
    if (pipe2(pair, Random(2) ? O_NONBLOCK : 0) == 0) keep(pair[0]), keep(pair[1]);
    for (int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
      if (socketpair(AF_UNIX, type, 0, pair) == 0) keep(pair[0]), keep(pair[1]);
      keep(socket(AF_INET, type, 0));
      keep(socket(AF_INET6, type, 0));
    }
    keep(socket(AF_NETLINK, SOCK_RAW, 0));
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listen(listener, 4) == 0) keep(listener);
    keep(eventfd(3, 0));
    keep(epoll_create1(0));
    keep(timerfd_create(CLOCK_MONOTONIC, 0));
    sigset_t set;
    sigfillset(&set);
    keep(signalfd(-1, &set, 0));
    keep(inotify_init1(IN_NONBLOCK));
    keep(memfd_create("m", MFD_ALLOW_SEALING));
    keep(
        syscall(SYS_mq_open, kQueueNames[Random(3)], O_RDWR | O_CREAT | O_NONBLOCK, 0666, nullptr));
    keep(syscall(SYS_pidfd_open, getpid(), 0));
  }

  uint64_t Pointer() {
    const auto at = [](const void* p) { return reinterpret_cast<uint64_t>(p); };
    switch (Random(16)) {
      case 0:
        return 0;
      case 1:
        return OneOf<uint64_t>({1, 8, 4096, ~0ull, ~0ull - 8, 1ull << 47, (1ull << 47) - 4096,
                                0xffff'8000'0000'0000, 0x7fff'0000'0000, 0x7fff'4000'0000});
      case 2:  // the last bytes before what is read-only, and before nothing
        return at(readonly_) - Random(64);
      case 3:
        return at(readonly_ + kPage) - Random(64);
      case 4:
        return at(readonly_) + Random(3 * kPage);
      case 5:
        return at(this) & ~7ull;  // the stack
      case 6:
        return reinterpret_cast<uint64_t>(&Pool::Race);  // text
      default:
        return at(scratch_) + (Random(4) == 0 ? Random(kPages * kPage) : Random(kPages * 64) * 64);
    }
  }

  uint64_t Number() {
    switch (Random(8)) {
      case 0:
        return Next64();
      case 1:
        return 1ull << Random(64);
      case 2:
        return static_cast<uint64_t>(-static_cast<int64_t>(Random(4097)));
      case 3:
        return static_cast<uint32_t>(Next64());
      default:
        return Random(Random(2) ? 8 : 64);
    }
  }

  uint64_t Fd() {
    switch (Random(12)) {
      case 0:
        return static_cast<uint64_t>(-100);  // AT_FDCWD
      case 1:
        return Random(300);
      case 2:
        return OneOf<uint64_t>({~0ull, 1ull << 31, 0x7fffffff, 1023});
      default:
        return fds_.empty() ? 0 : static_cast<uint64_t>(fds_[Random(fds_.size())]);
    }
  }

  uint64_t Path() {
    static const char* const absolute[] = {
        "/",    "/proc",      "/proc/self/fd/3", "/dev/null",  "/dev/zero",  "/proc/self/status",
        "/tmp", "/dev/shm/x", "/proc/self/exe",  "/nonsense/", "/dev/pts/0", "/proc/1/maps"};
    if (!root_ && Random(4) == 0) {
      return reinterpret_cast<uint64_t>(absolute[Random(std::size(absolute))]);
    }
    if (Random(4) == 0) return root_ ? reinterpret_cast<uint64_t>(scratch_ + kPage) : Pointer();
    return reinterpret_cast<uint64_t>(scratch_) + Random(9) * 64;
  }

  uint64_t Length() {
    switch (Random(6)) {
      case 0:
        return Number();
      case 1:
        return OneOf<uint64_t>({~0ull, 1ull << 63, (1ull << 63) - 1, 1ull << 31, (1ull << 31) - 1,
                                1ull << 32, 1ull << 47});
      case 2:
        return kPage * Random(2 * kPages);
      default:
        return OneOf<uint64_t>({0, 1, 4, 8, 16, 24, 32, 64, 100, 128, 144, 4095, 4096, 65536});
    }
  }

  uint64_t Argument(Kind kind) {
    if (Random(10) == 0) kind = static_cast<Kind>(1 + Random(8));
    switch (kind) {
      case Kind::kNone:
        return 0;
      case Kind::kNumber:
        return Number();
      case Kind::kLength:
        return Length();
      case Kind::kFlags:
        return Random(4) == 0
                   ? Number()
                   : (1ull << Random(24)) | (Random(2) ? 1ull << Random(12) : 0) | Random(4);
      case Kind::kPid:
        return Process();
      case Kind::kSignal:
        return Random(4) == 0 ? Number() : Random(66);
      case Kind::kFd:
        return Fd();
      case Kind::kPath:
        return Path();
      case Kind::kPointer:
        return Pointer();
    }
    return 0;
  }

  uint64_t Process() {
    return OneOf<uint64_t>({static_cast<uint64_t>(getpid()), 0, 3'000'000, 1ull << 31});
  }

  // Keeps a call's effect within the worker, and the worker going.
  void Tame(Call* call) {
    auto& a = call->args;
    if (std::count(std::begin(kSignalling), std::end(kSignalling), call->nr) != 0) {
      if (call->nr == SYS_setpriority) {
        a[0] = 0;
        a[1] = 0;
      } else {
        a[0] = Random(8) == 0 ? 3'000'000 : static_cast<uint64_t>(getpid());
        if (call->nr == SYS_tgkill || call->nr == SYS_rt_tgsigqueueinfo) a[1] = a[0];
      }
      const bool by_signal = call->nr == SYS_kill || call->nr == SYS_tkill;
      uint64_t& signal = by_signal || call->nr == SYS_rt_sigqueueinfo ? a[1] : a[2];
      if (call->nr != SYS_setpriority && (signal == SIGKILL || signal == SIGSTOP)) signal = SIGURG;
    }
    if (call->nr == SYS_clone) {  // not on this thread's stack
      a[0] &= ~static_cast<uint64_t>(CLONE_VM | CLONE_VFORK | CLONE_SETTLS | CLONE_PARENT);
      a[1] = 0;
    }
    if (call->nr == SYS_clone3 && Random(2)) a[1] = Random(80);
    if (root_) Confine(call);
  }

  // What a root user could do to all of the sandbox.
  void Confine(Call* call) {
    switch (call->nr) {
      case SYS_mount:
      case SYS_umount2:
      case SYS_pivot_root:
      case SYS_chroot:
      case SYS_move_mount:
      case SYS_mount_setattr:
      case SYS_setns:
      case SYS_sethostname:
      case SYS_setdomainname:
      case SYS_settimeofday:
      case SYS_clock_settime:
      case SYS_pidfd_send_signal:
      case SYS_process_madvise:
      case SYS_open_by_handle_at:
        call->nr = SYS_getpriority;
        break;
      default:
        break;
    }
  }

  static void* Race(void* argument) {
    auto* pool = static_cast<Pool*>(argument);
    uint64_t state = 7;
    for (;;) {
      state = Mix(state);
      const uint64_t page = state % kPages * kPage;
      switch ((state >> 32) % 16) {
        case 0:
          mprotect(pool->scratch_ + page, kPage, PROT_READ);
          break;
        case 1:
          mprotect(pool->scratch_ + page, kPage, PROT_READ | PROT_WRITE);
          break;
        case 2:  // it is there anew, with nothing in it
          mmap(pool->scratch_ + page, kPage, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          break;
        case 3:
          madvise(pool->scratch_ + page, kPage, MADV_DONTNEED);
          break;
        default: {
          // By the kernel's hand, since the page may be read-only.
          const uint64_t value = (state >> 40) % 3 ? Mix(state) : state % 64;
          const int fd = pool->race_pipe_[1];
          if (fd >= 0 && write(fd, &value, sizeof value) == sizeof value) {
            static_cast<void>(
                read(pool->race_pipe_[0], pool->scratch_ + page + state % kPage / 8 * 8, 8));
          }
        }
      }
    }
    return nullptr;
  }

  uint64_t state_;
  const bool root_;
  char* scratch_ = nullptr;
  char* readonly_ = nullptr;
  std::vector<int> fds_;
  int race_pipe_[2] = {-1, -1};
};

}  // namespace random_calls
