// What programs do that unpack files: many are made in new directories, written, and given times,
// owner and permissions. All of it must be seen at once, and stay.
#include <dirent.h>
#include <sys/xattr.h>

#include <set>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

class Unpack : public ::testing::Test {
 protected:
  static struct stat Stat(const std::string& path) {
    struct stat st = {};
    EXPECT_OK(lstat(path.c_str(), &st)) << path;
    return st;
  }
  static void ExpectAttr(const struct stat& st, mode_t mode, time_t mtime) {
    EXPECT_EQ(mode, st.st_mode & 07777);
    EXPECT_EQ(mtime, st.st_mtime);
    EXPECT_EQ(mtime - 1, st.st_atime);
    EXPECT_EQ(geteuid(), st.st_uid);
  }
  // As tar extracts a regular file.
  static void Extract(const std::string& path, mode_t mode, time_t mtime) {
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0600);
    ASSERT_GE(fd, 0) << path << ": " << strerror(errno);
    ASSERT_EQ(4, write(fd, "text", 4));
    const timespec times[2] = {{mtime - 1, 5}, {mtime, 7}};
    ASSERT_OK(futimens(fd, times));
    ASSERT_OK(fchown(fd, geteuid(), getegid()));
    ASSERT_OK(fchmod(fd, mode));
    close(fd);
  }
  TempDir dir_;
};

TEST_F(Unpack, AttributesAreSeenAtOnce) {
  const std::string path = dir_ / "f";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_OK(fd);
  const int other = open(path.c_str(), O_RDONLY);
  ASSERT_EQ(4, write(fd, "text", 4));
  for (int i = 0; i < 20; i++) {
    const timespec times[2] = {{1000 + i, 5}, {1001 + i, 7}};
    ASSERT_OK(futimens(fd, times));
    ASSERT_OK(fchmod(fd, 0600 | i));
    struct stat st;
    ASSERT_OK(fstat(i % 2 == 0 ? fd : other, &st));
    ExpectAttr(st, 0600 | i, 1001 + i);
    EXPECT_EQ(7, st.st_mtim.tv_nsec);
    EXPECT_EQ(4, st.st_size);
    ExpectAttr(Stat(path), 0600 | i, 1001 + i);
    // Twice the same in a row.
    ASSERT_OK(fchmod(fd, 0640));
    ASSERT_OK(fchmod(fd, 0600));
    EXPECT_EQ(0600u, Stat(path).st_mode & 07777);
  }
  close(other);
  close(fd);
}

TEST_F(Unpack, AWriteAfterwardsCountsAsOne) {
  const std::string path = dir_ / "f";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  for (int i = 0; i < 10; i++) {
    const timespec times[2] = {{1000, 0}, {1001, 0}};
    ASSERT_OK(futimens(fd, times));
    ASSERT_EQ(4, write(fd, "text", 4));
    EXPECT_NE(1001, Stat(path).st_mtime);
    ASSERT_OK(futimens(fd, times));
    ASSERT_OK(ftruncate(fd, 2));
    EXPECT_NE(1001, Stat(path).st_mtime);
    ASSERT_OK(futimens(fd, times));
    EXPECT_EQ(1001, Stat(path).st_mtime);
  }
  close(fd);
}

TEST_F(Unpack, PermissionsHoldAtOnce) {
  if (geteuid() != 0) GTEST_SKIP() << "needs another user";
  chmod(dir_.path().c_str(), 0755);
  const std::string path = dir_ / "f";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0644);
  for (int i = 0; i < 5; i++) {
    const mode_t mode = i % 2 == 0 ? 0600 : 0644;
    ASSERT_OK(fchmod(fd, mode));
    EXPECT_EQ(mode == 0644 ? 0 : EACCES, ExitStatus([&] {
                if (setuid(1000) != 0) return 255;
                return open(path.c_str(), O_RDONLY) >= 0 ? 0 : errno;
              }));
  }
  close(fd);
}

TEST_F(Unpack, AChangeOfOwnerTakesSetIdBits) {
  const std::string path = dir_ / "f";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0755);
  for (int i = 0; i < 3; i++) {
    ASSERT_OK(fchmod(fd, 06755));
    EXPECT_EQ(06755u, Stat(path).st_mode & 07777);
    ASSERT_OK(fchmod(fd, 04711));
    ASSERT_OK(fchown(fd, geteuid(), getegid()));
    EXPECT_EQ(0711u, Stat(path).st_mode & 07777);
  }
  if (geteuid() == 0) {
    ASSERT_OK(fchown(fd, 1000, 1001));
    ASSERT_OK(fchmod(fd, 04711));
    struct stat st;
    ASSERT_OK(fstat(fd, &st));
    EXPECT_EQ(1000u, st.st_uid);
    EXPECT_EQ(1001u, st.st_gid);
    EXPECT_EQ(04711u, st.st_mode & 07777);
  }
  close(fd);
}

TEST_F(Unpack, ManyFilesInNewDirectories) {
  constexpr int kDirs = 16, kFiles = 24;
  for (int d = 0; d < kDirs; d++) {
    const std::string dir = dir_.path() + "/d" + std::to_string(d);
    ASSERT_OK(mkdir(dir.c_str(), 0755));
    for (int f = 0; f < kFiles; f++) {
      const std::string path = dir + "/" + std::to_string(f);
      struct stat st;
      EXPECT_ERRNO(lstat(path.c_str(), &st), ENOENT);
      Extract(path, f % 2 == 0 ? 0644 : 0755, 1000 + f);
      if (f % 8 == 1) {
        ASSERT_OK(rename(path.c_str(), (path + "r").c_str()));
      } else if (f % 8 == 2) {
        ASSERT_OK(unlink(path.c_str()));
      } else if (f % 8 == 3) {
        ASSERT_OK(link(path.c_str(), (path + "l").c_str()));
      }
    }
  }
  EXPECT_EQ(0, ExitStatus([&] {
              int wrong = 0;
              for (int d = 0; d < kDirs; d++) {
                for (int f = 0; f < kFiles; f++) {
                  std::string path =
                      dir_.path() + "/d" + std::to_string(d) + "/" + std::to_string(f);
                  if (f % 8 == 1) path += "r";
                  struct stat st;
                  const bool there = lstat(path.c_str(), &st) == 0;
                  if (there != (f % 8 != 2)) wrong++;
                  if (!there) continue;
                  if ((st.st_mode & 07777) != (f % 2 == 0 ? 0644u : 0755u)) wrong++;
                  if (st.st_mtime != 1000 + f || st.st_size != 4) wrong++;
                  if (st.st_nlink != (f % 8 == 3 ? 2u : 1u)) wrong++;
                }
              }
              return wrong == 0 ? 0 : 1;
            }));
}

std::set<std::string> List(const std::string& path) {
  std::set<std::string> names;
  DIR* dir = opendir(path.c_str());
  while (const dirent* e = readdir(dir)) names.insert(e->d_name);
  closedir(dir);
  names.erase(".");
  names.erase("..");
  return names;
}

// All that changes the names of a directory of which a kernel may know every name.
TEST_F(Unpack, NamesOfANewDirectory) {
  const std::string dir = dir_ / "d", away = dir_ / "away";
  ASSERT_OK(mkdir(dir.c_str(), 0755));
  const auto in = [&](const char* name) { return dir + "/" + name; };
  const auto there = [&](const char* name) { return access(in(name).c_str(), F_OK) == 0; };
  EXPECT_FALSE(there("file"));
  WriteFile(in("file"), "file");
  ASSERT_OK(mkdir(in("dir").c_str(), 0755));
  ASSERT_OK(symlink("file", in("symlink").c_str()));
  ASSERT_OK(mkfifo(in("fifo").c_str(), 0644));
  ASSERT_OK(link(in("file").c_str(), in("link").c_str()));
  EXPECT_EQ((std::set<std::string>{"file", "dir", "symlink", "fifo", "link"}), List(dir));
  EXPECT_EQ("file", ReadFile(in("symlink")));
  EXPECT_ERRNO(mkdir(in("fifo").c_str(), 0755), EEXIST);
  EXPECT_ERRNO(rmdir(dir.c_str()), ENOTEMPTY);
  // Out and in again, by another name.
  ASSERT_OK(rename(in("file").c_str(), away.c_str()));
  EXPECT_FALSE(there("file"));
  EXPECT_FALSE(there("symlink"));
  ASSERT_OK(rename(away.c_str(), in("back").c_str()));
  EXPECT_EQ("file", ReadFile(in("back")));
  ASSERT_OK(rename(in("back").c_str(), in("link").c_str()));  // the same file: nothing happens
  EXPECT_TRUE(there("back") && there("link"));
  ASSERT_OK(syscall(SYS_renameat2, AT_FDCWD, in("back").c_str(), AT_FDCWD, in("dir").c_str(), 2));
  EXPECT_TRUE(there("back") && there("dir"));
  EXPECT_EQ("file", ReadFile(in("dir")));
  EXPECT_TRUE(S_ISDIR(Stat(in("back")).st_mode));
  const int tmp = open(dir.c_str(), O_TMPFILE | O_RDWR, 0644);
  if (tmp >= 0) {
    EXPECT_EQ(5u, List(dir).size());
    const std::string link = "/proc/self/fd/" + std::to_string(tmp);
    ASSERT_OK(linkat(AT_FDCWD, link.c_str(), AT_FDCWD, in("named").c_str(), AT_SYMLINK_FOLLOW));
    EXPECT_TRUE(there("named"));
    ASSERT_OK(unlink(in("named").c_str()));
    close(tmp);
  }
  for (const char* name : {"dir", "symlink", "fifo", "link"}) ASSERT_OK(unlink(in(name).c_str()));
  ASSERT_OK(rmdir(in("back").c_str()));
  EXPECT_TRUE(List(dir).empty());
  ASSERT_OK(rmdir(dir.c_str()));
  EXPECT_FALSE(there("file"));
  EXPECT_ERRNO(open(in("file").c_str(), O_CREAT | O_WRONLY, 0644), ENOENT);
}

// A directory that moves takes what is known of it along; one that is replaced does not leave it.
TEST_F(Unpack, NewDirectoriesMove) {
  const std::string a = dir_ / "a", b = dir_ / "b";
  ASSERT_OK(mkdir(a.c_str(), 0755));
  WriteFile(a + "/f", "in a");
  ASSERT_OK(rename(a.c_str(), b.c_str()));
  EXPECT_EQ("in a", ReadFile(b + "/f"));
  EXPECT_ERRNO(access((a + "/f").c_str(), F_OK), ENOENT);
  ASSERT_OK(mkdir(a.c_str(), 0755));
  EXPECT_ERRNO(access((a + "/f").c_str(), F_OK), ENOENT);
  ASSERT_OK(mkdir((dir_ / "c").c_str(), 0755));
  ASSERT_OK(rename(b.c_str(), (dir_ / "c").c_str()));
  EXPECT_EQ("in a", ReadFile((dir_ / "c") + "/f"));
}

TEST_F(Unpack, ManyNamesInOneDirectory) {
  const std::string dir = dir_ / "d";
  ASSERT_OK(mkdir(dir.c_str(), 0755));
  constexpr int kNames = 4200;
  const auto name = [&](int i) { return dir + "/" + std::to_string(i); };
  for (int i = 0; i < kNames; i++) {
    const int fd = open(name(i).c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644);
    ASSERT_OK(fd);
    close(fd);
  }
  for (int i = 0; i < kNames; i += 7) {
    EXPECT_OK(access(name(i).c_str(), F_OK));
    EXPECT_ERRNO(access(name(kNames + i).c_str(), F_OK), ENOENT);
  }
  EXPECT_EQ(static_cast<size_t>(kNames), List(dir).size());
}

TEST_F(Unpack, FromManyThreads) {
  const std::string dir = dir_ / "d";
  ASSERT_OK(mkdir(dir.c_str(), 0755));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; i++) {
        Extract(dir + "/" + std::to_string(t * 100 + i), 0640, 5000 + i);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(400u, List(dir).size());
  for (int i = 0; i < 400; i++) {
    ExpectAttr(Stat(dir + "/" + std::to_string(i)), 0640, 5000 + i % 100);
  }
}

}  // namespace
