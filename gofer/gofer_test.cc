#include <dirent.h>
#include <linux/fs.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include <atomic>
#include <set>
#include <thread>

#include "gofer/test_support.h"
#include "sentry/base/test_fds_in_flight.h"

namespace gofer {
namespace {

using Names = std::vector<std::string_view>;

class GoferTest : public GoferFixture {
 protected:
  std::string MountPath(const std::string& name) { return dir_ + "/mount/" + name; }
};
INSTANTIATE_TEST_SUITE_P(All, GoferTest, testing::Bool(), ModeName);

// What a server within the test itself shows.
class InProcessTest : public GoferTest {};
INSTANTIATE_TEST_SUITE_P(All, InProcessTest, testing::Values(false), ModeName);

// What only a server without the host's privileges shows.
class ConfinedTest : public GoferTest {};
INSTANTIATE_TEST_SUITE_P(All, ConfinedTest, testing::Values(true), ModeName);

TEST_P(GoferTest, WalkReachesOpensAndStops) {
  mkdir(MountPath("a").c_str(), 0755);
  mkdir(MountPath("a/b").c_str(), 0755);
  WriteFile(MountPath("a/b/c"), "deep");
  ASSERT_EQ(symlink("b/c", MountPath("a/link").c_str()), 0);
  Launch();
  auto walk = Walk(root_, {"a", "b", "c"}, kWalkOpen, O_RDWR);
  ASSERT_TRUE(walk.ok());
  ASSERT_EQ(walk->nodes.size(), 3u);
  EXPECT_EQ(walk->stop, 0);
  struct stat st;
  ASSERT_EQ(stat(MountPath("a/b/c").c_str(), &st), 0);
  EXPECT_EQ(walk->nodes[2].attr.ino, st.st_ino);
  EXPECT_EQ(walk->nodes[2].attr.size, 4u);
  EXPECT_EQ(walk->nodes[2].attr.mtime.nsec, st.st_mtim.tv_nsec);
  EXPECT_EQ(ReadFd(walk->fd), "deep");

  walk = Walk(root_, {"a", "x", "c"});
  ASSERT_TRUE(walk.ok());
  EXPECT_EQ(walk->nodes.size(), 1u);
  EXPECT_EQ(walk->stop, ENOENT);
  walk = Walk(root_, {"file", "c"});
  ASSERT_TRUE(walk.ok());
  EXPECT_EQ(walk->nodes.size(), 1u);
  EXPECT_EQ(walk->stop, ENOTDIR);
  walk = Walk(root_, {"a", "link"}, kWalkOpen, O_RDONLY);
  ASSERT_TRUE(walk.ok());
  EXPECT_EQ(walk->stop, 0);
  EXPECT_EQ(walk->link, "b/c");
  EXPECT_FALSE(walk->fd.valid());
  walk = Walk(root_, {"a", "link", "more"});
  ASSERT_TRUE(walk.ok());
  EXPECT_EQ(walk->stop, ELOOP);
  EXPECT_EQ(walk->link, "b/c");
}

TEST_P(GoferTest, NamesThatLeadOutAreRefused) {
  Launch();
  for (std::string_view name :
       {std::string_view(".."), std::string_view("."), std::string_view(""),
        std::string_view("a/../.."), std::string_view("/etc"), std::string_view("a\0b", 3)}) {
    EXPECT_EQ(Call(MakeWalk(root_, {name}, 0, 0)).error, EPROTO) << name;
    EXPECT_EQ(Call(MakeStatAt(root_, name)).error, EPROTO) << name;
    EXPECT_EQ(Call(MakeMake(Op::kCreate, root_, name, 0644, 0, 0, O_RDWR)).error, EPROTO);
    EXPECT_EQ(Call(MakeMake(Op::kMkdir, root_, name, 0755, 0, 0, 0)).error, EPROTO);
    EXPECT_EQ(Call(MakeUnlink(root_, name, false)).error, EPROTO);
    EXPECT_EQ(Call(MakeRename(root_, "file", root_, name, 0)).error, EPROTO);
    EXPECT_EQ(Call(MakeRename(root_, name, root_, "file", 0)).error, EPROTO);
    EXPECT_EQ(Call(MakeSymlink(root_, name, "x", 0, 0)).error, EPROTO);
  }
  EXPECT_EQ(Call(MakeWalk(root_, {std::string(256, 'x')}, 0, 0)).error, EPROTO);
}

// Those of all processes of a user count, whoever sent them.
TEST_P(ConfinedTest, TooManyDescriptorsInFlight) {
  Launch();
  const rlimit limit = {64, 64};
  ASSERT_EQ(prlimit(pid_, RLIMIT_NOFILE, &limit, nullptr), 0);
  {
    base::HundredFdsInFlight others;
    ASSERT_TRUE(others.sent());
    EXPECT_EQ(Call(MakeWalk(root_, {"file"}, kWalkOpen, O_RDONLY)).error, ENFILE);
    EXPECT_EQ(Call(MakeWalk(root_, {"file"}, 0, 0)).error, 0);
  }
  EXPECT_EQ(ReadFd(Walk(root_, {"file"}, kWalkOpen, O_RDONLY)->fd), "hello");
}

TEST_P(GoferTest, LinksAreNeverFollowed) {
  ASSERT_EQ(symlink("../outside", MountPath("up").c_str()), 0);
  ASSERT_EQ(symlink((dir_ + "/outside/secret").c_str(), MountPath("abs").c_str()), 0);
  ASSERT_EQ(symlink("/proc/self/fd", MountPath("magic").c_str()), 0);
  Launch();
  for (const char* name : {"up", "abs", "magic"}) {
    auto walk = Walk(root_, {name, "secret"}, kWalkOpen, O_RDONLY);
    ASSERT_TRUE(walk.ok());
    EXPECT_EQ(walk->stop, ELOOP);
    EXPECT_FALSE(walk->fd.valid());
    const Handle link = At({name});
    EXPECT_EQ(Call(MakeOpen(link, O_RDONLY)).error, ELOOP);
    EXPECT_EQ(Call(MakeWalk(link, {"secret"}, 0, 0)).error, ENOTDIR);
    EXPECT_EQ(Call(MakeMake(Op::kCreate, link, "new", 0644, 0, 0, O_RDWR)).error, ENOTDIR);
    // A file is not created through a dangling or other link either.
    EXPECT_EQ(Call(MakeMake(Op::kCreate, root_, name, 0644, 0, 0, O_RDWR)).error, EEXIST);
    auto attr = ParseAttr(Call(MakeOn(Op::kGetAttr, link)));
    ASSERT_TRUE(attr.ok());
    EXPECT_TRUE(S_ISLNK(attr->mode));
    SetAttrRequest change = {};
    change.handle = link;
    change.mask = kSetMode;
    EXPECT_EQ(Call(MakeSetAttr(change)).error, EOPNOTSUPP);
  }
  EXPECT_EQ(ReadFile(dir_ + "/outside/secret"), "secret");
}

TEST_P(GoferTest, OpensTheInodeOfTheHandleAfterRenameAndUnlink) {
  Launch();
  const Handle file = At({"file"});
  ASSERT_EQ(rename(MountPath("file").c_str(), MountPath("moved").c_str()), 0);
  ASSERT_EQ(symlink("../outside/secret", MountPath("file").c_str()), 0);
  auto fd = ParseFd(Call(MakeOpen(file, O_RDWR)));
  ASSERT_TRUE(fd.ok());
  EXPECT_EQ(ReadFd(*fd), "hello");
  ASSERT_EQ(unlink(MountPath("moved").c_str()), 0);
  fd = ParseFd(Call(MakeOpen(file, O_RDONLY)));
  ASSERT_TRUE(fd.ok());
  EXPECT_EQ(ReadFd(*fd), "hello");
  EXPECT_EQ(Call(MakeOpen(file, O_RDWR | O_CREAT)).error, EINVAL);
  EXPECT_EQ(Call(MakeOpen(file, O_PATH)).error, EINVAL);
  EXPECT_EQ(Call(MakeOpen(root_, O_RDONLY)).error, EISDIR);
}

TEST_P(GoferTest, OpensManyForReading) {
  Launch();
  WriteFile(MountPath("second"), "2");
  const std::vector<Handle> handles = {At({"file"}), root_, At({"second"}), 12345};
  auto fds = ParseOpenMany(Call(MakeOpenMany(handles)), handles.size());
  ASSERT_TRUE(fds.ok());
  EXPECT_EQ(ReadFd((*fds)[0]), "hello");
  EXPECT_FALSE((*fds)[1].valid());
  EXPECT_EQ(ReadFd((*fds)[2]), "2");
  EXPECT_EQ(write((*fds)[2].get(), "x", 1), -1);
  EXPECT_FALSE((*fds)[3].valid());
  const std::vector<Handle> most(kMaxOpenMany, handles[0]);
  fds = ParseOpenMany(Call(MakeOpenMany(most)), most.size());
  ASSERT_TRUE(fds.ok());
  for (const base::UniqueFd& fd : *fds) EXPECT_EQ(ReadFd(fd), "hello");
  EXPECT_EQ(Call(MakeOpenMany({})).error, EPROTO);
  EXPECT_EQ(Call(MakeOpenMany(std::vector<Handle>(kMaxOpenMany + 1, 1))).error, EPROTO);
}

TEST_P(GoferTest, CreateBelongsToTheCaller) {
  Launch();
  auto made = ParseNode(Call(MakeMake(Op::kCreate, root_, "new", 04750, 1234, 5678, O_RDWR)), true);
  ASSERT_TRUE(made.ok()) << made.error().code();
  EXPECT_EQ(made->node.attr.mode, S_IFREG | 04750u);
  ASSERT_EQ(write(made->fd.get(), "data", 4), 4);
  struct stat st;
  ASSERT_EQ(stat(MountPath("new").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 1234u);
  EXPECT_EQ(st.st_gid, 5678u);
  EXPECT_EQ(ReadFd(*ParseFd(Call(MakeOpen(made->node.handle, O_RDONLY)))), "data");
  EXPECT_EQ(Call(MakeMake(Op::kCreate, root_, "new", 0644, 0, 0, O_RDWR)).error, EEXIST);

  auto dir = ParseNode(Call(MakeMake(Op::kMkdir, root_, "dir", 01777, 1, 2, 0)), false);
  ASSERT_TRUE(dir.ok());
  EXPECT_EQ(dir->node.attr.mode, S_IFDIR | 01777u);
  EXPECT_EQ(dir->node.attr.uid, 1u);
  auto fifo = ParseNode(Call(MakeMake(Op::kMknod, root_, "fifo", S_IFIFO | 0640, 3, 4, 0)), false);
  ASSERT_TRUE(fifo.ok());
  EXPECT_EQ(fifo->node.attr.mode, S_IFIFO | 0640u);
  EXPECT_EQ(fifo->node.attr.gid, 4u);
  EXPECT_EQ(Call(MakeOpen(fifo->node.handle, O_RDONLY)).error, ENXIO);
  EXPECT_EQ(Call(MakeMake(Op::kMknod, root_, "null", S_IFCHR | 0666, 0, 0, 0)).error, EPERM);
  auto link = ParseNode(Call(MakeSymlink(root_, "link", "to/nowhere", 7, 8)), false);
  ASSERT_TRUE(link.ok());
  EXPECT_EQ(link->node.attr.uid, 7u);
  auto target = ParseLink(Call(MakeOn(Op::kReadlink, link->node.handle)));
  ASSERT_TRUE(target.ok());
  EXPECT_EQ(*target, "to/nowhere");
}

TEST_P(GoferTest, SetGroupIdDirectoryPassesItsGroupOn) {
  mkdir(MountPath("shared").c_str(), 0755);
  ASSERT_EQ(chown(MountPath("shared").c_str(), 0, 4242), 0);
  ASSERT_EQ(chmod(MountPath("shared").c_str(), 02775), 0);
  Launch();
  const Handle dir = At({"shared"});
  auto file = ParseNode(Call(MakeMake(Op::kCreate, dir, "f", 0644, 5, 6, O_RDWR)), true);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->node.attr.uid, 5u);
  EXPECT_EQ(file->node.attr.gid, 4242u);
  EXPECT_EQ(file->node.attr.mode & 07777, 0644u);
  auto sub = ParseNode(Call(MakeMake(Op::kMkdir, dir, "d", 0755, 5, 6, 0)), false);
  ASSERT_TRUE(sub.ok());
  EXPECT_EQ(sub->node.attr.gid, 4242u);
  EXPECT_EQ(sub->node.attr.mode & 07777, 02755u);
}

TEST_P(GoferTest, LinkUnlinkRename) {
  Launch();
  const Handle file = At({"file"});
  auto attr = ParseAttr(Call(MakeLink(file, root_, "second")));
  ASSERT_TRUE(attr.ok()) << attr.error().code();
  EXPECT_EQ(attr->nlink, 2u);
  EXPECT_EQ(Call(MakeLink(root_, root_, "dir")).error, EPERM);
  EXPECT_EQ(Call(MakeLink(file, connect_, "other")).error, EXDEV);
  EXPECT_EQ(Call(MakeRename(root_, "second", connect_, "other", 0)).error, EXDEV);
  EXPECT_TRUE(ParseEmpty(Call(MakeUnlink(root_, "second", false))).ok());
  EXPECT_EQ(Call(MakeUnlink(root_, "second", false)).error, ENOENT);
  ASSERT_TRUE(ParseNode(Call(MakeMake(Op::kMkdir, root_, "d", 0755, 0, 0, 0)), false).ok());
  EXPECT_EQ(Call(MakeUnlink(root_, "d", false)).error, EISDIR);
  EXPECT_TRUE(ParseEmpty(Call(MakeRename(root_, "file", At({"d"}), "f2", 0))).ok());
  EXPECT_EQ(ReadFile(MountPath("d/f2")), "hello");
  EXPECT_EQ(Call(MakeUnlink(root_, "d", true)).error, ENOTEMPTY);
  WriteFile(MountPath("x"), "x");
  EXPECT_EQ(Call(MakeRename(root_, "x", At({"d"}), "f2", RENAME_NOREPLACE)).error, EEXIST);
  EXPECT_TRUE(ParseEmpty(Call(MakeRename(root_, "x", At({"d"}), "f2", RENAME_EXCHANGE))).ok());
  EXPECT_EQ(ReadFile(MountPath("x")), "hello");
  EXPECT_EQ(Call(MakeRename(root_, "x", root_, "y", RENAME_WHITEOUT)).error, EINVAL);
}

TEST_P(GoferTest, SetAttr) {
  Launch();
  SetAttrRequest r = {};
  r.handle = At({"file"});
  r.mask = kSetMode | kSetUid | kSetGid | kSetSize | kSetAtime | kSetMtimeNow;
  r.mode = 04711;
  r.uid = 11;
  r.gid = 12;
  r.size = 2;
  r.atime = {12345, 678, 0};
  auto attr = ParseAttr(Call(MakeSetAttr(r)));
  ASSERT_TRUE(attr.ok()) << attr.error().code();
  EXPECT_EQ(attr->mode & 07777, 04711u);
  EXPECT_EQ(attr->uid, 11u);
  EXPECT_EQ(attr->gid, 12u);
  EXPECT_EQ(attr->size, 2u);
  EXPECT_EQ(attr->atime.sec, 12345);
  EXPECT_EQ(attr->atime.nsec, 678u);
  EXPECT_GT(attr->mtime.sec, 12345);
  EXPECT_EQ(ReadFile(MountPath("file")), "he");
  r.mask = kSetSize;
  r.handle = root_;
  EXPECT_EQ(Call(MakeSetAttr(r)).error, EISDIR);
  r.mask = 1u << 20;
  EXPECT_EQ(Call(MakeSetAttr(r)).error, EPROTO);
}

TEST_P(GoferTest, ReadDirPagesWithAttributes) {
  for (int i = 0; i < 500; ++i) WriteFile(MountPath("entry" + std::to_string(i)), "");
  Launch();
  std::set<std::string> names;
  uint64_t cursor = 0;
  int pages = 0;
  for (bool eof = false; !eof; ++pages) {
    auto page = ParseDir(Call(MakeReadDir(root_, cursor, 4096, kReadDirAttrs)));
    ASSERT_TRUE(page.ok());
    for (const Entry& e : page->entries) {
      EXPECT_TRUE(names.insert(e.name).second) << e.name;
      EXPECT_EQ(e.with, kWithAttr);
      EXPECT_EQ(e.node.attr.ino, e.ino);
    }
    cursor = page->next;
    eof = page->eof;
  }
  EXPECT_EQ(names.size(), 501u);
  EXPECT_GT(pages, 10);
  auto all = ParseDir(Call(MakeReadDir(root_, 0, 1 << 20, 0)));
  ASSERT_TRUE(all.ok());
  EXPECT_TRUE(all->eof);
  EXPECT_EQ(all->entries.size(), 501u);
  auto nodes = ParseDir(Call(MakeReadDir(root_, 0, 4096, kReadDirNodes)));
  ASSERT_TRUE(nodes.ok());
  for (const Entry& e : nodes->entries) {
    ASSERT_EQ(e.with, kWithNode);
    EXPECT_EQ(ParseAttr(Call(MakeOn(Op::kGetAttr, e.node.handle)))->ino, e.ino);
  }
  EXPECT_EQ(Call(MakeReadDir(At({"file"}), 0, 4096, 0)).error, ENOTDIR);
}

TEST_P(GoferTest, ReadonlyMountRefusesChanges) {
  Launch();
  auto walk = Walk(readonly_, {"file"}, kWalkOpen, O_RDWR);
  ASSERT_TRUE(walk.ok());
  EXPECT_EQ(walk->open_error, EROFS);
  const Handle file = walk->nodes[0].handle;
  EXPECT_EQ(Call(MakeOpen(file, O_WRONLY)).error, EROFS);
  EXPECT_EQ(Call(MakeOpen(file, O_RDONLY | O_TRUNC)).error, EROFS);
  EXPECT_EQ(ReadFd(*ParseFd(Call(MakeOpen(file, O_RDONLY)))), "fixed");
  EXPECT_EQ(Call(MakeMake(Op::kCreate, readonly_, "n", 0644, 0, 0, O_RDWR)).error, EROFS);
  EXPECT_EQ(Call(MakeMake(Op::kTmpfile, readonly_, "", 0644, 0, 0, O_RDWR)).error, EROFS);
  EXPECT_EQ(Call(MakeMake(Op::kMkdir, readonly_, "n", 0755, 0, 0, 0)).error, EROFS);
  EXPECT_EQ(Call(MakeMake(Op::kMknod, readonly_, "n", S_IFIFO | 0600, 0, 0, 0)).error, EROFS);
  EXPECT_EQ(Call(MakeSymlink(readonly_, "n", "t", 0, 0)).error, EROFS);
  EXPECT_EQ(Call(MakeLink(file, readonly_, "n")).error, EROFS);
  EXPECT_EQ(Call(MakeUnlink(readonly_, "file", false)).error, EROFS);
  EXPECT_EQ(Call(MakeRename(readonly_, "file", readonly_, "n", 0)).error, EROFS);
  EXPECT_EQ(Call(MakeRename(root_, "file", readonly_, "n", 0)).error, EROFS);
  EXPECT_EQ(Call(MakeSetXattr(file, "user.a", "b", 0)).error, EROFS);
  EXPECT_EQ(Call(MakeRemoveXattr(file, "user.a")).error, EROFS);
  SetAttrRequest r = {};
  r.handle = file;
  r.mask = kSetMode;
  EXPECT_EQ(Call(MakeSetAttr(r)).error, EROFS);
}

TEST_P(GoferTest, Xattrs) {
  Launch();
  const Handle file = At({"file"});
  if (Call(MakeSetXattr(file, "user.color", "blue", 0)).error == EOPNOTSUPP) {
    GTEST_SKIP() << "the file system has no user.* attributes";
  }
  auto value = ParseXattr(Call(MakeGetXattr(file, "user.color", 100)), 100);
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(value->bytes, "blue");
  value = ParseXattr(Call(MakeGetXattr(file, "user.color", 0)), 0);
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(value->size, 4u);
  EXPECT_EQ(Call(MakeGetXattr(file, "user.color", 2)).error, ERANGE);
  EXPECT_EQ(Call(MakeSetXattr(file, "user.color", "red", XATTR_CREATE)).error, EEXIST);
  auto list = ParseXattr(Call(MakeListXattr(file, 1000)), 1000);
  ASSERT_TRUE(list.ok());
  EXPECT_EQ(list->bytes, std::string("user.color\0", 11));
  EXPECT_EQ(Call(MakeSetXattr(file, "trusted.x", "y", 0)).error, EOPNOTSUPP);
  EXPECT_EQ(Call(MakeSetXattr(file, "security.capability", "y", 0)).error, EOPNOTSUPP);
  EXPECT_TRUE(ParseEmpty(Call(MakeRemoveXattr(file, "user.color"))).ok());
  EXPECT_EQ(Call(MakeGetXattr(file, "user.color", 100)).error, ENODATA);
}

TEST_P(GoferTest, TmpfileGetsAName) {
  Launch();
  EXPECT_EQ(Call(MakeMake(Op::kTmpfile, root_, "name", 0640, 0, 0, O_RDWR)).error, EPROTO);
  EXPECT_EQ(Call(MakeMake(Op::kTmpfile, root_, "", 0640, 0, 0, O_RDONLY)).error, EINVAL);
  EXPECT_EQ(Call(MakeMake(Op::kTmpfile, At({"file"}), "", 0640, 0, 0, O_RDWR)).error, ENOTDIR);
  Reply reply = Call(MakeMake(Op::kTmpfile, root_, "", 04750, 1234, 5678, O_RDWR));
  if (reply.error == EOPNOTSUPP) GTEST_SKIP() << "the file system has no O_TMPFILE";
  auto made = ParseNode(std::move(reply), true);
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made->node.attr.nlink, 0u);
  EXPECT_EQ(made->node.attr.mode, static_cast<uint32_t>(S_IFREG | 04750));
  EXPECT_EQ(made->node.attr.uid, 1234u);
  EXPECT_EQ(made->node.attr.gid, 5678u);
  EXPECT_EQ(write(made->fd.get(), "data", 4), 4);
  auto linked = ParseAttr(Call(MakeLink(made->node.handle, root_, "linked")));
  ASSERT_TRUE(linked.ok());
  EXPECT_EQ(linked->nlink, 1u);
  EXPECT_EQ(linked->ino, made->node.attr.ino);
  EXPECT_EQ(ReadFd(*ParseFd(Call(MakeOpen(At({"linked"}), O_RDONLY)))), "data");
}

TEST_P(GoferTest, StatFsFsyncStatAt) {
  Launch();
  auto fs = ParseStatFs(Call(MakeOn(Op::kStatFs, root_)));
  ASSERT_TRUE(fs.ok());
  EXPECT_GT(fs->bsize, 0u);
  EXPECT_TRUE(ParseEmpty(Call(MakeOn(Op::kFsync, root_))).ok());
  EXPECT_TRUE(ParseEmpty(Call(MakeOn(Op::kSyncFs, root_))).ok());
  EXPECT_TRUE(ParseEmpty(Call(MakeOn(Op::kFsync, At({"file"})))).ok());
  auto attr = ParseAttr(Call(MakeStatAt(root_, "file")));
  ASSERT_TRUE(attr.ok());
  EXPECT_EQ(attr->size, 5u);
  EXPECT_EQ(Call(MakeStatAt(root_, "none")).error, ENOENT);
}

TEST_P(GoferTest, ConnectsOnlyWhereAllowed) {
  const auto listen_at = [](const std::string& path) {
    base::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un a = {};
    a.sun_family = AF_UNIX;
    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path.c_str());
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof(a)), 0);
    EXPECT_EQ(listen(fd.get(), 5), 0);
    return fd;
  };
  const auto a = listen_at(MountPath("socket"));
  const auto b = listen_at(dir_ + "/connect/socket");
  Launch();
  EXPECT_EQ(Call(MakeConnect(At({"socket"}), SOCK_STREAM)).error, EACCES);
  auto walk = Walk(connect_, {"socket"});
  ASSERT_TRUE(walk.ok());
  auto fd = ParseFd(Call(MakeConnect(walk->nodes[0].handle, SOCK_STREAM)));
  ASSERT_TRUE(fd.ok()) << fd.error().code();
  base::UniqueFd peer(accept(b.get(), nullptr, nullptr));
  ASSERT_EQ(write(fd->get(), "hi", 2), 2);
  char text[2];
  EXPECT_EQ(read(peer.get(), text, 2), 2);
}

TEST_P(GoferTest, ForgottenHandlesAreGone) {
  Launch();
  const Handle file = At({"file"});
  EXPECT_TRUE(ParseEmpty(Call(MakeForget({file, file, 12345}))).ok());
  EXPECT_EQ(Call(MakeOpen(file, O_RDONLY)).error, EBADF);
  const Handle again = At({"file"});
  EXPECT_NE(file, again);
  EXPECT_EQ(Call(MakeOpen(file, O_RDONLY)).error, EBADF);
  EXPECT_EQ(Call(MakeOpen(0, O_RDONLY)).error, EBADF);
}

// A process of its own has its bound of descriptors as well.
TEST_P(InProcessTest, HandlesAreBounded) {
  Launch(10);
  for (int i = 0; i < 7; ++i) ASSERT_NE(At({"file"}), 0u);
  auto walk = Walk(root_, {"file"});
  ASSERT_TRUE(walk.ok());
  EXPECT_EQ(walk->stop, ENFILE);
}

// An outside process keeps putting a link to the outside in the place of a directory while the
// sandbox walks, opens, creates and removes below it.
TEST_P(GoferTest, SwappedDirectoryInARaceLeadsNowhere) {
  mkdir(MountPath("swap").c_str(), 0755);
  WriteFile(MountPath("swap/secret"), "inside");
  ASSERT_EQ(symlink("../outside", MountPath("other").c_str()), 0);
  Launch();
  const pid_t attacker = fork();
  if (attacker == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(60);
    for (;;)
      renameat2(AT_FDCWD, MountPath("swap").c_str(), AT_FDCWD, MountPath("other").c_str(),
                RENAME_EXCHANGE);
  }
  const auto stop = [attacker](void*) {
    kill(attacker, SIGKILL);
    waitpid(attacker, nullptr, 0);
  };
  const std::unique_ptr<void, decltype(stop)> stopper(this, stop);
  int opened = 0, stopped = 0;
  for (int i = 0; i < 3000; ++i) {
    auto walk = Walk(root_, {"swap", "secret"}, kWalkOpen, O_RDWR);
    ASSERT_TRUE(walk.ok());
    if (walk->fd.valid()) {
      ++opened;
      ASSERT_EQ(ReadFd(walk->fd), "inside");
    } else {
      ++stopped;
      ASSERT_EQ(walk->stop, ELOOP);
    }
    const Handle first = walk->nodes[0].handle;
    auto made = ParseNode(Call(MakeMake(Op::kCreate, first, "made", 0644, 0, 0, O_RDWR)), true);
    std::vector<Handle> forget;
    for (const Node& n : walk->nodes) forget.push_back(n.handle);
    if (made.ok()) {
      forget.push_back(made->node.handle);
      Call(MakeUnlink(first, "made", false));
    }
    Call(MakeForget(forget));
  }
  EXPECT_GT(opened, 0);
  EXPECT_GT(stopped, 0);
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/outside/made"));
  EXPECT_EQ(ReadFile(dir_ + "/outside/secret"), "secret");
}

TEST_P(GoferTest, ManyRequestsInFlight) {
  Launch();
  std::atomic<int> good = 0;
  constexpr int kRequests = 5000;
  int done = 0;
  for (int i = 0; i < kRequests; ++i) {
    client_->Submit(MakeStatAt(root_, "file"), [&](Reply reply) {
      if (ParseAttr(reply).ok()) ++good;
      ++done;
    });
  }
  while (done < kRequests) {
    pollfd p = {client_->fd(), POLLIN, 0};
    ASSERT_EQ(poll(&p, 1, 10'000), 1);
    client_->Receive();
  }
  EXPECT_EQ(good, kRequests);
}

TEST_P(InProcessTest, EverythingElseBeforeHelloIsRefused) {
  Server server({.proc_fd = -1, .max_handles = 10});
  std::vector<base::UniqueFd> fds;
  Request request = MakeAttach(0);
  RequestHeader header = {static_cast<uint32_t>(request.packet.size()), Op::kAttach, 0, 1};
  memcpy(request.packet.data(), &header, sizeof(header));
  const std::string reply = server.HandlePacket(request.packet, &fds);
  ReplyHeader r;
  ASSERT_EQ(reply.size(), sizeof(r));
  memcpy(&r, reply.data(), sizeof(r));
  EXPECT_EQ(r.error, static_cast<uint32_t>(EPROTO));
}

}  // namespace
}  // namespace gofer
