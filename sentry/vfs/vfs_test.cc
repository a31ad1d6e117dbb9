// Walks, permissions, mounts and descriptors, over a small filesystem in memory made here.
#include "sentry/vfs/vfs.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/openat2.h>
#include <sys/mount.h>

#include <map>

#include "sentry/vfs/fd_table.h"

namespace sentry {
namespace {

class TestFs : public Filesystem {
 public:
  TestFs() : Filesystem("testfs", 1) {}
  int lookups = 0;
};

class TestFile : public SeekableFile {
 public:
  using SeekableFile::SeekableFile;
  base::Result<size_t> PRead(IoDest&, uint64_t, bool) override { return size_t{0}; }
};

class TestInode : public AnonInode {
 public:
  TestInode(TestFs* fs, mode_t mode, uid_t uid, gid_t gid) : AnonInode(fs, mode, uid, gid) {}
  TestFs& testfs() { return static_cast<TestFs&>(fs()); }
  base::Result<base::Ref<Inode>> Lookup(std::string_view name) override {
    testfs().lookups++;
    auto it = children_.find(name);
    if (it == children_.end()) return base::Error(ENOENT);
    return base::Ref<Inode>(it->second);
  }
  base::Result<base::Ref<Inode>> Create(std::string_view name, const NewInode& n) override {
    auto inode = base::MakeRef<TestInode>(&testfs(), n.mode, n.uid, n.gid);
    children_[std::string(name)] = inode;
    return base::Ref<Inode>(inode);
  }
  base::Result<base::Ref<Inode>> Mkdir(std::string_view name, const NewInode& n) override {
    return Create(name, n);
  }
  base::Result<base::Ref<Inode>> Symlink(std::string_view name, std::string_view target,
                                         const NewInode& n) override {
    auto inode = TRY(Create(name, n));
    static_cast<TestInode&>(*inode).target_ = target;
    return inode;
  }
  base::Status Unlink(std::string_view name, Inode&) override {
    children_.erase(children_.find(name));
    return base::Ok();
  }
  base::Status Rmdir(std::string_view name, Inode& victim) override {
    if (!static_cast<TestInode&>(victim).children_.empty()) return base::Error(ENOTEMPTY);
    return Unlink(name, victim);
  }
  base::Status Rename(std::string_view name, Inode&, Inode& new_dir, std::string_view new_name,
                      Inode*, uint32_t) override {
    auto it = children_.find(name);
    auto inode = it->second;
    children_.erase(it);
    static_cast<TestInode&>(new_dir).children_[std::string(new_name)] = inode;
    return base::Ok();
  }
  base::Result<std::string> ReadLink() override { return target_; }
  bool keeps_dentries() const override { return keeps; }
  bool keeps = true;
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override {
    return base::Ref<FileDescription>(base::MakeRef<TestFile>(args.path, args.flags));
  }

 private:
  std::map<std::string, base::Ref<TestInode>, std::less<>> children_;
  std::string target_;
};

class VfsTest : public ::testing::Test {
 protected:
  VfsTest() {
    fs_ = base::MakeRef<TestFs>();
    root_inode_ = base::MakeRef<TestInode>(fs_.get(), S_IFDIR | 0755, 0, 0);
    ns_ = MountNamespace::New(Vfs::NewMount(root_inode_, 0, "test"));
    root_ = cwd_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
  }
  WalkContext Ctx() { return WalkContext{*creds_, *ns_, root_, cwd_, umask_, resolve_}; }
  void Mkdir(std::string_view p, mode_t mode = 0755) {
    EXPECT_EQ(Code(vfs_.Mkdir(Ctx(), p, mode)), 0) << p;
  }
  void Link(std::string_view target, std::string_view p) {
    EXPECT_EQ(Code(vfs_.Symlink(Ctx(), target, p)), 0) << p;
  }
  int Open(std::string_view p, uint32_t flags, mode_t mode = 0644) {
    auto f = vfs_.Open(Ctx(), p, flags, mode);
    if (f.ok()) last_ = *f;
    return f.ok() ? 0 : f.error().code();
  }
  int WalkCode(std::string_view p, WalkFlags flags = {}) {
    auto r = vfs_.Walk(Ctx(), p, flags);
    return r.ok() ? 0 : r.error().code();
  }
  std::string Name(std::string_view p, WalkFlags flags = {}) {
    auto r = vfs_.Walk(Ctx(), p, flags);
    if (!r.ok()) return "error " + std::to_string(r.error().code());
    return vfs_.PathName(*ns_, root_, *r);
  }
  void Become(uid_t uid, std::vector<gid_t> groups = {}) {
    auto c = base::MakeRef<Credentials>();
    c->ruid = c->euid = c->suid = c->fsuid = uid;
    c->rgid = c->egid = c->sgid = c->fsgid = uid;
    c->groups = std::move(groups);
    c->user_ns = creds_->user_ns;
    creds_ = c;
  }
  template <typename T>
  static int Code(const base::Result<T>& r) {
    return r.ok() ? 0 : r.error().code();
  }

  Vfs vfs_;
  base::Ref<Credentials> root_creds_ = Credentials::NewRoot(UserNamespace::NewRoot());
  base::Ref<Credentials> creds_ = root_creds_;
  base::Ref<TestFs> fs_;
  base::Ref<Inode> root_inode_;
  base::Ref<MountNamespace> ns_;
  Path root_, cwd_;
  mode_t umask_ = 022;
  uint64_t resolve_ = 0;
  base::Ref<FileDescription> last_;
};

TEST_F(VfsTest, WalksAndCaches) {
  Mkdir("/a");
  Mkdir("/a/b");
  EXPECT_EQ(Open("/a/b/f", O_CREAT | O_RDWR), 0);
  fs_->lookups = 0;
  EXPECT_EQ(Name("/a/b/f"), "/a/b/f");
  EXPECT_EQ(Name("//a/./b/../b//f"), "/a/b/f");
  EXPECT_EQ(Name("/../../a"), "/a");
  EXPECT_EQ(Name("/a/b/.."), "/a");
  EXPECT_EQ(Name("/"), "/");
  EXPECT_EQ(fs_->lookups, 0);
  EXPECT_EQ(WalkCode("/a/none"), ENOENT);
  EXPECT_EQ(WalkCode("/a/none"), ENOENT);
  EXPECT_EQ(fs_->lookups, 1);  // the second by a negative dentry
  EXPECT_EQ(WalkCode("/a/b/f/x"), ENOTDIR);
  EXPECT_EQ(WalkCode("/a/b/f/"), ENOTDIR);
  EXPECT_EQ(WalkCode("/a/b/f/."), ENOTDIR);
  EXPECT_EQ(WalkCode(""), ENOENT);
  EXPECT_EQ(WalkCode("", {.allow_empty = true}), 0);
  EXPECT_EQ(WalkCode("/" + std::string(256, 'n')), ENAMETOOLONG);
}

TEST_F(VfsTest, SymbolicLinks) {
  Mkdir("/d");
  EXPECT_EQ(Open("/d/f", O_CREAT | O_RDWR), 0);
  Link("d/f", "/rel");
  Link("/d", "/abs");
  Link("loop2", "/loop1");
  Link("loop1", "/loop2");
  Link("none", "/dangling");
  Link("d/", "/slash");
  EXPECT_EQ(Name("/rel"), "/d/f");
  EXPECT_EQ(Name("/abs/f"), "/d/f");
  EXPECT_EQ(Name("/abs/../abs/f"), "/d/f");
  EXPECT_EQ(Name("/rel", {.follow_last = false}), "/rel");
  EXPECT_EQ(Name("/abs/", {.follow_last = false}), "/d");
  EXPECT_EQ(Name("/slash"), "/d");
  EXPECT_EQ(WalkCode("/loop1"), ELOOP);
  EXPECT_EQ(WalkCode("/dangling"), ENOENT);
  EXPECT_EQ(Open("/rel", O_RDONLY | O_NOFOLLOW), ELOOP);
  EXPECT_EQ(Open("/rel", O_PATH | O_NOFOLLOW), 0);
  EXPECT_EQ(Open("/dangling", O_CREAT | O_EXCL | O_RDWR), EEXIST);
  EXPECT_EQ(Open("/dangling", O_CREAT | O_RDWR), 0);
  EXPECT_EQ(Name("/none"), "/none");
  std::string chain = "/d/f";
  for (int i = 0; i < 41; i++) {
    const std::string name = "/c" + std::to_string(i);
    Link(chain, name);
    chain = name;
  }
  EXPECT_EQ(WalkCode("/c39"), 0);
  EXPECT_EQ(WalkCode("/c40"), ELOOP);
}

TEST_F(VfsTest, OpenErrors) {
  Mkdir("/d");
  EXPECT_EQ(Open("/d", O_RDWR), EISDIR);
  EXPECT_EQ(Open("/d", O_CREAT | O_RDWR), EISDIR);
  EXPECT_EQ(Open("/d/", O_CREAT | O_RDWR), EISDIR);
  EXPECT_EQ(Open("/d/.", O_CREAT | O_RDWR), EISDIR);
  EXPECT_EQ(Open("/d/..", O_CREAT | O_EXCL | O_RDWR), EEXIST);
  EXPECT_EQ(Open("/new/", O_CREAT | O_RDWR), EISDIR);
  EXPECT_EQ(Open("/f", O_CREAT | O_RDWR), 0);
  EXPECT_EQ(Open("/f", O_DIRECTORY | O_RDONLY), ENOTDIR);
  EXPECT_EQ(Open("/f", O_CREAT | O_DIRECTORY), EINVAL);
  EXPECT_EQ(Open("/f/x", O_CREAT | O_RDWR), ENOTDIR);
  EXPECT_EQ(Open("/x/y", O_CREAT | O_RDWR), ENOENT);
  EXPECT_EQ(Code(vfs_.Mkdir(Ctx(), "/d", 0755)), EEXIST);
  EXPECT_EQ(Code(vfs_.Mkdir(Ctx(), "/", 0755)), EEXIST);
  EXPECT_EQ(Code(vfs_.Mkdir(Ctx(), "/e/", 0755)), 0);
  EXPECT_EQ(Code(vfs_.Mknod(Ctx(), "/g/", S_IFREG, 0)), ENOENT);
  EXPECT_EQ(Code(vfs_.Unlink(Ctx(), "/d/.")), EISDIR);
  EXPECT_EQ(Code(vfs_.Unlink(Ctx(), "/f/")), ENOTDIR);
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/d/.")), EINVAL);
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/d/..")), ENOTEMPTY);
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/")), EBUSY);
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/d/")), 0);
}

TEST_F(VfsTest, PermissionsAndUmask) {
  umask_ = 027;
  EXPECT_EQ(Open("/f", O_CREAT | O_RDWR, 0666), 0);
  EXPECT_EQ(last_->GetAttr()->mode, S_IFREG | 0640u);
  Mkdir("/private", 0700);
  Mkdir("/sticky", 0777);
  AttrChange sticky;
  sticky.set_mode = true;
  sticky.mode = 01777;
  EXPECT_EQ(Code(vfs_.SetAttr(*creds_, *vfs_.Walk(Ctx(), "/sticky", {}), sticky)), 0);
  EXPECT_EQ(Open("/sticky/roots", O_CREAT | O_RDWR, 0666), 0);
  Become(1000);
  EXPECT_EQ(Open("/f", O_RDONLY), EACCES);
  EXPECT_EQ(WalkCode("/private/x"), EACCES);
  EXPECT_EQ(Open("/mine", O_CREAT | O_RDWR), EACCES);
  EXPECT_EQ(Open("/sticky/mine", O_CREAT | O_RDWR), 0);
  EXPECT_EQ(Code(vfs_.Unlink(Ctx(), "/sticky/roots")), EPERM);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/sticky/mine", Ctx(), "/sticky/roots", 0)), EPERM);
  EXPECT_EQ(Code(vfs_.Unlink(Ctx(), "/sticky/mine")), 0);
  AttrChange chmod;
  chmod.set_mode = true;
  chmod.mode = 0777;
  EXPECT_EQ(Code(vfs_.SetAttr(*creds_, *vfs_.Walk(Ctx(), "/f", {}), chmod)), EPERM);
  Become(1000, {0});
  EXPECT_EQ(Open("/f", O_RDONLY), 0);
  EXPECT_EQ(Open("/f", O_RDWR), EACCES);
}

TEST_F(VfsTest, CapabilitiesOverride) {
  umask_ = 0;
  EXPECT_EQ(Open("/f", O_CREAT | O_RDWR, 0000), 0);
  Path f = *vfs_.Walk(Ctx(), "/f", {});
  EXPECT_EQ(Code(vfs_.Access(*creds_, f, kMayRead | kMayWrite)), 0);
  EXPECT_EQ(Code(vfs_.Access(*creds_, f, kMayExec)), EACCES);  // no x bit at all
  auto c = creds_->Clone();
  c->fsuid = 7;
  c->effective = CapBit(CAP_DAC_READ_SEARCH);
  EXPECT_EQ(Code(vfs_.Access(*c, f, kMayRead)), 0);
  EXPECT_EQ(Code(vfs_.Access(*c, f, kMayWrite)), EACCES);
}

TEST_F(VfsTest, SetGidDirectories) {
  Mkdir("/g", 0777);
  AttrChange change;
  change.set_gid = change.set_mode = true;
  change.gid = 50;
  change.mode = 02777;
  EXPECT_EQ(Code(vfs_.SetAttr(*creds_, *vfs_.Walk(Ctx(), "/g", {}), change)), 0);
  Become(1000);
  umask_ = 0;
  EXPECT_EQ(Open("/g/f", O_CREAT | O_RDWR, 02777), 0);
  EXPECT_EQ(last_->GetAttr()->gid, 50u);
  EXPECT_EQ(last_->GetAttr()->mode & 07777, 0777u);  // not in the group: no set-id for it
  Mkdir("/g/sub", 0755);
  auto attr = *vfs_.GetAttr(*vfs_.Walk(Ctx(), "/g/sub", {}));
  EXPECT_EQ(attr.gid, 50u);
  EXPECT_EQ(attr.mode & 07777, 02755u);
}

TEST_F(VfsTest, MountsCrossBothWays) {
  Mkdir("/mnt");
  Mkdir("/mnt/below");
  auto other = base::MakeRef<TestFs>();
  base::Ref<Inode> other_root = base::MakeRef<TestInode>(other.get(), S_IFDIR | 0755, 0, 0);
  auto mount = Vfs::NewMount(other_root, MS_RDONLY, "other");
  EXPECT_EQ(Code(ns_->Attach(mount, *vfs_.Walk(Ctx(), "/mnt", {}))), 0);
  EXPECT_EQ(WalkCode("/mnt/below"), ENOENT);
  EXPECT_EQ(Name("/mnt"), "/mnt");
  EXPECT_EQ(Name("/mnt/.."), "/");
  EXPECT_EQ(Code(vfs_.Mkdir(Ctx(), "/mnt/x", 0755)), EROFS);
  EXPECT_EQ(Open("/mnt/x", O_CREAT | O_RDWR), EROFS);
  mount->set_flags(0);
  Mkdir("/mnt/x");
  EXPECT_EQ(Name("/mnt/x/../.."), "/");
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/mnt")), EBUSY);
  EXPECT_EQ(Open("/f", O_CREAT | O_RDWR), 0);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/f", Ctx(), "/mnt/f", 0)), EXDEV);
  {
    Path inside = *vfs_.Walk(Ctx(), "/mnt/x", {});
    EXPECT_EQ(Code(ns_->Detach(mount, 0)), EBUSY);
  }
  resolve_ = RESOLVE_NO_XDEV;
  EXPECT_EQ(WalkCode("/mnt/x"), EXDEV);
  resolve_ = 0;
  EXPECT_EQ(Code(ns_->Detach(mount, 0)), 0);
  EXPECT_EQ(Name("/mnt/below"), "/mnt/below");
  EXPECT_EQ(Code(ns_->Detach(mount, 0)), EINVAL);
}

TEST_F(VfsTest, BindMovePivotAndCopies) {
  for (const char* p : {"/a", "/b", "/c", "/a/in", "/new"}) Mkdir(p);
  EXPECT_EQ(Code(vfs_.Bind(*ns_, *vfs_.Walk(Ctx(), "/a", {}), *vfs_.Walk(Ctx(), "/b", {}), 0)), 0);
  EXPECT_EQ(Name("/b/in"), "/b/in");
  Path bound = *vfs_.Walk(Ctx(), "/b", {});
  EXPECT_EQ(Code(ns_->Move(bound.mount, *vfs_.Walk(Ctx(), "/c", {}))), 0);
  EXPECT_EQ(WalkCode("/b/in"), ENOENT);
  EXPECT_EQ(Name("/c/in"), "/c/in");
  EXPECT_EQ(Code(ns_->Move(bound.mount, *vfs_.Walk(Ctx(), "/c/in", {}))), ELOOP);
  Path copied_root = root_;
  Path* paths[] = {&copied_root};
  auto copy = ns_->Copy(paths, ns_->user_ns());
  EXPECT_EQ(copy->Mounts().size(), 2u);
  EXPECT_EQ(Code(ns_->Detach(bound.mount, MNT_DETACH)), 0);
  EXPECT_EQ(WalkCode("/c/in"), ENOENT);
  WalkContext in_copy{*creds_, *copy, copied_root, copied_root, 0, 0};
  EXPECT_TRUE(vfs_.Walk(in_copy, "/c/in", {}).ok());

  auto other = base::MakeRef<TestFs>();
  base::Ref<Inode> other_root = base::MakeRef<TestInode>(other.get(), S_IFDIR | 0755, 0, 0);
  EXPECT_EQ(Code(ns_->Attach(Vfs::NewMount(other_root, 0, "o"), *vfs_.Walk(Ctx(), "/new", {}))), 0);
  Mkdir("/new/old");
  Path new_root = *vfs_.Walk(Ctx(), "/new", {});
  EXPECT_EQ(Code(ns_->PivotRoot(root_, new_root, *vfs_.Walk(Ctx(), "/a", {}))), EBUSY);
  EXPECT_EQ(Code(ns_->PivotRoot(root_, new_root, *vfs_.Walk(Ctx(), "/new/old", {}))), 0);
  root_ = cwd_ = new_root;
  EXPECT_EQ(Name("/old/a/in"), "/old/a/in");
  EXPECT_EQ(Name("/old/.."), "/");
  EXPECT_EQ(Code(ns_->Detach(vfs_.Walk(Ctx(), "/old", {})->mount, MNT_DETACH)), 0);
  EXPECT_EQ(WalkCode("/old/a"), ENOENT);
}

TEST_F(VfsTest, ChrootIsABoundary) {
  Mkdir("/jail");
  Mkdir("/jail/in");
  Link("/in", "/jail/abs");
  root_ = cwd_ = *vfs_.Walk(Ctx(), "/jail", {});
  EXPECT_EQ(Name("/../in"), "/in");
  EXPECT_EQ(Name("../../in"), "/in");
  EXPECT_EQ(Name("/abs"), "/in");
  cwd_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
  EXPECT_EQ(Name("jail/in"), "/in");
  EXPECT_EQ(Name(".").substr(0, 13), "(unreachable)");
}

TEST_F(VfsTest, ResolveFlags) {
  Mkdir("/d");
  Mkdir("/d/e");
  Mkdir("/outside");
  Link("/outside", "/d/abs");
  Link("../outside", "/d/up");
  Link("e", "/d/ok");
  cwd_ = *vfs_.Walk(Ctx(), "/d", {});
  resolve_ = RESOLVE_BENEATH;
  EXPECT_EQ(WalkCode("e"), 0);
  EXPECT_EQ(WalkCode("ok"), 0);
  EXPECT_EQ(WalkCode("e/.."), 0);
  EXPECT_EQ(WalkCode(".."), EXDEV);
  EXPECT_EQ(WalkCode("/d"), EXDEV);
  EXPECT_EQ(WalkCode("abs"), EXDEV);
  EXPECT_EQ(WalkCode("up"), EXDEV);
  resolve_ = RESOLVE_IN_ROOT;
  EXPECT_EQ(WalkCode("abs"), ENOENT);
  EXPECT_EQ(Name("/e"), "/d/e");
  EXPECT_EQ(Name("../../e"), "/d/e");
  resolve_ = RESOLVE_NO_SYMLINKS;
  EXPECT_EQ(WalkCode("ok"), ELOOP);
  EXPECT_EQ(WalkCode("ok", {.follow_last = false}), 0);
  resolve_ = RESOLVE_CACHED;
  EXPECT_EQ(WalkCode("never-looked-at"), EAGAIN);
}

TEST_F(VfsTest, RemovedDirectories) {
  Mkdir("/d");
  cwd_ = *vfs_.Walk(Ctx(), "/d", {});
  EXPECT_EQ(Code(vfs_.Rmdir(Ctx(), "/d")), 0);
  EXPECT_EQ(Open("f", O_CREAT | O_RDWR), ENOENT);
  EXPECT_EQ(Code(vfs_.Mkdir(Ctx(), "x", 0755)), ENOENT);
  EXPECT_EQ(WalkCode("."), 0);
  EXPECT_EQ(vfs_.PathName(*ns_, root_, cwd_), "/d (deleted)");
}

TEST_F(VfsTest, RenameKeepsCacheRight) {
  Mkdir("/a");
  Mkdir("/b");
  EXPECT_EQ(Open("/a/f", O_CREAT | O_RDWR), 0);
  EXPECT_EQ(WalkCode("/b/f"), ENOENT);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/a/f", Ctx(), "/b/f", 0)), 0);
  EXPECT_EQ(WalkCode("/a/f"), ENOENT);
  EXPECT_EQ(WalkCode("/b/f"), 0);
  EXPECT_EQ(vfs_.PathName(*ns_, root_, last_->path()), "/b/f");
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/b", Ctx(), "/b/x", 0)), EINVAL);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/", Ctx(), "/c", 0)), EBUSY);
  EXPECT_EQ(Code(vfs_.Rename(Ctx(), "/none", Ctx(), "/c", 0)), ENOENT);
}

TEST_F(VfsTest, TextBusy) {
  EXPECT_EQ(Open("/exe", O_CREAT | O_RDWR, 0755), 0);
  Inode* inode = last_->inode();
  EXPECT_EQ(Code(inode->DenyWriteAccess()), ETXTBSY);
  last_ = nullptr;
  EXPECT_EQ(Code(inode->DenyWriteAccess()), 0);
  EXPECT_EQ(Open("/exe", O_WRONLY), ETXTBSY);
  EXPECT_EQ(Open("/exe", O_RDONLY), 0);
  inode->AllowWriteAccess();
  EXPECT_EQ(Open("/exe", O_WRONLY), 0);
}

TEST_F(VfsTest, CacheStaysBounded) {
  const size_t limit = DentryCache::Get().limit();
  DentryCache::Get().DropUnused();
  DentryCache::Get().set_limit(100);
  for (int i = 0; i < 1000; i++) EXPECT_EQ(WalkCode("/none" + std::to_string(i)), ENOENT);
  EXPECT_LE(DentryCache::Get().size(), 101u);
  DentryCache::Get().set_limit(limit);
}

TEST_F(VfsTest, CacheKeepsNothingBelowWhatEndsByItself) {
  Mkdir("/pid");
  Mkdir("/pid/net");
  EXPECT_EQ(Open("/pid/net/tcp", O_CREAT | O_RDWR), 0);
  last_ = nullptr;
  static_cast<TestInode&>(**root_inode_->Lookup("pid")).keeps = false;
  DentryCache::Get().DropUnused();
  const size_t before = DentryCache::Get().size();
  EXPECT_EQ(Open("/pid/net/tcp", O_RDWR), 0);
  EXPECT_EQ(WalkCode("/pid/net/none"), ENOENT);
  EXPECT_EQ(Name("/pid/net/tcp"), "/pid/net/tcp");
  EXPECT_EQ(DentryCache::Get().size(), before);
  EXPECT_TRUE(root_.dentry->FindChild("pid"));  // the open file holds it
  last_ = nullptr;
  EXPECT_FALSE(root_.dentry->FindChild("pid"));
}

TEST_F(VfsTest, DescriptorTable) {
  EXPECT_EQ(Open("/f", O_CREAT | O_RDWR), 0);
  auto table = base::MakeRef<FdTable>();
  for (int i = 0; i < 5; i++) EXPECT_EQ(*table->Install(last_, i % 2 == 0, 0, 100), i);
  EXPECT_EQ(*table->Install(last_, false, 50, 100), 50);
  EXPECT_EQ(Code(table->Close(2)), 0);
  EXPECT_EQ(Code(table->Close(2)), EBADF);
  EXPECT_EQ(*table->Install(last_, true, 0, 100), 2);
  EXPECT_EQ(Code(table->Install(last_, true, 0, 5)), EMFILE);
  EXPECT_EQ(Code(table->InstallAt(100, last_, false, 100)), EBADF);
  EXPECT_EQ(Code(table->InstallAt(70, last_, false, 100)), 0);
  auto copy = table->Fork();
  for (const auto& f : table->RemoveCloexec()) (void)table->Finish(f);
  EXPECT_EQ(table->List(), (std::vector<int>{1, 3, 50, 70}));
  EXPECT_EQ(copy->List(), (std::vector<int>{0, 1, 2, 3, 4, 50, 70}));
  copy->SetCloexecRange(3, UINT32_MAX);
  EXPECT_EQ(copy->RemoveRange(0, 2).size(), 3u);
  EXPECT_EQ(copy->RemoveCloexec().size(), 4u);
  EXPECT_EQ(copy->size(), 0u);
  EXPECT_EQ(table->Get(-1), nullptr);
  EXPECT_EQ(table->Get(1000), nullptr);
}

}  // namespace
}  // namespace sentry
