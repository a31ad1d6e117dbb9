// chattr(1) on tmpfs: append-only and immutable files, by ioctl, file_getattr and file_setattr.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include <string>

#include "guest_util.h"

// Not from sys/mount.h, which does not go together with linux/fs.h.
extern "C" int mount(const char*, const char*, const char*, unsigned long, const void*);
extern "C" int umount2(const char*, int);

namespace {

struct FileAttr {
  uint64_t xflags;
  uint32_t extsize, nextents, projid, cowextsize;
};

class FileFlags : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs to be root";
    dir_ = "/tmp/flags-" + std::to_string(getpid());
    ASSERT_OK(mkdir(dir_.c_str(), 0755));
    ASSERT_OK(mount("none", dir_.c_str(), "tmpfs", 0, nullptr));
    file_ = dir_ + "/f";
    WriteFile(file_, "hello");
    if (Set(file_, FS_NODUMP_FL) != 0 && errno == ENOTTY) GTEST_SKIP() << "not in this kernel";
    ASSERT_OK(Set(file_, 0));
  }
  void TearDown() override {
    if (dir_.empty()) return;
    umount2(dir_.c_str(), 2 /* MNT_DETACH */);
    rmdir(dir_.c_str());
  }
  static int Set(const std::string& path, int flags) {
    const int fd = open(path.c_str(), O_RDONLY);
    EXPECT_OK(fd);
    const int r = ioctl(fd, FS_IOC_SETFLAGS, &flags);
    const int error = errno;
    close(fd);
    errno = error;
    return r;
  }
  static int Get(const std::string& path) {
    int flags = -1;
    const int fd = open(path.c_str(), O_RDONLY);
    EXPECT_OK(ioctl(fd, FS_IOC_GETFLAGS, &flags));
    close(fd);
    return flags;
  }
  std::string dir_, file_;
};

TEST_F(FileFlags, AreKept) {
  EXPECT_EQ(0, Get(file_));
  ASSERT_OK(Set(file_, FS_NODUMP_FL | FS_NOATIME_FL));
  EXPECT_EQ(FS_NODUMP_FL | FS_NOATIME_FL, Get(file_));
  const int fd = open(file_.c_str(), O_RDONLY);
  fsxattr x{};
  ASSERT_OK(ioctl(fd, FS_IOC_FSGETXATTR, &x));
  EXPECT_EQ(static_cast<uint32_t>(FS_XFLAG_NODUMP | FS_XFLAG_NOATIME), x.fsx_xflags);
  x.fsx_xflags = FS_XFLAG_NODUMP;
  ASSERT_OK(ioctl(fd, FS_IOC_FSSETXATTR, &x));
  EXPECT_EQ(FS_NODUMP_FL, Get(file_));
  x.fsx_projid = 7;
  EXPECT_ERRNO(ioctl(fd, FS_IOC_FSSETXATTR, &x), EOPNOTSUPP);
  EXPECT_ERRNO(Set(file_, FS_COMPR_FL), EOPNOTSUPP);
  EXPECT_ERRNO(ioctl(fd, FS_IOC_GETFLAGS, nullptr), EFAULT);
  close(fd);
  struct statx st {};
  ASSERT_OK(statx(AT_FDCWD, file_.c_str(), 0, STATX_BASIC_STATS, &st));
  EXPECT_EQ(0x70u, st.stx_attributes_mask & 0x70);
  EXPECT_EQ(0x40u, st.stx_attributes & 0x70);
  // New ones have what is not about protection from their directory.
  ASSERT_OK(Set(dir_, FS_NODUMP_FL));
  WriteFile(dir_ + "/g", "x");
  EXPECT_EQ(FS_NODUMP_FL, Get(dir_ + "/g"));
  ASSERT_OK(mkdir((dir_ + "/d").c_str(), 0755));
  EXPECT_EQ(FS_NODUMP_FL, Get(dir_ + "/d"));
}

TEST_F(FileFlags, AnImmutableFileStays) {
  const int open_before = open(file_.c_str(), O_RDWR);
  ASSERT_OK(Set(file_, FS_IMMUTABLE_FL));
  const char* f = file_.c_str();
  const std::string other = dir_ + "/other";
  EXPECT_ERRNO(open(f, O_WRONLY), EPERM);
  EXPECT_ERRNO(open(f, O_WRONLY | O_APPEND), EPERM);
  EXPECT_ERRNO(truncate(f, 1), EPERM);
  EXPECT_ERRNO(unlink(f), EPERM);
  EXPECT_ERRNO(rename(f, other.c_str()), EPERM);
  EXPECT_ERRNO(link(f, other.c_str()), EPERM);
  EXPECT_ERRNO(chmod(f, 0600), EPERM);
  EXPECT_ERRNO(chown(f, 1, 1), EPERM);
  EXPECT_ERRNO(utimensat(AT_FDCWD, f, nullptr, 0), EPERM);
  const timespec times[2] = {{1, 0}, {1, 0}};
  EXPECT_ERRNO(utimensat(AT_FDCWD, f, times, 0), EPERM);
  EXPECT_ERRNO(setxattr(f, "user.a", "b", 1, 0), EPERM);
  EXPECT_ERRNO(fallocate(open_before, 0, 0, 4096), EPERM);
  EXPECT_ERRNO(access(f, W_OK), EPERM);
  WriteFile(other, "x");
  EXPECT_ERRNO(rename(other.c_str(), f), EPERM);
  EXPECT_EQ("hello", ReadFile(file_));
  // Who has it open goes on.
  EXPECT_EQ(1, write(open_before, "H", 1));
  close(open_before);
  ASSERT_OK(Set(file_, 0));
  EXPECT_OK(unlink(f));
}

TEST_F(FileFlags, AnImmutableDirectoryStays) {
  const std::string d = dir_ + "/d", in = d + "/in";
  ASSERT_OK(mkdir(d.c_str(), 0755));
  WriteFile(in, "x");
  ASSERT_OK(Set(d, FS_IMMUTABLE_FL));
  EXPECT_ERRNO(open((d + "/new").c_str(), O_CREAT | O_WRONLY, 0644), EPERM);
  EXPECT_ERRNO(mkdir((d + "/new").c_str(), 0755), EPERM);
  EXPECT_ERRNO(unlink(in.c_str()), EPERM);
  EXPECT_ERRNO(rename(in.c_str(), (dir_ + "/out").c_str()), EPERM);
  EXPECT_ERRNO(rmdir(d.c_str()), EPERM);
  WriteFile(in, "yes");
  EXPECT_EQ("yes", ReadFile(in));
  ASSERT_OK(Set(d, FS_APPEND_FL));
  WriteFile(d + "/new", "x");
  EXPECT_ERRNO(unlink(in.c_str()), EPERM);
  EXPECT_ERRNO(rename(in.c_str(), (d + "/out").c_str()), EPERM);
  ASSERT_OK(Set(d, 0));
  EXPECT_OK(unlink(in.c_str()));
}

TEST_F(FileFlags, AnAppendOnlyFileGrows) {
  ASSERT_OK(Set(file_, FS_APPEND_FL));
  const char* f = file_.c_str();
  EXPECT_ERRNO(open(f, O_WRONLY), EPERM);
  EXPECT_ERRNO(open(f, O_RDWR), EPERM);
  EXPECT_ERRNO(open(f, O_WRONLY | O_APPEND | O_TRUNC), EPERM);
  EXPECT_ERRNO(truncate(f, 1), EPERM);
  EXPECT_ERRNO(unlink(f), EPERM);
  EXPECT_ERRNO(link(f, (dir_ + "/other").c_str()), EPERM);
  EXPECT_ERRNO(chmod(f, 0600), EPERM);
  const int fd = open(f, O_RDWR | O_APPEND);
  ASSERT_OK(fd);
  EXPECT_EQ(6, write(fd, " world", 6));
  EXPECT_ERRNO(ftruncate(fd, 0), EPERM);
  EXPECT_ERRNO(fcntl(fd, F_SETFL, 0), EPERM);
  EXPECT_OK(fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK));
  EXPECT_EQ(MAP_FAILED, mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0));
  EXPECT_EQ(EACCES, errno);
  EXPECT_OK(utimensat(AT_FDCWD, f, nullptr, 0));
  EXPECT_EQ("hello world", ReadFile(file_));
  close(fd);
}

TEST_F(FileFlags, WhoMaySetThem) {
  auto child = [&](int flags) {
    return ExitStatus([&] {
      const int fd = open(file_.c_str(), O_RDONLY);
      if (setresuid(1234, 1234, 1234) != 0) return 250;
      return ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0 ? 0 : errno;
    });
  };
  EXPECT_EQ(EPERM, child(FS_NODUMP_FL));
  ASSERT_OK(chown(file_.c_str(), 1234, 1234));
  EXPECT_EQ(0, child(FS_NODUMP_FL));
  EXPECT_EQ(EPERM, child(FS_IMMUTABLE_FL));
  ASSERT_OK(mount(nullptr, dir_.c_str(), nullptr, 32 | 1 /* MS_REMOUNT | MS_RDONLY */, nullptr));
  EXPECT_ERRNO(Set(file_, 0), EROFS);
}

TEST_F(FileFlags, ByPath) {
  FileAttr attr{};
  auto get = [&](const char* path, FileAttr* to, size_t size, int flags) {
    return syscall(468, AT_FDCWD, path, to, size, flags);
  };
  auto set = [&](const char* path, FileAttr* from, size_t size, int flags) {
    return syscall(469, AT_FDCWD, path, from, size, flags);
  };
  if (get(file_.c_str(), &attr, sizeof(attr), 0) != 0 && errno == ENOSYS) {
    GTEST_SKIP() << "not in this kernel";
  }
  attr.xflags = FS_XFLAG_APPEND;
  ASSERT_OK(set(file_.c_str(), &attr, sizeof(attr), 0));
  EXPECT_EQ(FS_APPEND_FL, Get(file_));
  attr = {};
  ASSERT_OK(get(file_.c_str(), &attr, sizeof(attr), AT_SYMLINK_NOFOLLOW));
  EXPECT_EQ(static_cast<uint64_t>(FS_XFLAG_APPEND), attr.xflags);
  EXPECT_ERRNO(get(file_.c_str(), &attr, 8, 0), EINVAL);
  EXPECT_ERRNO(get(file_.c_str(), &attr, 5000, 0), E2BIG);
  EXPECT_ERRNO(get(file_.c_str(), &attr, sizeof(attr), 0x4000), EINVAL);
  EXPECT_ERRNO(get((dir_ + "/none").c_str(), &attr, sizeof(attr), 0), ENOENT);
  EXPECT_ERRNO(get("/proc/self/stat", &attr, sizeof(attr), 0), EOPNOTSUPP);
  ASSERT_OK(symlink("f", (dir_ + "/l").c_str()));
  EXPECT_OK(get((dir_ + "/l").c_str(), &attr, sizeof(attr), 0));
  char larger[40] = {};
  larger[30] = 1;
  EXPECT_ERRNO(set(file_.c_str(), reinterpret_cast<FileAttr*>(larger), sizeof(larger), 0), E2BIG);
  EXPECT_OK(get(file_.c_str(), reinterpret_cast<FileAttr*>(larger), sizeof(larger), 0));
  EXPECT_EQ(0, larger[30]);
}

}  // namespace
