// tmpfs through the VFS.
#include "sentry/fs/tmpfs/tmpfs.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/xattr.h>

#include <set>

#include "sentry/fs/tmpfs/memory_data.h"
#include "sentry/vfs/fd_table.h"

namespace sentry {
namespace {

class TmpfsTest : public ::testing::Test {
 protected:
  void SetUp() override { Make({.size = 16 << 20, .inodes = 1000}); }
  void Make(const TmpfsOptions& options) {
    ns_ = MountNamespace::New(Vfs::NewMount(NewTmpfs(options), 0, "tmpfs"));
    root_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
  }
  WalkContext Ctx() { return WalkContext{*creds_, *ns_, root_, root_, 022, 0}; }
  base::Ref<FileDescription> Open(std::string_view path, uint32_t flags, mode_t mode = 0644) {
    auto file = vfs_.Open(Ctx(), path, flags, mode);
    EXPECT_TRUE(file.ok()) << path << ": " << file.error().code();
    return file.ok() ? *file : nullptr;
  }
  int OpenError(std::string_view path, uint32_t flags) {
    auto file = vfs_.Open(Ctx(), path, flags, 0644);
    return file.ok() ? 0 : file.error().code();
  }
  static size_t Write(FileDescription& f, std::string_view s) {
    BufferSource src(std::as_bytes(std::span(s)));
    auto n = f.Write(src, false);
    return n.ok() ? *n : 0;
  }
  static int PWriteError(FileDescription& f, std::string_view s, uint64_t offset) {
    BufferSource src(std::as_bytes(std::span(s)));
    auto n = f.PWrite(src, offset, false);
    return n.ok() ? 0 : n.error().code();
  }
  static std::string PRead(FileDescription& f, uint64_t offset, size_t n) {
    std::string out(n, 'x');
    BufferDest dst(std::as_writable_bytes(std::span(out)));
    auto got = f.PRead(dst, offset, false);
    out.resize(got.ok() ? *got : 0);
    return out;
  }
  std::vector<std::string> List(std::string_view path) {
    std::vector<std::string> names;
    auto dir = Open(path, O_RDONLY | O_DIRECTORY);
    EXPECT_TRUE(dir->GetDents([&](const DirEntry& e) {
                     names.emplace_back(e.name);
                     return true;
                   })
                    .ok());
    return names;
  }
  InodeAttr Stat(std::string_view path) {
    auto p = vfs_.Walk(Ctx(), path, {.follow_last = false});
    EXPECT_TRUE(p.ok()) << path;
    return p.ok() ? *vfs_.GetAttr(*p) : InodeAttr{};
  }
  static int Code(const base::Status& s) { return s.ok() ? 0 : s.error().code(); }

  Vfs vfs_;
  base::Ref<Credentials> creds_ = Credentials::NewRoot(UserNamespace::NewRoot());
  base::Ref<MountNamespace> ns_;
  Path root_;
};

TEST_F(TmpfsTest, CreateWriteRead) {
  auto f = Open("/a", O_CREAT | O_RDWR);
  EXPECT_EQ(Write(*f, "hello"), 5u);
  EXPECT_EQ(PRead(*f, 0, 100), "hello");
  EXPECT_EQ(PRead(*f, 2, 2), "ll");
  EXPECT_EQ(PRead(*f, 5, 10), "");
  EXPECT_EQ(Stat("/a").size, 5u);
  EXPECT_EQ(Stat("/a").blocks, 8u);
  EXPECT_EQ(Stat("/a").mode, S_IFREG | 0644u);
  EXPECT_EQ(OpenError("/a", O_CREAT | O_EXCL | O_RDWR), EEXIST);
  EXPECT_EQ(OpenError("/b", O_RDONLY), ENOENT);
  auto g = Open("/a", O_WRONLY | O_APPEND);
  EXPECT_EQ(Write(*g, " world"), 6u);
  EXPECT_EQ(PRead(*f, 0, 100), "hello world");
  Open("/a", O_RDWR | O_TRUNC);
  EXPECT_EQ(Stat("/a").size, 0u);
  EXPECT_EQ(Stat("/a").blocks, 0u);
}

TEST_F(TmpfsTest, GrowsFromHeapIntoMemoryFile) {
  auto f = Open("/big", O_CREAT | O_RDWR);
  const std::string chunk(100000, 'q');
  for (int i = 0; i < 10; i++) EXPECT_EQ(Write(*f, chunk), chunk.size());
  EXPECT_EQ(Stat("/big").size, 1000000u);
  EXPECT_EQ(PRead(*f, 999990, 100), std::string(10, 'q'));
  EXPECT_TRUE(f->Truncate(300000).ok());
  EXPECT_TRUE(f->Truncate(400000).ok());
  EXPECT_EQ(PRead(*f, 299999, 3), std::string("q\0\0", 3));
  EXPECT_EQ(Stat("/big").blocks, (300000 + 4095) / 4096 * 8u);
}

TEST_F(TmpfsTest, SparseFilesAndSeek) {
  auto f = Open("/sparse", O_CREAT | O_RDWR);
  EXPECT_EQ(PWriteError(*f, "x", 1 << 20), 0);
  EXPECT_EQ(Stat("/sparse").blocks, 8u);
  EXPECT_EQ(*f->Seek(0, SEEK_DATA), 1 << 20);
  EXPECT_EQ(*f->Seek(0, SEEK_HOLE), 0);
  EXPECT_EQ(*f->Seek(1 << 20, SEEK_HOLE), (1 << 20) + 1);
  EXPECT_EQ(f->Seek((1 << 20) + 1, SEEK_DATA).error().code(), ENXIO);
  EXPECT_EQ(PRead(*f, (1 << 20) - 2, 10), std::string("\0\0x", 3));
  EXPECT_TRUE(f->Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 4096).ok());
  EXPECT_EQ(Stat("/sparse").blocks, 0u);
  EXPECT_TRUE(f->Allocate(0, 0, 2 << 20).ok());
  EXPECT_EQ(Stat("/sparse").size, 2u << 20);
  EXPECT_EQ(Stat("/sparse").blocks, (2u << 20) / 512);
  EXPECT_EQ(Code(f->Allocate(FALLOC_FL_ZERO_RANGE, 0, 1)), EOPNOTSUPP);
}

TEST_F(TmpfsTest, BudgetOfPagesAndInodes) {
  Make({.size = 1 << 20, .inodes = 5});
  auto f = Open("/f", O_CREAT | O_RDWR);
  std::string big(2 << 20, 'z');
  EXPECT_EQ(Write(*f, big), 1u << 20);
  EXPECT_EQ(PWriteError(*f, "x", 3 << 20), ENOSPC);
  auto s = *vfs_.StatFs(root_);
  EXPECT_EQ(s.f_blocks, 256u);
  EXPECT_EQ(s.f_bfree, 0u);
  auto small = Open("/small", O_CREAT | O_RDWR);
  EXPECT_EQ(PWriteError(*small, "x", 0), ENOSPC);
  EXPECT_TRUE(f->Truncate(4096).ok());
  EXPECT_EQ(PWriteError(*small, "x", 0), 0);
  EXPECT_EQ(vfs_.StatFs(root_)->f_bfree, 254u);
  Open("/3", O_CREAT | O_RDWR);
  Open("/4", O_CREAT | O_RDWR);
  EXPECT_EQ(OpenError("/5", O_CREAT | O_RDWR), ENOSPC);
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/4").ok());
  EXPECT_EQ(OpenError("/5", O_CREAT | O_RDWR), 0);
}

TEST_F(TmpfsTest, NamesAndXattrsAreCountedToo) {
  Make({.size = 1 << 20, .inodes = 4});
  Open("/f", O_CREAT | O_RDWR);
  EXPECT_TRUE(vfs_.Link(Ctx(), "/f", {}, Ctx(), "/2").ok());
  EXPECT_TRUE(vfs_.Link(Ctx(), "/f", {}, Ctx(), "/3").ok());
  EXPECT_EQ(Code(vfs_.Link(Ctx(), "/f", {}, Ctx(), "/4")), ENOSPC);
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/2").ok());
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/3", Ctx(), "/4", 0).ok());
  Path f = *vfs_.Walk(Ctx(), "/f", {});
  EXPECT_TRUE(vfs_.SetXattr(*creds_, f, "user.a", std::string(5000, 'v'), 0).ok());
  EXPECT_EQ(vfs_.StatFs(root_)->f_bfree, 254u);
  EXPECT_TRUE(vfs_.RemoveXattr(*creds_, f, "user.a").ok());
  EXPECT_EQ(vfs_.StatFs(root_)->f_bfree, 256u);
  f = Path();
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/f").ok());
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/4").ok());
  EXPECT_EQ(vfs_.StatFs(root_)->f_ffree, 3u);
}

TEST_F(TmpfsTest, UnlinkedFileLivesOn) {
  auto f = Open("/gone", O_CREAT | O_RDWR);
  Write(*f, "data");
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/gone").ok());
  EXPECT_EQ(OpenError("/gone", O_RDONLY), ENOENT);
  EXPECT_EQ(PRead(*f, 0, 10), "data");
  EXPECT_EQ(f->GetAttr()->nlink, 0u);
  EXPECT_EQ(vfs_.PathName(*ns_, root_, f->path()), "/gone (deleted)");
  f = nullptr;
  EXPECT_EQ(vfs_.StatFs(root_)->f_bfree, vfs_.StatFs(root_)->f_blocks);
}

TEST_F(TmpfsTest, LinksAndDirectories) {
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d", 0755).ok());
  EXPECT_EQ(Stat("/d").nlink, 2u);
  EXPECT_EQ(Stat("/").nlink, 3u);
  Open("/d/f", O_CREAT | O_RDWR);
  EXPECT_TRUE(vfs_.Link(Ctx(), "/d/f", {}, Ctx(), "/l").ok());
  EXPECT_EQ(Stat("/l").nlink, 2u);
  EXPECT_EQ(Stat("/l").ino, Stat("/d/f").ino);
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/d")), ENOTEMPTY);
  EXPECT_EQ(Code(vfs_.Link(Ctx(), "/d", {}, Ctx(), "/x")), EPERM);
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/d/f").ok());
  EXPECT_EQ(Code(vfs_.Unlink(Ctx(), "/d")), EISDIR);
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/l")), ENOTDIR);
  EXPECT_TRUE(vfs_.Rmdir(Ctx(), "/d").ok());
  EXPECT_EQ(Stat("/").nlink, 2u);
}

TEST_F(TmpfsTest, ReaddirSurvivesChanges) {
  for (int i = 0; i < 100; i++) Open("/f" + std::to_string(i), O_CREAT | O_RDWR);
  auto dir = Open("/", O_RDONLY);
  std::set<std::string> seen;
  int calls = 0;
  for (;;) {
    int n = 0;
    std::vector<std::string> batch;
    EXPECT_TRUE(dir->GetDents([&](const DirEntry& e) {
                     if (n == 7) return false;
                     n++;
                     batch.emplace_back(e.name);
                     return true;
                   })
                    .ok());
    if (batch.empty()) break;
    for (const auto& name : batch) {
      EXPECT_TRUE(seen.insert(name).second) << name;
      if (name[0] != 'f') continue;
      EXPECT_TRUE(vfs_.Unlink(Ctx(), "/" + name).ok());
    }
    if (calls++ < 3) Open("/new" + std::to_string(calls), O_CREAT | O_RDWR);
  }
  EXPECT_EQ(seen.size(), 105u);
  EXPECT_EQ(List("/"), (std::vector<std::string>{".", "..", "new1", "new2", "new3"}));
}

TEST_F(TmpfsTest, RenameForms) {
  Write(*Open("/a", O_CREAT | O_RDWR), "A");
  Write(*Open("/b", O_CREAT | O_RDWR), "B");
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/a", Ctx(), "/b", RENAME_NOREPLACE)), EEXIST);
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/a", Ctx(), "/b", RENAME_EXCHANGE).ok());
  EXPECT_EQ(PRead(*Open("/a", O_RDONLY), 0, 9), "B");
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/a", Ctx(), "/b", 0).ok());
  EXPECT_EQ(PRead(*Open("/b", O_RDONLY), 0, 9), "B");
  EXPECT_EQ(OpenError("/a", O_RDONLY), ENOENT);
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/b", Ctx(), "/c", RENAME_WHITEOUT).ok());
  EXPECT_TRUE(S_ISCHR(Stat("/b").mode));
  EXPECT_EQ(Stat("/b").rdev, 0u);
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d", 0755).ok());
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/e", 0755).ok());
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d/sub", 0755).ok());
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/d", Ctx(), "/d/sub/x", 0)), EINVAL);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/d/sub", Ctx(), "/d", 0)), ENOTEMPTY);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/e", Ctx(), "/d", 0)), ENOTEMPTY);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/c", Ctx(), "/d", 0)), EISDIR);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/d", Ctx(), "/c", 0)), ENOTDIR);
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/d/sub", Ctx(), "/e", 0).ok());
  EXPECT_EQ(Stat("/d").nlink, 2u);
  EXPECT_EQ(Stat("/").nlink, 4u);
}

TEST_F(TmpfsTest, Xattrs) {
  Open("/x", O_CREAT | O_RDWR);
  Path p = *vfs_.Walk(Ctx(), "/x", {});
  EXPECT_TRUE(vfs_.SetXattr(*creds_, p, "user.a", "1", 0).ok());
  EXPECT_EQ(Code(vfs_.SetXattr(*creds_, p, "user.a", "1", XATTR_CREATE)), EEXIST);
  EXPECT_EQ(Code(vfs_.SetXattr(*creds_, p, "user.b", "1", XATTR_REPLACE)), ENODATA);
  EXPECT_EQ(Code(vfs_.SetXattr(*creds_, p, "nope.b", "1", 0)), EOPNOTSUPP);
  EXPECT_EQ(*vfs_.GetXattr(*creds_, p, "user.a"), "1");
  EXPECT_EQ(vfs_.ListXattr(*creds_, p)->size(), 1u);
  EXPECT_TRUE(vfs_.RemoveXattr(*creds_, p, "user.a").ok());
  EXPECT_EQ(vfs_.GetXattr(*creds_, p, "user.a").error().code(), ENODATA);
}

TEST_F(TmpfsTest, TmpfileGetsAName) {
  auto f = Open("/", O_TMPFILE | O_RDWR, 0600);
  Write(*f, "t");
  EXPECT_EQ(f->GetAttr()->nlink, 0u);
  EXPECT_TRUE(vfs_.LinkPath(f->path(), Ctx(), "/named").ok());
  EXPECT_EQ(PRead(*Open("/named", O_RDONLY), 0, 5), "t");
  auto g = Open("/", O_TMPFILE | O_RDWR | O_EXCL, 0600);
  EXPECT_EQ(Code(vfs_.LinkPath(g->path(), Ctx(), "/never")), ENOENT);
  EXPECT_EQ(OpenError("/", O_TMPFILE | O_RDONLY), EINVAL);
}

TEST_F(TmpfsTest, MappingSharesBytes) {
  auto f = Open("/m", O_CREAT | O_RDWR);
  Write(*f, "before");
  auto mapping = f->Mmap(0, 4096, PROT_READ | PROT_WRITE, true);
  ASSERT_TRUE(mapping.ok());
  auto* p = static_cast<char*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mapping->file->get(), 0));
  ASSERT_NE(p, MAP_FAILED);
  EXPECT_EQ(std::string(p), "before");
  p[0] = 'B';
  EXPECT_EQ(PRead(*f, 0, 10), "Before");
  EXPECT_EQ(PWriteError(*f, "after", 6), 0);
  EXPECT_EQ(std::string(p), "Beforeafter");
  munmap(p, 4096);
}

// What goes to a stub for a mapping that must not write cannot be made to.
TEST_F(TmpfsTest, MappingWithoutTheRightToWriteGetsNoDescriptionThatWrites) {
  auto f = Open("/m", O_CREAT | O_RDWR);
  Write(*f, "before");
  auto reader = Open("/m", O_RDONLY);
  auto writable = f->Mmap(0, 4096, PROT_READ, true);
  auto read_only = reader->Mmap(0, 4096, PROT_READ, true);
  auto is_private = f->Mmap(0, 4096, PROT_READ | PROT_WRITE, false);
  ASSERT_TRUE(writable.ok() && read_only.ok() && is_private.ok());
  EXPECT_EQ(fcntl(writable->file->get(), F_GETFL) & O_ACCMODE, O_RDWR);
  for (int fd : {read_only->file->get(), is_private->file->get()}) {
    EXPECT_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    void* p = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    ASSERT_NE(p, MAP_FAILED);
    EXPECT_EQ(memcmp(p, "before", 6), 0);
    munmap(p, 4096);
  }
}

TEST_F(TmpfsTest, MemfdSeals) {
  auto f = *NewMemfd(vfs_, *creds_, "test", MFD_ALLOW_SEALING);
  EXPECT_EQ(vfs_.PathName(*ns_, root_, f->path()), "/memfd:test (deleted)");
  EXPECT_EQ(Write(*f, "abc"), 3u);
  EXPECT_TRUE(f->Fcntl(F_ADD_SEALS, F_SEAL_GROW).ok());
  EXPECT_EQ(PWriteError(*f, "abcd", 0), EPERM);
  EXPECT_EQ(PWriteError(*f, "xyz", 0), 0);
  {
    auto mapping = f->Mmap(0, 4096, PROT_READ | PROT_WRITE, true);
    EXPECT_EQ(f->Fcntl(F_ADD_SEALS, F_SEAL_WRITE).error().code(), EBUSY);
  }
  EXPECT_TRUE(f->Fcntl(F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL).ok());
  EXPECT_EQ(PWriteError(*f, "xyz", 0), EPERM);
  EXPECT_EQ(f->Mmap(0, 4096, PROT_READ | PROT_WRITE, true).error().code(), EPERM);
  EXPECT_TRUE(f->Mmap(0, 4096, PROT_READ, true).ok());
  EXPECT_EQ(f->Fcntl(F_ADD_SEALS, F_SEAL_SHRINK).error().code(), EPERM);
  auto unsealable = *NewMemfd(vfs_, *creds_, "u", 0);
  EXPECT_EQ(*unsealable->Fcntl(F_GET_SEALS, 0), uint64_t{F_SEAL_SEAL});
}

TEST_F(TmpfsTest, DeepTreesDoNotRecurse) {
  Path at = root_;
  for (int i = 0; i < 20000; i++) {
    WalkContext ctx{*creds_, *ns_, root_, at, 022, 0};
    ASSERT_TRUE(vfs_.Mkdir(ctx, "d", 0755).ok()) << i;
    at = *vfs_.Walk(ctx, "d", {});
    if (i == 500) Make({.size = 16 << 20, .inodes = 0}), at = root_;
  }
  at = Path();
  root_ = Path();
  ns_ = nullptr;
}

TEST_F(TmpfsTest, Options) {
  TmpfsOptions o;
  EXPECT_TRUE(ParseTmpfsOptions("size=64m,mode=755,uid=5,gid=6,nr_inodes=7", 0, &o).ok());
  EXPECT_EQ(o.size, 64u << 20);
  EXPECT_EQ(o.mode, 0755u);
  EXPECT_EQ(o.inodes, 7u);
  EXPECT_TRUE(ParseTmpfsOptions("size=50%", 1000000, &o).ok());
  EXPECT_EQ(o.size, 500000u);
  EXPECT_FALSE(ParseTmpfsOptions("size=", 0, &o).ok());
  EXPECT_FALSE(ParseTmpfsOptions("size=12q", 0, &o).ok());
  EXPECT_FALSE(ParseTmpfsOptions("nonsense", 0, &o).ok());
  EXPECT_FALSE(ParseTmpfsOptions("size=99999999999999999999", 0, &o).ok());
}

}  // namespace
}  // namespace sentry
