// Files that are read again and again are read without asking the kernel. Whatever changes them,
// or moves their position, is seen at once.
#include <pthread.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <thread>
#include <vector>

#include "guest_util.h"
#include "net/fd_util.h"

namespace {

constexpr int kTimes = 60;  // more reads than it takes until they are made so
constexpr size_t kSize = 300 * 1024;

// Bytes that tell where they stand.
std::string Pattern(size_t size, uint32_t seed = 0) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; i++) text[i] = static_cast<char>((i * 2654435761u + seed) >> 13);
  return text;
}

class FileLane : public testing::TestWithParam<const char*> {
 protected:
  FileLane() {
    std::string name = std::string(GetParam()) + "/files-XXXXXX";
    dir_ = mkdtemp(name.data());
    path_ = dir_ + "/file";
    content_ = Pattern(kSize);
    WriteFile(path_, content_);
  }
  ~FileLane() override { [[maybe_unused]] int r = system(("rm -rf " + dir_).c_str()); }

  int Open(int flags = O_RDONLY) const { return open(path_.c_str(), flags | O_CLOEXEC, 0644); }
  // Reads so much that the next reads are made without the kernel; the position is 0 then.
  void Warm(int fd, size_t size = 4096) const {
    std::string buffer(size, '\0');
    for (int i = 0; i < kTimes; i++) {
      ASSERT_EQ(static_cast<ssize_t>(size), pread(fd, buffer.data(), size, 0));
      ASSERT_EQ(static_cast<ssize_t>(size), read(fd, buffer.data(), size));
      ASSERT_EQ(0, lseek(fd, 0, SEEK_SET));
    }
  }
  int OpenWarm(int flags = O_RDONLY, size_t size = 4096) const {
    const int fd = Open(flags);
    EXPECT_OK(fd);
    Warm(fd, size);
    return fd;
  }
  std::string At(int fd, off_t offset, size_t size) const {
    std::string text(size, '\0');
    const ssize_t n = pread(fd, text.data(), size, offset);
    if (n < 0) return std::string("errno ") + std::to_string(errno);
    text.resize(static_cast<size_t>(n));
    return text;
  }
  std::string Next(int fd, size_t size) const {
    std::string text(size, '\0');
    const ssize_t n = read(fd, text.data(), size);
    if (n < 0) return std::string("errno ") + std::to_string(errno);
    text.resize(static_cast<size_t>(n));
    return text;
  }
  std::string dir_, path_, content_;
};

long PositionInFdinfo(int fd, const char* pid = "self") {
  const std::string text = ReadFile("/proc/" + std::string(pid) + "/fdinfo/" + std::to_string(fd));
  long position = -1;
  sscanf(text.c_str(), "pos:\t%ld", &position);
  return position;
}

TEST_P(FileLane, EachByteIsWhereItShouldBe) {
  const int fd = OpenWarm();
  uint32_t random = 1;
  for (int i = 0; i < 3000; i++) {
    random = random * 1664525 + 1013904223;
    const size_t offset = random % (kSize + 5000);
    random = random * 1664525 + 1013904223;
    const size_t size = random % (i % 10 == 0 ? 100'000 : 300) + 1;
    const std::string want = offset < kSize ? content_.substr(offset, size) : "";
    ASSERT_EQ(want, At(fd, static_cast<off_t>(offset), size)) << offset << " " << size;
    ASSERT_EQ(static_cast<off_t>(offset), lseek(fd, static_cast<off_t>(offset), SEEK_SET));
    ASSERT_EQ(want, Next(fd, size));
    ASSERT_EQ(static_cast<off_t>(offset + want.size()), lseek(fd, 0, SEEK_CUR));
  }
  close(fd);
}

TEST_P(FileLane, InSequenceAndAgain) {
  for (int round = 0; round < 5; round++) {
    for (size_t size : {1u, 64u, 4096u, 65536u}) {
      const int fd = Open();
      const size_t most = size == 1 ? 3000 : kSize;
      if (size == 1) lseek(fd, static_cast<off_t>(kSize - most), SEEK_SET);
      std::string all;
      for (;;) {
        const std::string part = Next(fd, size);
        all += part;
        if (part.empty()) break;
      }
      EXPECT_TRUE(content_.substr(kSize - most) == all) << size;
      EXPECT_EQ("", Next(fd, size));
      close(fd);
    }
  }
}

TEST_P(FileLane, SmallFilesEndWhereTheyEnd) {
  for (int i = 0; i < 50; i++) {
    const std::string name = dir_ + "/small" + std::to_string(i), text = Pattern(100 + i, i);
    WriteFile(name, text);
    for (int round = 0; round < 3; round++) EXPECT_EQ(text, ReadFile(name));
    const int fd = open(name.c_str(), O_RDONLY);
    EXPECT_EQ(text, Next(fd, 4096));
    EXPECT_EQ("", Next(fd, 4096));
    EXPECT_EQ(static_cast<off_t>(text.size()), lseek(fd, 0, SEEK_END));
    const int writer = open(name.c_str(), O_WRONLY | O_APPEND);
    EXPECT_EQ(3, write(writer, "abc", 3));
    close(writer);
    EXPECT_EQ("abc", Next(fd, 4096));
    EXPECT_EQ("", Next(fd, 4096));
    close(fd);
  }
}

TEST_P(FileLane, LseekCorners) {
  const int fd = OpenWarm();
  for (int i = 0; i < kTimes; i++) {
    EXPECT_EQ(100, lseek(fd, 100, SEEK_SET));
    EXPECT_EQ(90, lseek(fd, -10, SEEK_CUR));
    EXPECT_ERRNO(lseek(fd, -91, SEEK_CUR), EINVAL);
    EXPECT_ERRNO(lseek(fd, -1, SEEK_SET), EINVAL);
    EXPECT_ERRNO(lseek(fd, -static_cast<off_t>(kSize) - 1, SEEK_END), EINVAL);
    EXPECT_ERRNO(lseek(fd, 0, 5), EINVAL);
    EXPECT_ERRNO(lseek(fd, 0, -1), EINVAL);
    EXPECT_EQ(90, lseek(fd, 0, SEEK_CUR));
    EXPECT_EQ(static_cast<off_t>(kSize) - 7, lseek(fd, -7, SEEK_END));
    EXPECT_EQ(content_.substr(kSize - 7), Next(fd, 100));
    EXPECT_EQ(static_cast<off_t>(kSize), lseek(fd, 0, SEEK_CUR));
    EXPECT_EQ(static_cast<off_t>(kSize) + 50, lseek(fd, 50, SEEK_END));
    EXPECT_EQ("", Next(fd, 100));
    EXPECT_EQ(static_cast<off_t>(kSize) + 50, lseek(fd, 0, SEEK_CUR));
    EXPECT_EQ(5, lseek(fd, 5, SEEK_DATA));
    EXPECT_EQ(5, lseek(fd, 0, SEEK_CUR));
    EXPECT_EQ(static_cast<off_t>(kSize), lseek(fd, 5, SEEK_HOLE));
    EXPECT_ERRNO(lseek(fd, static_cast<off_t>(kSize), SEEK_DATA), ENXIO);
    EXPECT_EQ(0, lseek(fd, 0, SEEK_SET));
    EXPECT_EQ(content_.substr(0, 10), Next(fd, 10));
    EXPECT_EQ(10, PositionInFdinfo(fd));
  }
  close(fd);
}

TEST_P(FileLane, PositionsBeyondWhatFits) {
  const int fd = OpenWarm();
  const off_t most = lseek(fd, 0, SEEK_END) > 0 ? INT64_MAX : 0;
  for (int i = 0; i < 4; i++) {
    ASSERT_EQ(0, lseek(fd, 0, SEEK_SET));
    // How far a position may reach is the file system's to say.
    const off_t far = lseek(fd, most, SEEK_SET);
    if (far < 0) {
      EXPECT_EQ(EINVAL, errno);
      continue;
    }
    EXPECT_EQ(most, far);
    EXPECT_ERRNO(lseek(fd, 1, SEEK_CUR), EINVAL);
    EXPECT_EQ("errno 22", Next(fd, 1));
  }
  close(fd);
}

TEST_P(FileLane, BadArguments) {
  const int fd = OpenWarm();
  for (int i = 0; i < kTimes; i++) {
    EXPECT_ERRNO(read(fd, BadAddress(), 10), EFAULT);
    EXPECT_ERRNO(pread(fd, BadAddress(), 10, 5), EFAULT);
    EXPECT_ERRNO(pread(fd, BadAddress(), 10, -1), EINVAL);
    EXPECT_ERRNO(read(fd, reinterpret_cast<char*>(0xffff'8000'0000'0000), 10), EFAULT);
    char c;
    EXPECT_ERRNO(syscall(SYS_read, fd, &c, -1L), EFAULT);
    EXPECT_EQ(0, read(fd, &c, 0));
    EXPECT_EQ(0, read(fd, BadAddress(), 0));
    EXPECT_EQ(0, pread(fd, &c, 1, static_cast<off_t>(kSize)));
    EXPECT_EQ(0, pread(fd, BadAddress(), 1, static_cast<off_t>(kSize)));
    EXPECT_EQ(0, lseek(fd, 0, SEEK_SET));
    EXPECT_ERRNO(pread(-1, &c, 1, 0), EBADF);
    EXPECT_ERRNO(read(fd + 100, &c, 1), EBADF);
  }
  close(fd);
}

// A buffer of which the end is missing: what fits is read, and counts.
TEST_P(FileLane, BufferThatEnds) {
  const int fd = OpenWarm();
  char* pages = static_cast<char*>(
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_EQ(0, mprotect(pages + 4096, 4096, PROT_NONE));
  for (int i = 0; i < 20; i++) {
    ASSERT_EQ(0, lseek(fd, 0, SEEK_SET));
    const ssize_t n = read(fd, pages + 4000, 1000);
    const off_t position = lseek(fd, 0, SEEK_CUR);
    if (n < 0) {
      EXPECT_EQ(EFAULT, errno);
    } else {
      EXPECT_EQ(96, n);
      EXPECT_EQ(96, position);
      EXPECT_EQ(content_.substr(0, 96), std::string(pages + 4000, 96));
    }
  }
  munmap(pages, 8192);
  close(fd);
}

TEST_P(FileLane, WhoMayNotRead) {
  const int fd = OpenWarm();
  const int writer = Open(O_WRONLY);
  char c;
  for (int i = 0; i < kTimes; i++) {
    EXPECT_ERRNO(read(writer, &c, 1), EBADF);
    EXPECT_ERRNO(pread(writer, &c, 1, 0), EBADF);
    EXPECT_EQ(i, lseek(writer, i, SEEK_SET));
  }
  const int dir = open(dir_.c_str(), O_RDONLY | O_DIRECTORY);
  EXPECT_ERRNO(read(dir, &c, 1), EISDIR);
  close(dir);
  // The descriptor becomes one for writing.
  ASSERT_EQ(fd, dup2(writer, fd));
  EXPECT_ERRNO(read(fd, &c, 1), EBADF);
  EXPECT_ERRNO(pread(fd, &c, 1, 0), EBADF);
  close(fd);
  close(writer);
}

TEST_P(FileLane, CloseAndReopen) {
  const std::string other = dir_ + "/other";
  WriteFile(other, Pattern(kSize, 77));
  for (int i = 0; i < 20; i++) {
    const int fd = OpenWarm();
    EXPECT_EQ(content_.substr(0, 10), Next(fd, 10));
    close(fd);
    char c;
    EXPECT_ERRNO(read(fd, &c, 1), EBADF);
    EXPECT_ERRNO(pread(fd, &c, 1, 0), EBADF);
    EXPECT_ERRNO(lseek(fd, 0, SEEK_CUR), EBADF);
    ASSERT_EQ(fd, open(other.c_str(), O_RDONLY));
    EXPECT_EQ(0, lseek(fd, 0, SEEK_CUR));
    EXPECT_EQ(Pattern(10, 77), Next(fd, 10));
    close(fd);
  }
}

TEST_P(FileLane, DupSharesThePosition) {
  const int fd = OpenWarm();
  const int copy = dup(fd);
  size_t at = 0;
  for (int i = 0; i < 200; i++) {
    const int use = i % 7 < 4 ? fd : copy;
    ASSERT_EQ(content_.substr(at, 33), Next(use, 33));
    at += 33;
    ASSERT_EQ(static_cast<off_t>(at), lseek(i % 3 == 0 ? copy : fd, 0, SEEK_CUR));
  }
  close(fd);
  EXPECT_EQ(content_.substr(at, 33), Next(copy, 33));
  Warm(copy);
  ASSERT_EQ(copy + 50, dup2(copy, copy + 50));
  EXPECT_EQ(content_.substr(0, 5), Next(copy, 5));
  close(copy);
  EXPECT_EQ(content_.substr(5, 5), Next(copy + 50, 5));
  close(copy + 50);
}

TEST_P(FileLane, ForkSharesThePosition) {
  const int fd = OpenWarm();
  int to[2], from[2];
  ASSERT_OK(pipe(to));
  ASSERT_OK(pipe(from));
  ASSERT_EQ(content_.substr(0, 10), Next(fd, 10));
  const pid_t child = fork();
  if (child == 0) {
    char c;
    std::string buffer(10, '\0');
    while (read(to[0], &c, 1) == 1 && c != 'q') {
      for (int i = 0; i < c; i++) read(fd, buffer.data(), 10);
      write(from[1], buffer.data(), 10);
    }
    _exit(0);
  }
  size_t at = 10;
  for (int i = 1; i < 60; i++) {
    const char times = static_cast<char>(i % 20 + 1);
    ASSERT_EQ(1, write(to[1], &times, 1));
    at += 10 * static_cast<size_t>(times);
    ASSERT_EQ(content_.substr(at - 10, 10), Next(from[0], 10));
    for (int k = 0; k < i % 25; k++, at += 10) ASSERT_EQ(content_.substr(at, 10), Next(fd, 10));
    ASSERT_EQ(static_cast<off_t>(at), lseek(fd, 0, SEEK_CUR));
    ASSERT_EQ(static_cast<long>(at), PositionInFdinfo(fd));
    ASSERT_EQ(static_cast<long>(at), PositionInFdinfo(fd, std::to_string(child).c_str()));
  }
  // What the child has read when it ends has been read.
  for (int i = 0; i < 30; i++) Next(fd, 10), at += 10;
  char last[] = {25, 'q'};
  write(to[1], last, 2);
  Next(from[0], 10);
  EXPECT_EQ(child, waitpid(child, nullptr, 0));
  EXPECT_EQ(static_cast<off_t>(at + 250), lseek(fd, 0, SEEK_CUR));
  for (int p : {fd, to[0], to[1], from[0], from[1]}) close(p);
}

TEST_P(FileLane, SentDescriptorSharesThePosition) {
  const int fd = OpenWarm();
  int pair[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  ASSERT_EQ(content_.substr(0, 100), Next(fd, 100));
  ASSERT_EQ(1, SendFd(pair[0], fd));
  ASSERT_EQ(content_.substr(100, 100), Next(fd, 100));
  close(fd);
  EXPECT_EQ(0, ExitStatus([&] {
              const int got = RecvFd(pair[1]);
              if (got < 0) return 1;
              if (lseek(got, 0, SEEK_CUR) != 200) return 2;
              return Next(got, 50) == content_.substr(200, 50) ? 0 : 3;
            }));
  close(pair[0]);
  close(pair[1]);
}

// Each byte is read once, whoever reads it.
TEST_P(FileLane, ThreadsShareThePosition) {
  const int fd = OpenWarm();
  constexpr size_t kRecord = 64;
  std::map<std::string, size_t> places;
  for (size_t at = 0; at < kSize; at += kRecord) places[content_.substr(at, kRecord)] = at;
  std::vector<std::atomic<int>> seen(kSize / kRecord);
  std::vector<std::thread> threads;
  std::atomic<int> strange{0};
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&] {
      for (;;) {
        const std::string record = Next(fd, kRecord);
        if (record.empty()) return;
        const auto it = places.find(record);
        if (it == places.end()) {
          strange++;
          return;
        }
        seen[it->second / kRecord]++;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(0, strange);
  if (places.size() == seen.size()) {
    EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](const auto& n) { return n == 1; }));
  }
  EXPECT_EQ(static_cast<off_t>(kSize), lseek(fd, 0, SEEK_CUR));
  close(fd);
}

TEST_P(FileLane, WritesMoveThePositionToo) {
  const int fd = OpenWarm(O_RDWR);
  size_t at = 0;
  for (int i = 0; i < 100; i++) {
    for (int k = 0; k < i % 5; k++, at += 20) ASSERT_EQ(content_.substr(at, 20), Next(fd, 20));
    ASSERT_EQ(5, write(fd, "-----", 5));
    content_.replace(at, 5, "-----");
    at += 5;
    ASSERT_EQ(static_cast<off_t>(at), lseek(fd, 0, SEEK_CUR));
  }
  EXPECT_TRUE(content_ == ReadFile(path_));
  close(fd);
}

TEST_P(FileLane, OthersAppendAndOverwrite) {
  const int fd = OpenWarm();
  ASSERT_EQ(static_cast<off_t>(kSize), lseek(fd, 0, SEEK_END));
  int to[2], from[2];
  ASSERT_OK(pipe(to));
  ASSERT_OK(pipe(from));
  const pid_t child = fork();
  if (child == 0) {
    const int writer = open(path_.c_str(), O_WRONLY | O_APPEND);
    const int over = open(path_.c_str(), O_WRONLY);
    char c;
    while (read(to[0], &c, 1) == 1) {
      if (c == 'q') break;
      write(writer, &c, 1);
      pwrite(over, &c, 1, 7);
      write(from[1], &c, 1);
    }
    _exit(0);
  }
  for (int i = 0; i < 100; i++) {
    ASSERT_EQ("", Next(fd, 10));
    ASSERT_EQ("", Next(fd, 10));
    const char c = static_cast<char>('A' + i % 26);
    ASSERT_EQ(1, write(to[1], &c, 1));
    char done;
    ASSERT_EQ(1, read(from[0], &done, 1));
    ASSERT_EQ(std::string(1, c), At(fd, 7, 1));
    ASSERT_EQ(static_cast<off_t>(kSize) + i + 1, lseek(fd, 0, SEEK_END));
    lseek(fd, -1, SEEK_CUR);
    ASSERT_EQ(std::string(1, c), Next(fd, 10));
    for (int k = 0; k < i % 20; k++) ASSERT_EQ(std::string(1, c), At(fd, 7, 1));
  }
  write(to[1], "q", 1);
  waitpid(child, nullptr, 0);
  for (int p : {fd, to[0], to[1], from[0], from[1]}) close(p);
}

TEST_P(FileLane, TruncationIsSeenAtOnce) {
  const int fd = OpenWarm();
  const int writer = Open(O_RDWR);
  for (int i = 0; i < 50; i++) {
    Warm(fd);
    ASSERT_EQ(0, ftruncate(writer, 5000));
    ASSERT_EQ(content_.substr(4000, 1000), At(fd, 4000, 4096));
    ASSERT_EQ("", At(fd, 5000, 4096));
    ASSERT_EQ("", At(fd, 100'000, 4096));
    ASSERT_EQ(5000, lseek(fd, 0, SEEK_END));
    ASSERT_EQ(0, truncate(path_.c_str(), 9000));
    ASSERT_EQ(std::string(4000, '\0'), At(fd, 5000, 100'000));
    ASSERT_EQ(9000, lseek(fd, 0, SEEK_END));
    ASSERT_EQ(static_cast<ssize_t>(kSize), pwrite(writer, content_.data(), kSize, 0));
    ASSERT_TRUE(content_ == At(fd, 0, kSize + 1));
    ASSERT_EQ(0, lseek(fd, 0, SEEK_SET));
  }
  close(Open(O_WRONLY | O_TRUNC));
  EXPECT_EQ("", At(fd, 0, 10));
  close(fd);
  close(writer);
}

// Read beside truncations: bytes of the file, or zeros, and nobody dies.
TEST_P(FileLane, TruncationUnderWay) {
  const int fd = OpenWarm();
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    const int writer = Open(O_RDWR);
    while (!stop) {
      ftruncate(writer, 4096);
      pwrite(writer, content_.data(), kSize, 0);
    }
    close(writer);
  });
  std::string buffer(65536, '\0');
  for (int i = 0; i < 2000; i++) {
    const off_t at = i * 4096 % static_cast<off_t>(kSize);
    const ssize_t n = pread(fd, buffer.data(), buffer.size(), at);
    ASSERT_GE(n, 0);
    for (ssize_t k = 0; k < n; k += 509) {
      const char c = buffer[static_cast<size_t>(k)];
      ASSERT_TRUE(c == 0 || c == content_[static_cast<size_t>(at + k)]);
    }
  }
  stop = true;
  changer.join();
  close(fd);
}

TEST_P(FileLane, MemoryOfTheFile) {
  const int fd = OpenWarm(O_RDWR);
  char* map = static_cast<char*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(MAP_FAILED, static_cast<void*>(map));
  for (int i = 0; i < kTimes; i++) {
    map[10] = static_cast<char>(i);
    ASSERT_EQ(std::string(1, static_cast<char>(i)), At(fd, 10, 1));
    ASSERT_EQ(10, lseek(fd, 10, SEEK_SET));
    ASSERT_EQ(std::string(1, static_cast<char>(i)), Next(fd, 1));
  }
  // Into itself.
  ASSERT_EQ(4096, pread(fd, map, 4096, 4096));
  EXPECT_EQ(content_.substr(4096, 4096), std::string(map, 4096));
  munmap(map, 8192);
  EXPECT_EQ(content_.substr(4096, 4096), At(fd, 0, 4096));
  close(fd);
}

TEST_P(FileLane, AccessTimes) {
  const int fd = OpenWarm();
  const int writer = Open(O_WRONLY);
  struct stat before, after;
  for (int i = 0; i < 3; i++) {
    SleepMs(20);
    ASSERT_EQ(1, pwrite(writer, "x", 1, 0));
    ASSERT_EQ(0, fstat(fd, &before));
    SleepMs(20);
    for (int k = 0; k < 5; k++) At(fd, 0, 10);
    ASSERT_EQ(0, fstat(fd, &after));
    const auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; };
    if (ns(after.st_atim) == ns(before.st_atim)) continue;  // noatime
    EXPECT_GT(ns(after.st_atim), ns(before.st_mtim));
    for (int k = 0; k < kTimes; k++) At(fd, 0, 10);
    struct stat later;
    ASSERT_EQ(0, fstat(fd, &later));
    EXPECT_EQ(ns(after.st_atim), ns(later.st_atim));
  }
  close(fd);
  close(writer);
}

TEST_P(FileLane, AccessesAreTold) {
  const int fd = OpenWarm();
  const int watcher = inotify_init1(IN_NONBLOCK);
  ASSERT_OK(watcher);
  const int watch = inotify_add_watch(watcher, dir_.c_str(), IN_ACCESS);
  ASSERT_OK(watch);
  char buffer[4096];
  for (int i = 0; i < 20; i++) {
    ASSERT_EQ(content_.substr(0, 10), At(fd, 0, 10));
    ASSERT_GT(read(watcher, buffer, sizeof buffer), 0) << i;
    ASSERT_EQ(content_.substr(static_cast<size_t>(i) * 10, 10), Next(fd, 10));
    ASSERT_GT(read(watcher, buffer, sizeof buffer), 0) << i;
  }
  ASSERT_OK(inotify_rm_watch(watcher, watch));
  for (int i = 0; i < kTimes; i++) ASSERT_EQ(content_.substr(0, 10), At(fd, 0, 10));
  close(watcher);
  close(fd);
}

TEST_P(FileLane, ManyWindows) {
  constexpr size_t kPart = 8 << 20;
  const std::string big = dir_ + "/big";
  const int fd = open(big.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_OK(fd);
  constexpr int kParts = 40;
  const std::string text = Pattern(100);
  // At each border of a window, of which there are fewer.
  for (int i = 1; i <= kParts; i++) {
    ASSERT_EQ(100, pwrite(fd, text.data(), 100, static_cast<off_t>(kPart) * i - 50));
  }
  for (int round = 0; round < 10; round++) {
    for (int i = 1; i <= kParts; i++) {
      for (int k = 0; k < 6; k++) {
        ASSERT_EQ(text, At(fd, static_cast<off_t>(kPart) * i - 50, 100)) << i;
      }
    }
  }
  close(fd);
}

TEST_P(FileLane, ManyFiles) {
  for (int i = 0; i < 60; i++) WriteFile(dir_ + "/" + std::to_string(i), Pattern(9000, i * 999));
  std::vector<int> fds;
  for (int i = 0; i < 60; i++) {
    fds.push_back(open((dir_ + "/" + std::to_string(i)).c_str(), O_RDONLY));
    ASSERT_OK(fds.back());
  }
  for (int round = 0; round < 30; round++) {
    for (int i = 0; i < 60; i++) {
      ASSERT_EQ(Pattern(9000, i * 999).substr(1000, 3000), At(fds[i], 1000, 3000));
      lseek(fds[i], 8000, SEEK_SET);
      ASSERT_EQ(Pattern(9000, i * 999).substr(8000), Next(fds[i], 2000));
    }
  }
  for (int fd : fds) close(fd);
}

TEST_P(FileLane, RemovedFile) {
  const int fd = OpenWarm();
  ASSERT_EQ(0, unlink(path_.c_str()));
  for (int i = 0; i < kTimes; i++) ASSERT_EQ(content_.substr(50, 500), At(fd, 50, 500));
  WriteFile(path_, "another");
  EXPECT_EQ(content_.substr(0, 7), Next(fd, 7));
  close(fd);
}

TEST_P(FileLane, TablesOfTheirOwn) {
  const int fd = OpenWarm();
  const std::string other = dir_ + "/other";
  WriteFile(other, Pattern(kSize, 5));
  EXPECT_EQ(content_.substr(0, 10), Next(fd, 10));
  std::thread([&] {
    ASSERT_EQ(0, unshare(CLONE_FILES));
    ASSERT_EQ(content_.substr(10, 10), Next(fd, 10));
    const int o = open(other.c_str(), O_RDONLY);
    ASSERT_EQ(fd, dup2(o, fd));
    for (int i = 0; i < kTimes; i++) ASSERT_EQ(Pattern(10, 5), At(fd, 0, 10));
    EXPECT_EQ(Pattern(10, 5), Next(fd, 10));
    close(fd);
    char c;
    EXPECT_ERRNO(read(fd, &c, 1), EBADF);
  }).join();
  EXPECT_EQ(content_.substr(20, 10), Next(fd, 10));
  Warm(fd);
  // The child of vfork(2) uses the same memory, with descriptors of its own.
  const pid_t child = vfork();
  if (child == 0) {
    const int o = open(other.c_str(), O_RDONLY);
    dup2(o, fd);
    char c[10];
    const std::string want = Pattern(10, 5);
    _exit(read(fd, c, 10) == 10 && memcmp(c, want.data(), 10) == 0 ? 0 : 1);
  }
  int status;
  EXPECT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_EQ(content_.substr(0, 10), Next(fd, 10));
  close(fd);
}

TEST_P(FileLane, CloseRangeAndThreads) {
  for (int round = 0; round < 20; round++) {
    const int fd = OpenWarm();
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::thread reader([&] {
      char buffer[64];
      while (!stop) {
        const ssize_t n = pread(fd, buffer, sizeof buffer, 640);
        if (n < 0 ? errno != EBADF : memcmp(buffer, content_.data() + 640, sizeof buffer) != 0) {
          wrong++;
        }
      }
    });
    SleepMs(1);
    if (round % 2 == 0) {
      close(fd);
    } else {
      syscall(SYS_close_range, fd, fd, 0);
    }
    char c;
    EXPECT_ERRNO(pread(fd, &c, 1, 0), EBADF);
    stop = true;
    reader.join();
    EXPECT_EQ(0, wrong);
  }
}

TEST_P(FileLane, WithoutDumpability) {
  EXPECT_EQ(0, ExitStatus([&] {
              const int fd = OpenWarm();
              if (Next(fd, 10) != content_.substr(0, 10)) return 1;
              if (prctl(PR_SET_DUMPABLE, 0) != 0) return 2;
              if (lseek(fd, 0, SEEK_CUR) != 10) return 3;
              for (size_t i = 1; i < 50; i++) {
                if (Next(fd, 10) != content_.substr(i * 10, 10)) return 4;
              }
              prctl(PR_SET_DUMPABLE, 1);
              for (size_t i = 50; i < 100; i++) {
                if (Next(fd, 10) != content_.substr(i * 10, 10)) return 5;
              }
              return 0;
            }));
}

TEST_P(FileLane, OtherUser) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  EXPECT_EQ(0, ExitStatus([&] {
              const int fd = OpenWarm();
              if (Next(fd, 10) != content_.substr(0, 10)) return 1;
              if (setresuid(1000, 1000, 1000) != 0) return 2;
              for (size_t i = 1; i < 100; i++) {
                if (Next(fd, 10) != content_.substr(i * 10, 10)) return 3;
                if (At(fd, 5, 5) != content_.substr(5, 5)) return 4;
              }
              return 0;
            }));
}

// The position goes with the description into the next program.
TEST_P(FileLane, Exec) {
  for (int round = 0; round < 3; round++) {
    const int fd = open(path_.c_str(), O_RDONLY);
    Warm(fd);
    ASSERT_EQ(content_.substr(0, 1000), Next(fd, 1000));
    const pid_t child = fork();
    if (child == 0) {
      for (int i = 0; i < 50; i++) Next(fd, 10);
      dup2(fd, 0);
      const std::string out = dir_ + "/out";
      const int o = open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(o, 1);
      dup2(open("/dev/null", O_WRONLY), 2);
      execlp("dd", "dd", "bs=100", "count=3", nullptr);
      execl("/bin/busybox", "dd", "bs=100", "count=3", nullptr);
      _exit(127);
    }
    int status;
    ASSERT_EQ(child, waitpid(child, &status, 0));
    if (WEXITSTATUS(status) == 127) GTEST_SKIP() << "there is no dd";
    EXPECT_EQ(content_.substr(1500, 300), ReadFile(dir_ + "/out"));
    EXPECT_EQ(1800, lseek(fd, 0, SEEK_CUR));
    close(fd);
  }
}

TEST_P(FileLane, SendfileAndVectors) {
  const int fd = OpenWarm();
  int ends[2];
  ASSERT_OK(pipe(ends));
  size_t at = 0;
  for (int i = 0; i < 40; i++) {
    for (int k = 0; k < 3; k++, at += 10) ASSERT_EQ(content_.substr(at, 10), Next(fd, 10));
    char a[5], b[5];
    iovec parts[] = {{a, 5}, {b, 5}};
    ASSERT_EQ(10, readv(fd, parts, 2));
    ASSERT_EQ(content_.substr(at, 10), std::string(a, 5) + std::string(b, 5));
    at += 10;
    ASSERT_EQ(10, syscall(SYS_sendfile, ends[1], fd, nullptr, 10));
    ASSERT_EQ(content_.substr(at, 10), Next(ends[0], 10));
    at += 10;
  }
  EXPECT_EQ(static_cast<off_t>(at), lseek(fd, 0, SEEK_CUR));
  for (int p : {fd, ends[0], ends[1]}) close(p);
}

INSTANTIATE_TEST_SUITE_P(On, FileLane, testing::Values("/tmp", "/dev/shm"), [](const auto& p) {
  return std::string(p.param[1] == 't' ? "Files" : "Memory");
});

}  // namespace
