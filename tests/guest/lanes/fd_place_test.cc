// Look-ups that begin at a descriptor, and attributes by a descriptor, are answered by what was
// found before when they are asked for again and again. Whatever changes them makes that vanish.
#include <grp.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"
#include "net/fd_util.h"

namespace {

constexpr int kTimes = 40;  // more than it takes to have an answer kept

class FdPlace : public testing::TestWithParam<const char*> {
 protected:
  FdPlace() {
    std::string name = std::string(GetParam()) + "/places-XXXXXX";
    dir_ = mkdtemp(name.data());
    chmod(dir_.c_str(), 0755);
    at_ = OpenDir("");
  }
  ~FdPlace() override {
    close(at_);
    [[maybe_unused]] int r = system(("rm -rf " + dir_).c_str());
  }
  std::string In(const std::string& name) const { return dir_ + "/" + name; }
  int OpenDir(const std::string& name, int flags = O_RDONLY) const {
    const int fd = open(In(name).c_str(), flags | O_DIRECTORY);
    EXPECT_GE(fd, 0);
    return fd;
  }
  int MakeDir(const std::string& name, mode_t mode = 0755) const {
    EXPECT_EQ(0, mkdirat(at_, name.c_str(), mode));
    return OpenDir(name);
  }
  std::string dir_;
  int at_;  // it
};

struct stat Fstat(int fd) {
  struct stat st {};
  if (fstat(fd, &st) != 0) st.st_size = -errno;
  return st;
}
// The size; less than 0: an errno.
off_t SizeAt(int fd, const std::string& name) {
  struct stat st;
  return fstatat(fd, name.c_str(), &st, 0) == 0 ? st.st_size : -errno;
}
int OpenErrorAt(int fd, const std::string& name) {
  const int got = openat(fd, name.c_str(), O_RDONLY);
  if (got < 0) return errno;
  close(got);
  return 0;
}
int AccessErrorAt(int fd, const std::string& name, int mode = F_OK) {
  return faccessat(fd, name.c_str(), mode, 0) == 0 ? 0 : errno;
}
std::string LinkAt(int fd, const std::string& name) {
  char text[300];
  const ssize_t n = readlinkat(fd, name.c_str(), text, sizeof text);
  return n < 0 ? std::string("errno ") + std::to_string(errno) : std::string(text, n);
}

// Asks in every way until the answers are kept.
void Warm(int fd, const std::string& name) {
  for (int i = 0; i < kTimes; i++) {
    struct stat st;
    fstatat(fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW);
    AccessErrorAt(fd, name);
    LinkAt(fd, name);
    if (SizeAt(fd, name) == -ENOENT) OpenErrorAt(fd, name);
  }
}
void Warm(int fd) {
  for (int i = 0; i < kTimes; i++) Fstat(fd);
}

std::string Shown(int r, const struct stat& st) {
  if (r != 0) return "errno " + std::to_string(errno);
  return std::to_string(st.st_ino) + " " + std::to_string(st.st_mode) + " " +
         std::to_string(st.st_nlink) + " " + std::to_string(st.st_size) + " " +
         std::to_string(st.st_mtim.tv_sec) + "." + std::to_string(st.st_mtim.tv_nsec) + " " +
         std::to_string(st.st_ctim.tv_nsec);
}
std::string Attributes(int fd) {
  struct stat st;
  const int r = fstat(fd, &st);
  return Shown(r, st);
}
// The same in a way that nothing is kept of.
std::string TrueAttributes(int fd) {
  struct stat st;
  const int r = stat(("/proc/self/fd/" + std::to_string(fd)).c_str(), &st);
  return Shown(r, st);
}

TEST_P(FdPlace, TheSameAgain) {
  WriteFile(In("file"), "12345");
  close(MakeDir("sub"));
  symlink("file", In("link").c_str());
  int ends[2];
  ASSERT_OK(pipe(ends));
  const int fds[] = {open(In("file").c_str(), O_RDONLY),
                     open(In("file").c_str(), O_RDWR),
                     open(In("file").c_str(), O_PATH),
                     open(In("link").c_str(), O_PATH | O_NOFOLLOW),
                     OpenDir("sub"),
                     OpenDir("sub", O_PATH),
                     open("/dev/null", O_RDWR),
                     open("/proc/self/status", O_RDONLY),
                     ends[0],
                     socket(AF_UNIX, SOCK_STREAM, 0)};
  for (int fd : fds) {
    ASSERT_GE(fd, 0);
    struct stat first, again;
    ASSERT_OK(fstat(fd, &first));
    struct statx x, y;
    ASSERT_OK(statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &x));
    for (int i = 0; i < kTimes; i++) {
      memset(&again, 1, sizeof again);
      ASSERT_OK(fstat(fd, &again));
      ASSERT_EQ(Shown(0, first), Shown(0, again));
      ASSERT_OK(fstatat(fd, "", &again, AT_EMPTY_PATH | AT_NO_AUTOMOUNT));
      ASSERT_EQ(Shown(0, first), Shown(0, again));
      memset(&y, 1, sizeof y);
      ASSERT_OK(statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &y));
      ASSERT_EQ(0, memcmp(&x.stx_ino, &y.stx_ino, sizeof x.stx_ino));
      ASSERT_EQ(x.stx_mode, y.stx_mode);
      ASSERT_EQ(x.stx_mnt_id, y.stx_mnt_id);
      ASSERT_EQ(x.stx_attributes, y.stx_attributes);
      ASSERT_EQ(-1, fstatat(fd, "", &again, 0));
      ASSERT_EQ(ENOENT, errno);
    }
    EXPECT_EQ(first.st_dev, makedev(y.stx_dev_major, y.stx_dev_minor));
    EXPECT_EQ(first.st_ino, y.stx_ino);
    const bool dir = S_ISDIR(first.st_mode);
    for (int i = 0; i < kTimes; i++) ASSERT_EQ(dir ? -ENOENT : -ENOTDIR, SizeAt(fd, "x"));
  }
  for (int i = 0; i < kTimes; i++) {
    ASSERT_EQ(5, SizeAt(at_, "file"));
    ASSERT_EQ(5, SizeAt(at_, "sub/../link"));
    ASSERT_EQ("file", LinkAt(at_, "link"));
    ASSERT_EQ("errno 22", LinkAt(at_, "file"));
    ASSERT_EQ(ENOENT, OpenErrorAt(at_, "missing"));
    ASSERT_EQ(0, AccessErrorAt(at_, "file", R_OK));
    ASSERT_EQ(-EBADF, SizeAt(999, "file"));
    ASSERT_EQ(-EBADF, SizeAt(-1, "file"));
    ASSERT_EQ(-EBADF, SizeAt(100000, "file"));
    ASSERT_EQ(5, SizeAt(999, In("file")));
    ASSERT_EQ(-EBADF, Fstat(999).st_size);
  }
  for (int fd : fds) close(fd);
  close(ends[1]);
}

TEST_P(FdPlace, NamesComeAndGo) {
  const int fd = MakeDir("d");
  for (int round = 0; round < 5; round++) {
    Warm(fd, "name");
    ASSERT_EQ(-ENOENT, SizeAt(fd, "name"));
    ASSERT_EQ(ENOENT, OpenErrorAt(fd, "name"));
    ASSERT_EQ(ENOENT, AccessErrorAt(fd, "name"));
    WriteFile(In("d/name"), "x");
    ASSERT_EQ(1, SizeAt(fd, "name"));
    ASSERT_EQ(0, OpenErrorAt(fd, "name"));
    ASSERT_EQ(0, AccessErrorAt(fd, "name"));
    Warm(fd, "name");
    ASSERT_OK(unlinkat(fd, "name", 0));
    ASSERT_EQ(-ENOENT, SizeAt(fd, "name"));
    Warm(fd, "name");
    ASSERT_OK(symlinkat("target", fd, "name"));
    ASSERT_EQ("target", LinkAt(fd, "name"));
    Warm(fd, "name");
    ASSERT_OK(renameat(fd, "name", fd, "other"));
    ASSERT_EQ("errno 2", LinkAt(fd, "name"));
    ASSERT_OK(unlinkat(fd, "other", 0));
  }
  close(fd);
}

// A descriptor leads to its directory, whatever that is called.
TEST_P(FdPlace, DirectoriesThatMove) {
  const int a = MakeDir("a"), b = MakeDir("b"), sub = MakeDir("a/sub");
  WriteFile(In("a/f"), "1");
  WriteFile(In("b/f"), "22");
  WriteFile(In("a/sub/f"), "333");
  for (int i = 0; i < 4; i++) {
    Warm(a, "f");
    Warm(b, "f");
    Warm(sub, "f");
    Warm(sub, "../f");
    Warm(a, "sub/../f");
    Warm(sub);
    const bool here = i % 2 == 0;
    ASSERT_EQ(here ? 1 : 2, SizeAt(sub, "../f"));
    ASSERT_OK(here ? renameat(a, "sub", b, "sub") : renameat(b, "sub", a, "sub"));
    ASSERT_EQ(3, SizeAt(sub, "f"));
    ASSERT_EQ(here ? 2 : 1, SizeAt(sub, "../f"));
    ASSERT_EQ(here ? -ENOENT : 1, SizeAt(a, "sub/../f"));
    ASSERT_OK(rename(In("a").c_str(), In("c").c_str()));
    ASSERT_EQ(1, SizeAt(a, "f"));
    ASSERT_OK(rename(In("b").c_str(), In("a").c_str()));
    ASSERT_EQ(1, SizeAt(a, "f"));
    ASSERT_EQ(2, SizeAt(b, "f"));
    ASSERT_EQ(TrueAttributes(sub), Attributes(sub));
    ASSERT_OK(rename(In("a").c_str(), In("b").c_str()));
    ASSERT_OK(rename(In("c").c_str(), In("a").c_str()));
  }
  // It goes.
  Warm(sub, "f");
  Warm(sub, "missing");
  Warm(sub);
  ASSERT_OK(unlinkat(sub, "f", 0));
  ASSERT_EQ(-ENOENT, SizeAt(sub, "f"));
  Warm(sub, "f");
  Warm(sub, "..");
  ASSERT_OK(unlinkat(a, "sub", AT_REMOVEDIR));
  ASSERT_EQ(0u, Fstat(sub).st_nlink);
  for (int i = 0; i < kTimes; i++) {
    ASSERT_EQ(-ENOENT, SizeAt(sub, "f"));
    ASSERT_EQ(0u, Fstat(sub).st_nlink);
    ASSERT_EQ(TrueAttributes(sub), Attributes(sub));
  }
  // Another takes its name.
  const int next = MakeDir("a/sub");
  WriteFile(In("a/sub/f"), "4444");
  EXPECT_EQ(-ENOENT, SizeAt(sub, "f"));
  EXPECT_EQ(4, SizeAt(next, "f"));
  for (int fd : {a, b, sub, next}) close(fd);
}

TEST_P(FdPlace, AttributesChange) {
  const std::string path = In("file");
  WriteFile(path, "1234");
  const int fd = open(path.c_str(), O_RDWR | O_APPEND), reader = open(path.c_str(), O_RDONLY);
  const int by_path = open(path.c_str(), O_PATH);
  auto warm = [&] {
    for (int f : {fd, reader, by_path}) Warm(f);
  };
  auto check = [&](const char* what) {
    const std::string truth = TrueAttributes(fd);
    for (int f : {fd, reader, by_path}) ASSERT_EQ(truth, Attributes(f)) << what;
    warm();
    for (int f : {fd, reader, by_path}) ASSERT_EQ(truth, Attributes(f)) << what;
  };
  warm();
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(2, write(fd, "ab", 2));
    ASSERT_EQ(4 + 2 * (i + 1), Fstat(reader).st_size);
    check("write");
  }
  ASSERT_OK(ftruncate(fd, 100000));
  ASSERT_EQ(100000, Fstat(reader).st_size);
  check("ftruncate");
  ASSERT_OK(truncate(path.c_str(), 7));
  ASSERT_EQ(7, Fstat(fd).st_size);
  check("truncate");
  ASSERT_OK(posix_fallocate(fd, 0, 50000));
  ASSERT_EQ(50000, Fstat(reader).st_size);
  check("fallocate");
  ASSERT_OK(fchmod(fd, 0640));
  ASSERT_EQ(0640u, Fstat(reader).st_mode & 07777);
  check("fchmod");
  ASSERT_OK(chmod(path.c_str(), 0604));
  ASSERT_EQ(0604u, Fstat(reader).st_mode & 07777);
  check("chmod");
  timespec times[2] = {{1000, 5}, {2000, 6}};
  ASSERT_OK(futimens(fd, times));
  ASSERT_EQ(1000, Fstat(reader).st_atim.tv_sec);
  ASSERT_EQ(2000, Fstat(reader).st_mtim.tv_sec);
  check("futimens");
  char c;
  ASSERT_EQ(1, pread(reader, &c, 1, 0));
  check("read");
  ASSERT_OK(link(path.c_str(), In("second").c_str()));
  ASSERT_EQ(2u, Fstat(reader).st_nlink);
  check("link");
  ASSERT_OK(rename(In("second").c_str(), In("third").c_str()));
  check("rename");
  ASSERT_OK(unlink(In("third").c_str()));
  ASSERT_EQ(1u, Fstat(reader).st_nlink);
  check("unlink");
  ASSERT_OK(close(open(path.c_str(), O_WRONLY | O_TRUNC)));
  ASSERT_EQ(0, Fstat(fd).st_size);
  check("O_TRUNC");
  WriteFile(In("new"), "new");
  ASSERT_OK(rename(In("new").c_str(), path.c_str()));
  ASSERT_EQ(0u, Fstat(reader).st_nlink);
  check("replaced");
  ASSERT_EQ(3, write(fd, "abc", 3));
  ASSERT_EQ(3, Fstat(by_path).st_size);
  check("write without a name");
  for (int f : {fd, reader, by_path}) close(f);
}

TEST_P(FdPlace, WritesThroughAMapping) {
  const std::string path = In("mapped");
  WriteFile(path, std::string(4096, 'x'));
  const int fd = open(path.c_str(), O_RDWR);
  timespec times[2] = {{1000, 5}, {2000, 6}};
  ASSERT_OK(futimens(fd, times));
  Warm(fd);
  char* map = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(MAP_FAILED, map);
  Warm(fd);
  map[0] = 'y';
  ASSERT_OK(msync(map, 4096, MS_SYNC));
  ASSERT_EQ(TrueAttributes(fd), Attributes(fd));
  munmap(map, 4096);
  close(fd);
}

// Steps of a child and its parent, one after the other.
struct Turns {
  int down[2], up[2];
  Turns() {
    EXPECT_OK(pipe(down));
    EXPECT_OK(pipe(up));
  }
  ~Turns() {
    for (int fd : {down[0], down[1], up[0], up[1]}) close(fd);
  }
  static void Give(const int* p) { EXPECT_EQ(1, write(p[1], "", 1)); }
  static void Take(const int* p) {
    char c;
    EXPECT_EQ(1, read(p[0], &c, 1));
  }
};

TEST_P(FdPlace, AnotherProcessChanges) {
  WriteFile(In("f"), "1");
  const int fd = open(In("f").c_str(), O_RDONLY);
  Turns turns;
  const pid_t pid = fork();
  if (pid == 0) {
    for (int i = 2; i < 8; i++) {
      Turns::Take(turns.down);
      const int mine = open(In("f").c_str(), O_WRONLY | O_APPEND);
      if (write(mine, "x", 1) != 1) _exit(1);
      close(mine);
      if (i % 2) WriteFile(In("g"), std::string(i, 'x'));
      if (i % 2 == 0) unlink(In("g").c_str());
      if (Fstat(fd).st_size != i) _exit(2);
      close(fd);
      if (dup(turns.up[0]) != fd || !S_ISFIFO(Fstat(fd).st_mode)) _exit(3);
      if (dup2(open(In("f").c_str(), O_RDONLY), fd) != fd) _exit(4);
      Turns::Give(turns.up);
    }
    _exit(0);
  }
  for (int i = 2; i < 8; i++) {
    Warm(fd);
    Warm(at_, "f");
    Warm(at_, "g");
    ASSERT_EQ(i - 1, Fstat(fd).st_size);
    Turns::Give(turns.down);
    Turns::Take(turns.up);
    ASSERT_EQ(i, Fstat(fd).st_size);
    ASSERT_EQ(i, SizeAt(at_, "f"));
    ASSERT_EQ(i % 2 ? i : -ENOENT, SizeAt(at_, "g"));
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
  close(fd);
}

TEST_P(FdPlace, DescriptorsChange) {
  const int a = MakeDir("a"), b = MakeDir("b");
  WriteFile(In("a/f"), "1");
  WriteFile(In("b/f"), "22");
  const ino_t ino_a = Fstat(a).st_ino, ino_b = Fstat(b).st_ino;
  const int fd = dup(a);
  for (int i = 0; i < 4; i++) {
    Warm(fd, "f");
    Warm(fd);
    ASSERT_EQ(1, SizeAt(fd, "f"));
    ASSERT_EQ(ino_a, Fstat(fd).st_ino);
    ASSERT_EQ(fd, i % 2 ? dup2(b, fd) : dup3(b, fd, O_CLOEXEC));
    ASSERT_EQ(2, SizeAt(fd, "f"));
    ASSERT_EQ(ino_b, Fstat(fd).st_ino);
    Warm(fd, "f");
    Warm(fd);
    if (i < 2) {
      ASSERT_OK(close(fd));
    } else {
      ASSERT_OK(static_cast<int>(syscall(SYS_close_range, fd, fd, 0)));
    }
    ASSERT_EQ(-EBADF, SizeAt(fd, "f"));
    ASSERT_EQ(-EBADF, Fstat(fd).st_size);
    ASSERT_EQ(fd, fcntl(a, F_DUPFD, fd));
  }
  Warm(fd);
  EXPECT_EQ(0, ExitStatus([&] {
              Warm(fd, "f");
              // A process with the same descriptors, and another address space.
              static char stack[64 * 1024];
              static int from, to;
              from = b, to = fd;
              auto body = [](void*) { return dup2(from, to) == to ? 0 : 1; };
              int status;
              const pid_t pid = clone(body, stack + sizeof stack, CLONE_FILES | SIGCHLD, nullptr);
              if (waitpid(pid, &status, 0) != pid || status != 0) return 1;
              if (SizeAt(fd, "f") != 2 || Fstat(fd).st_ino != ino_b) return 2;
              Warm(fd, "f");
              Warm(fd);
              // One with the same memory, and other descriptors.
              from = a;
              auto other = [](void*) {
                Warm(to, "f");
                Warm(to);
                if (SizeAt(to, "f") != 2 || dup2(from, to) != to) return 1;
                Warm(to, "f");
                Warm(to);
                return SizeAt(to, "f") == 1 ? 0 : 2;
              };
              const pid_t vm =
                  clone(other, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr);
              if (waitpid(vm, &status, 0) != vm || status != 0) return 3;
              if (SizeAt(fd, "f") != 2 || Fstat(fd).st_ino != ino_b) return 4;
              Warm(fd, "f");
              // A thread that takes its own.
              bool good = true;
              std::thread([&] {
                Warm(fd, "f");
                good = unshare(CLONE_FILES) == 0 && SizeAt(fd, "f") == 2 && dup2(a, fd) == fd &&
                       SizeAt(fd, "f") == 1;
                Warm(fd, "f");
                Warm(fd);
                good = good && SizeAt(fd, "f") == 1 && Fstat(fd).st_ino == ino_a;
              }).join();
              if (!good) return 5;
              if (SizeAt(fd, "f") != 2 || Fstat(fd).st_ino != ino_b) return 6;
              return 0;
            }));
  EXPECT_EQ(1, SizeAt(fd, "f"));
  // Of numbers that few programs come to.
  for (int high : {255, 256, 1023, 1024, 3000}) {
    if (dup2(a, high) != high) continue;
    Warm(high, "f");
    Warm(high);
    EXPECT_EQ(1, SizeAt(high, "f"));
    EXPECT_EQ(high, dup2(b, high));
    EXPECT_EQ(2, SizeAt(high, "f"));
    EXPECT_EQ(ino_b, Fstat(high).st_ino);
    close(high);
    EXPECT_EQ(-EBADF, Fstat(high).st_size);
  }
  for (int f : {a, b, fd}) close(f);
}

// Whoever asks while a descriptor is replaced finds one or the other.
TEST_P(FdPlace, ReplacedWhileOthersLook) {
  const int a = MakeDir("a"), b = MakeDir("b");
  WriteFile(In("a/f"), "1");
  WriteFile(In("b/f"), "22");
  const ino_t ino_a = Fstat(a).st_ino, ino_b = Fstat(b).st_ino;
  const int fd = dup(a);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++) {
    threads.emplace_back([&] {
      while (!stop) {
        const off_t size = SizeAt(fd, "f");
        if (size != 1 && size != 2) wrong++;
        const ino_t ino = Fstat(fd).st_ino;
        if (ino != ino_a && ino != ino_b) wrong++;
      }
    });
  }
  for (int i = 0; i < 500; i++) {
    ASSERT_EQ(fd, dup2(i % 2 ? a : b, fd));
    for (int k = 0; k < 5; k++) {
      ASSERT_EQ(i % 2 ? 1 : 2, SizeAt(fd, "f"));
      ASSERT_EQ(i % 2 ? ino_a : ino_b, Fstat(fd).st_ino);
    }
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(0, wrong);
  for (int f : {a, b, fd}) close(f);
}

// Sizes that grow are never seen to shrink.
TEST_P(FdPlace, RacingWrites) {
  WriteFile(In("f"), "");
  const int fd = open(In("f").c_str(), O_WRONLY | O_APPEND);
  std::atomic<off_t> written{0};
  std::atomic<int> wrong{0};
  std::thread reader([&] {
    const int mine = open(In("f").c_str(), O_RDONLY);
    off_t last = 0;
    while (written < 300) {
      const off_t least = written;
      const off_t size = Fstat(mine).st_size;
      if (size < last || size < least) wrong++;
      last = size;
    }
    close(mine);
  });
  for (int i = 0; i < 300; i++) {
    EXPECT_EQ(1, write(fd, "x", 1));
    written = i + 1;
    for (int k = 0; k < 10; k++) EXPECT_EQ(i + 1, Fstat(fd).st_size);
  }
  reader.join();
  close(fd);
  EXPECT_EQ(0, wrong);
}

bool BecomeUser() {
  return setgroups(0, nullptr) == 0 && setresgid(1000, 1000, 1000) == 0 &&
         setresuid(1000, 1000, 1000) == 0;
}

// A process may hold what it could not open.
TEST_P(FdPlace, BehindClosedDoors) {
  if (getuid() != 0) GTEST_SKIP();
  close(MakeDir("shut", 0700));
  const int in = MakeDir("shut/in");
  WriteFile(In("shut/in/f"), "1");
  const int file = open(In("shut/in/f").c_str(), O_RDWR);
  int pair[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  Turns turns;
  Warm(in, "f");
  const pid_t pid = fork();
  if (pid == 0) {
    close(in);
    close(file);
    if (!BecomeUser()) _exit(1);
    const int dir = RecvFd(pair[1]), mine = RecvFd(pair[1]);
    for (int i = 0; i < 3; i++) {
      Warm(dir, "f");
      Warm(dir, "missing");
      Warm(mine);
      if (SizeAt(dir, "f") != i + 1 || SizeAt(dir, "missing") != -ENOENT) _exit(2);
      if (AccessErrorAt(dir, "f", W_OK) != EACCES || Fstat(mine).st_size != i + 1) _exit(3);
      if (SizeAt(AT_FDCWD, In("shut/in/f")) != -EACCES) _exit(4);
      Turns::Give(turns.up);
      Turns::Take(turns.down);
    }
    // The directory itself.
    if (SizeAt(dir, "f") != -EACCES || SizeAt(dir, "missing") != -EACCES) _exit(5);
    Warm(dir, "f");
    if (SizeAt(dir, "f") != -EACCES || AccessErrorAt(dir, "f") != EACCES) _exit(6);
    if (OpenErrorAt(dir, "missing") != EACCES || !S_ISDIR(Fstat(dir).st_mode)) _exit(7);
    _exit(0);
  }
  EXPECT_EQ(1, SendFd(pair[0], in));
  EXPECT_EQ(1, SendFd(pair[0], file));
  for (int i = 0; i < 3; i++) {
    Turns::Take(turns.up);
    EXPECT_EQ(1, pwrite(file, "x", 1, i + 1));
    // The way is open for a while, and closes again.
    chmod(In("shut").c_str(), 0755);
    EXPECT_EQ(0, ExitStatus([&] {
                if (!BecomeUser()) return 1;
                Warm(in, "f");
                Warm(file);
                return SizeAt(in, "f") == i + 2 && SizeAt(AT_FDCWD, In("shut/in/f")) == i + 2 ? 0
                                                                                              : 2;
              }));
    chmod(In("shut").c_str(), 0700);
    EXPECT_EQ(0, ExitStatus([&] {
                if (!BecomeUser()) return 1;
                if (SizeAt(AT_FDCWD, In("shut/in/f")) != -EACCES) return 2;
                return SizeAt(in, "f") == i + 2 && Fstat(file).st_size == i + 2 ? 0 : 3;
              }));
    if (i == 2) chmod(In("shut/in").c_str(), 0);
    Turns::Give(turns.down);
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, WEXITSTATUS(status));
  for (int fd : {in, file, pair[0], pair[1]}) close(fd);
}

TEST_P(FdPlace, OtherIds) {
  if (getuid() != 0) GTEST_SKIP();
  const int fd = MakeDir("d", 0700);
  WriteFile(In("d/f"), "1");
  Warm(fd, "f");
  EXPECT_EQ(0, ExitStatus([&] {
              for (int i = 0; i < 3; i++) {
                Warm(fd, "f");
                Warm(fd);
                if (seteuid(1000) != 0 || SizeAt(fd, "f") != -EACCES) return 1;
                Warm(fd, "f");
                if (SizeAt(fd, "f") != -EACCES || Fstat(fd).st_uid != 0) return 2;
                if (seteuid(0) != 0 || SizeAt(fd, "f") != 1) return 3;
              }
              Warm(fd, "f");
              if (!BecomeUser() || SizeAt(fd, "f") != -EACCES) return 4;
              Warm(fd, "f");
              return AccessErrorAt(fd, "f") == EACCES ? 0 : 5;
            }));
  close(fd);
}

TEST_P(FdPlace, WorkingDirectories) {
  const int a = MakeDir("a"), b = MakeDir("b");
  WriteFile(In("a/f"), "1");
  WriteFile(In("b/f"), "22");
  EXPECT_EQ(0, ExitStatus([&] {
              for (int i = 0; i < 4; i++) {
                if (fchdir(i % 2 ? a : b) != 0) return 1;
                if (SizeAt(AT_FDCWD, "f") != (i % 2 ? 1 : 2)) return 2;
                if (SizeAt(a, "f") != 1 || SizeAt(b, "f") != 2) return 3;
                Warm(AT_FDCWD, "f");
                Warm(a, "f");
                Warm(b, "f");
                if (SizeAt(AT_FDCWD, "f") != (i % 2 ? 1 : 2)) return 4;
              }
              return 0;
            }));
  close(a);
  close(b);
}

TEST_P(FdPlace, AnotherRoot) {
  if (getuid() != 0) GTEST_SKIP();
  const int root = MakeDir("root"), inside = MakeDir("root/in");
  WriteFile(In("f"), "1");
  WriteFile(In("root/f"), "22");
  EXPECT_EQ(0, ExitStatus([&] {
              Warm(root, "../f");
              Warm(inside, "../../f");
              if (SizeAt(root, "../f") != 1 || SizeAt(inside, "../../f") != 1) return 1;
              if (chroot(In("root").c_str()) != 0) return 2;
              for (int i = 0; i < kTimes; i++) {
                // The root is where ".." ends, for who is below it.
                if (SizeAt(root, "../f") != 2 || SizeAt(inside, "../../f") != 2) return 3;
                if (SizeAt(at_, "f") != 1) return 4;
                if (!S_ISDIR(Fstat(at_).st_mode)) return 5;
              }
              return 0;
            }));
  EXPECT_EQ(1, SizeAt(root, "../f"));
  close(root);
  close(inside);
}

TEST_P(FdPlace, Mounts) {
  if (getuid() != 0) GTEST_SKIP();
  const int m = MakeDir("m"), other = MakeDir("other");
  close(MakeDir("elsewhere"));
  WriteFile(In("f"), "4444");
  WriteFile(In("m/f"), "1");
  WriteFile(In("other/f"), "22");
  Warm(m, "f");
  EXPECT_EQ(
      0, ExitStatus([&] {
        if (unshare(CLONE_NEWNS) != 0) return 0;
        if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return 1;
        for (int i = 0; i < 3; i++) {
          Warm(m, "f");
          Warm(m);
          if (mount(In("other").c_str(), In("m").c_str(), nullptr, MS_BIND, nullptr) != 0) {
            return 2;
          }
          // What was opened before is below the mount.
          if (SizeAt(m, "f") != 1) return 3;
          const int top = open(In("m").c_str(), O_RDONLY | O_DIRECTORY);
          Warm(top, "f");
          Warm(top, "../f");
          Warm(top);
          if (SizeAt(top, "f") != 2 || SizeAt(top, "../f") != 4) return 4;
          if (mount(nullptr, In("m").c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) !=
              0) {
            return 5;
          }
          if (AccessErrorAt(top, "f", W_OK) != EROFS) return 6;
          if (mount(In("m").c_str(), In("elsewhere").c_str(), nullptr, MS_MOVE, nullptr) != 0) {
            return 7;
          }
          if (SizeAt(top, "f") != 2 || SizeAt(m, "f") != 1) return 8;
          Warm(top, "../f");
          if (umount2(In("elsewhere").c_str(), MNT_DETACH) != 0) return 9;
          if (SizeAt(top, "f") != 2 || SizeAt(top, "../f") != 2) return 10;
          Warm(top, "../f");
          if (SizeAt(top, "../f") != 2) return 11;
          close(top);
        }
        return 0;
      }));
  EXPECT_EQ(1, SizeAt(m, "f"));
  close(m);
  close(other);
}

TEST_P(FdPlace, BadAddresses) {
  WriteFile(In("f"), "1");
  const int fd = open(In("f").c_str(), O_RDONLY);
  Warm(fd);
  Warm(at_, "f");
  char* edge = static_cast<char*>(
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  munmap(edge + 4096, 4096);
  for (int i = 0; i < kTimes; i++) {
    ASSERT_EQ(-1, syscall(SYS_fstat, fd, BadAddress()));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, syscall(SYS_fstat, fd, edge + 4096 - 100));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, syscall(SYS_fstat, 999, BadAddress()));
    ASSERT_EQ(EBADF, errno);
    struct stat st;
    ASSERT_EQ(-1, syscall(SYS_newfstatat, fd, BadAddress(), &st, AT_EMPTY_PATH));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, syscall(SYS_newfstatat, at_, "f", BadAddress(), 0));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, syscall(SYS_newfstatat, fd, "", &st, 0x40000000));
    ASSERT_EQ(EINVAL, errno);
    ASSERT_OK(static_cast<int>(syscall(SYS_newfstatat, at_, "f", &st, AT_EMPTY_PATH)));
    ASSERT_EQ(1, st.st_size);
  }
  close(fd);
}

// The program that Exec executes: descriptor 200 is a directory, 201 was closed on the way.
TEST_P(FdPlace, Executed) {
  if (getenv("FD_PLACE_EXECUTED") == nullptr) GTEST_SKIP();
  for (int i = 0; i < kTimes; i++) {
    ASSERT_EQ(1, SizeAt(200, "f"));
    ASSERT_TRUE(S_ISDIR(Fstat(200).st_mode));
    ASSERT_EQ(-EBADF, SizeAt(201, "f"));
    ASSERT_EQ(-EBADF, Fstat(201).st_size);
  }
  ASSERT_EQ(201, dup3(at_, 201, O_CLOEXEC));
  EXPECT_EQ(-ENOENT, SizeAt(201, "f"));
  EXPECT_EQ(1, SizeAt(200, "f"));
}

TEST_P(FdPlace, Exec) {
  const int a = MakeDir("a"), b = MakeDir("b");
  WriteFile(In("a/f"), "1");
  WriteFile(In("b/f"), "22");
  const auto execute = [&] {
    if (dup3(a, 200, 0) != 200 || dup3(b, 201, O_CLOEXEC) != 201) return 1;
    Warm(200, "f");
    Warm(201, "f");
    Warm(201);
    if (SizeAt(201, "f") != 2) return 2;
    setenv("FD_PLACE_EXECUTED", "1", 1);
    execl("/proc/self/exe", "fd_place", "--gtest_filter=*FdPlace.Executed/Files", "--gtest_brief=1",
          nullptr);
    return 3;
  };
  for (int i = 0; i < 3; i++) {
    EXPECT_EQ(0, ExitStatus(execute));
    // By a process that shares its parent's memory until then.
    static const auto* body = &execute;
    body = &execute;
    static char stack[256 * 1024];
    const pid_t pid = clone([](void*) { return (*body)(); }, stack + sizeof stack,
                            CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr);
    int status;
    ASSERT_EQ(pid, waitpid(pid, &status, 0));
    EXPECT_EQ(0, status);
    unsetenv("FD_PLACE_EXECUTED");
    EXPECT_EQ(1, SizeAt(a, "f"));
    EXPECT_EQ(-EBADF, SizeAt(200, "f"));
  }
  close(a);
  close(b);
}

// By descriptors, and in a way that nothing is kept of.
TEST_P(FdPlace, AnySequenceOfChanges) {
  constexpr int kFirst = 50, kCount = 6;
  const char* const names[] = {"a", "b", "a/x", "a/y", "b/x", "a/x/1", "b/x/1", ".", ".."};
  uint64_t state = 88172645463325252ull + static_cast<uint64_t>(GetParam()[1]);
  auto random = [&](size_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<size_t>(state % n);
  };
  auto change = [&] {
    const std::string p = In(names[random(7)]), q = In(names[random(7)]);
    const int fd = kFirst + static_cast<int>(random(kCount));
    switch (random(12)) {
      case 0:
        mkdir(p.c_str(), 0755);
        break;
      case 1: {
        const int made = open(p.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0644);
        if (made < 0) break;
        (void)!write(made, "text", 4);
        dup2(made, fd);
        close(made);
        break;
      }
      case 2:
        (void)!write(fd, "more", 4);
        break;
      case 3:
        unlink(p.c_str());
        rmdir(q.c_str());
        break;
      case 4:
        rename(p.c_str(), q.c_str());
        break;
      case 5:
        link(p.c_str(), q.c_str());
        break;
      case 6:
        symlink(random(2) ? "x" : "../a", p.c_str());
        break;
      case 7:
        chmod(p.c_str(), 0700 + static_cast<mode_t>(random(64)));
        break;
      case 8:
        close(fd);
        break;
      case 9:
        dup2(kFirst + static_cast<int>(random(kCount)), fd);
        break;
      default: {
        const int opened = open(p.c_str(), random(2) ? O_RDONLY : O_PATH);
        if (opened < 0) break;
        dup2(opened, fd);
        close(opened);
        break;
      }
    }
  };
  for (int i = 0; i < 300; i++) {
    change();
    for (int round = 0; round < 3; round++) {
      for (int fd = kFirst; fd < kFirst + kCount; fd++) {
        struct stat st;
        if (fcntl(fd, F_GETFD) < 0) {
          ASSERT_EQ("errno 9", Attributes(fd)) << i;
          continue;
        }
        ASSERT_EQ(TrueAttributes(fd), Attributes(fd)) << i;
        const bool dir = S_ISDIR(Fstat(fd).st_mode);
        const std::string magic = "/proc/self/fd/" + std::to_string(fd) + "/";
        for (const char* name : {"x", "y", "1", "x/1", "..", "../b", "."}) {
          int r = fstatat(fd, name, &st, 0);
          const std::string kept = Shown(r, st);
          if (!dir) {
            ASSERT_EQ("errno 20", kept) << i;
            continue;
          }
          r = stat((magic + name).c_str(), &st);
          ASSERT_EQ(Shown(r, st), kept) << i << " " << fd << " " << name;
          r = fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW);
          const std::string kept_link = Shown(r, st);
          r = lstat((magic + name).c_str(), &st);
          ASSERT_EQ(Shown(r, st), kept_link) << i << " " << fd << " " << name;
          ASSERT_EQ(LinkAt(AT_FDCWD, magic + name), LinkAt(fd, name)) << i << " " << name;
          ASSERT_EQ(AccessErrorAt(AT_FDCWD, magic + name, X_OK), AccessErrorAt(fd, name, X_OK))
              << i << " " << name;
        }
      }
    }
  }
  for (int fd = kFirst; fd < kFirst + kCount; fd++) close(fd);
}

INSTANTIATE_TEST_SUITE_P(On, FdPlace, testing::Values("/tmp", "/dev/shm"), [](const auto& p) {
  return std::string(p.param[1] == 't' ? "Files" : "Memory");
});

}  // namespace
