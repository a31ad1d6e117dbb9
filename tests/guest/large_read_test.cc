// Large and repeated reads of files, which a sandbox may make by other ways than small ones: what
// they return while the file is written, cut, replaced or read by many.
#include <pthread.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

constexpr size_t kSize = 300 * 1024;
constexpr size_t kMega = 1 << 20;

char ByteAt(uint64_t offset, uint32_t seed = 0) {
  return static_cast<char>((offset + seed) * 2654435761u >> 15);
}

std::string Pattern(size_t size, uint64_t offset = 0, uint32_t seed = 0) {
  std::string bytes(size, 0);
  for (size_t i = 0; i < size; i++) bytes[i] = ByteAt(offset + i, seed);
  return bytes;
}

class LargeRead : public ::testing::Test {
 protected:
  std::string Make(const char* name, size_t size, uint32_t seed = 0) {
    const std::string path = dir_.path() + "/" + name;
    const int fd = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
    EXPECT_GE(fd, 0) << strerror(errno);
    const std::string bytes = Pattern(size, 0, seed);
    EXPECT_EQ(static_cast<ssize_t>(size), write(fd, bytes.data(), size));
    close(fd);
    return path;
  }
  static int Open(const std::string& path, int flags = O_RDONLY) {
    const int fd = open(path.c_str(), flags);
    EXPECT_GE(fd, 0) << strerror(errno);
    return fd;
  }
  // Reads until what stands there is no longer read by the way of the first read.
  static std::string Read(int fd, size_t size, off_t offset) {
    std::string bytes(size, 'x');
    for (int i = 0; i < 6; i++) {
      const ssize_t n = pread(fd, bytes.data(), size, offset);
      EXPECT_GE(n, 0) << strerror(errno);
      if (i == 5) bytes.resize(static_cast<size_t>(n));
    }
    return bytes;
  }
  TempDir dir_;
};

TEST_F(LargeRead, EverySizeAndPlace) {
  const int fd = Open(Make("f", kSize));
  for (size_t size :
       {1u, 511u, 512u, 513u, 4095u, 4096u, 4097u, 65536u, 300000u, 307200u, 400000u}) {
    for (off_t offset : {0, 1, 4095, 4096, 123456, 307199, 307200, 307201, 1 << 30}) {
      const size_t left =
          offset >= static_cast<off_t>(kSize) ? 0 : kSize - static_cast<size_t>(offset);
      ASSERT_EQ(Read(fd, size, offset),
                Pattern(std::min(size, left), static_cast<uint64_t>(offset)))
          << size << " at " << offset;
    }
  }
  close(fd);
}

TEST_F(LargeRead, SequentialReadsMoveThePosition) {
  const int fd = Open(Make("f", 3 * kMega));
  std::vector<char> buffer(100'000);
  uint64_t offset = 0;
  for (;;) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    ASSERT_GE(n, 0);
    ASSERT_EQ(std::string(buffer.data(), static_cast<size_t>(n)),
              Pattern(static_cast<size_t>(n), offset));
    offset += static_cast<uint64_t>(n);
    ASSERT_EQ(static_cast<off_t>(offset), lseek(fd, 0, SEEK_CUR));
    if (n == 0) break;
    ASSERT_TRUE(n == 100'000 || offset == 3 * kMega);
  }
  EXPECT_EQ(3 * kMega, offset);
  close(fd);
}

TEST_F(LargeRead, SeesWhatIsWrittenAppendedAndCut) {
  const std::string path = Make("f", kSize);
  const int reader = Open(path);
  ASSERT_EQ(Read(reader, kSize, 0), Pattern(kSize));
  const int writer = Open(path, O_RDWR);
  ASSERT_EQ(3, pwrite(writer, "new", 3, 5000));
  std::string expected = Pattern(kSize).replace(5000, 3, "new");
  EXPECT_EQ(Read(reader, kSize, 0), expected);
  EXPECT_EQ(Read(writer, kSize, 0), expected);
  ASSERT_EQ(4, pwrite(writer, "more", 4, kSize));
  EXPECT_EQ(Read(reader, 2 * kSize, 0), expected + "more");
  ASSERT_OK(ftruncate(writer, 70'000));
  expected.resize(70'000);
  EXPECT_EQ(Read(reader, kSize, 0), expected);
  EXPECT_EQ(Read(reader, kSize, 70'000), "");
  ASSERT_OK(truncate(path.c_str(), 80'000));
  expected.resize(80'000);
  EXPECT_EQ(Read(reader, kSize, 0), expected);
  // Through a shared mapping.
  auto* map =
      static_cast<char*>(mmap(nullptr, 80'000, PROT_READ | PROT_WRITE, MAP_SHARED, writer, 0));
  ASSERT_NE(MAP_FAILED, static_cast<void*>(map));
  memcpy(map + 40'000, "mapped", 6);
  expected.replace(40'000, 6, "mapped");
  EXPECT_EQ(Read(reader, kSize, 0), expected);
  munmap(map, 80'000);
  close(reader);
  close(writer);
}

TEST_F(LargeRead, AFileOfTheSameNameIsAnotherOne) {
  const std::string path = Make("f", kSize, 1);
  const int old = Open(path);
  ASSERT_EQ(Read(old, kSize, 0), Pattern(kSize, 0, 1));
  ASSERT_OK(rename(Make("g", kSize, 2).c_str(), path.c_str()));
  const int now = Open(path);
  EXPECT_EQ(Read(now, kSize, 0), Pattern(kSize, 0, 2));
  EXPECT_EQ(Read(old, kSize, 0), Pattern(kSize, 0, 1));
  close(old);
  close(now);
}

TEST_F(LargeRead, ManyFiles) {
  std::vector<int> files;
  for (uint32_t i = 0; i < 80; i++) {
    files.push_back(Open(Make(("f" + std::to_string(i)).c_str(), kSize, i)));
  }
  for (int round = 0; round < 2; round++) {
    for (uint32_t i = 0; i < files.size(); i++) {
      ASSERT_EQ(Read(files[i], 100'000, i), Pattern(100'000, i, i)) << i;
    }
  }
  for (int fd : files) close(fd);
}

TEST_F(LargeRead, ManyThreads) {
  constexpr int kThreads = 4, kFiles = 40;
  std::vector<int> files;
  for (uint32_t i = 0; i < kFiles; i++) {
    files.push_back(Open(Make(("f" + std::to_string(i)).c_str(), kSize, i)));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; t++) {
    threads.emplace_back([&, t] {
      std::vector<char> buffer(100'000);
      for (uint32_t i = 0; i < 400; i++) {
        const uint32_t file = (i * 7 + static_cast<uint32_t>(t) * 11) % kFiles;
        const off_t offset = i * 97 % 1000;
        if (pread(files[file], buffer.data(), buffer.size(), offset) != 100'000) wrong++;
        for (size_t k = 0; k < buffer.size(); k += 499) {
          wrong += buffer[k] != ByteAt(static_cast<uint64_t>(offset) + k, file);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(0, wrong.load());
  for (int fd : files) close(fd);
}

// A byte that is read while the file is cut and written again is the file's, or zero, or not there;
// nothing fails.
TEST_F(LargeRead, BesideTruncation) {
  const std::string path = Make("f", kSize);
  const int reader = Open(path), writer = Open(path, O_RDWR);
  const std::string bytes = Pattern(kSize);
  std::atomic<bool> stop{false};
  std::thread cutter([&] {
    while (!stop) {
      EXPECT_EQ(0, ftruncate(writer, 1000));
      EXPECT_EQ(static_cast<ssize_t>(kSize), pwrite(writer, bytes.data(), kSize, 0));
    }
  });
  std::vector<char> buffer(kSize);
  for (int i = 0; i < 300; i++) {
    const ssize_t n = pread(reader, buffer.data(), kSize, 0);
    ASSERT_GE(n, 1000) << strerror(errno);
    for (size_t k = 0; k < static_cast<size_t>(n); k += 61) {
      ASSERT_TRUE(buffer[k] == bytes[k] || (k >= 1000 && buffer[k] == 0)) << k;
    }
  }
  stop = true;
  cutter.join();
  close(reader);
  close(writer);
}

TEST_F(LargeRead, AcrossFork) {
  const int fd = Open(Make("f", kSize, 3));
  const int other = Open(Make("g", kSize, 4));
  ASSERT_EQ(Read(fd, kSize, 0), Pattern(kSize, 0, 3));
  EXPECT_EQ(0, ExitStatus([&] {
              if (Read(other, kSize, 0) != Pattern(kSize, 0, 4)) return 1;
              if (Read(fd, kSize, 0) != Pattern(kSize, 0, 3)) return 2;
              return 0;
            }));
  EXPECT_EQ(Read(fd, kSize, 0), Pattern(kSize, 0, 3));
  close(fd);
  close(other);
}

TEST_F(LargeRead, AfterAChangeOfIds) {
  if (geteuid() != 0) GTEST_SKIP() << "needs to be root";
  const int fd = Open(Make("f", kSize));
  ASSERT_EQ(Read(fd, kSize, 0), Pattern(kSize));
  EXPECT_EQ(0, ExitStatus([&] {
              if (Read(fd, kSize, 0) != Pattern(kSize)) return 1;
              if (setresuid(1234, 1234, 1234) != 0) return 2;
              if (Read(fd, kSize, 0) != Pattern(kSize)) return 3;
              return 0;
            }));
  close(fd);
}

TEST_F(LargeRead, BadBuffers) {
  const int fd = Open(Make("f", kSize));
  auto* map = static_cast<char*>(
      mmap(nullptr, 2 * kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_EQ(Read(fd, kSize, 0), Pattern(kSize));
  ASSERT_OK(mprotect(map + 8192, 2 * kSize - 8192, PROT_READ));
  EXPECT_ERRNO(pread(fd, map + 8192, kSize, 0), EFAULT);
  EXPECT_EQ(8192, pread(fd, map, kSize, 0));
  EXPECT_EQ(Pattern(8192), std::string(map, 8192));
  ASSERT_OK(mprotect(map, 2 * kSize, PROT_NONE));
  EXPECT_ERRNO(pread(fd, map, kSize, 0), EFAULT);
  EXPECT_ERRNO(read(fd, nullptr, kSize), EFAULT);
  EXPECT_EQ(0, lseek(fd, 0, SEEK_CUR));
  munmap(map, 2 * kSize);
  // Memory of a file as destination.
  const int target = Open(Make("t", kSize, 9), O_RDWR);
  map = static_cast<char*>(mmap(nullptr, 2 * kSize, PROT_READ | PROT_WRITE, MAP_SHARED, target, 0));
  EXPECT_EQ(static_cast<ssize_t>(kSize), pread(fd, map, kSize, 0));
  EXPECT_EQ(Read(target, kSize, 0), Pattern(kSize));
  munmap(map, 2 * kSize);
  close(fd);
  close(target);
}

// The room of a removed file comes back though it has been read.
TEST_F(LargeRead, RemovedFilesLeaveNothing) {
  for (int i = 0; i < 20; i++) {
    const std::string path = Make("f", kMega, static_cast<uint32_t>(i));
    const int fd = Open(path);
    ASSERT_EQ(Read(fd, kMega, 0), Pattern(kMega, 0, static_cast<uint32_t>(i)));
    ASSERT_OK(unlink(path.c_str()));
    ASSERT_EQ(Read(fd, kMega, 0), Pattern(kMega, 0, static_cast<uint32_t>(i)));
    close(fd);
  }
}

TEST_F(LargeRead, ReadsChangeTheAccessTime) {
  const std::string path = Make("f", kSize);
  const int fd = Open(path);
  timespec times[2] = {{1'000'000, 0}, {2'000'000, 0}};
  ASSERT_OK(futimens(fd, times));
  struct stat before, after;
  Read(fd, kSize, 0);
  ASSERT_OK(fstat(fd, &before));
  if (before.st_atime == 1'000'000) GTEST_SKIP() << "access times are not kept here";
  ASSERT_OK(futimens(fd, times));
  Read(fd, kSize, 0);
  ASSERT_OK(fstat(fd, &after));
  EXPECT_NE(1'000'000, after.st_atime);
  close(fd);
}

}  // namespace
