// What is kept of files and directories, so that the gofer and the host are not asked again, and
// what the gofer is told without being waited for.
#include <sys/mman.h>

#include "sentry/fs/gofer/test_support.h"

namespace sentry {
namespace {

class KeptTest : public GoferFsTest {
 protected:
  GoferInode& InodeOf(std::string_view path) {
    auto found = vfs_.Walk(Ctx(), path, {});
    EXPECT_TRUE(found.ok()) << path;
    return static_cast<GoferInode&>(*found->dentry->inode_ptr());
  }
  void Change(std::string_view path, const AttrChange& change) {
    EXPECT_EQ(Code(vfs_.SetAttr(*creds_, *vfs_.Walk(Ctx(), path, {}), change)), 0);
  }
  struct stat HostStat(const std::string& name) {
    struct stat st = {};
    EXPECT_EQ(stat(Host(name).c_str(), &st), 0);
    return st;
  }
  static AttrChange Times(time_t atime, time_t mtime) {
    AttrChange change;
    change.set_atime = change.set_mtime = true;
    change.atime.tv_sec = atime;
    change.mtime.tv_sec = mtime;
    return change;
  }
};

TEST_F(KeptTest, SmallFilesAreReadAgainWithoutARequestOrDescriptor) {
  SetHostText("/f", "text");
  Mount(GoferCache::kExclusive);
  Run([&] {
    EXPECT_EQ(PRead(*Open("/f", O_RDONLY), 0, 10), "text");
    InodeOf("/f").CloseIdle();
    const uint64_t before = Requests();
    for (int i = 0; i < 100; ++i) {
      auto f = Open("/f", O_RDONLY);
      EXPECT_EQ(PRead(*f, 1, 10), "ext");
      EXPECT_EQ(PRead(*f, 4, 10), "");
      EXPECT_EQ(Stat("/f").size, 4u);
    }
    EXPECT_EQ(Requests(), before);
    // A use of the file itself opens it.
    auto f = Open("/f", O_RDONLY);
    EXPECT_TRUE(f->Mmap(0, 4096, PROT_READ, false).ok());
    EXPECT_EQ(Code(f->Sync(false)), 0);
    EXPECT_GT(Requests(), before);
    Write(*Open("/f", O_WRONLY), "T");
    EXPECT_EQ(PRead(*f, 0, 10), "Text");
  });
}

TEST_F(KeptTest, ContentsOfAllFilesAreBounded) {
  constexpr int kFiles = 900;
  const auto text = [](int i) { return std::string(16'000, static_cast<char>('a' + i % 26)); };
  for (int i = 0; i < kFiles; ++i) SetHostText("/f" + std::to_string(i), text(i));
  Mount(GoferCache::kExclusive, 20'000);
  Run([&] {
    int kept = 0;
    for (int round = 0; round < 2; ++round) {
      for (int i = 0; i < kFiles; ++i) {
        const std::string name = "/f" + std::to_string(i);
        EXPECT_EQ(PRead(*Open(name, O_RDONLY), 0, 20'000), text(i));
      }
    }
    for (int i = 0; i < kFiles; ++i) {
      if (InodeOf("/f" + std::to_string(i)).Content()) ++kept;
    }
    EXPECT_LT(kept * 16'000, 8 * 1024 * 1024);
    EXPECT_GT(kept, 100);
  });
}

TEST_F(KeptTest, NothingIsKeptOfASharedFile) {
  SetHostText("/f", "one");
  Mount(GoferCache::kShared);
  Run([&] {
    auto f = Open("/f", O_RDONLY);
    EXPECT_EQ(PRead(*f, 0, 10), "one");
    SetHostText("/f", "other");
    EXPECT_EQ(PRead(*f, 0, 10), "other");
    EXPECT_EQ(PRead(*Open("/f", O_RDONLY), 0, 10), "other");
  });
}

TEST_F(KeptTest, NamesOfANewDirectoryAreKnown) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d", 0755).ok());
    uint64_t before = Requests();
    for (int i = 0; i < 50; ++i) EXPECT_EQ(WalkError("/d/f" + std::to_string(i)), ENOENT);
    EXPECT_EQ(Requests(), before);
    for (int i = 0; i < 50; ++i) Open("/d/f" + std::to_string(i), O_CREAT | O_EXCL | O_WRONLY);
    EXPECT_EQ(Requests(), before + 50);
    before = Requests();
    for (int i = 50; i < 90; ++i) EXPECT_EQ(WalkError("/d/f" + std::to_string(i)), ENOENT);
    EXPECT_EQ(Requests(), before);
    // What the dentry cache has dropped is asked for.
    DentryCache::Get().DropUnused();
    EXPECT_EQ(WalkError("/d/f7"), 0);
    EXPECT_TRUE(vfs_.Unlink(Ctx(), "/d/f7").ok());
    EXPECT_EQ(WalkError("/d/f7"), ENOENT);
    EXPECT_EQ(List("/d").size(), 51u);
  });
}

TEST_F(KeptTest, LateChangesReachTheHost) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    for (int i = 0; i < 300; ++i) {
      const std::string name = "/f" + std::to_string(i);
      auto f = Open(name, O_CREAT | O_WRONLY, 0600);
      Write(*f, "text");
      Change(name, Times(1000, 2000 + i));
      Change(name, {.set_uid = true, .set_gid = true, .uid = 0, .gid = 0});
      Change(name, {.set_mode = true, .mode = 0640});
      f.reset();
      if (i % 3 == 0) {
        EXPECT_TRUE(vfs_.Rename(Ctx(), name, Ctx(), name + "r", 0).ok());
      }
      if (i % 3 == 1) {
        EXPECT_TRUE(vfs_.Unlink(Ctx(), name).ok());
      }
      if (i % 50 == 0) DentryCache::Get().DropUnused();
    }
    EXPECT_EQ(Code(root_.dentry->inode_ptr()->fs().Sync()), 0);
  });
  for (int i = 0; i < 300; ++i) {
    if (i % 3 == 1) continue;
    const struct stat st = HostStat("/f" + std::to_string(i) + (i % 3 == 0 ? "r" : ""));
    EXPECT_EQ(st.st_mode & 07777, 0640u);
    EXPECT_EQ(st.st_mtime, 2000 + i);
    EXPECT_EQ(st.st_atime, 1000);
  }
}

TEST_F(KeptTest, LateChangesAreSeenAtOnceAndInOrder) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto f = Open("/f", O_CREAT | O_RDWR, 0600);
    for (int i = 0; i < 100; ++i) {
      Change("/f", Times(1000, 2000 + i));
      Change("/f", Times(1000, 3000 + i));
      Change("/f", {.set_mode = true, .mode = 0644});
      Change("/f", {.set_mode = true, .mode = static_cast<mode_t>(0600 + i % 8)});
      const InodeAttr attr = Stat("/f");
      EXPECT_EQ(attr.mode & 07777, 0600u + i % 8);
      EXPECT_EQ(attr.mtime.tv_sec, 3000 + i);
      const struct stat st = HostStat("/f");
      EXPECT_EQ(attr.ctime.tv_nsec, st.st_ctim.tv_nsec);
      // A write is later than the times that were set before it.
      Change("/f", Times(1000, 2000));
      Write(*f, "x");
      EXPECT_NE(Stat("/f").mtime.tv_sec, 2000);
    }
  });
}

TEST_F(KeptTest, LateChangesOfAGoferThatIsGone) {
  Mount(GoferCache::kExclusive);
  Run([&] {
    auto f = Open("/f", O_CREAT | O_RDWR, 0600);
    server_.reset();
    (void)vfs_.SetAttr(*creds_, f->path(), {.set_mode = true, .mode = 0640}).ok();
    (void)vfs_.SetAttr(*creds_, f->path(), Times(1, 2)).ok();
    // Through the host's descriptor, which is still there.
    EXPECT_TRUE(vfs_.GetAttr(f->path()).ok());
    EXPECT_EQ(Write(*f, "x"), 1u);
  });
}

}  // namespace
}  // namespace sentry
