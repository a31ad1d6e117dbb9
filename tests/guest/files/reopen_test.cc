// Small files that are opened and read again and again: a kernel may keep their bytes, and must not
// show old ones whoever changes the file, by which name or way ever.
#include <sys/mman.h>
#include <sys/xattr.h>

#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

class Reopen : public ::testing::Test {
 protected:
  std::string Make(const char* name, const std::string& text) {
    const std::string path = dir_ / name;
    WriteFile(path, text);
    return path;
  }
  // Often enough that all which is worth keeping is kept.
  static void Expect(const std::string& path, const std::string& text) {
    for (int i = 0; i < 6; i++) ASSERT_EQ(text, ReadFile(path)) << path << ", read " << i;
  }
  TempDir dir_;
};

TEST_F(Reopen, SeesEveryKindOfWrite) {
  const std::string path = Make("f", "one");
  Expect(path, "one");
  const int fd = open(path.c_str(), O_RDWR);
  ASSERT_OK(fd);
  EXPECT_EQ(1, pwrite(fd, "O", 1, 0));
  Expect(path, "One");
  EXPECT_EQ(3, lseek(fd, 0, SEEK_END));
  EXPECT_EQ(4, write(fd, "+two", 4));
  Expect(path, "One+two");
  EXPECT_OK(ftruncate(fd, 5));
  Expect(path, "One+t");
  EXPECT_OK(truncate(path.c_str(), 7));
  Expect(path, std::string("One+t\0\0", 7));
  EXPECT_OK(fallocate(fd, 0, 0, 9));
  Expect(path, std::string("One+t\0\0\0\0", 9));
  close(fd);
  const int append = open(path.c_str(), O_WRONLY | O_APPEND);
  EXPECT_EQ(1, write(append, "!", 1));
  close(append);
  Expect(path, std::string("One+t\0\0\0\0!", 10));
  close(open(path.c_str(), O_WRONLY | O_TRUNC));
  Expect(path, "");
  WriteFile(path, "again");
  Expect(path, "again");
}

TEST_F(Reopen, SeesAnotherProcess) {
  const std::string path = Make("f", "parent");
  for (int i = 0; i < 4; i++) {
    const std::string text = "child " + std::to_string(i);
    ASSERT_EQ(0, ExitStatus([&] {
                const bool old = ReadFile(path).size() != 0;
                WriteFile(path, text);
                return old ? 0 : 1;
              }));
    Expect(path, text);
  }
}

TEST_F(Reopen, SeesAMapping) {
  const std::string path = Make("f", std::string(100, 'a'));
  Expect(path, std::string(100, 'a'));
  const int fd = open(path.c_str(), O_RDWR);
  char* p = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(p, MAP_FAILED);
  close(fd);
  for (int i = 0; i < 3; i++) {
    memset(p, 'b' + i, 100);
    Expect(path, std::string(100, static_cast<char>('b' + i)));
  }
  munmap(p, 4096);
  WriteFile(path, "c");
  Expect(path, "c");
}

TEST_F(Reopen, FollowsNames) {
  const std::string a = Make("a", "aa"), b = Make("b", "bbb");
  Expect(a, "aa");
  Expect(b, "bbb");
  ASSERT_OK(
      syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), 2));  // RENAME_EXCHANGE
  Expect(a, "bbb");
  Expect(b, "aa");
  ASSERT_OK(rename(a.c_str(), b.c_str()));
  Expect(b, "bbb");
  EXPECT_ERRNO(open(a.c_str(), O_RDONLY), ENOENT);
  const std::string link = dir_ / "link";
  ASSERT_OK(::link(b.c_str(), link.c_str()));
  Expect(link, "bbb");
  WriteFile(link, "by the other name");
  Expect(b, "by the other name");
  ASSERT_OK(unlink(b.c_str()));
  Expect(link, "by the other name");
  WriteFile(b, "new");
  Expect(b, "new");
  Expect(link, "by the other name");
}

TEST_F(Reopen, KeepsWhatIsOpen) {
  const std::string path = Make("f", "old");
  Expect(path, "old");
  const int fd = open(path.c_str(), O_RDONLY);
  ASSERT_OK(unlink(path.c_str()));
  char buffer[16];
  EXPECT_EQ(3, pread(fd, buffer, sizeof(buffer), 0));
  struct stat st;
  ASSERT_OK(fstat(fd, &st));
  EXPECT_EQ(0u, st.st_nlink);
  EXPECT_EQ(3, st.st_size);
  WriteFile(path, "newer");
  EXPECT_EQ(3, pread(fd, buffer, sizeof(buffer), 0));
  EXPECT_EQ(0, memcmp(buffer, "old", 3));
  EXPECT_EQ(2, lseek(fd, 2, SEEK_DATA));
  EXPECT_EQ(3, lseek(fd, 0, SEEK_HOLE));
  EXPECT_OK(fsync(fd));
  char* p = static_cast<char*>(mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd, 0));
  ASSERT_NE(p, MAP_FAILED);
  EXPECT_EQ(0, memcmp(p, "old", 4));
  munmap(p, 4096);
  close(fd);
}

// Whether the first read changes the access time depends on the mount; the later ones do the same.
TEST_F(Reopen, ChangesTheAccessTimeAsTheFirstRead) {
  const std::string path = Make("f", "text");
  const timespec old[2] = {{1000, 0}, {2000, 0}};
  bool first = false;
  for (int i = 0; i < 5; i++) {
    ASSERT_OK(utimensat(AT_FDCWD, path.c_str(), old, 0));
    ASSERT_EQ("text", ReadFile(path));
    struct stat st;
    ASSERT_OK(stat(path.c_str(), &st));
    EXPECT_EQ(2000, st.st_mtime);
    const bool changed = st.st_atime != 1000;
    if (i == 0) first = changed;
    EXPECT_EQ(first, changed) << "read " << i;
  }
  // The same while it is open for writing.
  const int fd = open(path.c_str(), O_RDWR);
  for (int i = 0; i < 5; i++) {
    ASSERT_OK(futimens(fd, old));
    ASSERT_EQ("text", ReadFile(path));
    struct stat st;
    ASSERT_OK(fstat(fd, &st));
    EXPECT_EQ(2000, st.st_mtime);
    EXPECT_EQ(first, st.st_atime != 1000) << "read " << i;
  }
  close(fd);
}

TEST_F(Reopen, EveryOffsetAndSize) {
  std::string text;
  for (int i = 0; i < 3000; i++) text += static_cast<char>('a' + i % 26);
  const std::string path = Make("f", text);
  for (int round = 0; round < 3; round++) {
    const int fd = open(path.c_str(), O_RDONLY);
    for (const size_t size : {1, 100, 511, 512, 2999, 3000, 3001, 100'000}) {
      for (const off_t offset : {0, 1, 2488, 2489, 2999, 3000, 3001, 9000}) {
        std::string got(size, '?');
        const ssize_t n = pread(fd, got.data(), size, offset);
        ASSERT_OK(n);
        got.resize(static_cast<size_t>(n));
        const std::string want =
            offset < 3000 ? text.substr(static_cast<size_t>(offset), size) : "";
        ASSERT_EQ(want, got) << size << " at " << offset;
      }
    }
    EXPECT_ERRNO(pread(fd, BadAddress(), 10, 0), EFAULT);
    close(fd);
  }
}

// More files, and more open at once, than any cache or table of descriptors of the kernel's holds.
TEST_F(Reopen, ManyFilesAndDescriptors) {
  constexpr int kFiles = 700;
  const auto text = [](int i) { return std::string(16'000, static_cast<char>('a' + i % 26)); };
  const auto name = [this](int i) { return dir_.path() + "/" + std::to_string(i); };
  for (int i = 0; i < kFiles; i++) WriteFile(name(i), text(i));
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < kFiles; i++) ASSERT_EQ(text(i), ReadFile(name(i)));
  }
  std::vector<int> fds;
  for (int i = 0; i < kFiles; i++) {
    const int fd = open(name(i % 10).c_str(), O_RDONLY);
    ASSERT_OK(fd);
    fds.push_back(fd);
  }
  for (int i = 0; i < kFiles; i++) {
    char c;
    EXPECT_EQ(1, pread(fds[static_cast<size_t>(i)], &c, 1, 15'999));
    EXPECT_EQ('a' + i % 10 % 26, c);
    close(fds[static_cast<size_t>(i)]);
  }
}

// A reader sees the text before or after each write, and after it the new one.
TEST_F(Reopen, BesideAWriter) {
  const std::string path = Make("f", "00000000");
  std::thread writer([&] {
    const int fd = open(path.c_str(), O_WRONLY);
    for (int i = 1; i <= 2000; i++) {
      char text[9];
      snprintf(text, sizeof(text), "%08d", i);
      pwrite(fd, text, 8, 0);
    }
    close(fd);
  });
  int last = 0;
  while (last < 2000) {
    const std::string text = ReadFile(path);
    ASSERT_EQ(8u, text.size());
    const int now = atoi(text.c_str());
    ASSERT_GE(now, last);
    last = now;
  }
  writer.join();
  Expect(path, "00002000");
}

}  // namespace
