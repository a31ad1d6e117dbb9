// The filesystem through the VFS, over a gofer in this process and a temporary directory.
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "sentry/fs/gofer/test_support.h"

namespace sentry {
namespace {

TEST_F(GoferFsTest, CreateWriteReadTruncate) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto f = Open("/a", O_CREAT | O_RDWR, 0640);
    EXPECT_EQ(Write(*f, "hello"), 5u);
    EXPECT_EQ(PRead(*f, 0, 100), "hello");
    EXPECT_EQ(PRead(*f, 5, 100), "");
    EXPECT_EQ(HostText("/a"), "hello");
    InodeAttr attr = Stat("/a");
    struct stat st;
    ASSERT_EQ(stat(Host("/a").c_str(), &st), 0);
    EXPECT_EQ(attr.size, 5u);
    EXPECT_EQ(attr.ino, st.st_ino);
    EXPECT_EQ(attr.mode, st.st_mode);
    EXPECT_EQ(attr.mtime.tv_nsec, st.st_mtim.tv_nsec);
    auto g = Open("/a", O_WRONLY | O_APPEND);
    EXPECT_EQ(Write(*g, " world"), 6u);
    EXPECT_EQ(PRead(*f, 0, 100), "hello world");
    EXPECT_EQ(*g->Seek(0, SEEK_CUR), 11);
    EXPECT_TRUE(f->Truncate(3).ok());
    EXPECT_EQ(Stat("/a").size, 3u);
    Open("/a", O_RDWR | O_TRUNC);
    EXPECT_EQ(Stat("/a").size, 0u);
    EXPECT_EQ(OpenError("/a", O_CREAT | O_EXCL | O_RDWR), EEXIST);
    EXPECT_EQ(OpenError("/none", O_RDONLY), ENOENT);
    EXPECT_TRUE(f->Sync(false).ok());
    const std::string big(1 << 20, 'b');
    EXPECT_EQ(*f->Seek(0, SEEK_SET), 0);
    EXPECT_EQ(Write(*f, big), big.size());
    EXPECT_TRUE(PRead(*f, 0, 2 << 20) == big);
    EXPECT_TRUE(f->Allocate(0, 0, 2 << 20).ok());
    EXPECT_EQ(*f->Seek(0, SEEK_END), 2 << 20);
  });
}

TEST_F(GoferFsTest, NamesAndLinks) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d", 0755).ok());
    EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d/e", 0755).ok());
    Write(*Open("/d/e/f", O_CREAT | O_WRONLY), "deep");
    EXPECT_EQ(PRead(*Open("/d/e/f", O_RDONLY), 0, 10), "deep");
    EXPECT_TRUE(vfs_.Symlink(Ctx(), "e/f", "/d/link").ok());
    EXPECT_EQ(PRead(*Open("/d/link", O_RDONLY), 0, 10), "deep");
    EXPECT_TRUE(S_ISLNK(Stat("/d/link").mode));
    EXPECT_TRUE(vfs_.Link(Ctx(), "/d/e/f", {}, Ctx(), "/d/hard").ok());
    EXPECT_EQ(Stat("/d/hard").nlink, 2u);
    EXPECT_EQ(Stat("/d/hard").ino, Stat("/d/e/f").ino);
    EXPECT_TRUE(vfs_.Rename(Ctx(), "/d/hard", Ctx(), "/moved", 0).ok());
    EXPECT_EQ(WalkError("/d/hard"), ENOENT);
    EXPECT_EQ(HostText("/moved"), "deep");
    auto open_file = Open("/d/e/f", O_RDONLY);
    EXPECT_TRUE(vfs_.Unlink(Ctx(), "/d/e/f").ok());
    EXPECT_EQ(open_file->GetAttr()->nlink, 1u);
    EXPECT_TRUE(vfs_.Unlink(Ctx(), "/moved").ok());
    EXPECT_EQ(open_file->GetAttr()->nlink, 0u);
    EXPECT_EQ(PRead(*open_file, 0, 10), "deep");
    EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/d")), ENOTEMPTY);
    EXPECT_TRUE(vfs_.Rmdir(Ctx(), "/d/e").ok());
    EXPECT_EQ(Stat("/d").nlink, 2u);
    EXPECT_EQ(WalkError("/d/e"), ENOENT);
    EXPECT_EQ(WalkError("/d/link/x"), ENOENT);
    EXPECT_TRUE(vfs_.Mknod(Ctx(), "/fifo", S_IFIFO | 0600, 0).ok());
    EXPECT_TRUE(S_ISFIFO(Stat("/fifo").mode));
    EXPECT_EQ(Code(vfs_.Mknod(Ctx(), "/dev", S_IFCHR | 0600, makedev(1, 3))), EPERM);
  });
}

TEST_F(GoferFsTest, AttributesAndXattrs) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto f = Open("/a", O_CREAT | O_RDWR);
    AttrChange change;
    change.set_mode = change.set_uid = change.set_gid = change.set_mtime = true;
    change.mode = 0711;
    change.uid = 12;
    change.gid = 34;
    change.mtime = {1000, 2000};
    EXPECT_TRUE(f->inode()->SetAttr(change).ok());
    struct stat st;
    ASSERT_EQ(stat(Host("/a").c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0711u);
    EXPECT_EQ(st.st_uid, 12u);
    EXPECT_EQ(st.st_mtim.tv_nsec, 2000);
    InodeAttr attr = Stat("/a");
    EXPECT_EQ(attr.gid, 34u);
    EXPECT_EQ(attr.mtime.tv_sec, 1000);
    Write(*f, "x");
    EXPECT_GT(Stat("/a").mtime.tv_sec, 1000);
    EXPECT_EQ(Stat("/a").uid, 12u);
    if (f->inode()->SetXattr("user.k", "v", 0).ok()) {
      EXPECT_EQ(*f->inode()->GetXattr("user.k"), "v");
      EXPECT_EQ(*f->inode()->ListXattr(), std::vector<std::string>{"user.k"});
      EXPECT_TRUE(f->inode()->RemoveXattr("user.k").ok());
    }
    EXPECT_EQ(f->inode()->GetXattr("security.capability").error().code(), ENODATA);
    auto fs = f->inode()->fs().StatFs();
    ASSERT_TRUE(fs.ok());
    EXPECT_GT(fs->f_blocks, 0u);
    EXPECT_TRUE(f->inode()->fs().Sync().ok());
  });
}

TEST_F(GoferFsTest, Listings) {
  for (int i = 0; i < 3000; ++i) SetHostText("/file_with_a_long_name_" + std::to_string(i), "");
  Mount(GoferCache::kExclusive);
  Run([&] {
    EXPECT_EQ(List("/").size(), 3002u);
    Open("/new", O_CREAT | O_WRONLY);
    auto names = List("/");
    EXPECT_EQ(names.count("new"), 1u);
    EXPECT_TRUE(vfs_.Unlink(Ctx(), "/new").ok());
    EXPECT_EQ(List("/").count("new"), 0u);
    // Stops where there is no room and goes on there.
    auto dir = Open("/", O_RDONLY | O_DIRECTORY);
    size_t seen = 0;
    for (int round = 0; round < 2; ++round) {
      for (size_t before = seen + 1; before != seen;) {
        before = seen;
        size_t room = 7;
        EXPECT_TRUE(dir->GetDents([&](const DirEntry&) {
                         if (room == 0) return false;
                         --room;
                         ++seen;
                         return true;
                       })
                        .ok());
      }
      EXPECT_EQ(seen, 3002u);
      EXPECT_EQ(*dir->Seek(0, SEEK_SET), 0);
      seen = 0;
    }
  });
}

TEST_F(GoferFsTest, ChildrenLookedUpAtOnce) {
  for (int i = 0; i < 700; ++i) SetHostText("/f" + std::to_string(i), std::to_string(i));
  ASSERT_EQ(symlink("f1", Host("/link").c_str()), 0);
  Mount(GoferCache::kExclusive, 40'000);
  Run([&] {
    EXPECT_EQ(List("/").size(), 703u);
    for (int i = 0; i < 700; ++i) {
      const std::string name = "/f" + std::to_string(i);
      EXPECT_EQ(Stat(name).size, std::to_string(i).size());
    }
    EXPECT_EQ(WalkError("/none"), ENOENT);
    EXPECT_EQ(PRead(*Open("/link", O_RDONLY), 0, 10), "1");
    // Changes are seen at once.
    EXPECT_TRUE(vfs_.Unlink(Ctx(), "/f5").ok());
    EXPECT_EQ(WalkError("/f5"), ENOENT);
    EXPECT_TRUE(vfs_.Rename(Ctx(), "/f6", Ctx(), "/f5", 0).ok());
    EXPECT_EQ(PRead(*Open("/f5", O_RDONLY), 0, 10), "6");
    EXPECT_EQ(WalkError("/f6"), ENOENT);
    Write(*Open("/none", O_CREAT | O_WRONLY), "new");
    EXPECT_EQ(Stat("/none").size, 3u);
  });
}

// A directory with more names than are kept: some are found at once, and none again and again.
TEST_F(GoferFsTest, ALargeDirectoryIsLookedAtInParts) {
  constexpr int kFiles = 6000;
  for (int i = 0; i < kFiles; i++) SetHostText("/f" + std::to_string(i), "");
  Mount(GoferCache::kExclusive, 64 * 1024);
  Run([&] {
    EXPECT_EQ(List("/").size(), kFiles + 2u);
    uint64_t before = Requests();
    for (int i = 0; i < 3; i++) EXPECT_EQ(WalkError("/f" + std::to_string(i * 100)), 0);
    EXPECT_LE(Requests() - before, 5u);
    before = Requests();
    for (int i = 0; i < kFiles; i++) EXPECT_EQ(WalkError("/f" + std::to_string(i * 7 % kFiles)), 0);
    EXPECT_LE(Requests() - before, kFiles * 3 / 4);
    EXPECT_EQ(WalkError("/none"), ENOENT);
    Open("/new", O_RDWR | O_CREAT);
    EXPECT_EQ(WalkError("/new"), 0);
    EXPECT_TRUE(vfs_.Unlink(Ctx(), "/f5").ok());
    EXPECT_EQ(WalkError("/f5"), ENOENT);
  });
}

TEST_F(GoferFsTest, FilesOpenedWithTheirSiblings) {
  for (int i = 0; i < 200; ++i) SetHostText("/f" + std::to_string(i), std::to_string(i));
  // In the order in which the directory lists them, as who reads a tree does.
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(Host("/"))) {
    if (entry.path().filename().string().starts_with("f")) {
      names.push_back("/" + entry.path().filename().string());
    }
  }
  ASSERT_EQ(names.size(), 200u);
  Mount(GoferCache::kExclusive, 10'000);
  Run([&] {
    List("/");
    for (const std::string& name : names) Stat(name);
    const uint64_t before = Requests();
    for (const std::string& name : names) {
      EXPECT_EQ(PRead(*Open(name, O_RDONLY), 0, 10), name.substr(2));
    }
    EXPECT_LT(Requests() - before, 40u);
    // Each kept descriptor is that of its own file also when names change.
    EXPECT_TRUE(vfs_.Rename(Ctx(), "/f7", Ctx(), "/f8", 0).ok());
    EXPECT_EQ(PRead(*Open("/f8", O_RDONLY), 0, 10), "7");
    Write(*Open("/f9", O_WRONLY | O_TRUNC), "nine");
    EXPECT_EQ(PRead(*Open("/f9", O_RDONLY), 0, 10), "nine");
  });
}

// Files that are known one by one, not from a look at the whole directory, are opened together once
// somebody has listed it; again when their descriptors have been closed since.
TEST_F(GoferFsTest, KnownFilesOfAListedDirectoryAreOpenedTogether) {
  Mount(GoferCache::kExclusive, 10'000);
  Run([&] {
    for (int i = 0; i < 200; ++i) {
      Write(*Open("/f" + std::to_string(i), O_CREAT | O_WRONLY), std::to_string(i));
    }
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(Host("/"))) {
      names.push_back("/" + entry.path().filename().string());
    }
    ASSERT_EQ(names.size(), 200u);
    for (int round = 0; round < 2; ++round) {
      for (const std::string& name : names) {
        auto path = vfs_.Walk(Ctx(), name, {});
        ASSERT_TRUE(path.ok());
        static_cast<GoferInode&>(*path->dentry->inode()).CloseIdle();
      }
      List("/");
      const uint64_t before = Requests();
      for (const std::string& name : names) {
        EXPECT_EQ(PRead(*Open(name, O_RDONLY), 0, 10), name.substr(2));
      }
      EXPECT_LT(Requests() - before, 40u);
    }
  });
}

TEST_F(GoferFsTest, SmallReadsSeeEveryChange) {
  SetHostText("/f", std::string(40'000, 'a'));
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto reader = Open("/f", O_RDONLY);
    auto writer = Open("/f", O_RDWR);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(PRead(*reader, 100 + i * 8, 8), "aaaaaaaa");
    Write(*writer, "bcd");
    EXPECT_EQ(PRead(*reader, 0, 5), "bcdaa");
    for (int i = 0; i < 8; ++i) EXPECT_EQ(PRead(*reader, 39'996, 8), "aaaa");
    EXPECT_EQ(PRead(*reader, 40'000, 8), "");
    EXPECT_TRUE(vfs_.Truncate(*creds_, *writer, 39'998).ok());
    EXPECT_EQ(PRead(*reader, 39'996, 8), "aa");
    EXPECT_TRUE(vfs_.Truncate(*creds_, *writer, 50'000).ok());
    EXPECT_EQ(PRead(*reader, 39'996, 8), std::string("aa\0\0\0\0\0\0", 8));
    EXPECT_EQ(PRead(*reader, 50'000, 8), "");
    EXPECT_TRUE(vfs_.Truncate(*creds_, *writer, 3).ok());
    EXPECT_EQ(PRead(*reader, 0, 8), "bcd");
    // A writable mapping changes bytes unseen.
    auto mapping = writer->Mmap(0, 4096, PROT_READ | PROT_WRITE, true);
    ASSERT_TRUE(mapping.ok());
    for (int i = 0; i < 4; ++i) EXPECT_EQ(PRead(*reader, 0, 8), "bcd");
    ASSERT_EQ(pwrite(mapping->file->get(), "X", 1, 0), 1);
    EXPECT_EQ(PRead(*reader, 0, 8), "Xcd");
  });
}

TEST_F(GoferFsTest, FewHandlesSuffice) {
  for (int i = 0; i < 300; ++i) SetHostText("/f" + std::to_string(i), "x");
  const size_t limit = DentryCache::Get().limit();
  Mount(GoferCache::kExclusive, 40);
  DentryCache::Get().set_limit(limit);  // more than there are handles
  Run([&] {
    for (int i = 0; i < 300; ++i) EXPECT_EQ(Stat("/f" + std::to_string(i)).size, 1u);
    for (int i = 0; i < 300; ++i) Open("/g" + std::to_string(i), O_CREAT | O_WRONLY);
    for (int i = 0; i < 100; ++i) {
      EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d" + std::to_string(i), 0755).ok());
    }
    EXPECT_EQ(List("/").size(), 702u);
  });
}

TEST_F(GoferFsTest, MappingsAreCoherent) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto f = Open("/m", O_CREAT | O_RDWR);
    Write(*f, std::string(4096, 'a'));
    auto mapping = f->Mmap(0, 4096, PROT_READ, true);
    ASSERT_TRUE(mapping.ok());
    void* p = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mapping->file->get(),
                   static_cast<off_t>(mapping->offset));
    ASSERT_NE(p, MAP_FAILED);
    memset(p, 'b', 2);
    EXPECT_EQ(PRead(*f, 0, 3), "bba");
    munmap(p, 4096);
  });
}

// Whoever else has the file open for writing.
TEST_F(GoferFsTest, MappingsThatMustNotWriteGetNoDescriptionThatWrites) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto writer = Open("/m", O_CREAT | O_RDWR);
    Write(*writer, std::string(4096, 'a'));
    auto reader = Open("/m", O_RDONLY);
    auto read_only = reader->Mmap(0, 4096, PROT_READ, true);
    auto is_private = writer->Mmap(0, 4096, PROT_READ | PROT_WRITE, false);
    auto shared = writer->Mmap(0, 4096, PROT_READ, true);
    ASSERT_TRUE(read_only.ok() && is_private.ok() && shared.ok());
    EXPECT_EQ(fcntl(read_only->file->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
    EXPECT_EQ(fcntl(is_private->file->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
    EXPECT_EQ(fcntl(shared->file->get(), F_GETFL) & O_ACCMODE, O_RDWR);
  });
}

TEST_F(GoferFsTest, AppendsFromManyFibersLoseNothing) {
  Mount(GoferCache::kExclusive);
  std::atomic<int> left = 8;
  Run([&] { Open("/log", O_CREAT | O_WRONLY); });
  for (int i = 0; i < 8; ++i) {
    fiber::Spawn("append", [&, i] {
      auto f = Open("/log", O_WRONLY | O_APPEND);
      std::string line(100, static_cast<char>('a' + i));
      line[99] = '\n';
      for (int j = 0; j < 100; ++j) EXPECT_EQ(Write(*f, line), 100u);
      if (left.fetch_sub(1) == 1) left.notify_one();
    });
  }
  for (int n = left; n != 0; n = left) left.wait(n);
  std::ifstream in(Host("/log"));
  std::string line;
  int lines = 0;
  for (; std::getline(in, line); ++lines) EXPECT_EQ(line, std::string(99, line[0]));
  EXPECT_EQ(lines, 800);
}

TEST_F(GoferFsTest, ExclusiveTrustsItsCacheSharedAsksAgain) {
  SetHostText("/f", "one");
  Mount(GoferCache::kExclusive);
  Run([&] {
    EXPECT_EQ(Stat("/f").size, 3u);
    EXPECT_EQ(WalkError("/later"), ENOENT);
    SetHostText("/later", "x");
    EXPECT_EQ(WalkError("/later"), ENOENT);
  });
}

TEST_F(GoferFsTest, SharedSeesChangesFromOutside) {
  SetHostText("/f", "one");
  mkdir(Host("/d").c_str(), 0755);
  Mount(GoferCache::kShared);
  const auto pass = [] { usleep(2000); };
  Run([&] {
    EXPECT_EQ(Stat("/f").size, 3u);
    EXPECT_EQ(WalkError("/later"), ENOENT);
    EXPECT_EQ(WalkError("/d"), 0);
  });
  SetHostText("/later", "x");
  SetHostText("/f", "longer");
  chmod(Host("/f").c_str(), 0600);
  pass();
  Run([&] {
    EXPECT_EQ(WalkError("/later"), 0);
    EXPECT_EQ(Stat("/f").size, 6u);
    EXPECT_EQ(Stat("/f").mode & 0777, 0600u);
    EXPECT_EQ(List("/").size(), 5u);
  });
  std::filesystem::rename(Host("/later"), Host("/f"));
  std::filesystem::remove_all(Host("/d"));
  SetHostText("/d", "a file now");
  pass();
  Run([&] {
    EXPECT_EQ(WalkError("/later"), ENOENT);
    EXPECT_EQ(PRead(*Open("/f", O_RDONLY), 0, 10), "x");
    EXPECT_TRUE(S_ISREG(Stat("/d").mode));
    EXPECT_EQ(List("/").size(), 4u);
  });
}

// Of a file that is open the host is asked, which does not tell the owners.
TEST_F(GoferFsTest, SharedSeesOwnersOfOpenFiles) {
  if (getuid() != 0) GTEST_SKIP() << "only root gives files away";
  SetHostText("/f", "one");
  Mount(GoferCache::kShared);
  base::Ref<FileDescription> file;
  Run([&] { file = Open("/f", O_RDWR); });
  for (uid_t uid = 1; uid < 40; ++uid) {
    ASSERT_EQ(chown(Host("/f").c_str(), uid, 100 + uid), 0);
    if (uid % 2 == 0) SetHostText("/f", std::string(uid, 'x'));
    usleep(uid % 3 == 0 ? 30'000 : 2000);
    Run([&] {
      // What this side writes is not taken for all that has changed.
      for (int i = 0; i < 3 && uid % 5 == 0; ++i) {
        EXPECT_EQ(Write(*file, "y"), 1u);
        usleep(10'000);
      }
      const InodeAttr attr = *file->GetAttr();
      EXPECT_EQ(attr.uid, uid);
      EXPECT_EQ(attr.gid, 100 + uid);
      if (uid % 2 == 0) {
        EXPECT_EQ(attr.size, uid);
      }
    });
  }
  Run([&] { file = nullptr; });
}

TEST_F(GoferFsTest, SymlinksStayInTheSandboxsTree) {
  mkdir(Host("/etc").c_str(), 0755);
  SetHostText("/etc/inside", "mine");
  ASSERT_EQ(symlink("/etc/inside", Host("/abs").c_str()), 0);
  ASSERT_EQ(symlink("../../../../etc/passwd", Host("/up").c_str()), 0);
  ASSERT_EQ(symlink("/proc/self/root", Host("/magic").c_str()), 0);
  Mount(GoferCache::kExclusive);
  Run([&] {
    EXPECT_EQ(PRead(*Open("/abs", O_RDONLY), 0, 10), "mine");
    EXPECT_EQ(OpenError("/up", O_RDONLY), ENOENT);
    EXPECT_EQ(OpenError("/magic/etc/passwd", O_RDONLY), ENOENT);
    EXPECT_EQ(OpenError("/../../etc/passwd", O_RDONLY), ENOENT);
  });
}

TEST_F(GoferFsTest, AfterTheGoferIsGone) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto f = Open("/a", O_CREAT | O_RDWR);
    Write(*f, "kept");
    server_.reset();
    EXPECT_EQ(OpenError("/b", O_CREAT | O_RDWR), EIO);
    EXPECT_EQ(PRead(*f, 0, 10), "kept");
  });
}

}  // namespace
}  // namespace sentry
