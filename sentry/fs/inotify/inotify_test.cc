#include "sentry/fs/inotify/inotify.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "sentry/fs/tmpfs/tmpfs.h"

namespace sentry {
namespace {

class InotifyTest : public ::testing::Test {
 protected:
  InotifyTest() {
    ns_ = MountNamespace::New(Vfs::NewMount(NewTmpfs({}), 0, "tmpfs"));
    root_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
    inotify_ = *InotifyFile::New(vfs_, O_NONBLOCK);
  }
  WalkContext Ctx() { return WalkContext{*creds_, *ns_, root_, root_, 022, 0}; }
  int Watch(std::string_view path, uint32_t mask) {
    return *inotify_->AddWatch(vfs_.Walk(Ctx(), path, {})->dentry->inode(), mask);
  }
  // "wd:mask:name" of each event that is queued.
  std::vector<std::string> Events() {
    std::vector<std::string> result;
    std::string buffer(4096, '\0');
    BufferDest dst(std::as_writable_bytes(std::span(buffer)));
    auto n = inotify_->Read(dst, true);
    if (!n.ok()) return result;
    for (size_t at = 0; at < *n;) {
      inotify_event e;
      memcpy(&e, buffer.data() + at, sizeof(e));
      char line[300];
      snprintf(line, sizeof(line), "%d:%x:%s", e.wd, e.mask,
               e.len > 0 ? buffer.data() + at + sizeof(e) : "");
      result.push_back(line);
      at += sizeof(e) + e.len;
    }
    return result;
  }
  using Lines = std::vector<std::string>;

  Vfs vfs_;
  base::Ref<Credentials> creds_ = Credentials::NewRoot(UserNamespace::NewRoot());
  base::Ref<MountNamespace> ns_;
  Path root_;
  base::Ref<InotifyFile> inotify_;
};

TEST_F(InotifyTest, DirectoryEvents) {
  const int wd = Watch("/", IN_ALL_EVENTS);
  EXPECT_EQ(wd, 1);
  { auto f = *vfs_.Open(Ctx(), "/f", O_CREAT | O_RDWR, 0644); }
  EXPECT_EQ(Events(), (Lines{"1:100:f", "1:20:f", "1:8:f"}));
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d", 0755).ok());
  EXPECT_EQ(Events(), (Lines{"1:40000100:d"}));
  EXPECT_TRUE(vfs_.Rename(Ctx(), "/f", Ctx(), "/g", 0).ok());
  EXPECT_EQ(Events(), (Lines{"1:40:f", "1:80:g"}));
  { auto f = *vfs_.Open(Ctx(), "/g", O_RDWR | O_TRUNC, 0); }
  EXPECT_EQ(Events(), (Lines{"1:20:g", "1:2:g", "1:8:g"}));
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/g").ok());
  EXPECT_EQ(Events(), (Lines{"1:200:g"}));
}

TEST_F(InotifyTest, FileWatchEndsWithTheFile) {
  { auto f = *vfs_.Open(Ctx(), "/f", O_CREAT | O_RDWR, 0644); }
  const int wd = Watch("/f", IN_ATTRIB | IN_DELETE_SELF);
  AttrChange change;
  change.set_mode = true;
  change.mode = 0600;
  EXPECT_TRUE(vfs_.SetAttr(*creds_, *vfs_.Walk(Ctx(), "/f", {}), change).ok());
  EXPECT_EQ(Events(), (Lines{"1:4:"}));
  EXPECT_TRUE(vfs_.Unlink(Ctx(), "/f").ok());
  EXPECT_EQ(Events(), (Lines{"1:4:", "1:400:", "1:8000:"}));
  EXPECT_FALSE(inotify_->RemoveWatch(wd).ok());
}

TEST_F(InotifyTest, MasksRemovalAndSmallBuffers) {
  const int wd = Watch("/", IN_CREATE);
  EXPECT_EQ(Watch("/", IN_DELETE | IN_MASK_ADD), wd);
  EXPECT_EQ(inotify_->AddWatch(root_.dentry->inode(), IN_CREATE | IN_MASK_CREATE).error().code(),
            EEXIST);
  EXPECT_TRUE(vfs_.Mkdir(Ctx(), "/d", 0755).ok());
  std::byte small[20];
  BufferDest dst(small);
  EXPECT_EQ(inotify_->Read(dst, true).error().code(), EINVAL);
  EXPECT_EQ(Events().size(), 1u);
  EXPECT_TRUE(inotify_->RemoveWatch(wd).ok());
  EXPECT_EQ(Events(), (Lines{"1:8000:"}));
  EXPECT_TRUE(vfs_.Rmdir(Ctx(), "/d").ok());
  EXPECT_EQ(Events(), Lines{});
  EXPECT_EQ(inotify_->Readiness(), 0u);
}

}  // namespace
}  // namespace sentry
