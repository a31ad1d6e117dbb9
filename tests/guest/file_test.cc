// open, read, write, seek, truncate, dup, fcntl and the vectored calls on regular files.
#include <limits.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/xattr.h>

#include "guest_util.h"

TEST(Open, Errors) {
  TempDir dir;
  EXPECT_ERRNO(open((dir / "none").c_str(), O_RDONLY), ENOENT);
  EXPECT_ERRNO(open("", O_RDONLY), ENOENT);
  EXPECT_ERRNO(open(BadAddress(), O_RDONLY), EFAULT);
  WriteFile(dir / "f", "abc");
  EXPECT_ERRNO(open((dir / "f/x").c_str(), O_RDONLY), ENOTDIR);
  EXPECT_ERRNO(open((dir / "f/").c_str(), O_RDONLY), ENOTDIR);
  EXPECT_ERRNO(open((dir / "f").c_str(), O_RDONLY | O_DIRECTORY), ENOTDIR);
  EXPECT_ERRNO(open((dir / "f").c_str(), O_CREAT | O_EXCL | O_RDWR, 0600), EEXIST);
  EXPECT_ERRNO(open(dir.path().c_str(), O_RDWR), EISDIR);
  EXPECT_ERRNO(open((dir / "new/").c_str(), O_CREAT | O_RDWR, 0600), EISDIR);
  std::string name(256, 'a');
  EXPECT_ERRNO(open((dir / name.c_str()).c_str(), O_RDONLY), ENAMETOOLONG);
  std::string path(PATH_MAX, 'a');
  EXPECT_ERRNO(open(path.c_str(), O_RDONLY), ENAMETOOLONG);
  ASSERT_OK(symlink("loop", (dir / "loop").c_str()));
  EXPECT_ERRNO(open((dir / "loop").c_str(), O_RDONLY), ELOOP);
  ASSERT_OK(symlink("f", (dir / "l").c_str()));
  EXPECT_ERRNO(open((dir / "l").c_str(), O_RDONLY | O_NOFOLLOW), ELOOP);
  EXPECT_ERRNO(openat(-1, "x", O_RDONLY), EBADF);
  int fd = open((dir / "f").c_str(), O_RDONLY);
  EXPECT_ERRNO(openat(fd, "x", O_RDONLY), ENOTDIR);
  EXPECT_ERRNO(write(fd, "x", 1), EBADF);
  EXPECT_ERRNO(read(fd, BadAddress(), 1), EFAULT);
  close(fd);
}

TEST(Open, LowestDescriptorAndCloexec) {
  TempDir dir;
  int a = open("/", O_RDONLY | O_CLOEXEC);
  int b = open("/", O_RDONLY);
  EXPECT_EQ(a + 1, b);
  EXPECT_EQ(FD_CLOEXEC, fcntl(a, F_GETFD));
  EXPECT_EQ(0, fcntl(b, F_GETFD));
  close(a);
  EXPECT_EQ(a, open("/", O_RDONLY));
  EXPECT_EQ(0, fcntl(a, F_GETFD));
  close(a);
  close(b);
  EXPECT_ERRNO(close(b), EBADF);
}

TEST(Open, CreateModeAndUmask) {
  TempDir dir;
  umask(027);
  int fd = open((dir / "f").c_str(), O_CREAT | O_WRONLY, 0777);
  struct stat st;
  ASSERT_OK(fstat(fd, &st));
  EXPECT_EQ(static_cast<mode_t>(S_IFREG | 0750), st.st_mode);
  close(fd);
  umask(022);
  // The mode does not limit the open that creates.
  fd = open((dir / "g").c_str(), O_CREAT | O_RDWR, 0);
  EXPECT_EQ(1, write(fd, "x", 1));
  close(fd);
}

TEST(Open, TmpfileCanBeLinked) {
  TempDir dir;
  int fd = open(dir.path().c_str(), O_TMPFILE | O_RDWR, 0600);
  if (fd < 0 && errno == EOPNOTSUPP) GTEST_SKIP() << "the file system has no O_TMPFILE";
  ASSERT_OK(fd);
  ASSERT_EQ(5, write(fd, "hello", 5));
  std::string proc = "/proc/self/fd/" + std::to_string(fd);
  ASSERT_OK(linkat(AT_FDCWD, proc.c_str(), AT_FDCWD, (dir / "named").c_str(), AT_SYMLINK_FOLLOW));
  EXPECT_EQ("hello", ReadFile(dir / "named"));
  struct stat st;
  ASSERT_OK(fstat(fd, &st));
  EXPECT_EQ(1u, st.st_nlink);
  close(fd);
}

TEST(Open, TmpfileRules) {
  TempDir dir;
  int fd = open(dir.path().c_str(), O_TMPFILE | O_WRONLY | O_EXCL, 0640);
  if (fd < 0 && errno == EOPNOTSUPP) GTEST_SKIP() << "the file system has no O_TMPFILE";
  ASSERT_OK(fd);
  struct stat st;
  ASSERT_OK(fstat(fd, &st));
  EXPECT_EQ(0u, st.st_nlink);
  EXPECT_EQ(static_cast<mode_t>(S_IFREG | 0640), st.st_mode);
  std::string proc = "/proc/self/fd/" + std::to_string(fd);
  EXPECT_ERRNO(linkat(AT_FDCWD, proc.c_str(), AT_FDCWD, (dir / "n").c_str(), AT_SYMLINK_FOLLOW),
               ENOENT);
  char target[256] = {};
  ASSERT_GT(readlink(proc.c_str(), target, sizeof target - 1), 0);
  EXPECT_NE(nullptr, strstr(target, " (deleted)")) << target;
  close(fd);
  EXPECT_ERRNO(open(dir.path().c_str(), O_TMPFILE | O_RDONLY, 0600), EINVAL);
  EXPECT_ERRNO(open((dir / "none").c_str(), O_TMPFILE | O_RDWR, 0600), ENOENT);
  WriteFile(dir / "file", "");
  EXPECT_ERRNO(open((dir / "file").c_str(), O_TMPFILE | O_RDWR, 0600), ENOTDIR);
}

TEST(ReadWrite, SeekAndHoles) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  EXPECT_EQ(3, write(fd, "abc", 3));
  EXPECT_EQ(10000, lseek(fd, 10000, SEEK_SET));
  EXPECT_EQ(1, write(fd, "z", 1));
  struct stat st;
  fstat(fd, &st);
  EXPECT_EQ(10001, st.st_size);
  char buffer[16];
  EXPECT_EQ(4, pread(fd, buffer, 4, 2));
  EXPECT_EQ(0, memcmp(buffer, "c\0\0\0", 4));
  EXPECT_EQ(1, pread(fd, buffer, 16, 10000));
  EXPECT_EQ(0, pread(fd, buffer, 16, 20000));
  EXPECT_ERRNO(lseek(fd, -1, SEEK_SET), EINVAL);
  EXPECT_ERRNO(lseek(fd, 0, 99), EINVAL);
  EXPECT_ERRNO(pread(fd, buffer, 1, -1), EINVAL);
  EXPECT_EQ(10001, lseek(fd, 0, SEEK_END));
  EXPECT_EQ(0, read(fd, buffer, 1));
  EXPECT_ERRNO(lseek(fd, 20000, SEEK_DATA), ENXIO);
  EXPECT_LE(lseek(fd, 0, SEEK_HOLE), 10001);
  close(fd);
}

TEST(ReadWrite, AppendIgnoresThePosition) {
  TempDir dir;
  WriteFile(dir / "f", "abc");
  int fd = open((dir / "f").c_str(), O_RDWR | O_APPEND);
  EXPECT_EQ(0, lseek(fd, 0, SEEK_CUR));
  EXPECT_EQ(1, write(fd, "d", 1));
  EXPECT_EQ(4, lseek(fd, 0, SEEK_CUR));
  EXPECT_EQ(1, pwrite(fd, "e", 1, 0));  // Linux appends here too
  EXPECT_EQ("abcde", ReadFile(dir / "f"));
  close(fd);
}

TEST(ReadWrite, AppendFromTwoProcessesLosesNothing) {
  TempDir dir;
  WriteFile(dir / "f", "");
  for (int i = 0; i < 2; i++) {
    if (fork() == 0) {
      int fd = open((dir / "f").c_str(), O_WRONLY | O_APPEND);
      for (int j = 0; j < 500; j++) {
        if (write(fd, "0123456789", 10) != 10) _exit(1);
      }
      _exit(0);
    }
  }
  int status;
  while (wait(&status) > 0) EXPECT_EQ(0, status);
  EXPECT_EQ(10000u, ReadFile(dir / "f").size());
}

TEST(ReadWrite, Vectored) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  char a[] = "abc", b[] = "defg";
  iovec out[2] = {{a, 3}, {b, 4}};
  EXPECT_EQ(7, writev(fd, out, 2));
  char x[2], y[16];
  iovec in[3] = {{x, 2}, {nullptr, 0}, {y, 16}};
  EXPECT_EQ(7, preadv(fd, in, 3, 0));
  EXPECT_EQ(0, memcmp(y, "cdefg", 5));
  EXPECT_ERRNO(readv(fd, in, -1), EINVAL);
  EXPECT_ERRNO(readv(fd, in, 1025), EINVAL);
  in[0].iov_len = static_cast<size_t>(-1);
  EXPECT_ERRNO(preadv(fd, in, 1, 0), EINVAL);
  EXPECT_EQ(0, readv(fd, in, 0));
  iovec partial[2] = {{x, 2}, {BadAddress(), 2}};
  EXPECT_EQ(2, preadv(fd, partial, 2, 0));
  close(fd);
}

TEST(ReadWrite, LargeTransfersAndPartialFault) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  std::string data(3 << 20, 0);
  for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i * 31 >> 3);
  ASSERT_EQ(static_cast<ssize_t>(data.size()), write(fd, data.data(), data.size()));
  std::string back(data.size(), 0);
  ASSERT_EQ(static_cast<ssize_t>(data.size()), pread(fd, back.data(), back.size(), 0));
  EXPECT_EQ(data, back);
  char* p = static_cast<char*>(
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  munmap(p + 4096, 4096);
  ssize_t n = pread(fd, p, 8192, 0);
  EXPECT_TRUE(n == 4096 || (n == -1 && errno == EFAULT)) << n;
  EXPECT_EQ(0, memcmp(p, data.data(), 4096));
  close(fd);
}

TEST(Truncate, ShrinkGrowAndErrors) {
  TempDir dir;
  WriteFile(dir / "f", "0123456789");
  ASSERT_OK(truncate((dir / "f").c_str(), 4));
  EXPECT_EQ("0123", ReadFile(dir / "f"));
  int fd = open((dir / "f").c_str(), O_RDWR);
  ASSERT_OK(ftruncate(fd, 6));
  EXPECT_EQ(std::string("0123\0\0", 6), ReadFile(dir / "f"));
  EXPECT_ERRNO(ftruncate(fd, -1), EINVAL);
  close(fd);
  fd = open((dir / "f").c_str(), O_RDONLY);
  EXPECT_ERRNO(ftruncate(fd, 0), EINVAL);
  close(fd);
  EXPECT_ERRNO(truncate(dir.path().c_str(), 0), EISDIR);
  fd = open((dir / "f").c_str(), O_WRONLY | O_TRUNC);
  EXPECT_EQ("", ReadFile(dir / "f"));
  close(fd);
}

TEST(Truncate, FileSizeLimit) {
  TempDir dir;
  int status = ExitStatus([&] {
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit {
      uint64_t cur, max;
    } limit{10, 10};
    if (syscall(SYS_setrlimit, 1 /* RLIMIT_FSIZE */, &limit)) return 1;
    int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
    if (write(fd, "0123456789abc", 13) != 10) return 2;
    if (write(fd, "x", 1) != -1 || errno != EFBIG) return 3;
    if (ftruncate(fd, 11) != -1 || errno != EFBIG) return 4;
    return 0;
  });
  EXPECT_EQ(0, status);
}

TEST(Fallocate, KeepSizeAndPunchHole) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  if (fallocate(fd, 0, 0, 8192) < 0 && errno == EOPNOTSUPP) GTEST_SKIP();
  struct stat st;
  fstat(fd, &st);
  EXPECT_EQ(8192, st.st_size);
  EXPECT_OK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 8192, 4096));
  fstat(fd, &st);
  EXPECT_EQ(8192, st.st_size);
  EXPECT_ERRNO(fallocate(fd, 0, -1, 10), EINVAL);
  EXPECT_ERRNO(fallocate(fd, 0, 0, 0), EINVAL);
  pwrite(fd, "x", 1, 100);
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0) {
    char c = 'y';
    EXPECT_EQ(1, pread(fd, &c, 1, 100));
    EXPECT_EQ(0, c);
  }
  close(fd);
}

TEST(Dup, SharesStateButNotCloexec) {
  TempDir dir;
  WriteFile(dir / "f", "0123456789");
  int a = open((dir / "f").c_str(), O_RDONLY | O_CLOEXEC);
  int b = dup(a);
  EXPECT_EQ(0, fcntl(b, F_GETFD));
  lseek(a, 5, SEEK_SET);
  EXPECT_EQ(5, lseek(b, 0, SEEK_CUR));
  EXPECT_EQ(a, dup2(a, a));
  EXPECT_ERRNO(dup3(a, a, 0), EINVAL);
  EXPECT_ERRNO(dup2(-1, 5), EBADF);
  EXPECT_ERRNO(dup2(a, -1), EBADF);
  EXPECT_ERRNO(dup2(a, 1 << 20), EBADF);
  int c = fcntl(a, F_DUPFD_CLOEXEC, 100);
  EXPECT_EQ(100, c);
  EXPECT_EQ(FD_CLOEXEC, fcntl(c, F_GETFD));
  EXPECT_ERRNO(fcntl(a, F_DUPFD, -1), EINVAL);
  close(a);
  close(b);
  close(c);
}

TEST(Fcntl, StatusFlags) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  EXPECT_EQ(O_RDWR, fcntl(fd, F_GETFL) & O_ACCMODE);
  ASSERT_OK(fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK));
  EXPECT_EQ(O_APPEND | O_NONBLOCK | O_RDWR,
            fcntl(fd, F_GETFL) & (O_APPEND | O_NONBLOCK | O_ACCMODE));
  EXPECT_ERRNO(fcntl(fd, 9999), EINVAL);
  EXPECT_ERRNO(fcntl(-1, F_GETFL), EBADF);
  close(fd);
}

TEST(Locks, PosixBetweenProcesses) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = 10;
  lock.l_len = 10;
  ASSERT_OK(fcntl(fd, F_SETLK, &lock));
  pid_t parent = getpid();
  int status = ExitStatus([&] {
    struct flock other = lock;
    if (fcntl(fd, F_SETLK, &other) != -1 || (errno != EAGAIN && errno != EACCES)) return 1;
    other.l_start = 0;
    other.l_len = 0;
    if (fcntl(fd, F_GETLK, &other)) return 2;
    if (other.l_type != F_WRLCK || other.l_pid != parent || other.l_start != 10) return 3;
    other.l_type = F_WRLCK;
    other.l_start = 20;
    other.l_len = 5;
    return fcntl(fd, F_SETLK, &other) ? 4 : 0;
  });
  EXPECT_EQ(0, status);
  // Closing any descriptor of the file drops the process's locks.
  close(open((dir / "f").c_str(), O_RDWR));
  status = ExitStatus([&] { return fcntl(fd, F_SETLK, &lock) ? 1 : 0; });
  EXPECT_EQ(0, status);
  close(fd);
}

TEST(Locks, BlockingWaitEndsWithUnlock) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  struct flock lock {};
  lock.l_type = F_WRLCK;
  ASSERT_OK(fcntl(fd, F_SETLK, &lock));
  pid_t pid = fork();
  if (pid == 0) _exit(fcntl(fd, F_SETLKW, &lock) == 0 ? 0 : 1);
  WaitUntilAsleep(pid);
  lock.l_type = F_UNLCK;
  ASSERT_OK(fcntl(fd, F_SETLK, &lock));
  int status;
  waitpid(pid, &status, 0);
  EXPECT_EQ(0, status);
  close(fd);
}

TEST(Locks, FlockByDescription) {
  TempDir dir;
  int a = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  int b = open((dir / "f").c_str(), O_RDWR);
  ASSERT_OK(flock(a, LOCK_EX));
  EXPECT_ERRNO(flock(b, LOCK_SH | LOCK_NB), EWOULDBLOCK);
  ASSERT_OK(flock(a, LOCK_SH));
  EXPECT_OK(flock(b, LOCK_SH | LOCK_NB));
  EXPECT_ERRNO(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
  close(a);
  EXPECT_OK(flock(b, LOCK_EX | LOCK_NB));
  close(b);
}

TEST(Sendfile, CopiesAndAdvances) {
  TempDir dir;
  WriteFile(dir / "in", "0123456789");
  int in = open((dir / "in").c_str(), O_RDONLY);
  int out = open((dir / "out").c_str(), O_CREAT | O_RDWR, 0600);
  EXPECT_EQ(10, sendfile(out, in, nullptr, 100));
  off_t offset = 5;
  EXPECT_EQ(3, sendfile(out, in, &offset, 3));
  EXPECT_EQ(8, offset);
  EXPECT_EQ("0123456789567", ReadFile(dir / "out"));
  close(in);
  close(out);
}

TEST(CopyFileRange, CopiesBetweenFiles) {
  TempDir dir;
  WriteFile(dir / "in", "0123456789");
  int in = open((dir / "in").c_str(), O_RDONLY);
  int out = open((dir / "out").c_str(), O_CREAT | O_RDWR, 0600);
  off64_t from = 2, to = 1;
  EXPECT_EQ(4, copy_file_range(in, &from, out, &to, 4, 0));
  EXPECT_EQ(6, from);
  EXPECT_EQ(std::string("\0"
                        "2345",
                        5),
            ReadFile(dir / "out"));
  close(in);
  close(out);
}

TEST(Xattr, SetGetListRemove) {
  TempDir dir;
  WriteFile(dir / "f", "");
  std::string f = dir / "f";
  if (setxattr(f.c_str(), "user.a", "value", 5, 0) < 0 && errno == EOPNOTSUPP) GTEST_SKIP();
  char buffer[64];
  EXPECT_EQ(5, getxattr(f.c_str(), "user.a", buffer, sizeof buffer));
  EXPECT_EQ(5, getxattr(f.c_str(), "user.a", nullptr, 0));
  EXPECT_ERRNO(getxattr(f.c_str(), "user.a", buffer, 2), ERANGE);
  EXPECT_ERRNO(getxattr(f.c_str(), "user.b", buffer, 2), ENODATA);
  EXPECT_ERRNO(setxattr(f.c_str(), "user.a", "x", 1, XATTR_CREATE), EEXIST);
  EXPECT_ERRNO(setxattr(f.c_str(), "user.b", "x", 1, XATTR_REPLACE), ENODATA);
  EXPECT_OK(removexattr(f.c_str(), "user.a"));
  EXPECT_ERRNO(removexattr(f.c_str(), "user.a"), ENODATA);
}

TEST(Statfs, OfTheFileSystem) {
  TempDir dir;
  struct statfs s;
  ASSERT_OK(statfs(dir.path().c_str(), &s));
  EXPECT_GT(s.f_bsize, 0);
  EXPECT_EQ(255, s.f_namelen);
  int fd = open("/proc", O_RDONLY);
  ASSERT_OK(fstatfs(fd, &s));
  EXPECT_EQ(0x9fa0, s.f_type);
  close(fd);
}

TEST(CloseRange, ClosesAndMarks) {
  int status = ExitStatus([] {
    int base = fcntl(0, F_DUPFD, 50);
    for (int i = 1; i < 5; i++) dup2(0, base + i);
    if (syscall(SYS_close_range, base + 1, base + 2, 0)) return 1;
    if (fcntl(base + 1, F_GETFD) != -1 || fcntl(base + 3, F_GETFD) == -1) return 2;
    if (syscall(SYS_close_range, base + 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */)) return 3;
    if (fcntl(base + 3, F_GETFD) != FD_CLOEXEC) return 4;
    if (syscall(SYS_close_range, 5, 4, 0) != -1 || errno != EINVAL) return 5;
    return 0;
  });
  EXPECT_EQ(0, status);
}
