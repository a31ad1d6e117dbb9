// Look-ups that are asked for again and again are answered by what was found before. Whatever
// changes what they find makes that vanish.
#include <grp.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

constexpr int kTimes = 40;  // more than it takes to have an answer kept

class PathLane : public testing::TestWithParam<const char*> {
 protected:
  PathLane() {
    std::string name = std::string(GetParam()) + "/paths-XXXXXX";
    dir_ = mkdtemp(name.data());
    chmod(dir_.c_str(), 0755);
  }
  ~PathLane() override { [[maybe_unused]] int r = system(("rm -rf " + dir_).c_str()); }
  std::string In(const std::string& name) const { return dir_ + "/" + name; }
  std::string dir_;
};

// The errno of each kind of look-up, the last time; 0: it is there.
int StatError(const std::string& path) {
  struct stat st;
  return stat(path.c_str(), &st) == 0 ? 0 : errno;
}
int AccessError(const std::string& path, int mode = F_OK) {
  return access(path.c_str(), mode) == 0 ? 0 : errno;
}
int OpenError(const std::string& path, int flags = O_RDONLY) {
  const int fd = open(path.c_str(), flags, 0600);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}
off_t SizeOf(const std::string& path) {
  struct stat st;
  return stat(path.c_str(), &st) == 0 ? st.st_size : -1;
}
ino_t InoOf(const std::string& path) {
  struct stat st;
  return lstat(path.c_str(), &st) == 0 ? st.st_ino : 0;
}
std::string LinkOf(const std::string& path) {
  char text[300];
  const ssize_t n = readlink(path.c_str(), text, sizeof text);
  return n < 0 ? std::string("errno ") + std::to_string(errno) : std::string(text, n);
}

// Asks in every way until the answers are kept.
void Warm(const std::string& path) {
  for (int i = 0; i < kTimes; i++) {
    StatError(path);
    InoOf(path);
    AccessError(path);
    LinkOf(path);
    if (StatError(path) == ENOENT) OpenError(path);
  }
}

TEST_P(PathLane, TheSameAgain) {
  WriteFile(In("file"), "12345");
  mkdir(In("sub").c_str(), 0755);
  symlink("file", In("link").c_str());
  symlink("nowhere", In("dangling").c_str());
  for (const std::string& path : {In("file"), In("sub"), In("sub/"), In("link"), In("sub/../file"),
                                  In("./file"), In("sub//..//link"), std::string("/"), dir_}) {
    struct stat first, again;
    ASSERT_OK(stat(path.c_str(), &first));
    for (int i = 0; i < kTimes; i++) {
      ASSERT_OK(stat(path.c_str(), &again));
      ASSERT_EQ(0, memcmp(&first, &again, sizeof first)) << path;
      ASSERT_OK(fstatat(AT_FDCWD, path.c_str(), &again, AT_NO_AUTOMOUNT));
      ASSERT_EQ(0, memcmp(&first, &again, sizeof first)) << path;
    }
    struct statx x, y;
    ASSERT_OK(statx(AT_FDCWD, path.c_str(), 0, STATX_ALL, &x));
    for (int i = 0; i < kTimes; i++) {
      memset(&y, 1, sizeof y);
      ASSERT_OK(statx(AT_FDCWD, path.c_str(), 0, STATX_ALL, &y));
      ASSERT_EQ(0, memcmp(&x, &y, sizeof x)) << path;
    }
    EXPECT_EQ(first.st_dev, makedev(y.stx_dev_major, y.stx_dev_minor));
    EXPECT_EQ(first.st_ino, y.stx_ino);
    EXPECT_EQ(first.st_mtim.tv_nsec, y.stx_mtime.tv_nsec);
  }
  for (int i = 0; i < kTimes; i++) {
    ASSERT_EQ("file", LinkOf(In("link")));
    ASSERT_EQ("errno 22", LinkOf(In("file")));
    ASSERT_EQ("errno 2", LinkOf(In("missing")));
    ASSERT_EQ("errno 20", LinkOf(In("file/under")));
    ASSERT_EQ(ENOENT, StatError(In("dangling")));
    ASSERT_NE(0u, InoOf(In("dangling")));
    ASSERT_EQ(ENOENT, OpenError(In("dangling")));
    ASSERT_EQ(ENOTDIR, StatError(In("file/")));
    ASSERT_EQ(ENOTDIR, StatError(In("file/under")));
    ASSERT_EQ(ENOENT, StatError(In("missing/under")));
    ASSERT_EQ(ENOENT, StatError(""));
    char two[2];
    ASSERT_EQ(2, readlink(In("link").c_str(), two, 2));
    ASSERT_EQ(0, memcmp("fi", two, 2));
    ASSERT_EQ(-1, readlink(In("link").c_str(), two, 0));
    ASSERT_EQ(EINVAL, errno);
  }
}

TEST_P(PathLane, NamesComeAndGo) {
  const std::string path = In("name");
  for (int round = 0; round < 5; round++) {
    Warm(path);
    ASSERT_EQ(ENOENT, StatError(path));
    ASSERT_EQ(ENOENT, OpenError(path));
    ASSERT_EQ(ENOENT, AccessError(path));
    WriteFile(path, "x");
    ASSERT_EQ(0, StatError(path));
    ASSERT_EQ(0, OpenError(path));
    ASSERT_EQ(0, AccessError(path));
    Warm(path);
    ASSERT_OK(unlink(path.c_str()));
    ASSERT_EQ(ENOENT, StatError(path));
    Warm(path);
    ASSERT_OK(mkdir(path.c_str(), 0700));
    ASSERT_EQ(0, StatError(path + "/."));
    Warm(path);
    Warm(path + "/below");
    ASSERT_OK(rmdir(path.c_str()));
    ASSERT_EQ(ENOENT, StatError(path));
    ASSERT_EQ(ENOENT, OpenError(path + "/below"));
    ASSERT_OK(symlink("target", path.c_str()));
    ASSERT_EQ("target", LinkOf(path));
    Warm(path);
    ASSERT_OK(unlink(path.c_str()));
    ASSERT_OK(symlink("another", path.c_str()));
    ASSERT_EQ("another", LinkOf(path));
    ASSERT_EQ(ENOENT, OpenError(path));
    ASSERT_EQ(0, OpenError(path, O_RDWR | O_CREAT));
    ASSERT_EQ(0, StatError(In("another")));
    ASSERT_OK(unlink(path.c_str()));
    ASSERT_OK(unlink(In("another").c_str()));
  }
}

TEST_P(PathLane, LinksLeadElsewhere) {
  WriteFile(In("one"), "1");
  WriteFile(In("two"), "22");
  mkdir(In("d1").c_str(), 0755);
  mkdir(In("d2").c_str(), 0755);
  WriteFile(In("d1/f"), "333");
  WriteFile(In("d2/f"), "4444");
  symlink("one", In("link").c_str());
  symlink("d1", In("dir").c_str());
  Warm(In("link"));
  Warm(In("dir/f"));
  EXPECT_EQ(1, SizeOf(In("link")));
  EXPECT_EQ(3, SizeOf(In("dir/f")));
  symlink("two", In("new").c_str());
  ASSERT_OK(rename(In("new").c_str(), In("link").c_str()));
  EXPECT_EQ(2, SizeOf(In("link")));
  EXPECT_EQ("two", LinkOf(In("link")));
  symlink("d2", In("new").c_str());
  ASSERT_OK(rename(In("new").c_str(), In("dir").c_str()));
  EXPECT_EQ(4, SizeOf(In("dir/f")));
  Warm(In("dir/f"));
  ASSERT_OK(unlink(In("d2/f").c_str()));
  EXPECT_EQ(ENOENT, StatError(In("dir/f")));
}

TEST_P(PathLane, RenamesAbove) {
  ASSERT_OK(mkdir(In("a").c_str(), 0755));
  ASSERT_OK(mkdir(In("a/b").c_str(), 0755));
  WriteFile(In("a/b/f"), "old");
  ASSERT_OK(mkdir(In("x").c_str(), 0755));
  ASSERT_OK(mkdir(In("x/b").c_str(), 0755));
  WriteFile(In("x/b/f"), "newer");
  Warm(In("a/b/f"));
  Warm(In("c/b/f"));
  ASSERT_OK(rename(In("a").c_str(), In("c").c_str()));
  EXPECT_EQ(ENOENT, StatError(In("a/b/f")));
  EXPECT_EQ(3, SizeOf(In("c/b/f")));
  Warm(In("c/b/f"));
  Warm(In("x/b/f"));
  if (syscall(SYS_renameat2, AT_FDCWD, In("c").c_str(), AT_FDCWD, In("x").c_str(),
              RENAME_EXCHANGE) == 0) {
    EXPECT_EQ(5, SizeOf(In("c/b/f")));
    EXPECT_EQ(3, SizeOf(In("x/b/f")));
  }
  Warm(In("c/b/../b/f"));
  const off_t size = SizeOf(In("c/b/f"));
  ASSERT_OK(rename(In("c/b").c_str(), In("moved").c_str()));
  EXPECT_EQ(ENOENT, StatError(In("c/b/../b/f")));
  EXPECT_EQ(size, SizeOf(In("moved/f")));
}

TEST_P(PathLane, Attributes) {
  const std::string path = In("file");
  WriteFile(path, "1234");
  struct stat before, after;
  auto now = [&] {
    EXPECT_OK(stat(path.c_str(), &after));
    return &after;
  };
  Warm(path);
  const int fd = open(path.c_str(), O_RDWR | O_APPEND);
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(2, write(fd, "ab", 2));
    ASSERT_EQ(4 + 2 * (i + 1), now()->st_size);
    Warm(path);
  }
  ASSERT_OK(ftruncate(fd, 100000));
  ASSERT_EQ(100000, now()->st_size);
  Warm(path);
  ASSERT_OK(truncate(path.c_str(), 7));
  ASSERT_EQ(7, now()->st_size);
  Warm(path);
  ASSERT_OK(posix_fallocate(fd, 0, 50000));
  ASSERT_EQ(50000, now()->st_size);
  Warm(path);
  timespec times[2] = {{1000, 5}, {2000, 6}};
  ASSERT_OK(utimensat(AT_FDCWD, path.c_str(), times, 0));
  ASSERT_EQ(1000, now()->st_atim.tv_sec);
  ASSERT_EQ(2000, now()->st_mtim.tv_sec);
  Warm(path);
  SleepMs(20);
  ASSERT_EQ(1, pwrite(fd, "x", 1, 0));
  ASSERT_NE(2000, now()->st_mtim.tv_sec);
  Warm(path);
  ASSERT_OK(fchmod(fd, 0640));
  ASSERT_EQ(0640u, now()->st_mode & 07777);
  Warm(path);
  ASSERT_OK(chmod(path.c_str(), 0604));
  ASSERT_EQ(0604u, now()->st_mode & 07777);
  Warm(path);
  if (getuid() == 0) {
    ASSERT_OK(chown(path.c_str(), 12, 34));
    ASSERT_EQ(12u, now()->st_uid);
    ASSERT_EQ(34u, now()->st_gid);
    Warm(path);
  }
  ASSERT_OK(link(path.c_str(), In("second").c_str()));
  ASSERT_EQ(2u, now()->st_nlink);
  Warm(path);
  Warm(In("second"));
  ASSERT_EQ(1, pwrite(fd, "y", 1, 60000));
  ASSERT_EQ(SizeOf(path), SizeOf(In("second")));
  ASSERT_OK(unlink(In("second").c_str()));
  ASSERT_EQ(1u, now()->st_nlink);
  Warm(path);
  before = *now();
  ASSERT_OK(close(open(path.c_str(), O_WRONLY | O_TRUNC)));
  ASSERT_EQ(0, now()->st_size);
  close(fd);
  // A directory's.
  ASSERT_OK(mkdir(In("dir").c_str(), 0755));
  Warm(In("dir"));
  struct stat dir, dir_after;
  ASSERT_OK(stat(In("dir").c_str(), &dir));
  SleepMs(20);
  ASSERT_OK(mkdir(In("dir/sub").c_str(), 0755));
  ASSERT_OK(stat(In("dir").c_str(), &dir_after));
  EXPECT_NE(0, memcmp(&dir.st_mtim, &dir_after.st_mtim, sizeof(timespec)));
}

TEST_P(PathLane, WritesThroughAMapping) {
  const std::string path = In("mapped");
  WriteFile(path, std::string(4096, 'x'));
  timespec times[2] = {{1000, 5}, {2000, 6}};
  ASSERT_OK(utimensat(AT_FDCWD, path.c_str(), times, 0));
  Warm(path);
  const int fd = open(path.c_str(), O_RDWR);
  char* map = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(MAP_FAILED, map);
  map[0] = 'y';
  ASSERT_OK(msync(map, 4096, MS_SYNC));
  // What each look-up gives is what an open file shows.
  struct stat by_path, by_fd;
  ASSERT_OK(stat(path.c_str(), &by_path));
  ASSERT_OK(fstat(fd, &by_fd));
  EXPECT_EQ(0, memcmp(&by_path.st_mtim, &by_fd.st_mtim, sizeof(timespec)));
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
  static void Give(const int* p) { EXPECT_EQ(1, write(p[1], "", 1)); }
  static void Take(const int* p) {
    char c;
    EXPECT_EQ(1, read(p[0], &c, 1));
  }
};

TEST_P(PathLane, PermissionsOfDirectories) {
  if (getuid() != 0) GTEST_SKIP();
  ASSERT_OK(mkdir(In("d").c_str(), 0755));
  ASSERT_OK(mkdir(In("d/e").c_str(), 0755));
  WriteFile(In("d/e/f"), "1");
  Turns turns;
  const pid_t pid = fork();
  if (pid == 0) {
    if (setgroups(0, nullptr) != 0 || setresgid(1000, 1000, 1000) != 0 ||
        setresuid(1000, 1000, 1000) != 0) {
      _exit(1);
    }
    const int expected[] = {0, EACCES, 0, EACCES, 0};
    for (int e : expected) {
      Turns::Take(turns.down);
      if (StatError(In("d/e/f")) != e || AccessError(In("d/e/f")) != e) _exit(2);
      if (StatError(In("d/e/missing")) != (e != 0 ? e : ENOENT)) _exit(3);
      if (OpenError(In("d/e/missing")) != (e != 0 ? e : ENOENT)) _exit(4);
      Warm(In("d/e/f"));
      Warm(In("d/e/missing"));
      if (StatError(In("d/e/f")) != e || StatError(In("d/e/missing")) != (e ? e : ENOENT)) _exit(5);
      if (AccessError(In("d/e/f"), W_OK) != EACCES) _exit(6);
      Turns::Give(turns.up);
    }
    _exit(0);
  }
  auto step = [&] {
    Turns::Give(turns.down);
    Turns::Take(turns.up);
  };
  step();
  chmod(In("d").c_str(), 0700);
  Warm(In("d/e/f"));  // of another user
  EXPECT_EQ(0, StatError(In("d/e/f")));
  step();
  chmod(In("d").c_str(), 0711);
  step();
  ASSERT_OK(chmod(In("d/e").c_str(), 0));
  step();
  ASSERT_OK(chown(In("d/e").c_str(), 1000, 1000));
  ASSERT_OK(chmod(In("d/e").c_str(), 0500));
  step();
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, WEXITSTATUS(status));
}

TEST_P(PathLane, AnotherUserFindsAnother) {
  if (getuid() != 0) GTEST_SKIP();
  ASSERT_OK(mkdir(In("private").c_str(), 0700));
  ASSERT_OK(mkdir(In("group").c_str(), 0750));
  ASSERT_OK(chown(In("group").c_str(), 0, 77));
  WriteFile(In("private/f"), "1");
  WriteFile(In("group/f"), "1");
  Warm(In("private/f"));
  Warm(In("group/f"));
  EXPECT_EQ(0, ExitStatus([&] {
              // With effective ids and back.
              for (int i = 0; i < 3; i++) {
                if (seteuid(1000) != 0 || StatError(In("private/f")) != EACCES) return 1;
                Warm(In("private/f"));
                if (StatError(In("private/f")) != EACCES) return 2;
                if (seteuid(0) != 0 || StatError(In("private/f")) != 0) return 3;
                Warm(In("private/f"));
              }
              gid_t group = 77;
              if (setgroups(1, &group) != 0 || setresgid(1000, 1000, 1000) != 0) return 4;
              if (setresuid(1000, 1000, 1000) != 0) return 5;
              if (StatError(In("private/f")) != EACCES || StatError(In("group/f")) != 0) return 6;
              Warm(In("private/f"));
              Warm(In("group/f"));
              if (StatError(In("private/f")) != EACCES || StatError(In("group/f")) != 0) return 7;
              return 0;
            }));
  EXPECT_EQ(0, ExitStatus([&] {
              Warm(In("group/f"));
              if (setgroups(0, nullptr) != 0) return 1;
              Warm(In("group/f"));
              if (setresgid(1000, 1000, 1000) != 0 || setresuid(1000, 1000, 1000) != 0) return 2;
              Warm(In("group/f"));
              return StatError(In("group/f")) == EACCES && AccessError(In("group/f")) == EACCES ? 0
                                                                                                : 3;
            }));
}

// A process may stand where others of its user cannot go.
TEST_P(PathLane, WhereOnlyOneStands) {
  if (getuid() != 0) GTEST_SKIP();
  ASSERT_OK(mkdir(In("shut").c_str(), 0755));
  ASSERT_OK(mkdir(In("shut/in").c_str(), 0755));
  WriteFile(In("shut/in/f"), "1");
  EXPECT_EQ(0, ExitStatus([&] {
              if (chdir(In("shut/in").c_str()) != 0 || setresuid(1000, 1000, 1000) != 0) return 1;
              Warm("f");
              return StatError("f");
            }));
  ASSERT_OK(chmod(In("shut").c_str(), 0700));
  EXPECT_EQ(0, ExitStatus([&] {
              if (chdir(In("shut/in").c_str()) != 0 || setresuid(1000, 1000, 1000) != 0) return 1;
              Warm("f");
              if (StatError("f") != 0) return 2;
              Warm(In("shut/in/f"));
              return StatError(In("shut/in/f")) == EACCES ? 0 : 3;
            }));
}

TEST_P(PathLane, WorkingDirectories) {
  ASSERT_OK(mkdir(In("a").c_str(), 0755));
  ASSERT_OK(mkdir(In("b").c_str(), 0755));
  WriteFile(In("a/f"), "1");
  WriteFile(In("b/f"), "22");
  WriteFile(In("only"), "333");
  EXPECT_EQ(0, ExitStatus([&] {
              for (int i = 0; i < 4; i++) {
                if (chdir(In("a").c_str()) != 0 || SizeOf("f") != 1) return 1;
                Warm("f");
                Warm("../only");
                if (SizeOf("f") != 1 || SizeOf("../only") != 3) return 2;
                const int fd = open(In("b").c_str(), O_RDONLY | O_DIRECTORY);
                if (fchdir(fd) != 0 || SizeOf("f") != 2) return 3;
                close(fd);
                Warm("f");
                if (SizeOf("f") != 2) return 4;
                // A child's own.
                if (ExitStatus([&] { return chdir("../a") == 0 && SizeOf("f") == 1 ? 0 : 1; }))
                  return 5;
                if (SizeOf("f") != 2) return 6;
                // A thread's is the process's.
                std::thread([&] { (void)!chdir("../a"); }).join();
                if (SizeOf("f") != 1) return 7;
              }
              // It goes.
              if (mkdir("sub", 0755) != 0 || chdir("sub") != 0) return 8;
              WriteFile("g", "1");
              Warm("g");
              Warm("../f");
              if (rename(In("a/sub").c_str(), In("b/sub").c_str()) != 0) return 9;
              if (SizeOf("g") != 1 || SizeOf("../f") != 2) return 10;
              Warm("g");
              if (unlink("g") != 0 || StatError("g") != ENOENT) return 11;
              if (rmdir(In("b/sub").c_str()) != 0 || StatError("g") != ENOENT) return 12;
              Warm("g");
              return StatError("g") == ENOENT ? 0 : 13;
            }));
}

int ChangesFs(void* arg) {
  const char* to = static_cast<const char*>(arg);
  return chdir(to) == 0 ? 0 : 1;
}

TEST_P(PathLane, SharedWorkingDirectory) {
  ASSERT_OK(mkdir(In("a").c_str(), 0755));
  ASSERT_OK(mkdir(In("b").c_str(), 0755));
  WriteFile(In("a/f"), "1");
  WriteFile(In("b/f"), "22");
  EXPECT_EQ(0, ExitStatus([&] {
              if (chdir(In("a").c_str()) != 0) return 1;
              Warm("f");
              static char stack[64 * 1024];
              std::string to = In("b");
              const pid_t pid =
                  clone(ChangesFs, stack + sizeof stack, CLONE_FS | SIGCHLD, to.data());
              int status;
              if (waitpid(pid, &status, 0) != pid || status != 0) return 2;
              return SizeOf("f") == 2 ? 0 : 3;
            }));
}

TEST_P(PathLane, AnotherRoot) {
  if (getuid() != 0) GTEST_SKIP();
  ASSERT_OK(mkdir(In("root").c_str(), 0755));
  ASSERT_OK(mkdir(In("root/tmp").c_str(), 0755));
  WriteFile(In("root/only-here"), "1");
  WriteFile(In("outside"), "22");
  Warm("/only-here");
  Warm(In("outside"));
  EXPECT_EQ(0, ExitStatus([&] {
              Warm("/only-here");
              Warm(In("outside"));
              if (chdir(dir_.c_str()) != 0) return 1;
              Warm("outside");
              if (chroot(In("root").c_str()) != 0) return 2;
              if (StatError("/only-here") != 0 || StatError(In("outside")) != ENOENT) return 3;
              Warm("/only-here");
              Warm(In("outside"));
              Warm("outside");
              if (StatError("/only-here") != 0 || StatError(In("outside")) != ENOENT) return 4;
              return SizeOf("outside") == 2 ? 0 : 5;
            }));
  EXPECT_EQ(ENOENT, StatError("/only-here"));
}

TEST_P(PathLane, Mounts) {
  if (getuid() != 0) GTEST_SKIP();
  ASSERT_OK(mkdir(In("m").c_str(), 0755));
  ASSERT_OK(mkdir(In("other").c_str(), 0755));
  WriteFile(In("m/f"), "1");
  WriteFile(In("other/f"), "22");
  Warm(In("m/f"));
  EXPECT_EQ(0, ExitStatus([&] {
              if (unshare(CLONE_NEWNS) != 0) return 0;
              if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return 1;
              for (int i = 0; i < 3; i++) {
                Warm(In("m/f"));
                if (mount(In("other").c_str(), In("m").c_str(), nullptr, MS_BIND, nullptr) != 0)
                  return 2;
                if (SizeOf(In("m/f")) != 2) return 3;
                Warm(In("m/f"));
                if (AccessError(In("m/f"), W_OK) != 0) return 4;
                if (mount(nullptr, In("m").c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY,
                          nullptr) != 0)
                  return 5;
                if (AccessError(In("m/f"), W_OK) != EROFS) return 6;
                Warm(In("m/f"));
                if (umount2(In("m").c_str(), MNT_DETACH) != 0) return 7;
                if (SizeOf(In("m/f")) != 1 || AccessError(In("m/f"), W_OK) != 0) return 8;
              }
              return 0;
            }));
  EXPECT_EQ(1, SizeOf(In("m/f")));
}

TEST_P(PathLane, AnotherProcessChanges) {
  WriteFile(In("f"), "1");
  Turns turns;
  const pid_t pid = fork();
  if (pid == 0) {
    for (int i = 2; i < 12; i++) {
      Turns::Take(turns.down);
      if (i % 3 == 0) unlink(In("f").c_str());
      WriteFile(i % 2 ? In("f") : In("g"), std::string(i, 'x'));
      if (i % 2 == 0) rename(In("g").c_str(), In("f").c_str());
      Turns::Give(turns.up);
    }
    _exit(0);
  }
  for (int i = 2; i < 12; i++) {
    Warm(In("f"));
    Warm(In("g"));
    ASSERT_EQ(i - 1, SizeOf(In("f")));
    Turns::Give(turns.down);
    Turns::Take(turns.up);
    ASSERT_EQ(i, SizeOf(In("f")));
    ASSERT_EQ(ENOENT, StatError(In("g")));
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
}

TEST_P(PathLane, BadAddresses) {
  WriteFile(In("f"), "1");
  symlink("f", In("l").c_str());
  Warm(In("f"));
  Warm(In("l"));
  const std::string path = In("f"), link = In("l"), missing = In("missing");
  Warm(missing);
  auto* bad = reinterpret_cast<struct stat*>(BadAddress());
  char* pages = static_cast<char*>(
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  munmap(pages + 4096, 4096);
  char* edge = static_cast<char*>(
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  munmap(edge + 4096, 4096);
  char* split = pages + 4096 - path.size() - 1;
  memcpy(split, path.c_str(), path.size() + 1);
  for (int i = 0; i < kTimes; i++) {
    ASSERT_EQ(-1, syscall(SYS_stat, path.c_str(), bad));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, syscall(SYS_stat, missing.c_str(), bad));
    ASSERT_EQ(ENOENT, errno);
    ASSERT_EQ(-1, syscall(SYS_readlink, link.c_str(), bad, 10));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, syscall(SYS_stat, BadAddress(), bad));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, syscall(SYS_stat, pages + 4096, bad));
    ASSERT_EQ(EFAULT, errno);
    struct stat st;
    ASSERT_EQ(0, syscall(SYS_stat, split, &st));
    // A result that would not fit before the end of memory.
    ASSERT_EQ(-1, syscall(SYS_stat, path.c_str(), edge + 4096 - 100));
    ASSERT_EQ(EFAULT, errno);
    ASSERT_EQ(-1, access(path.c_str(), 8));
    ASSERT_EQ(EINVAL, errno);
    ASSERT_EQ(-1, syscall(SYS_newfstatat, AT_FDCWD, path.c_str(), &st, 0x40000000));
    ASSERT_EQ(EINVAL, errno);
    ASSERT_EQ(-1, syscall(SYS_newfstatat, 9999, "f", &st, 0));
    ASSERT_EQ(EBADF, errno);
    ASSERT_EQ(0, syscall(SYS_newfstatat, 9999, path.c_str(), &st, 0));
  }
  // The path's own memory changes.
  memcpy(split + path.size() - 1, "?", 2);
  EXPECT_EQ(ENOENT, StatError(split));
}

TEST_P(PathLane, NoRoomForDescriptors) {
  Warm(In("missing"));
  EXPECT_EQ(0, ExitStatus([&] {
              Warm(In("missing"));
              rlimit none{0, 1024};
              if (setrlimit(RLIMIT_NOFILE, &none) != 0) return 1;
              if (OpenError(In("missing")) != EMFILE) return 2;
              Warm(In("missing"));
              if (OpenError(In("missing")) != EMFILE) return 3;
              none.rlim_cur = 1024;
              if (setrlimit(RLIMIT_NOFILE, &none) != 0) return 4;
              return OpenError(In("missing")) == ENOENT ? 0 : 5;
            }));
}

TEST_P(PathLane, Exec) {
  WriteFile(In("f"), "1");
  Warm(In("f"));
  for (int i = 0; i < 3; i++) {
    EXPECT_EQ(0, ExitStatus([&] {
                if (chdir(dir_.c_str()) != 0) return 1;
                Warm("f");
                execl("/bin/sh", "sh", "-c",
                      "test -f f && test ! -e g && test -f ./f && test ! -e /f", nullptr);
                return 2;
              }));
  }
}

// Whoever looks while names are exchanged finds one or the other, and never both in one.
TEST_P(PathLane, RacingRenames) {
  WriteFile(In("a"), "1");
  WriteFile(In("b"), "22");
  const ino_t one = InoOf(In("a")), two = InoOf(In("b"));
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0}, looked{0};
  std::vector<std::thread> threads;
  const std::string a = In("a"), b = In("b"), c = In("c");
  for (int i = 0; i < 2; i++) {
    threads.emplace_back([&] {
      while (!stop) {
        struct stat st;
        if (stat(a.c_str(), &st) != 0) continue;  // between two renames
        looked++;
        const bool good =
            (st.st_ino == one && st.st_size == 1) || (st.st_ino == two && st.st_size == 2);
        if (!good) wrong++;
      }
    });
  }
  for (int i = 0; i < 300; i++) {
    ASSERT_OK(rename(a.c_str(), c.c_str()));
    ASSERT_EQ(ENOENT, StatError(a));
    ASSERT_OK(rename(b.c_str(), a.c_str()));
    ASSERT_EQ(ENOENT, StatError(b));
    ASSERT_EQ(0, StatError(a));
    ASSERT_OK(rename(c.c_str(), b.c_str()));
    ASSERT_EQ(i % 2 ? 1 : 2, SizeOf(a));
    for (int k = 0; k < 20; k++) ASSERT_EQ(i % 2 ? 2 : 1, SizeOf(b));
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(0, wrong);
}

// Sizes that grow are never seen to shrink.
TEST_P(PathLane, RacingWrites) {
  WriteFile(In("f"), "");
  const std::string f = In("f");
  std::atomic<off_t> written{0};
  std::atomic<int> wrong{0};
  std::thread reader([&] {
    off_t last = 0;
    while (written < 300) {
      const off_t least = written;
      const off_t size = SizeOf(f);
      if (size < last || size < least) wrong++;
      last = size;
    }
  });
  const int fd = open(f.c_str(), O_WRONLY | O_APPEND);
  for (int i = 0; i < 300; i++) {
    EXPECT_EQ(1, write(fd, "x", 1));
    written = i + 1;
    for (int k = 0; k < 10; k++) EXPECT_EQ(i + 1, SizeOf(f));
  }
  reader.join();
  close(fd);
  EXPECT_EQ(0, wrong);
}

// What a path gives, by the calls that may be answered from what is kept, or through a magic link,
// of which nothing is.
std::string Shown(int r, const struct stat& st) {
  if (r != 0) return "errno " + std::to_string(errno);
  return std::to_string(st.st_ino) + " " + std::to_string(st.st_mode) + " " +
         std::to_string(st.st_nlink) + " " + std::to_string(st.st_size) + " " +
         std::to_string(st.st_mtim.tv_sec) + "." + std::to_string(st.st_mtim.tv_nsec) + " " +
         std::to_string(st.st_ctim.tv_nsec);
}

TEST_P(PathLane, AnySequenceOfChanges) {
  const int at = open(dir_.c_str(), O_RDONLY | O_DIRECTORY);
  const std::string magic = "/proc/self/fd/" + std::to_string(at) + "/";
  const char* const names[] = {"a",     "b",     "a/x",   "a/y",      "b/x", "a/x/1",
                               "a/y/1", "b/x/1", "b/x/2", "a/x/../y", "b/."};
  uint64_t state = 88172645463325252ull + static_cast<uint64_t>(GetParam()[1]);
  auto random = [&](size_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<size_t>(state % n);
  };
  auto change = [&] {
    const std::string p = In(names[random(9)]), q = In(names[random(9)]);
    switch (random(10)) {
      case 0:
      case 1:
        mkdir(p.c_str(), 0755);
        break;
      case 2:
      case 3: {
        const int fd = open(p.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0644);
        if (fd >= 0) (void)!write(fd, "text", 4);
        close(fd);
        break;
      }
      case 4:
        unlink(p.c_str());
        break;
      case 5:
        rmdir(p.c_str());
        break;
      case 6:
        rename(p.c_str(), q.c_str());
        break;
      case 7:
        link(p.c_str(), q.c_str());
        break;
      case 8:
        symlink(random(2) ? "x" : "../a", p.c_str());
        break;
      case 9:
        chmod(p.c_str(), 0700 + static_cast<mode_t>(random(64)));
        break;
    }
  };
  for (int i = 0; i < 400; i++) {
    change();
    for (int round = 0; round < 3; round++) {
      for (const char* name : names) {
        const std::string path = In(name);
        struct stat st;
        int r = stat(path.c_str(), &st);
        const std::string kept = Shown(r, st);
        r = stat((magic + name).c_str(), &st);
        ASSERT_EQ(Shown(r, st), kept) << i << " " << name;
        r = lstat(path.c_str(), &st);
        const std::string kept_link = Shown(r, st);
        r = lstat((magic + name).c_str(), &st);
        ASSERT_EQ(Shown(r, st), kept_link) << i << " " << name;
        char text[64];
        ssize_t n = readlink(path.c_str(), text, sizeof text);
        const std::string link = n < 0 ? "errno " + std::to_string(errno) : std::string(text, n);
        n = readlink((magic + name).c_str(), text, sizeof text);
        ASSERT_EQ(n < 0 ? "errno " + std::to_string(errno) : std::string(text, n), link)
            << i << " " << name;
        const int kept_access = access(path.c_str(), X_OK) == 0 ? 0 : errno;
        ASSERT_EQ(access((magic + name).c_str(), X_OK) == 0 ? 0 : errno, kept_access)
            << i << " " << name;
      }
    }
  }
  close(at);
}

INSTANTIATE_TEST_SUITE_P(On, PathLane, testing::Values("/tmp", "/dev/shm"), [](const auto& p) {
  return std::string(p.param[1] == 't' ? "Files" : "Memory");
});

}  // namespace
