// Files that are opened, read and closed one after the other: their first bytes may come with
// open(2). What changes them between open and read is seen all the same.
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "guest_util.h"
#include "net/fd_util.h"

namespace {

constexpr int kTimes = 20;  // so often until reads have been expected for some time

class FileBegin : public testing::TestWithParam<const char*> {
 protected:
  FileBegin() {
    std::string name = std::string(GetParam()) + "/begin-XXXXXX";
    dir_ = mkdtemp(name.data());
    path_ = dir_ + "/file";
    Warm();
  }
  ~FileBegin() override { [[maybe_unused]] int r = system(("rm -rf " + dir_).c_str()); }

  // A process that reads what it opens.
  void Warm() const {
    const std::string other = dir_ + "/other";
    WriteFile(other, "something");
    for (int i = 0; i < kTimes; i++) EXPECT_EQ("something", Whole(other));
  }
  int Open(const std::string& path) const { return open(path.c_str(), O_RDONLY | O_CLOEXEC); }
  std::string Next(int fd, size_t size) const {
    std::string text(size, '\0');
    const ssize_t n = read(fd, text.data(), size);
    if (n < 0) return std::string("errno ") + std::to_string(errno);
    text.resize(static_cast<size_t>(n));
    return text;
  }
  std::string At(int fd, off_t offset, size_t size) const {
    std::string text(size, '\0');
    const ssize_t n = pread(fd, text.data(), size, offset);
    if (n < 0) return std::string("errno ") + std::to_string(errno);
    text.resize(static_cast<size_t>(n));
    return text;
  }
  std::string Whole(const std::string& path) const {
    const int fd = Open(path);
    std::string all, part;
    do {
      all += part = Next(fd, 32768);
    } while (!part.empty());
    close(fd);
    return all;
  }
  std::string dir_, path_;
};

void InChild(const std::function<void()>& body) {
  EXPECT_EQ(0, ExitStatus([&] {
              body();
              return testing::Test::HasFailure() ? 1 : 0;
            }));
}

std::string Pattern(size_t size, uint32_t seed) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; i++) text[i] = static_cast<char>((i * 2654435761u + seed) >> 13);
  return text;
}

TEST_P(FileBegin, SizesAndOffsets) {
  for (size_t size : {0, 1, 100, 4095, 4096, 4097, 16383, 16384, 16385, 50'000}) {
    const std::string content = Pattern(size, static_cast<uint32_t>(size));
    WriteFile(path_, content);
    for (int i = 0; i < 8; i++) {
      EXPECT_EQ(content, Whole(path_));
      const int fd = Open(path_);
      const size_t at = size / 3;
      EXPECT_EQ(content.substr(at, 200), At(fd, static_cast<off_t>(at), 200));
      EXPECT_EQ(content.substr(0, 832), Next(fd, 832));
      EXPECT_EQ(content.substr(std::min<size_t>(832, size), 5000), Next(fd, 5000));
      EXPECT_EQ(static_cast<off_t>(std::min<size_t>(5832, size)), lseek(fd, 0, SEEK_CUR));
      EXPECT_EQ("", At(fd, static_cast<off_t>(size), 10));
      EXPECT_EQ(static_cast<off_t>(size), lseek(fd, 0, SEEK_END));
      EXPECT_EQ("", Next(fd, 10));
      close(fd);
    }
  }
}

TEST_P(FileBegin, ChangesBetweenOpenAndRead) {
  const struct {
    const char* what;
    std::function<void(const std::string&)> change;
    const char* expected;
  } changes[] = {
      {"write",
       [](const std::string& path) {
         const int fd = open(path.c_str(), O_WRONLY);
         EXPECT_EQ(3, pwrite(fd, "NEW", 3, 4));
         close(fd);
       },
       "old NEWes"},
      {"cut", [](const std::string& path) { EXPECT_OK(truncate(path.c_str(), 5)); }, "old b"},
      {"grow",
       [](const std::string& path) {
         const int fd = open(path.c_str(), O_WRONLY | O_APPEND);
         EXPECT_EQ(5, write(fd, " more", 5));
         close(fd);
       },
       "old bytes more"},
      {"O_TRUNC", [](const std::string& path) { WriteFile(path, "x"); }, "x"},
      {"unlink", [](const std::string& path) { EXPECT_OK(unlink(path.c_str())); }, "old bytes"},
      {"rename",
       [](const std::string& path) {
         WriteFile(path + "2", "another");
         EXPECT_OK(rename((path + "2").c_str(), path.c_str()));
       },
       "old bytes"},
      {"mapping",
       [](const std::string& path) {
         const int fd = open(path.c_str(), O_RDWR);
         void* p = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
         memcpy(p, "MAP", 3);
         munmap(p, 4096);
         close(fd);
       },
       "MAP bytes"},
  };
  for (const auto& c : changes) {
    for (bool other : {false, true}) {
      for (int i = 0; i < 6; i++) {
        unlink(path_.c_str());
        WriteFile(path_, "old bytes");
        EXPECT_EQ("old bytes", Whole(path_));  // so that it is known
        const int fd = Open(path_);
        ASSERT_OK(fd);
        if (other) {
          InChild([&] { c.change(path_); });
        } else {
          c.change(path_);
        }
        EXPECT_EQ(c.expected, Next(fd, 100)) << c.what << other;
        close(fd);
        Warm();
      }
    }
  }
}

// More than have room at once, in any order.
TEST_P(FileBegin, ManyOpenAtOnce) {
  constexpr int kFiles = 40;
  for (int i = 0; i < kFiles; i++) {
    WriteFile(path_ + std::to_string(i), Pattern(3000, static_cast<uint32_t>(i)));
  }
  for (int round = 0; round < 10; round++) {
    std::vector<int> fds;
    for (int i = 0; i < kFiles; i++) fds.push_back(Open(path_ + std::to_string(i)));
    for (int k = 0; k < kFiles; k++) {
      const int i = (k * 7 + round) % kFiles;
      EXPECT_EQ(Pattern(3000, static_cast<uint32_t>(i)), Next(fds[static_cast<size_t>(i)], 5000));
    }
    for (int fd : fds) close(fd);
    Warm();
  }
}

TEST_P(FileBegin, OnePositionForAll) {
  WriteFile(path_, "abcdefghij");
  for (int i = 0; i < kTimes; i++) {
    const int fd = Open(path_);
    const int copy = dup(fd);
    EXPECT_EQ("ab", Next(fd, 2));
    EXPECT_EQ("cd", Next(copy, 2));
    InChild([&] { EXPECT_EQ("ef", Next(fd, 2)); });
    EXPECT_EQ("gh", Next(fd, 2));
    close(fd);
    EXPECT_EQ("ij", Next(copy, 2));
    EXPECT_EQ("", Next(copy, 2));
    close(copy);
    EXPECT_ERRNO(read(copy, nullptr, 1), EBADF);
    // The number leads to another file.
    WriteFile(path_ + "2", "other");
    const int again = Open(path_ + "2");
    EXPECT_EQ("other", Next(again, 10));
    close(again);
  }
}

TEST_P(FileBegin, Errors) {
  WriteFile(path_, "abcdefghij");
  for (int i = 0; i < kTimes; i++) {
    const int fd = Open(path_);
    EXPECT_ERRNO(read(fd, reinterpret_cast<void*>(8), 4), EFAULT);
    EXPECT_ERRNO(read(fd, reinterpret_cast<void*>(0xffff800000000000), 4), EFAULT);
    EXPECT_ERRNO(pread(fd, &dir_, 4, -1), EINVAL);
    EXPECT_EQ(0, read(fd, nullptr, 0));
    EXPECT_EQ("abcd", Next(fd, 4));
    close(fd);
    const int none = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    EXPECT_ERRNO(read(none, &dir_, 4), EBADF);
    close(none);
    const int path_only = open(path_.c_str(), O_PATH | O_CLOEXEC);
    EXPECT_ERRNO(read(path_only, &dir_, 4), EBADF);
    close(path_only);
  }
}

// Who knows that a byte has been written reads it, or a later one.
TEST_P(FileBegin, ReadersSeeWhatWasWrittenBefore) {
  WriteFile(path_, std::string(1, '\0') + std::string(2000, 'x'));
  auto* written = static_cast<std::atomic<int>*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(MAP_FAILED, written);
  constexpr int kLast = 250;
  const pid_t writer = fork();
  if (writer == 0) {
    const int fd = open(path_.c_str(), O_WRONLY);
    for (int i = 1; i <= kLast; i++) {
      const char c = static_cast<char>(i);
      if (pwrite(fd, &c, 1, 0) != 1) _exit(1);
      written->store(i);
      usleep(200);
    }
    _exit(0);
  }
  std::vector<std::thread> readers;
  std::atomic<int> reads{0};
  for (int t = 0; t < 2; t++) {
    readers.emplace_back([&] {
      while (written->load() < kLast) {
        const int fd = Open(path_);
        const int before = written->load();
        const std::string text = Next(fd, 3000);
        const int after = static_cast<unsigned char>(text[0]);
        EXPECT_EQ(2001u, text.size());
        EXPECT_LE(before, after);
        EXPECT_LE(after, written->load() + 1);
        close(fd);
        reads++;
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  int status = 0;
  ASSERT_EQ(writer, waitpid(writer, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_GT(reads, 0);
  munmap(written, 4096);
}

// A child that has given up its rights is told nothing of what its parent might read.
TEST_P(FileBegin, AfterSetuid) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  WriteFile(path_, "for root alone");
  ASSERT_OK(chmod(path_.c_str(), 0600));
  ASSERT_OK(chmod(dir_.c_str(), 0755));
  for (int i = 0; i < kTimes; i++) {
    InChild([&] {
      const int fd = Open(path_);
      ASSERT_OK(setresuid(65534, 65534, 65534));
      EXPECT_EQ("for ", Next(fd, 4));  // what is open stays open
      EXPECT_ERRNO(Open(path_), EACCES);
      EXPECT_EQ("root alone", Next(fd, 100));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Where, FileBegin, testing::Values("/tmp", "/dev/shm"), [](const auto& p) {
  return std::string(p.param[1] == 't' ? "Files" : "Memory");
});

}  // namespace
