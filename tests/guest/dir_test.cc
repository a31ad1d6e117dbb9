// Directories, links, rename, attributes, permissions, working directory.
#include <dirent.h>
#include <limits.h>
#include <sys/sysmacros.h>

#include <map>
#include <set>

#include "guest_util.h"

namespace {
std::set<std::string> List(const std::string& path) {
  std::set<std::string> names;
  DIR* d = opendir(path.c_str());
  if (!d) return names;
  while (dirent* e = readdir(d)) names.insert(e->d_name);
  closedir(d);
  return names;
}
}  // namespace

TEST(Mkdir, AndRmdirErrors) {
  TempDir dir;
  ASSERT_OK(mkdir((dir / "a").c_str(), 0755));
  EXPECT_ERRNO(mkdir((dir / "a").c_str(), 0755), EEXIST);
  EXPECT_ERRNO(mkdir((dir / "x/y").c_str(), 0755), ENOENT);
  EXPECT_OK(mkdir((dir / "b/").c_str(), 0755));
  WriteFile(dir / "a/f", "x");
  EXPECT_ERRNO(rmdir((dir / "a").c_str()), ENOTEMPTY);
  EXPECT_ERRNO(rmdir((dir / "a/f").c_str()), ENOTDIR);
  EXPECT_ERRNO(rmdir((dir / "a/.").c_str()), EINVAL);
  EXPECT_ERRNO(unlink((dir / "a").c_str()), EISDIR);
  EXPECT_OK(unlink((dir / "a/f").c_str()));
  EXPECT_OK(rmdir((dir / "a").c_str()));
  EXPECT_ERRNO(rmdir((dir / "a").c_str()), ENOENT);
  struct stat st;
  ASSERT_OK(stat(dir.path().c_str(), &st));
  EXPECT_TRUE(S_ISDIR(st.st_mode));
}

TEST(Getdents, ListsEachNameOnceUnderSeeks) {
  TempDir dir;
  for (int i = 0; i < 300; i++) WriteFile(dir / ("file" + std::to_string(i)).c_str(), "");
  std::set<std::string> names = List(dir.path());
  EXPECT_EQ(302u, names.size());
  EXPECT_TRUE(names.count(".") && names.count("..") && names.count("file299"));
  DIR* d = opendir(dir.path().c_str());
  for (int i = 0; i < 100; i++) readdir(d);
  long position = telldir(d);
  std::string next = readdir(d)->d_name;
  while (readdir(d)) {
  }
  seekdir(d, position);
  EXPECT_EQ(next, readdir(d)->d_name);
  rewinddir(d);
  int count = 0;
  while (readdir(d)) count++;
  EXPECT_EQ(302, count);
  closedir(d);
  char small[8];
  int fd = open(dir.path().c_str(), O_RDONLY);
  EXPECT_ERRNO(syscall(SYS_getdents64, fd, small, sizeof small), EINVAL);
  close(fd);
}

TEST(Getdents, RemovalWhileReading) {
  TempDir dir;
  for (int i = 0; i < 500; i++) WriteFile(dir / std::to_string(i).c_str(), "");
  DIR* d = opendir(dir.path().c_str());
  while (dirent* e = readdir(d)) {
    if (e->d_name[0] != '.') EXPECT_OK(unlink((dir / e->d_name).c_str()));
  }
  closedir(d);
  EXPECT_EQ(2u, List(dir.path()).size());
}

TEST(Link, HardLinksShareTheInode) {
  TempDir dir;
  WriteFile(dir / "a", "one");
  ASSERT_OK(link((dir / "a").c_str(), (dir / "b").c_str()));
  struct stat a, b;
  stat((dir / "a").c_str(), &a);
  stat((dir / "b").c_str(), &b);
  EXPECT_EQ(a.st_ino, b.st_ino);
  EXPECT_EQ(2u, a.st_nlink);
  WriteFile(dir / "b", "two");
  EXPECT_EQ("two", ReadFile(dir / "a"));
  EXPECT_ERRNO(link((dir / "a").c_str(), (dir / "b").c_str()), EEXIST);
  EXPECT_ERRNO(link(dir.path().c_str(), (dir / "d").c_str()), EPERM);
  unlink((dir / "a").c_str());
  EXPECT_EQ("two", ReadFile(dir / "b"));
}

TEST(Unlink, OpenFileLivesOn) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  write(fd, "abc", 3);
  ASSERT_OK(unlink((dir / "f").c_str()));
  char c[3];
  EXPECT_EQ(3, pread(fd, c, 3, 0));
  EXPECT_EQ(3, pwrite(fd, "def", 3, 3));
  struct stat st;
  fstat(fd, &st);
  EXPECT_EQ(0u, st.st_nlink);
  EXPECT_EQ(6, st.st_size);
  char target[PATH_MAX] = {};
  readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), target, sizeof target);
  EXPECT_EQ(dir / "f (deleted)", target);
  close(fd);
}

TEST(Symlink, ReadAndFollow) {
  TempDir dir;
  WriteFile(dir / "f", "x");
  ASSERT_OK(symlink("f", (dir / "l").c_str()));
  char buffer[16] = {};
  EXPECT_EQ(1, readlink((dir / "l").c_str(), buffer, sizeof buffer));
  EXPECT_STREQ("f", buffer);
  EXPECT_ERRNO(readlink((dir / "f").c_str(), buffer, 16), EINVAL);
  EXPECT_ERRNO(readlink((dir / "l").c_str(), buffer, 0), EINVAL);
  EXPECT_ERRNO(symlink("", (dir / "e").c_str()), ENOENT);
  struct stat st;
  lstat((dir / "l").c_str(), &st);
  EXPECT_TRUE(S_ISLNK(st.st_mode));
  EXPECT_EQ(1, st.st_size);
  symlink(dir.path().c_str(), (dir / "self").c_str());
  EXPECT_EQ("x", ReadFile(dir / "self/self/self/l"));
  symlink("missing", (dir / "dangling").c_str());
  EXPECT_ERRNO(stat((dir / "dangling").c_str(), &st), ENOENT);
  int fd = open((dir / "dangling").c_str(), O_CREAT | O_WRONLY, 0600);
  EXPECT_OK(fd);
  close(fd);
  EXPECT_OK(stat((dir / "missing").c_str(), &st));
}

TEST(Rename, FilesAndDirectories) {
  TempDir dir;
  WriteFile(dir / "a", "a");
  WriteFile(dir / "b", "b");
  ASSERT_OK(rename((dir / "a").c_str(), (dir / "b").c_str()));
  EXPECT_EQ("a", ReadFile(dir / "b"));
  EXPECT_ERRNO(rename((dir / "a").c_str(), (dir / "c").c_str()), ENOENT);
  mkdir((dir / "d").c_str(), 0755);
  mkdir((dir / "e").c_str(), 0755);
  EXPECT_ERRNO(rename((dir / "b").c_str(), (dir / "d").c_str()), EISDIR);
  EXPECT_ERRNO(rename((dir / "d").c_str(), (dir / "b").c_str()), ENOTDIR);
  EXPECT_ERRNO(rename((dir / "d").c_str(), (dir / "d/x").c_str()), EINVAL);
  WriteFile(dir / "e/f", "");
  EXPECT_ERRNO(rename((dir / "d").c_str(), (dir / "e").c_str()), ENOTEMPTY);
  EXPECT_OK(rename((dir / "e").c_str(), (dir / "d").c_str()));
  EXPECT_EQ("", ReadFile(dir / "d/f"));
  EXPECT_OK(access((dir / "d/f").c_str(), F_OK));
  EXPECT_ERRNO(access((dir / "e").c_str(), F_OK), ENOENT);
  // Two links to one file: rename does nothing.
  link((dir / "b").c_str(), (dir / "b2").c_str());
  EXPECT_OK(rename((dir / "b").c_str(), (dir / "b2").c_str()));
  EXPECT_OK(access((dir / "b").c_str(), F_OK));
}

TEST(Rename, FlagsNoreplaceAndExchange) {
  TempDir dir;
  WriteFile(dir / "a", "a");
  WriteFile(dir / "b", "b");
  std::string a = dir / "a", b = dir / "b";
  EXPECT_ERRNO(renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_NOREPLACE), EEXIST);
  ASSERT_OK(renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE));
  EXPECT_EQ("b", ReadFile(a));
  EXPECT_EQ("a", ReadFile(b));
  EXPECT_ERRNO(
      renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE | RENAME_NOREPLACE),
      EINVAL);
}

TEST(Attributes, ChmodChownUtimens) {
  TempDir dir;
  WriteFile(dir / "f", "x");
  std::string f = dir / "f";
  struct stat st;
  ASSERT_OK(chmod(f.c_str(), 04711));
  stat(f.c_str(), &st);
  EXPECT_EQ(static_cast<mode_t>(S_IFREG | 04711), st.st_mode);
  if (getuid() == 0) {
    ASSERT_OK(chown(f.c_str(), 1234, 5678));
    stat(f.c_str(), &st);
    EXPECT_EQ(1234u, st.st_uid);
    EXPECT_EQ(5678u, st.st_gid);
    EXPECT_EQ(static_cast<mode_t>(S_IFREG | 0711), st.st_mode);  // set-user-id is dropped
    ASSERT_OK(chown(f.c_str(), -1, 7));
    stat(f.c_str(), &st);
    EXPECT_EQ(1234u, st.st_uid);
    EXPECT_EQ(7u, st.st_gid);
  }
  timespec times[2] = {{1000, 5}, {2000, 7}};
  ASSERT_OK(utimensat(AT_FDCWD, f.c_str(), times, 0));
  stat(f.c_str(), &st);
  EXPECT_EQ(1000, st.st_atim.tv_sec);
  EXPECT_EQ(2000, st.st_mtim.tv_sec);
  EXPECT_EQ(7, st.st_mtim.tv_nsec);
  times[0].tv_nsec = UTIME_OMIT;
  times[1].tv_nsec = UTIME_NOW;
  ASSERT_OK(utimensat(AT_FDCWD, f.c_str(), times, 0));
  stat(f.c_str(), &st);
  EXPECT_EQ(1000, st.st_atim.tv_sec);
  EXPECT_NEAR(time(nullptr), st.st_mtim.tv_sec, 3);
  times[0].tv_nsec = 1000000000;
  EXPECT_ERRNO(utimensat(AT_FDCWD, f.c_str(), times, 0), EINVAL);
}

TEST(Attributes, WriteChangesMtimeAndCtime) {
  TempDir dir;
  WriteFile(dir / "f", "x");
  timespec old[2] = {{1000, 0}, {1000, 0}};
  utimensat(AT_FDCWD, (dir / "f").c_str(), old, 0);
  int fd = open((dir / "f").c_str(), O_WRONLY);
  write(fd, "y", 1);
  struct stat st;
  fstat(fd, &st);
  EXPECT_NEAR(time(nullptr), st.st_mtime, 3);
  close(fd);
}

TEST(Attributes, Statx) {
  TempDir dir;
  WriteFile(dir / "f", "hello");
  struct statx sx;
  ASSERT_OK(statx(AT_FDCWD, (dir / "f").c_str(), 0, STATX_BASIC_STATS, &sx));
  EXPECT_EQ(5u, sx.stx_size);
  EXPECT_EQ(STATX_BASIC_STATS, sx.stx_mask & STATX_BASIC_STATS);
  EXPECT_ERRNO(statx(AT_FDCWD, "", 0, STATX_BASIC_STATS, &sx), ENOENT);
  EXPECT_OK(statx(AT_FDCWD, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &sx));
  EXPECT_ERRNO(statx(AT_FDCWD, ".", 0x10000, STATX_BASIC_STATS, &sx), EINVAL);
}

TEST(Permissions, OtherUserIsRefused) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  chmod(dir.path().c_str(), 0755);
  WriteFile(dir / "private", "x");
  chmod((dir / "private").c_str(), 0600);
  mkdir((dir / "closed").c_str(), 0700);
  WriteFile(dir / "closed/f", "x");
  mkdir((dir / "sticky").c_str(), 0777);
  chmod((dir / "sticky").c_str(), 01777);
  WriteFile(dir / "sticky/f", "x");
  chmod((dir / "sticky/f").c_str(), 0666);
  int status = ExitStatus([&] {
    if (setgid(1000) || setuid(1000)) return 1;
    if (open((dir / "private").c_str(), O_RDONLY) != -1 || errno != EACCES) return 2;
    struct stat st;
    if (stat((dir / "closed/f").c_str(), &st) != -1 || errno != EACCES) return 3;
    if (unlink((dir / "sticky/f").c_str()) != -1 || errno != EPERM) return 4;
    if (access((dir / "private").c_str(), R_OK) != -1 || errno != EACCES) return 5;
    if (chmod((dir / "sticky/f").c_str(), 0600) != -1 || errno != EPERM) return 6;
    if (mkdir((dir / "new").c_str(), 0700) != -1 || errno != EACCES) return 7;
    int fd = open((dir / "sticky/mine").c_str(), O_CREAT | O_RDWR, 0600);
    if (fd < 0 || fstat(fd, &st) || st.st_uid != 1000 || st.st_gid != 1000) return 8;
    if (unlink((dir / "sticky/mine").c_str())) return 9;
    if (chown((dir / "sticky/f").c_str(), 1000, 1000) != -1 || errno != EPERM) return 10;
    return 0;
  });
  EXPECT_EQ(0, status);
}

TEST(Permissions, SetgidDirectoryGivesItsGroup) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  mkdir((dir / "d").c_str(), 0755);
  chown((dir / "d").c_str(), 0, 4321);
  chmod((dir / "d").c_str(), 02755);
  WriteFile(dir / "d/f", "");
  mkdir((dir / "d/sub").c_str(), 0755);
  struct stat st;
  stat((dir / "d/f").c_str(), &st);
  EXPECT_EQ(4321u, st.st_gid);
  stat((dir / "d/sub").c_str(), &st);
  EXPECT_EQ(4321u, st.st_gid);
  EXPECT_TRUE(st.st_mode & S_ISGID);
}

TEST(Cwd, ChdirGetcwdFchdir) {
  TempDir dir;
  int status = ExitStatus([&] {
    mkdir((dir / "sub").c_str(), 0755);
    if (chdir((dir / "sub").c_str())) return 1;
    char buffer[PATH_MAX];
    if (!getcwd(buffer, sizeof buffer) || dir / "sub" != buffer) return 2;
    if (getcwd(buffer, 3) || errno != ERANGE) return 3;
    int fd = open("..", O_RDONLY);
    if (fchdir(fd)) return 4;
    if (!getcwd(buffer, sizeof buffer) || dir.path() != buffer) return 5;
    if (chdir("nowhere") != -1 || errno != ENOENT) return 6;
    if (chdir("sub") || rmdir((dir / "sub").c_str())) return 7;
    if (getcwd(buffer, sizeof buffer) || errno != ENOENT) return 8;
    if (open("x", O_CREAT | O_RDWR, 0600) != -1 || errno != ENOENT) return 9;
    return 0;
  });
  EXPECT_EQ(0, status);
}

TEST(Cwd, ChrootConfines) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  mkdir((dir / "jail").c_str(), 0755);
  WriteFile(dir / "jail/inside", "yes");
  WriteFile(dir / "outside", "no");
  int status = ExitStatus([&] {
    if (chroot((dir / "jail").c_str()) || chdir("/")) return 1;
    if (ReadFile("/inside") != "yes") return 2;
    if (open("../outside", O_RDONLY) != -1) return 3;
    symlink("/../outside", "/link");
    if (open("/link", O_RDONLY) != -1 || errno != ENOENT) return 4;
    return 0;
  });
  EXPECT_EQ(0, status);
}

TEST(Mknod, FifoAndDevices) {
  TempDir dir;
  ASSERT_OK(mkfifo((dir / "fifo").c_str(), 0600));
  struct stat st;
  stat((dir / "fifo").c_str(), &st);
  EXPECT_TRUE(S_ISFIFO(st.st_mode));
  pid_t pid = fork();
  if (pid == 0) {
    int fd = open((dir / "fifo").c_str(), O_WRONLY);
    _exit(write(fd, "through", 7) == 7 ? 0 : 1);
  }
  EXPECT_EQ("through", ReadFile(dir / "fifo"));
  waitpid(pid, nullptr, 0);
  EXPECT_ERRNO(open((dir / "fifo").c_str(), O_WRONLY | O_NONBLOCK), ENXIO);
  EXPECT_ERRNO(mknod((dir / "dir").c_str(), S_IFDIR | 0755, 0), EPERM);
  stat("/dev/null", &st);
  EXPECT_TRUE(S_ISCHR(st.st_mode));
  EXPECT_EQ(makedev(1, 3), st.st_rdev);
}

TEST(Devices, NullZeroFullRandom) {
  char b[64];
  int fd = open("/dev/zero", O_RDWR);
  memset(b, 1, sizeof b);
  EXPECT_EQ(64, read(fd, b, 64));
  EXPECT_EQ(0, b[63]);
  close(fd);
  fd = open("/dev/null", O_RDWR);
  EXPECT_EQ(0, read(fd, b, 64));
  EXPECT_EQ(64, write(fd, b, 64));
  close(fd);
  fd = open("/dev/full", O_RDWR);
  EXPECT_ERRNO(write(fd, b, 1), ENOSPC);
  close(fd);
  fd = open("/dev/urandom", O_RDONLY);
  EXPECT_EQ(64, read(fd, b, 64));
  close(fd);
}

TEST(Openat2, ResolveBeneath) {
  struct {
    uint64_t flags, mode, resolve;
  } how{O_RDONLY, 0, 0x08 /* RESOLVE_BENEATH */};
  TempDir dir;
  WriteFile(dir / "f", "x");
  symlink("/etc", (dir / "out").c_str());
  int d = open(dir.path().c_str(), O_RDONLY | O_DIRECTORY);
  int fd = syscall(SYS_openat2, d, "f", &how, sizeof how);
  EXPECT_OK(fd);
  close(fd);
  EXPECT_ERRNO(syscall(SYS_openat2, d, "../x", &how, sizeof how), EXDEV);
  EXPECT_ERRNO(syscall(SYS_openat2, d, "/tmp", &how, sizeof how), EXDEV);
  EXPECT_ERRNO(syscall(SYS_openat2, d, "out", &how, sizeof how), EXDEV);
  how.resolve = 0x04;  // RESOLVE_NO_SYMLINKS
  EXPECT_ERRNO(syscall(SYS_openat2, d, "out", &how, sizeof how), ELOOP);
  how.resolve = 0x1000;
  EXPECT_ERRNO(syscall(SYS_openat2, d, "f", &how, sizeof how), EINVAL);
  close(d);
}
