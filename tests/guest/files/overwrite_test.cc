// Files whose bytes are overwritten again and again at a position (pwrite(2)): everybody sees the
// bytes and the times at once, and whatever forbids a write forbids the next one.
#include <sys/inotify.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>

#include "guest_util.h"

namespace {

constexpr int kTimes = 60;
constexpr size_t kPage = 4096, kPages = 16, kSize = kPages * kPage;

class Overwrite : public testing::TestWithParam<const char*> {
 protected:
  Overwrite() {
    std::string name = std::string(GetParam()) + "/overwrite-XXXXXX";
    dir_ = mkdtemp(name.data());
    path_ = dir_ + "/file";
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    EXPECT_EQ(static_cast<ssize_t>(kSize), pwrite(fd_, std::string(kSize, '.').data(), kSize, 0));
    Warm();
  }
  ~Overwrite() override {
    close(fd_);
    [[maybe_unused]] int r = system(("rm -rf " + dir_).c_str());
  }
  // Writes to each page, so often that whatever makes the next writes quick has been done.
  void Warm() const {
    for (int i = 0; i < kTimes; i++) Put(i % kPages * kPage, kPage, '.');
  }
  void Put(size_t offset, size_t size, char c) const {
    const std::string bytes(size, c);
    ASSERT_EQ(static_cast<ssize_t>(size),
              pwrite(fd_, bytes.data(), size, static_cast<off_t>(offset)));
  }
  static std::string At(int fd, size_t offset, size_t size) {
    std::string text(size, '\0');
    const ssize_t n = pread(fd, text.data(), size, static_cast<off_t>(offset));
    if (n < 0) return std::string("errno ") + std::to_string(errno);
    text.resize(static_cast<size_t>(n));
    return text;
  }
  struct stat Stat() const {
    struct stat st = {};
    EXPECT_OK(fstat(fd_, &st));
    return st;
  }
  std::string dir_, path_;
  int fd_ = -1;
};

TEST_P(Overwrite, EverybodySeesTheBytes) {
  const int other = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_OK(other);
  auto* map = static_cast<char*>(mmap(nullptr, kSize, PROT_READ, MAP_SHARED, other, 0));
  ASSERT_NE(MAP_FAILED, map);
  for (int i = 0; i < kTimes; i++) {
    const char c = static_cast<char>('a' + i % 26);
    const size_t at = static_cast<size_t>(i) % (kPages - 1) * kPage + 100;
    Put(at, kPage, c);
    EXPECT_EQ(std::string(kPage, c), At(fd_, at, kPage));
    EXPECT_EQ(std::string(kPage, c), At(other, at, kPage));
    EXPECT_EQ(std::string(kPage, c), std::string(map + at, kPage));
  }
  Put(0, 3, 'x');
  EXPECT_EQ(0,
            ExitStatus([&] { return At(fd_, 0, 3) == "xxx" && At(other, 0, 3) == "xxx" ? 0 : 1; }));
  EXPECT_EQ(0, ExitStatus([&] { return pwrite(fd_, "yyy", 3, 0) == 3 ? 0 : 1; }));
  EXPECT_EQ("yyy", At(fd_, 0, 3));
  EXPECT_EQ(static_cast<off_t>(kSize), Stat().st_size);
  EXPECT_EQ(0, lseek(fd_, 0, SEEK_CUR));
  munmap(map, kSize);
  close(other);
}

TEST_P(Overwrite, TheEndMovesWithWhatGoesBeyond) {
  Put(kSize - 10, 20, 'e');
  EXPECT_EQ(static_cast<off_t>(kSize + 10), Stat().st_size);
  Put(kSize + 100, 1, 'f');
  EXPECT_EQ(std::string(90, '\0') + "f", At(fd_, kSize + 10, 200));
  ASSERT_OK(ftruncate(fd_, 100));
  EXPECT_EQ(100, Stat().st_size);
  Put(2 * kPage, 1, 'g');
  EXPECT_EQ(std::string(100, '.') + std::string(2 * kPage - 100, '\0') + "g", At(fd_, 0, kSize));
}

TEST_P(Overwrite, BufferThatEnds) {
  auto* pages = static_cast<char*>(
      mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(MAP_FAILED, pages);
  memset(pages, 'b', 2 * kPage);
  ASSERT_OK(munmap(pages + kPage, kPage));
  EXPECT_ERRNO(pwrite(fd_, pages + kPage, 10, 0), EFAULT);
  EXPECT_EQ(std::string(10, '.'), At(fd_, 0, 10));
  // Which of the bytes before the end come is not said; what is told of is written, and no more.
  const ssize_t n = pwrite(fd_, pages, 2 * kPage, 0);
  ASSERT_GT(n, 0);
  ASSERT_LE(n, static_cast<ssize_t>(kPage));
  EXPECT_EQ(std::string(static_cast<size_t>(n), 'b'), At(fd_, 0, static_cast<size_t>(n)));
  EXPECT_EQ(std::string(kPage, '.'), At(fd_, kPage, kPage));
  EXPECT_EQ(0, pwrite(fd_, pages + kPage, 0, 0));
  EXPECT_ERRNO(pwrite(fd_, pages, 1, -1), EINVAL);
  munmap(pages, kPage);
}

TEST_P(Overwrite, WhoMayNotWrite) {
  const int reader = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_OK(reader);
  EXPECT_ERRNO(pwrite(reader, "x", 1, 0), EBADF);
  const int kept = dup(fd_);
  // Another file at the number that was written to.
  ASSERT_EQ(fd_, dup2(reader, fd_));
  EXPECT_ERRNO(pwrite(fd_, "x", 1, 0), EBADF);
  close(fd_);
  EXPECT_ERRNO(pwrite(fd_, "x", 1, 0), EBADF);
  ASSERT_EQ(fd_, dup2(kept, fd_));
  EXPECT_EQ(1, pwrite(fd_, "x", 1, 0));
  EXPECT_EQ("x.", At(reader, 0, 2));
  close(kept);
  close(reader);
}

TEST_P(Overwrite, AppendingBegins) {
  ASSERT_OK(fcntl(fd_, F_SETFL, O_APPEND));
  EXPECT_EQ(1, pwrite(fd_, "a", 1, 0));  // Linux appends here too
  EXPECT_EQ(".", At(fd_, 0, 1));
  EXPECT_EQ("a", At(fd_, kSize, 10));
  ASSERT_OK(fcntl(fd_, F_SETFL, 0));
  EXPECT_EQ(1, pwrite(fd_, "b", 1, 0));
  EXPECT_EQ("b.", At(fd_, 0, 2));
}

TEST_P(Overwrite, LimitOfSize) {
  EXPECT_EQ(0, ExitStatus([&] {
              signal(SIGXFSZ, SIG_IGN);
              for (int i = 0; i < kTimes; i++) Put(0, kPage, '.');
              const rlimit limit = {kPage, kPage};
              if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
              if (pwrite(fd_, "x", 1, kPage) != -1 || errno != EFBIG) return 2;
              if (pwrite(fd_, "xyz", 3, kPage - 2) != 2) return 3;
              return At(fd_, kPage - 3, 4) == ".xy." ? 0 : 4;
            }));
}

TEST_P(Overwrite, SetIdBitsGo) {
  if (getuid() != 0) GTEST_SKIP() << "needs root, to be somebody else then";
  EXPECT_EQ(0, ExitStatus([&] {
              if (fchmod(fd_, 06775) != 0) return 1;
              if (setgid(65534) != 0 || setuid(65534) != 0) return 2;
              if (pwrite(fd_, "x", 1, 0) != 1) return 3;
              return (Stat().st_mode & 07777) == 0775 ? 0 : 4;
            }));
}

// The clock of files may be a coarse one, so one write need not show.
TEST_P(Overwrite, TimesMove) {
  for (int round = 0; round < 3; round++) {
    const struct stat before = Stat();
    struct stat st;
    const int64_t until = NowNs() + 20'000'000'000;
    do {
      Put(0, 10, 't');
      st = Stat();
    } while (st.st_mtim.tv_sec == before.st_mtim.tv_sec &&
             st.st_mtim.tv_nsec == before.st_mtim.tv_nsec && NowNs() < until);
    EXPECT_TRUE(st.st_mtim.tv_sec > before.st_mtim.tv_sec ||
                (st.st_mtim.tv_sec == before.st_mtim.tv_sec &&
                 st.st_mtim.tv_nsec > before.st_mtim.tv_nsec));
    EXPECT_EQ(st.st_mtim.tv_sec, st.st_ctim.tv_sec);
    EXPECT_EQ(st.st_mtim.tv_nsec, st.st_ctim.tv_nsec);
  }
  // What was set stays until the next write.
  const timespec times[2] = {{1000, 0}, {1000, 0}};
  ASSERT_OK(futimens(fd_, times));
  EXPECT_EQ(1000, Stat().st_mtim.tv_sec);
  Put(0, 10, 'u');
  EXPECT_LT(1000, Stat().st_mtim.tv_sec);
}

TEST_P(Overwrite, WritesAreTold) {
  const int notify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  ASSERT_OK(notify);
  const int watch = inotify_add_watch(notify, path_.c_str(), IN_MODIFY);
  ASSERT_OK(watch);
  Put(0, 1, 'n');
  inotify_event event = {};
  ASSERT_EQ(static_cast<ssize_t>(sizeof(event)), read(notify, &event, sizeof(event)));
  EXPECT_EQ(IN_MODIFY, static_cast<int>(event.mask));
  EXPECT_ERRNO(read(notify, &event, sizeof(event)), EAGAIN);
  close(notify);
}

// One overwrites, another cuts the file and makes it longer, a third reads: every byte is one that
// was written or a hole's, and each write is whole.
TEST_P(Overwrite, TruncationUnderWay) {
  constexpr int kRounds = 400;
  std::atomic<bool> end{false};
  std::atomic<int> bad{0};
  std::thread cutter([&] {
    while (!end) {
      if (ftruncate(fd_, kPage / 2) != 0 || ftruncate(fd_, kSize) != 0) bad++;
    }
  });
  std::thread reader([&] {
    std::string text(kSize, '\0');
    while (!end) {
      const ssize_t n = pread(fd_, text.data(), kSize, 0);
      if (n < 0) bad++;
      for (ssize_t i = 0; i < n; i++) {
        const char c = text[static_cast<size_t>(i)];
        if (c != '.' && c != '\0' && (c < 'a' || c > 'z')) bad++;
      }
    }
  });
  for (int i = 0; i < kRounds; i++) {
    Put(static_cast<size_t>(i) % kPages * kPage, kPage, static_cast<char>('a' + i % 26));
  }
  end = true;
  cutter.join();
  reader.join();
  EXPECT_EQ(0, bad);
  EXPECT_EQ(static_cast<off_t>(kSize), Stat().st_size);
  for (size_t i = 0; i < kPages; i++) Put(i * kPage, kPage, 'z');
  EXPECT_EQ(std::string(kSize, 'z'), At(fd_, 0, 2 * kSize));
}

INSTANTIATE_TEST_SUITE_P(On, Overwrite, testing::Values("/tmp", "/dev/shm"), [](const auto& p) {
  return std::string(p.param[1] == 't' ? "Files" : "Memory");
});

TEST(OverwriteSeals, ForbidTheNextWrite) {
  const int fd = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
  ASSERT_OK(fd);
  const std::string bytes(kPage, '.');
  for (int i = 0; i < kTimes; i++) {
    ASSERT_EQ(static_cast<ssize_t>(kPage), pwrite(fd, bytes.data(), kPage, 0));
  }
  ASSERT_OK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
  EXPECT_EQ(1, pwrite(fd, "gh", 2, kPage - 1));  // page by page
  EXPECT_ERRNO(pwrite(fd, "x", 1, kPage), EPERM);
  ASSERT_OK(ftruncate(fd, kPage - 10));
  EXPECT_ERRNO(pwrite(fd, bytes.data(), 20, kPage - 20), EPERM);
  EXPECT_EQ(10, pwrite(fd, bytes.data(), 10, kPage - 20));
  ASSERT_OK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
  EXPECT_ERRNO(pwrite(fd, "x", 1, 0), EPERM);
  char c;
  EXPECT_EQ(1, pread(fd, &c, 1, 0));
  EXPECT_EQ('.', c);
  close(fd);
}

}  // namespace
