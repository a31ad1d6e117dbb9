// Directories that are read with their nodes, and before they are asked for.
#include <filesystem>

#include "sentry/fs/gofer/test_support.h"

namespace sentry {
namespace {

constexpr int kFiles = 10;

class TreeWalkTest : public GoferFsTest {
 protected:
  static std::string FileName(int i) { return "/f" + std::to_string(i); }

  void MakeTree(int directories) {
    for (int d = 0; d < directories; ++d) {
      const std::string name = "/d" + std::to_string(d);
      std::filesystem::create_directory(Host(name));
      for (int i = 0; i < kFiles; ++i) SetHostText(name + FileName(i), "text");
    }
  }
  // The paths of the directories in "/", in its order.
  std::vector<std::string> Directories() {
    std::vector<std::string> names;
    auto root = Open("/", O_RDONLY | O_DIRECTORY);
    EXPECT_TRUE(root->GetDents([&](const DirEntry& e) {
                      if (e.name[0] != '.') names.push_back("/" + std::string(e.name));
                      return true;
                    })
                    .ok());
    return names;
  }
  void Visit(const std::string& directory) {
    EXPECT_EQ(List(directory).size(), kFiles + 2u) << directory;
    for (int i = 0; i < kFiles; ++i) EXPECT_EQ(Stat(directory + FileName(i)).size, 4u);
  }
  GoferFilesystem& Fs() { return static_cast<GoferFilesystem&>(root_.dentry->inode_ptr()->fs()); }
  static size_t OpenDescriptors() {
    const std::filesystem::directory_iterator fds("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(fds), end(fds)));
  }
};

TEST_F(TreeWalkTest, OneRequestForEachDirectory) {
  MakeTree(30);
  Mount(GoferCache::kExclusive);
  Run([&] {
    const std::vector<std::string> names = Directories();
    ASSERT_EQ(names.size(), 30u);
    for (int d = 0; d < 10; ++d) Visit(names[d]);
    const uint64_t before = Requests();
    for (int d = 10; d < 30; ++d) Visit(names[d]);
    EXPECT_LE(Requests() - before, 20u);
  });
}

TEST_F(TreeWalkTest, NothingIsReadAheadOfASharedMount) {
  MakeTree(20);
  Mount(GoferCache::kShared);
  Run([&] {
    for (const std::string& name : Directories()) {
      Visit(name);
      SetHostText(name + "/new", "n");
      EXPECT_EQ(List(name).size(), kFiles + 3u);
      EXPECT_EQ(Stat(name + "/new").size, 1u);
    }
  });
}

TEST_F(TreeWalkTest, ChangesBeforeTheListingAreSeen) {
  MakeTree(40);
  Mount(GoferCache::kExclusive);
  Run([&] {
    const std::vector<std::string> names = Directories();
    ASSERT_EQ(names.size(), 40u);
    for (int d = 0; d < 10; ++d) Visit(names[d]);
    // With each visit the gofer has read the next directory.
    for (int d = 10; d < 39; ++d) {
      Visit(names[d]);
      const std::string& next = names[d + 1];
      switch (d % 4) {
        case 0:
          Open(next + "/new", O_CREAT | O_EXCL | O_WRONLY);
          EXPECT_TRUE(List(next).contains("new"));
          EXPECT_TRUE(vfs_.Unlink(Ctx(), next + "/new").ok());
          break;
        case 1:
          EXPECT_TRUE(vfs_.Rename(Ctx(), next + "/f1", Ctx(), next + "/g", 0).ok());
          EXPECT_FALSE(List(next).contains("f1"));
          EXPECT_EQ(WalkError(next + "/f1"), ENOENT);
          EXPECT_TRUE(vfs_.Rename(Ctx(), next + "/g", Ctx(), next + "/f1", 0).ok());
          break;
        case 2: {
          Write(*Open(next + "/f2", O_WRONLY | O_APPEND), "more");
          DentryCache::Get().DropUnused();
          EXPECT_EQ(List(next).size(), kFiles + 2u);
          EXPECT_EQ(Stat(next + "/f2").size, 8u);
          EXPECT_TRUE(vfs_.Truncate(*creds_, *vfs_.Walk(Ctx(), next + "/f2", {}), 4).ok());
          break;
        }
        default:
          EXPECT_TRUE(vfs_.SetAttr(*creds_, *vfs_.Walk(Ctx(), next + "/f3", {}),
                                   {.set_mode = true, .mode = 0600})
                          .ok());
          DentryCache::Get().DropUnused();
          EXPECT_EQ(List(next).size(), kFiles + 2u);
          EXPECT_EQ(Stat(next + "/f3").mode & 07777, 0600u);
      }
    }
  });
}

TEST_F(TreeWalkTest, ANewDirectoryInTheForeseenOnesPlace) {
  MakeTree(20);
  Mount(GoferCache::kExclusive);
  Run([&] {
    const std::vector<std::string> names = Directories();
    for (int d = 0; d < 10; ++d) Visit(names[d]);
    for (int i = 0; i < kFiles; ++i) {
      EXPECT_TRUE(vfs_.Unlink(Ctx(), names[10] + FileName(i)).ok());
    }
    EXPECT_TRUE(vfs_.Rmdir(Ctx(), names[10]).ok());
    EXPECT_TRUE(vfs_.Mkdir(Ctx(), names[10], 0755).ok());
    DentryCache::Get().DropUnused();
    EXPECT_EQ(List(names[10]).size(), 2u);
    EXPECT_EQ(WalkError(names[10] + "/f1"), ENOENT);
  });
}

TEST_F(TreeWalkTest, NestedDirectoriesAreForeseen) {
  for (int a = 0; a < 12; ++a) {
    const std::string name = "/a" + std::to_string(a);
    std::filesystem::create_directories(Host(name + "/sub/leaf"));
    for (const char* below : {"/f", "/sub/f", "/sub/leaf/f"}) SetHostText(name + below, "text");
  }
  Mount(GoferCache::kExclusive);
  Run([&] {
    uint64_t before = 0;
    int visited = 0;
    for (const std::string& name : Directories()) {
      if (++visited == 5) before = Requests();
      for (const char* below : {"", "/sub", "/sub/leaf"}) {
        const size_t size = std::string_view(below) == "/sub/leaf" ? 3 : 4;
        EXPECT_EQ(List(name + below).size(), size);
        EXPECT_EQ(Stat(name + below + "/f").size, 4u);
      }
    }
    // One for each of three directories.
    EXPECT_LE(Requests() - before, 3u * 8);
  });
}

TEST_F(TreeWalkTest, HandlesOfWrongGuessesGoBack) {
  MakeTree(60);
  Mount(GoferCache::kExclusive);
  Run([&] {
    const size_t before = OpenDescriptors();
    const std::vector<std::string> names = Directories();
    for (int round = 0; round < 5; ++round) {
      for (int d = 0; d < 60; ++d) {
        // Now and then another one than was foreseen.
        Visit(names[d % 5 == 4 ? 59 - d : d]);
        if (d % 7 == 0) Fs().Reclaim();
      }
    }
    Fs().Reclaim();
    connection_->AwaitLateCalls();
    connection_->FlushForgotten();
    EXPECT_LT(OpenDescriptors(), before + 20);
  });
}

TEST_F(TreeWalkTest, FewHandlesSuffice) {
  MakeTree(60);
  Mount(GoferCache::kExclusive, 200);
  Run([&] {
    for (int round = 0; round < 3; ++round) {
      for (const std::string& name : Directories()) Visit(name);
    }
  });
}

}  // namespace
}  // namespace sentry
