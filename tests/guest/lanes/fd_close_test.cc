// Closing descriptors of files that are open for reading: whoever could see that it happens later
// than close(2) returns does not.
#include <dirent.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/statfs.h>

#include <atomic>
#include <barrier>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

// How far processes are, in memory that they share. Waiting makes no call that leaves the process.
class Steps {
 public:
  Steps()
      : at_(static_cast<std::atomic<int>*>(
            mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~Steps() { munmap(at_, 4096); }
  void Reach(int step) { at_->store(step); }
  bool Await(int step) const {
    const int64_t deadline = NowNs() + 60'000'000'000;
    while (at_->load() < step) {
      if (NowNs() > deadline) return false;
      sched_yield();
    }
    return true;
  }

 private:
  std::atomic<int>* const at_;
};

// A child process, which is killed at the end if it is there still.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    fflush(nullptr);
    pid_ = fork();
    if (pid_ == 0) _exit(body());
  }
  ~Child() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  int Exit() {
    int status = -1;
    EXPECT_EQ(pid_, waitpid(pid_, &status, 0));
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_;
};

class FdClose : public testing::TestWithParam<const char*> {
 protected:
  FdClose() {
    std::string name = std::string(GetParam()) + "/closes-XXXXXX";
    dir_ = mkdtemp(name.data());
    for (const char* file : {"a", "b", "c"}) WriteFile(In(file), std::string(100, file[0]));
  }
  ~FdClose() override { [[maybe_unused]] int r = system(("rm -rf " + dir_).c_str()); }
  std::string In(const std::string& name) const { return dir_ + "/" + name; }
  int Open(const std::string& name, int flags = O_RDONLY) const {
    const int fd = open(In(name).c_str(), flags);
    EXPECT_GE(fd, 0) << name << ": " << strerror(errno);
    return fd;
  }
  std::string dir_;
};

bool IsOpen(int fd) { return fcntl(fd, F_GETFD) >= 0; }

std::string LinkOf(pid_t pid, int fd) {
  char text[300];
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  const ssize_t n = readlink(path.c_str(), text, sizeof text);
  return n < 0 ? std::string("errno ") + std::to_string(errno) : std::string(text, n);
}

TEST_P(FdClose, LowestNumberIsNext) {
  const int a = Open("a"), b = Open("b"), c = Open("c");
  EXPECT_EQ(b, a + 1);
  EXPECT_EQ(c, b + 1);
  for (int i = 0; i < 50; i++) {
    EXPECT_OK(close(a));
    EXPECT_EQ(a, Open("a"));
    EXPECT_OK(close(b));
    EXPECT_OK(close(a));
    EXPECT_EQ(a, Open(""));
    EXPECT_EQ(b, Open("b"));
    EXPECT_OK(close(c));
    EXPECT_EQ(c, dup(a));
    EXPECT_OK(close(c));
    EXPECT_OK(close(b));
    int ends[2];
    EXPECT_OK(pipe(ends));
    EXPECT_EQ(b, ends[0]);
    EXPECT_EQ(c, ends[1]);
    EXPECT_OK(close(b));
    EXPECT_OK(close(c));
    EXPECT_EQ(b, Open("b"));
    EXPECT_EQ(c, fcntl(a, F_DUPFD, 0));
  }
  for (int fd : {a, b, c}) EXPECT_OK(close(fd));
}

TEST_P(FdClose, EverythingIsBadf) {
  char byte;
  struct stat st;
  const std::function<void(int)> uses[] = {
      [&](int fd) { EXPECT_ERRNO(close(fd), EBADF); },
      [&](int fd) { EXPECT_ERRNO(read(fd, &byte, 1), EBADF); },
      [&](int fd) { EXPECT_ERRNO(pread(fd, &byte, 1, 0), EBADF); },
      [&](int fd) { EXPECT_ERRNO(lseek(fd, 0, SEEK_SET), EBADF); },
      [&](int fd) { EXPECT_ERRNO(fstat(fd, &st), EBADF); },
      [&](int fd) { EXPECT_ERRNO(fstatat(fd, "", &st, AT_EMPTY_PATH), EBADF); },
      [&](int fd) { EXPECT_ERRNO(fstatat(fd, "a", &st, 0), EBADF); },
      [&](int fd) { EXPECT_ERRNO(faccessat(fd, "a", R_OK, 0), EBADF); },
      [&](int fd) { EXPECT_ERRNO(openat(fd, "a", O_RDONLY), EBADF); },
      [&](int fd) { EXPECT_ERRNO(dup(fd), EBADF); },
      [&](int fd) { EXPECT_ERRNO(dup2(fd, fd), EBADF); },
      [&](int fd) { EXPECT_ERRNO(fcntl(fd, F_GETFD), EBADF); },
      [&](int fd) { EXPECT_ERRNO(fcntl(fd, F_SETFD, FD_CLOEXEC), EBADF); },
      [&](int fd) { EXPECT_ERRNO(flock(fd, LOCK_SH), EBADF); },
      [&](int fd) { EXPECT_ERRNO(fchdir(fd), EBADF); },
      [&](int fd) { EXPECT_ERRNO(syscall(SYS_getdents64, fd, &st, sizeof st), EBADF); },
      [&](int fd) {
        EXPECT_EQ(MAP_FAILED, mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd, 0));
        EXPECT_EQ(EBADF, errno);
      },
      [&](int fd) {
        pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
        EXPECT_EQ(1, poll(&p, 1, 0));
        EXPECT_EQ(POLLNVAL, p.revents);
      },
      [&](int fd) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd, &set);
        timeval none{};
        EXPECT_ERRNO(select(fd + 1, &set, nullptr, nullptr, &none), EBADF);
      },
      [&](int fd) { EXPECT_EQ("errno 2", LinkOf(getpid(), fd)); },
  };
  // Warm, so that what may be answered without the kernel is, while it is open.
  for (int round = 0; round < 6; round++) {
    for (const auto& use : uses) {
      for (const char* name : {"a", ""}) {
        const int fd = Open(name);
        for (int i = 0; i < 4; i++) {
          EXPECT_OK(fstat(fd, &st));
          read(fd, &byte, 1);
          pread(fd, &byte, 1, 2);
          lseek(fd, 1, SEEK_CUR);
          fstatat(fd, "a", &st, 0);
          faccessat(fd, "a", R_OK, 0);
        }
        ASSERT_OK(close(fd));
        use(fd);
      }
    }
  }
}

TEST_P(FdClose, ProcFdDoesNotShowIt) {
  const int a = Open("a"), b = Open("b");
  EXPECT_EQ(In("a"), LinkOf(getpid(), a));
  EXPECT_OK(close(a));
  EXPECT_EQ("errno 2", LinkOf(getpid(), a));
  EXPECT_EQ(In("b"), LinkOf(getpid(), b));
  const int c = Open("c");
  EXPECT_EQ(a, c);
  EXPECT_EQ(In("c"), LinkOf(getpid(), c));
  EXPECT_OK(close(b));
  EXPECT_OK(close(c));
  DIR* d = opendir("/proc/self/fd");
  ASSERT_NE(nullptr, d);
  std::vector<int> seen;
  while (dirent* e = readdir(d)) {
    if (e->d_name[0] != '.') seen.push_back(atoi(e->d_name));
  }
  EXPECT_EQ(a, dirfd(d));
  for (int fd : seen) EXPECT_TRUE(fd != b || b == dirfd(d));
  closedir(d);
}

TEST_P(FdClose, AnotherProcessLooks) {
  const int a = Open("a");
  Steps steps;
  const pid_t parent = getpid();
  Child child([&] {
    if (LinkOf(parent, a) != In("a")) return 1;
    steps.Reach(1);
    if (!steps.Await(2)) return 2;
    return LinkOf(parent, a) == "errno 2" ? 0 : 3;
  });
  ASSERT_TRUE(steps.Await(1));
  EXPECT_OK(close(a));
  steps.Reach(2);
  EXPECT_EQ(0, child.Exit());
}

TEST_P(FdClose, LimitCountsWhatIsOpen) {
  rlimit old{};
  ASSERT_OK(getrlimit(RLIMIT_NOFILE, &old));
  const int a = Open("a");
  const rlimit less{static_cast<rlim_t>(a + 2), old.rlim_max};
  ASSERT_OK(setrlimit(RLIMIT_NOFILE, &less));
  const int b = Open("b");
  for (int i = 0; i < 20; i++) {
    EXPECT_ERRNO(open(In("c").c_str(), O_RDONLY), EMFILE);
    EXPECT_OK(close(i % 2 ? a : b));
    EXPECT_EQ(i % 2 ? a : b, Open("c"));
    EXPECT_ERRNO(dup(a), EMFILE);
  }
  EXPECT_OK(close(a));
  EXPECT_OK(close(b));
  EXPECT_OK(setrlimit(RLIMIT_NOFILE, &old));
}

TEST_P(FdClose, CopiesStayOpen) {
  char bytes[10];
  const int a = Open("a");
  const int b = dup(a);
  for (int i = 0; i < 5; i++) EXPECT_EQ(10, read(a, bytes, 10));
  EXPECT_OK(close(a));
  EXPECT_ERRNO(read(a, bytes, 10), EBADF);
  EXPECT_EQ(50, lseek(b, 0, SEEK_CUR));
  EXPECT_EQ(10, read(b, bytes, 10));
  EXPECT_EQ(a, dup(b));
  EXPECT_EQ(60, lseek(a, 0, SEEK_CUR));
  EXPECT_OK(close(b));
  EXPECT_EQ(10, read(a, bytes, 10));
  EXPECT_OK(close(a));
}

TEST_P(FdClose, Dup2Replaces) {
  const int a = Open("a"), b = Open("b");
  EXPECT_OK(close(b));
  EXPECT_EQ(b, dup2(a, b));
  EXPECT_EQ(In("a"), LinkOf(getpid(), b));
  const int c = Open("c");
  EXPECT_EQ(c, dup2(a, c));
  EXPECT_OK(close(c));
  EXPECT_FALSE(IsOpen(c));
  EXPECT_TRUE(IsOpen(a));
  EXPECT_OK(close(a));
  EXPECT_OK(close(b));
}

TEST_P(FdClose, CloseRange) {
  const int a = Open("a"), b = Open("b"), c = Open("c");
  EXPECT_OK(close(b));
  EXPECT_OK(syscall(SYS_close_range, a, c, 0));
  for (int fd : {a, b, c}) EXPECT_FALSE(IsOpen(fd));
  EXPECT_EQ(a, Open("a"));
  EXPECT_EQ(b, Open("b"));
  EXPECT_OK(close(a));
  EXPECT_EQ(0, ExitStatus([&] {
              if (syscall(SYS_close_range, a, c, CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0)
                return 1;
              if (IsOpen(a) || (fcntl(b, F_GETFD) & FD_CLOEXEC) == 0) return 2;
              if (close(b) != 0 || IsOpen(b)) return 3;
              return 0;
            }));
  EXPECT_OK(close(b));
}

TEST_P(FdClose, ForkCopiesWhatIsOpen) {
  const int a = Open("a"), b = Open("b");
  EXPECT_OK(close(a));
  EXPECT_EQ(0, ExitStatus([&] {
              if (IsOpen(a) || !IsOpen(b)) return 1;
              if (open(In("c").c_str(), O_RDONLY) != a) return 2;
              if (close(b) != 0 || close(a) != 0) return 3;
              return IsOpen(b) || IsOpen(a) ? 4 : 0;
            }));
  EXPECT_TRUE(IsOpen(b));  // the child closed its own
  EXPECT_EQ(a, Open("c"));
  EXPECT_EQ(0, ExitStatus([&] {
              const pid_t pid = vfork();
              if (pid == 0) {
                close(b);
                _exit(0);
              }
              waitpid(pid, nullptr, 0);
              return IsOpen(b) ? 0 : 1;
            }));
  EXPECT_OK(close(a));
  EXPECT_OK(close(b));
}

TEST_P(FdClose, ExecKeepsWhatIsOpen) {
  EXPECT_EQ(0, ExitStatus([&] {
              const int a = Open("a"), b = Open("b"), c = Open("c", O_RDONLY | O_CLOEXEC);
              close(a);
              close(c);
              const int again = Open("a");
              if (again != a || close(again) != 0) return 1;
              const std::string closed = std::to_string(a), open = std::to_string(b),
                                cloexec = std::to_string(c);
              execl("/bin/sh", "sh", "-c",
                    "[ ! -e /proc/self/fd/$0 ] && [ -e /proc/self/fd/$1 ] && "
                    "[ ! -e /proc/self/fd/$2 ]",
                    closed.c_str(), open.c_str(), cloexec.c_str(), nullptr);
              return 2;
            }));
}

// Who shares the table, in another process or in another thread, sees the same.
TEST_P(FdClose, SharedTable) {
  Steps steps;
  const int fd = Open("a");
  const std::function<int()> body = [&] {
    char byte;
    if (read(fd, &byte, 1) != 1) return 1;
    steps.Reach(1);
    if (!steps.Await(2)) return 2;
    if (read(fd, &byte, 1) != -1 || errno != EBADF) return 3;
    if (open(In("b").c_str(), O_RDONLY) != fd) return 4;
    if (open(In("c").c_str(), O_RDONLY) != fd + 1) return 5;
    return close(fd + 1) == 0 ? 0 : 6;
  };
  static char stack[64 * 1024];
  const pid_t pid =
      clone([](void* p) { return (*static_cast<const std::function<int()>*>(p))(); },
            stack + sizeof stack, CLONE_FILES | SIGCHLD, const_cast<std::function<int()>*>(&body));
  ASSERT_OK(pid);
  ASSERT_TRUE(steps.Await(1));
  EXPECT_OK(close(fd));
  steps.Reach(2);
  int status = -1;
  EXPECT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_EQ(In("b"), LinkOf(getpid(), fd));
  EXPECT_FALSE(IsOpen(fd + 1));
  EXPECT_OK(close(fd));
}

// Each thread finds its own file behind its number, whatever the others open and close.
TEST_P(FdClose, ThreadsOpenAndClose) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (const char* name : {"a", "b", "c"}) {
    threads.emplace_back([&, name] {
      const std::string path = In(name);
      for (int i = 0; i < 500; i++) {
        const int fd = open(path.c_str(), O_RDONLY);
        char byte = 0;
        if (fd < 0 || read(fd, &byte, 1) != 1 || byte != *name) wrong++;
        if (pread(fd, &byte, 1, 1) != 1 || byte != *name) wrong++;
        if (i % 5 == 0) {
          const int copy = dup(fd);
          if (copy < 0 || close(copy) != 0) wrong++;
        }
        if (i % 7 == 0) {
          const int dir = open(dir_.c_str(), O_RDONLY | O_DIRECTORY);
          struct stat st;
          if (dir < 0 || fstatat(dir, name, &st, 0) != 0 || close(dir) != 0) wrong++;
        }
        if (close(fd) != 0) wrong++;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(0, wrong.load());
}

TEST_P(FdClose, OneOfTwoCloses) {
  constexpr int kRounds = 300;
  int fd = -1;
  std::atomic<int> closed{0};
  int opened = 0, bad = 0;
  std::barrier begin(2), end(2);
  auto close_it = [&] {
    if (close(fd) == 0) closed++;
  };
  std::thread other([&] {
    for (int i = 0; i < kRounds; i++) {
      begin.arrive_and_wait();
      close_it();
      end.arrive_and_wait();
    }
  });
  for (int i = 0; i < kRounds; i++) {
    fd = open(In("a").c_str(), O_RDONLY);
    if (fd >= 0) opened++;
    begin.arrive_and_wait();
    close_it();
    end.arrive_and_wait();
    if (IsOpen(fd)) bad++;
  }
  other.join();
  EXPECT_EQ(kRounds, opened);
  EXPECT_EQ(kRounds, closed.load());
  EXPECT_EQ(0, bad);
}

// The number leads to something before and after dup2(2), so close(2) always closes one of the two.
TEST_P(FdClose, CloseAndDup2AtOnce) {
  constexpr int kRounds = 300;
  const int other = Open("b");
  int fd = -1, failed = 0, wrong = 0;
  std::barrier begin(2), end(2);
  std::thread closer([&] {
    for (int i = 0; i < kRounds; i++) {
      begin.arrive_and_wait();
      if (close(fd) != 0) failed++;
      end.arrive_and_wait();
    }
  });
  for (int i = 0; i < kRounds; i++) {
    fd = Open("a");
    begin.arrive_and_wait();
    if (dup2(other, fd) != fd) wrong++;
    end.arrive_and_wait();
    char byte = 'b';
    if (IsOpen(fd) && (pread(fd, &byte, 1, 0) != 1 || close(fd) != 0)) wrong++;
    if (byte != 'b') wrong++;
  }
  closer.join();
  EXPECT_EQ(0, failed);
  EXPECT_EQ(0, wrong);
  EXPECT_OK(close(other));
}

// --- who waits elsewhere for what ends with the descriptor ---

TEST_P(FdClose, FlockEnds) {
  Steps steps;
  const int a = Open("a");
  ASSERT_OK(flock(a, LOCK_EX));
  Child child([&] {
    close(a);
    const int b = open(In("a").c_str(), O_RDONLY);
    if (flock(b, LOCK_EX | LOCK_NB) != -1 || errno != EWOULDBLOCK) return 1;
    steps.Reach(1);
    if (flock(b, LOCK_EX) != 0) return 2;
    steps.Reach(2);
    return 0;
  });
  ASSERT_TRUE(steps.Await(1));
  EXPECT_OK(close(a));
  EXPECT_TRUE(steps.Await(2));
  EXPECT_EQ(0, child.Exit());
}

// The lock belongs to the description, which this process is the last to let go.
TEST_P(FdClose, FlockOfAChildEnds) {
  Steps steps;
  const int a = Open("a");
  Child locks([&] {
    if (flock(a, LOCK_EX) != 0) return 1;
    steps.Reach(1);
    steps.Await(3);
    return 0;
  });
  ASSERT_TRUE(steps.Await(1));
  Child waits([&] {
    close(a);
    const int b = open(In("a").c_str(), O_RDONLY);
    if (flock(b, LOCK_EX | LOCK_NB) != -1 || errno != EWOULDBLOCK) return 1;
    steps.Reach(2);
    if (flock(b, LOCK_EX) != 0) return 2;
    steps.Reach(4);
    return 0;
  });
  ASSERT_TRUE(steps.Await(2));
  steps.Reach(3);
  EXPECT_EQ(0, locks.Exit());
  EXPECT_OK(close(a));
  EXPECT_TRUE(steps.Await(4));
  EXPECT_EQ(0, waits.Exit());
}

// The record locks of a process on a file end with any of its descriptors of it.
TEST_P(FdClose, RecordLocksEnd) {
  Steps steps;
  const int reader = Open("a");
  const int writer = Open("a", O_RDWR);
  struct flock lock {};
  lock.l_type = F_WRLCK;
  ASSERT_OK(fcntl(writer, F_SETLK, &lock));
  Child child([&] {
    const int b = open(In("a").c_str(), O_RDWR);
    struct flock mine {};
    mine.l_type = F_WRLCK;
    if (fcntl(b, F_SETLK, &mine) != -1) return 1;
    steps.Reach(1);
    if (fcntl(b, F_SETLKW, &mine) != 0) return 2;
    steps.Reach(2);
    return 0;
  });
  ASSERT_TRUE(steps.Await(1));
  EXPECT_OK(close(reader));
  EXPECT_TRUE(steps.Await(2));
  EXPECT_EQ(0, child.Exit());
  EXPECT_OK(close(writer));
}

// A lock that is taken after a descriptor was closed does not end with it.
TEST_P(FdClose, EarlierClosesEndNoLocks) {
  const int reader = Open("a"), writer = Open("a", O_RDWR);
  EXPECT_OK(close(reader));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  ASSERT_OK(fcntl(writer, F_SETLK, &lock));
  const int other = Open("b");
  EXPECT_EQ(reader, other);
  EXPECT_EQ(1, ExitStatus([&] {
              struct flock mine {};
              mine.l_type = F_WRLCK;
              return fcntl(writer, F_SETLK, &mine) == -1 && errno == EAGAIN;
            }));
  EXPECT_OK(close(other));
  EXPECT_OK(close(writer));
}

TEST_P(FdClose, LeaseIsForTheOnlyOne) {
  Steps steps;
  Child child([&] {
    const int a = open(In("a").c_str(), O_RDONLY);
    steps.Reach(1);
    if (!steps.Await(2) || close(a) != 0) return 1;
    steps.Reach(3);
    return steps.Await(4) ? 0 : 2;
  });
  ASSERT_TRUE(steps.Await(1));
  const int b = Open("a", O_RDWR);
  EXPECT_ERRNO(fcntl(b, F_SETLEASE, F_WRLCK), EAGAIN);
  steps.Reach(2);
  ASSERT_TRUE(steps.Await(3));
  EXPECT_OK(fcntl(b, F_SETLEASE, F_WRLCK));
  EXPECT_OK(fcntl(b, F_SETLEASE, F_UNLCK));
  steps.Reach(4);
  EXPECT_EQ(0, child.Exit());
  EXPECT_OK(close(b));
}

TEST_P(FdClose, WatchersAreTold) {
  const int before = Open("a"), after = Open("b"), child_file = Open("c");
  Steps steps;
  Child child([&] {
    close(before);
    close(after);
    steps.Reach(1);
    if (!steps.Await(2) || close(child_file) != 0) return 1;
    steps.Reach(3);
    return steps.Await(4) ? 0 : 2;
  });
  ASSERT_TRUE(steps.Await(1));
  EXPECT_OK(close(child_file));
  EXPECT_OK(close(before));
  const int watch = inotify_init1(IN_NONBLOCK);
  ASSERT_OK(inotify_add_watch(watch, dir_.c_str(), IN_CLOSE_NOWRITE));
  alignas(inotify_event) char events[4096];
  const auto next = [&]() -> std::string {
    const ssize_t n = read(watch, events, sizeof events);
    if (n <= 0) return "none";
    return reinterpret_cast<inotify_event*>(events)->name;
  };
  EXPECT_EQ("none", next());
  steps.Reach(2);
  ASSERT_TRUE(steps.Await(3));
  EXPECT_EQ("c", next());
  steps.Reach(4);
  EXPECT_EQ(0, child.Exit());
  EXPECT_OK(close(after));
  EXPECT_EQ("b", next());
  const int again = Open("a");
  EXPECT_OK(close(again));
  EXPECT_EQ("a", next());
  close(watch);
}

// --- mounts ---

// In a mount namespace of its own, with a file system in memory at `dir`.
int WithMount(const std::string& dir, const std::function<int()>& body) {
  return ExitStatus([&] {
    if (unshare(CLONE_NEWNS) != 0) return 0;  // not root
    if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return 90;
    if (mount("none", dir.c_str(), "tmpfs", 0, "size=8M") != 0) return 91;
    return body();
  });
}

TEST_P(FdClose, MountIsFreeAfterwards) {
  EXPECT_EQ(0, WithMount(dir_, [&] {
              WriteFile(In("file"), "text");
              Steps steps;
              Child child([&] {
                const int a = open(In("file").c_str(), O_RDONLY);
                steps.Reach(1);
                if (!steps.Await(2) || close(a) != 0) return 1;
                steps.Reach(3);
                return steps.Await(4) ? 0 : 2;
              });
              const int a = open(In("file").c_str(), O_RDONLY);
              if (!steps.Await(1)) return 1;
              if (umount2(dir_.c_str(), 0) != -1 || errno != EBUSY) return 2;
              steps.Reach(2);
              if (!steps.Await(3)) return 3;
              if (umount2(dir_.c_str(), 0) != -1 || errno != EBUSY) return 4;
              if (close(a) != 0) return 5;
              if (umount2(dir_.c_str(), 0) != 0) return 6;
              steps.Reach(4);
              return child.Exit();
            }));
}

// The space of a file without a name is free when the last descriptor is closed.
TEST_P(FdClose, SpaceIsFreeAfterwards) {
  constexpr size_t kSize = 4 << 20;
  EXPECT_EQ(0, WithMount(dir_, [&] {
              const auto left = [&] {
                struct statfs st {};
                return statfs(dir_.c_str(), &st) == 0 ? st.f_bfree * st.f_bsize : 0;
              };
              const uint64_t all = left();
              for (const bool unlink_first : {true, false}) {
                WriteFile(In("file"), std::string(kSize, 'x'));
                Steps steps;
                Child child([&] {
                  const int a = open(In("file").c_str(), O_RDONLY);
                  steps.Reach(1);
                  if (!steps.Await(2) || close(a) != 0) return 1;
                  steps.Reach(3);
                  return steps.Await(4) ? 0 : 2;
                });
                if (!steps.Await(1)) return 1;
                if (unlink_first && unlink(In("file").c_str()) != 0) return 2;
                if (all - left() < kSize) return 3;
                steps.Reach(2);
                if (!steps.Await(3)) return 4;
                if (!unlink_first) {
                  WriteFile(In("other"), "");
                  if (rename(In("other").c_str(), In("file").c_str()) != 0) return 5;
                }
                if (all - left() >= kSize) return 6;
                steps.Reach(4);
                if (child.Exit() != 0) return 7;
              }
              return 0;
            }));
}

INSTANTIATE_TEST_SUITE_P(On, FdClose, testing::Values("/tmp", "/dev/shm"), [](const auto& p) {
  return std::string(p.param[1] == 't' ? "Files" : "Memory");
});

}  // namespace
