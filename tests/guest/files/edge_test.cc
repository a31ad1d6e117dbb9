// Corners of calls about files: which error, in which order, and what goes with it.
#include <linux/ethtool.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include <fstream>

#include "guest_util.h"

#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY 1027
#endif
#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20
#endif

namespace {

// A file of "hello world", which goes with it.
struct TemporaryFile {
  TemporaryFile() {
    strcpy(path, "/tmp/edge-XXXXXX");
    fd = mkstemp(path);
    EXPECT_EQ(11, write(fd, "hello world", 11));
  }
  ~TemporaryFile() {
    close(fd);
    unlink(path);
  }
  char path[32];
  int fd;
};

TEST(Fcntl, SameDescription) {
  TemporaryFile file;
  const int same = dup(file.fd), other = open(file.path, O_RDONLY);
  const int answer = fcntl(file.fd, F_DUPFD_QUERY, same);
  if (answer < 0 && errno == EINVAL) GTEST_SKIP() << "before Linux 6.10";
  EXPECT_EQ(1, answer);
  EXPECT_EQ(0, fcntl(file.fd, F_DUPFD_QUERY, other));
  EXPECT_ERRNO(fcntl(file.fd, F_DUPFD_QUERY, 9999), EBADF);
  const int path = open(file.path, O_PATH);
  EXPECT_EQ(1, fcntl(path, F_DUPFD_QUERY, path));
  for (int fd : {same, other, path}) close(fd);
}

TEST(Fcntl, OfOtherFiles) {
  TemporaryFile file;
  EXPECT_ERRNO(fcntl(file.fd, F_GETPIPE_SZ), EBADF);
  EXPECT_ERRNO(fcntl(file.fd, F_SETPIPE_SZ, 4096), EBADF);
  const int read_only = open(file.path, O_RDONLY);
  EXPECT_ERRNO(fcntl(read_only, F_ADD_SEALS, F_SEAL_SEAL), EPERM);
  EXPECT_ERRNO(fcntl(read_only, F_ADD_SEALS, -1), EPERM);
  close(read_only);
  const int memory = memfd_create("edge", MFD_ALLOW_SEALING);
  constexpr int kLargeFile = 0100000;
  EXPECT_EQ(O_RDWR | kLargeFile, fcntl(memory, F_GETFL));
  EXPECT_ERRNO(fcntl(memory, F_ADD_SEALS, -1), EINVAL);
  close(memory);
}

TEST(CopyFileRange, Offsets) {
  TemporaryFile from, to;
  off64_t in = -1, out = 0;
  EXPECT_ERRNO(copy_file_range(from.fd, &in, to.fd, &out, 5, 0), EOVERFLOW);
  in = -5;
  EXPECT_ERRNO(copy_file_range(from.fd, &in, to.fd, &out, 5, 0), EOVERFLOW);
  in = -50;
  EXPECT_ERRNO(copy_file_range(from.fd, &in, to.fd, &out, 5, 0), EINVAL);
  in = 0;
  out = INT64_MAX;
  EXPECT_ERRNO(copy_file_range(from.fd, &in, to.fd, &out, 5, 0), EFBIG);
}

TEST(Splice, WhatCannotBeSpliced) {
  int pipe_fds[2];
  ASSERT_OK(pipe(pipe_fds));
  const int directory = open("/tmp", O_RDONLY | O_DIRECTORY), event = eventfd(1, EFD_NONBLOCK);
  for (int fd : {directory, event}) {
    EXPECT_ERRNO(splice(fd, nullptr, pipe_fds[1], nullptr, 8, SPLICE_F_NONBLOCK), EINVAL);
    close(fd);
  }
  TemporaryFile file;
  off64_t at = 6;
  EXPECT_EQ(5, splice(file.fd, &at, pipe_fds[1], nullptr, 8, 0));
  for (int fd : pipe_fds) close(fd);
}

TEST(Preadv2, FlagsOfWritesAreTaken) {
  TemporaryFile file;
  char text[5];
  iovec part{text, sizeof text};
  EXPECT_EQ(5, preadv2(file.fd, &part, 1, 0, RWF_APPEND));
  const ssize_t n = preadv2(file.fd, &part, 1, 0, RWF_NOAPPEND);
  if (n < 0 && errno == EOPNOTSUPP) GTEST_SKIP() << "before Linux 6.9";
  EXPECT_EQ(5, n);
  EXPECT_ERRNO(preadv2(file.fd, &part, 1, 0, RWF_APPEND | RWF_NOAPPEND), EINVAL);
  EXPECT_ERRNO(preadv2(file.fd, &part, 1, 0, 1 << 30), EOPNOTSUPP);
}

TEST(Chown, SetIdBitsGoAlsoWhereNothingChanges) {
  TemporaryFile file;
  struct stat now;
  ASSERT_OK(fchmod(file.fd, 06755));
  EXPECT_OK(chown(file.path, -1, -1));
  ASSERT_OK(fstat(file.fd, &now));
  EXPECT_EQ(0755u, now.st_mode & 07777);
  ASSERT_OK(fchmod(file.fd, 04711));
  EXPECT_OK(fchown(file.fd, -1, -1));
  ASSERT_OK(fstat(file.fd, &now));
  EXPECT_EQ(0711u, now.st_mode & 07777);
}

// What may keep set-id bits does: who writes with CAP_FSETID, and of others' bits that which gives
// no privilege.
TEST(SetId, StaysForRoot) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TemporaryFile file;
  auto mode = [&] {
    struct stat now {};
    EXPECT_OK(fstat(file.fd, &now));
    return now.st_mode & 07777;
  };
  ASSERT_OK(fchmod(file.fd, 06755));
  EXPECT_EQ(1, pwrite(file.fd, "x", 1, 0));
  if (mode() == 0755) GTEST_SKIP() << "without CAP_FSETID";
  EXPECT_EQ(06755u, mode());
  EXPECT_OK(ftruncate(file.fd, 5));
  EXPECT_EQ(06755u, mode());
  EXPECT_OK(truncate(file.path, 3));
  EXPECT_EQ(06755u, mode());
  EXPECT_OK(posix_fallocate(file.fd, 0, 100));
  EXPECT_EQ(06755u, mode());
  close(open(file.path, O_WRONLY | O_TRUNC));
  EXPECT_EQ(06755u, mode());
}

TEST(SetId, GoesForOthers) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TemporaryFile file;
  ASSERT_OK(fchmod(file.fd, 06777));
  const std::string path = file.path;
  EXPECT_EQ(0, ExitStatus([&] {
              if (setgid(1000) != 0 || setuid(1000) != 0) return 1;
              const int fd = open(path.c_str(), O_WRONLY);
              if (fd < 0) return 2;
              return write(fd, "x", 1) == 1 ? 0 : 3;
            }));
  struct stat now;
  ASSERT_OK(fstat(file.fd, &now));
  EXPECT_EQ(0777u, now.st_mode & 07777);
}

TEST(Ioctl, OfFilesAndDevices) {
  TemporaryFile file;
  EXPECT_ERRNO(ioctl(file.fd, FICLONE, 9999), EBADF);
  const int random = open("/dev/random", O_RDONLY);
  int bits = -1;
  EXPECT_OK(ioctl(random, RNDGETENTCNT, &bits));
  EXPECT_GT(bits, 0);
  EXPECT_ERRNO(ioctl(random, TCGETS, &bits), EINVAL);
  close(random);
}

TEST(Ioctl, Ethtool) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ethtool_value value{.cmd = ETHTOOL_GLINK, .data = 7};
  ifreq request{};
  strcpy(request.ifr_name, "lo");
  EXPECT_ERRNO(ioctl(fd, SIOCETHTOOL, &request), EFAULT);
  request.ifr_data = reinterpret_cast<char*>(&value);
  EXPECT_OK(ioctl(fd, SIOCETHTOOL, &request));
  EXPECT_LE(value.data, 1u);
  strcpy(request.ifr_name, "nope");
  EXPECT_ERRNO(ioctl(fd, SIOCETHTOOL, &request), ENODEV);
  close(fd);
}

TEST(Madvise, LockedPagesDoNotAge) {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_OK(madvise(page, 4096, 20));  // MADV_COLD
  if (mlock(page, 4096) != 0) GTEST_SKIP() << "nothing can be locked";
  EXPECT_ERRNO(madvise(page, 4096, 20), EINVAL);
  EXPECT_ERRNO(madvise(page, 4096, 21), EINVAL);  // MADV_PAGEOUT
  munmap(page, 4096);
}

// --- /proc/locks ---

// The lines about the file, without their numbers and its place.
std::vector<std::string> LocksOf(int fd) {
  struct stat file;
  EXPECT_OK(fstat(fd, &file));
  char place[64];
  snprintf(place, sizeof place, "%02x:%02x:%lu ", major(file.st_dev), minor(file.st_dev),
           static_cast<unsigned long>(file.st_ino));
  std::vector<std::string> found;
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    const size_t at = line.find(place), begin = line.find(": ");
    if (at == std::string::npos || begin == std::string::npos) continue;
    found.push_back(line.substr(begin + 2, at - begin - 2) + line.substr(at + strlen(place)));
  }
  std::sort(found.begin(), found.end());
  return found;
}

TEST(ProcLocks, ThoseOfAFile) {
  const int fd = memfd_create("locks", 0);
  ASSERT_OK(ftruncate(fd, 100));
  struct flock record = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};
  ASSERT_OK(fcntl(fd, F_SETLK, &record));
  record = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 50, .l_len = 0};
  ASSERT_OK(fcntl(fd, F_OFD_SETLK, &record));
  ASSERT_OK(flock(fd, LOCK_SH));
  const std::string own = std::to_string(getpid());
  const std::vector<std::string> expected = {"FLOCK  ADVISORY  READ " + own + " 0 EOF",
                                             "OFDLCK ADVISORY  READ -1 50 EOF",
                                             "POSIX  ADVISORY  WRITE " + own + " 10 14"};
  const std::vector<std::string> found = LocksOf(fd);
  if (found.empty()) GTEST_SKIP() << "locks of others than init's namespace are not shown";
  EXPECT_EQ(expected, found);
  close(fd);
  EXPECT_TRUE(access("/proc/diskstats", R_OK) == 0);
}

}  // namespace
