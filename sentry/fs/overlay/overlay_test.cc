#include "sentry/fs/overlay/overlay.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/xattr.h>

#include <map>
#include <set>

namespace sentry {
namespace {

// A lower tree in a tmpfs of its own, and an overlay over it.
class OverlayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    lower_ = NewTmpfs({.mode = 0755});
    lower_ns_ = MountNamespace::New(Vfs::NewMount(lower_, 0, "lower"));
    UseLower();
    Put("/file", "lower file");
    ASSERT_TRUE(vfs_.Mkdir(Ctx(), "/dir", 0755).ok());
    ASSERT_TRUE(vfs_.Mkdir(Ctx(), "/dir/sub", 0755).ok());
    Put("/dir/a", "A");
    Put("/dir/b", "B");
    Put("/dir/sub/deep", "deep");
    ASSERT_TRUE(vfs_.Link(Ctx(), "/dir/a", {}, Ctx(), "/hard").ok());
    ASSERT_TRUE(vfs_.Symlink(Ctx(), "dir/a", "/link").ok());
    UseOverlay();
  }
  void UseLower() {
    ns_ = lower_ns_;
    root_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
  }
  void UseOverlay() {
    if (!overlay_ns_) {
      overlay_ns_ = MountNamespace::New(Vfs::NewMount(*NewOverlay(lower_), 0, "overlay"));
    }
    ns_ = overlay_ns_;
    root_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
  }
  WalkContext Ctx() { return WalkContext{*creds_, *ns_, root_, root_, 022, 0}; }
  base::Ref<FileDescription> Open(std::string_view path, uint32_t flags, mode_t mode = 0644) {
    auto file = vfs_.Open(Ctx(), path, flags, mode);
    EXPECT_TRUE(file.ok()) << path << ": " << file.error().code();
    return file.ok() ? *file : nullptr;
  }
  void Put(std::string_view path, std::string_view text, uint32_t flags = O_CREAT | O_TRUNC) {
    auto f = Open(path, O_WRONLY | flags);
    BufferSource src(std::as_bytes(std::span(text)));
    auto n = f->Write(src, false);
    EXPECT_TRUE(n.ok() && *n == text.size());
  }
  static std::string PRead(FileDescription& f) {
    std::string out(1000, 'x');
    BufferDest dst(std::as_writable_bytes(std::span(out)));
    auto got = f.PRead(dst, 0, false);
    out.resize(got.ok() ? *got : 0);
    return out;
  }
  std::string Get(std::string_view path) {
    auto f = vfs_.Open(Ctx(), path, O_RDONLY, 0);
    return f.ok() ? PRead(**f) : "error " + std::to_string(f.error().code());
  }
  std::map<std::string, uint64_t> List(std::string_view path) {
    std::map<std::string, uint64_t> names;
    auto dir = Open(path, O_RDONLY | O_DIRECTORY);
    EXPECT_TRUE(dir->GetDents([&](const DirEntry& e) {
                     EXPECT_TRUE(names.emplace(e.name, e.ino).second) << e.name;
                     return true;
                   })
                    .ok());
    names.erase(".");
    names.erase("..");
    return names;
  }
  std::set<std::string> Names(std::string_view path) {
    std::set<std::string> names;
    for (const auto& [name, ino] : List(path)) names.insert(name);
    return names;
  }
  InodeAttr Stat(std::string_view path) {
    auto p = vfs_.Walk(Ctx(), path, {.follow_last = false});
    EXPECT_TRUE(p.ok()) << path;
    return p.ok() ? *vfs_.GetAttr(*p) : InodeAttr{};
  }
  void DropCaches() { DentryCache::Get().DropUnused(); }
  static int Code(const base::Status& s) { return s.ok() ? 0 : s.error().code(); }
  using NameSet = std::set<std::string>;

  Vfs vfs_;
  base::Ref<Credentials> creds_ = Credentials::NewRoot(UserNamespace::NewRoot());
  base::Ref<Inode> lower_;
  base::Ref<MountNamespace> lower_ns_, overlay_ns_, ns_;
  Path root_;
};

TEST_F(OverlayTest, ReadsThroughAndLeavesLowerAlone) {
  EXPECT_EQ(Get("/file"), "lower file");
  EXPECT_EQ(Get("/link"), "A");
  EXPECT_EQ(Names("/"), (NameSet{"file", "dir", "hard", "link"}));
  Put("/file", "changed");
  Put("/new", "new");
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/dir/b").ok());
  EXPECT_EQ(Get("/file"), "changed");
  EXPECT_EQ(Get("/dir/b"), "error 2");
  UseLower();
  EXPECT_EQ(Get("/file"), "lower file");
  EXPECT_EQ(Get("/dir/b"), "B");
  EXPECT_EQ(Get("/new"), "error 2");
}

TEST_F(OverlayTest, InodeNumbersStay) {
  const uint64_t before = Stat("/file").ino;
  auto listed = List("/")["file"];
  EXPECT_EQ(before, listed);
  Put("/file", "x", O_APPEND);
  EXPECT_EQ(Stat("/file").ino, before);
  EXPECT_EQ(List("/")["file"], before);
  DropCaches();
  EXPECT_EQ(Stat("/file").ino, before);
  EXPECT_EQ(Get("/file"), "lower filex");
}

TEST_F(OverlayTest, OldDescriptorSeesCopy) {
  auto f = Open("/file", O_RDONLY);
  EXPECT_EQ(PRead(*f), "lower file");
  Put("/file", "LOWER", 0);
  EXPECT_EQ(PRead(*f), "LOWER file");
}

TEST_F(OverlayTest, HardLinksShareTheCopy) {
  EXPECT_EQ(Stat("/hard").nlink, 2u);
  EXPECT_EQ(Stat("/hard").ino, Stat("/dir/a").ino);
  Put("/hard", "both");
  DropCaches();
  EXPECT_EQ(Get("/dir/a"), "both");
  EXPECT_EQ(Stat("/dir/a").nlink, 2u);
  EXPECT_EQ(Stat("/hard").ino, Stat("/dir/a").ino);
  EXPECT_TRUE(vfs_.Link(Ctx(), "/dir/a", {}, Ctx(), "/third").ok());
  EXPECT_EQ(Stat("/third").nlink, 3u);
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/hard").ok());
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/dir/a").ok());
  EXPECT_EQ(Stat("/third").nlink, 1u);
  DropCaches();
  EXPECT_EQ(Get("/third"), "both");
  EXPECT_EQ(Get("/hard"), "error 2");
}

TEST_F(OverlayTest, UnlinkOfOneLowerLinkCounts) {
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/hard").ok());
  EXPECT_EQ(Stat("/dir/a").nlink, 1u);
  DropCaches();
  EXPECT_EQ(Stat("/dir/a").nlink, 1u);
  Put("/dir/a", "copied");
  EXPECT_EQ(Stat("/dir/a").nlink, 1u);
}

TEST_F(OverlayTest, WhiteoutsAndOpaqueDirectories) {
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/dir")), ENOTEMPTY);
  for (const char* p : {"/dir/a", "/dir/b", "/dir/sub/deep"}) {
    EXPECT_TRUE(vfs_.Unlink(Ctx(), p).ok()) << p;
  }
  EXPECT_TRUE(vfs_.Rmdir(Ctx(), "/dir/sub").ok());
  EXPECT_EQ(Names("/dir"), NameSet{});
  EXPECT_TRUE(vfs_.Rmdir(Ctx(), "/dir").ok());
  EXPECT_EQ(Names("/"), (NameSet{"file", "hard", "link"}));
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/dir", 0700).ok());
  DropCaches();
  EXPECT_EQ(Names("/dir"), NameSet{});
  Put("/dir/a", "again");
  EXPECT_EQ(Names("/dir"), NameSet{"a"});
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/dir/a").ok());
  DropCaches();
  EXPECT_EQ(Names("/dir"), NameSet{});
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/file").ok());
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/file", 0700).ok());
  EXPECT_TRUE(vfs_.Rmdir(Ctx(), "/file").ok());
  EXPECT_EQ(Get("/file"), "error 2");
}

TEST_F(OverlayTest, MovesLowerDirectories) {
  const uint64_t ino = Stat("/dir").ino;
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/dir", Ctx(), "/moved", 0).ok());
  DropCaches();
  EXPECT_EQ(Stat("/moved").ino, ino);
  EXPECT_EQ(Get("/dir/a"), "error 2");
  EXPECT_EQ(Get("/moved/a"), "A");
  EXPECT_EQ(Get("/moved/sub/deep"), "deep");
  EXPECT_EQ(Names("/moved"), (NameSet{"a", "b", "sub"}));
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/moved/sub", Ctx(), "/sub", 0).ok());
  EXPECT_EQ(Get("/sub/deep"), "deep");
  EXPECT_EQ(Names("/moved"), (NameSet{"a", "b"}));
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/moved", Ctx(), "/dir", 0).ok());
  DropCaches();
  EXPECT_EQ(Names("/dir"), (NameSet{"a", "b"}));
  EXPECT_EQ(Get("/dir/b"), "B");
}

TEST_F(OverlayTest, RenamesOfFiles) {
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/dir/b", Ctx(), "/file", 0).ok());
  DropCaches();
  EXPECT_EQ(Get("/file"), "B");
  EXPECT_EQ(Get("/dir/b"), "error 2");
  EXPECT_EQ(Stat("/file").nlink, 1u);
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/file", Ctx(), "/dir/sub/deep", RENAME_EXCHANGE).ok());
  DropCaches();
  EXPECT_EQ(Get("/file"), "deep");
  EXPECT_EQ(Get("/dir/sub/deep"), "B");
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/file", Ctx(), "/hard", RENAME_NOREPLACE)), EEXIST);
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/dir/a", Ctx(), "/hard", 0).ok());  // same inode: nothing happens
  EXPECT_EQ(Get("/dir/a"), "A");
  Put("/x", "fresh");
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/x", Ctx(), "/hard", 0).ok());
  EXPECT_EQ(Get("/hard"), "fresh");
  EXPECT_EQ(Get("/dir/a"), "A");
  EXPECT_EQ(Stat("/dir/a").nlink, 1u);
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/empty", 0755).ok());
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/empty", Ctx(), "/dir", 0)), ENOTEMPTY);
}

TEST_F(OverlayTest, AttributesAreCopied) {
  Path p = *vfs_.Walk(Ctx(), "/file", {});
  AttrChange change;
  change.set_mode = true;
  change.mode = 0600;
  const InodeAttr before = Stat("/file");
  EXPECT_TRUE(vfs_.SetAttr(*creds_, p, change).ok());
  const InodeAttr after = Stat("/file");
  EXPECT_EQ(after.mode, S_IFREG | 0600u);
  EXPECT_EQ(after.size, before.size);
  EXPECT_EQ(after.mtime.tv_nsec, before.mtime.tv_nsec);
  EXPECT_TRUE(vfs_.SetXattr(*creds_, p, "user.k", "v", 0).ok());
  EXPECT_EQ(*vfs_.GetXattr(*creds_, p, "user.k"), "v");
  EXPECT_TRUE(vfs_.Truncate(*creds_, p, 5).ok());
  EXPECT_EQ(Get("/file"), "lower");
  Open("/file", O_WRONLY | O_TRUNC);
  EXPECT_EQ(Get("/file"), "");
}

TEST_F(OverlayTest, RemovedWhileOpen) {
  auto f = Open("/file", O_RDONLY);
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/file").ok());
  EXPECT_EQ(PRead(*f), "lower file");
  EXPECT_EQ(f->GetAttr()->nlink, 0u);
  AttrChange change;
  change.set_mode = true;
  change.mode = 0600;
  EXPECT_TRUE(vfs_.SetAttr(*creds_, f->path(), change).ok());
  EXPECT_EQ(PRead(*f), "lower file");
  auto t = Open("/", O_TMPFILE | O_RDWR);
  EXPECT_TRUE(vfs_.LinkPath(t->path(), Ctx(), "/named").ok());
  EXPECT_EQ(Stat("/named").nlink, 1u);
}

TEST_F(OverlayTest, WhiteoutOfReplacedLowerNameStays) {
  Put("/x", "x");
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/x", Ctx(), "/file", 0).ok());
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/file").ok());
  DropCaches();
  EXPECT_EQ(Get("/file"), "error 2");
  EXPECT_EQ(Names("/").count("file"), 0u);
}

}  // namespace
}  // namespace sentry
