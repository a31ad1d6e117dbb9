#include "sentry/fs/epoll/epoll.h"

#include "gtest/gtest.h"
#include "sentry/fs/eventfd/eventfd.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

class EpollTest : public ::testing::Test {
 protected:
  std::vector<std::pair<uint32_t, uint64_t>> Wait(EventPoll& ep, size_t max = 16) {
    std::vector<std::pair<uint32_t, uint64_t>> got;
    auto n = ep.Wait(max, 0, [&](std::span<const EpollEvent> events) -> base::Status {
      for (const EpollEvent& e : events)
        got.emplace_back(uint32_t{e.events}, uint64_t{e.data});  // packed
      return base::Ok();
    });
    EXPECT_TRUE(n.ok());
    return got;
  }
  void Write(FileDescription& f, uint64_t value) {
    BufferSource src(std::as_bytes(std::span(&value, 1)));
    ASSERT_TRUE(f.Write(src, true).ok());
  }
  void Drain(FileDescription& f) {
    uint64_t value;
    BufferDest dst(std::as_writable_bytes(std::span(&value, 1)));
    ASSERT_TRUE(f.Read(dst, true).ok());
  }
  Vfs vfs_;
  base::Ref<EventPoll> ep_ = base::MakeRef<EventPoll>(vfs_, 0);
  base::Ref<EventFile> ev_ = base::MakeRef<EventFile>(vfs_, 0, 0);
  using Got = std::vector<std::pair<uint32_t, uint64_t>>;
};

TEST_F(EpollTest, LevelTriggered) {
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN, 42}).ok());
  EXPECT_TRUE(Wait(*ep_).empty());
  Write(*ev_, 1);
  EXPECT_EQ(Wait(*ep_), (Got{{EPOLLIN, 42}}));
  EXPECT_EQ(Wait(*ep_), (Got{{EPOLLIN, 42}}));
  EXPECT_EQ(ep_->Readiness() & EPOLLIN, uint32_t{EPOLLIN});
  Drain(*ev_);
  EXPECT_TRUE(Wait(*ep_).empty());
  EXPECT_EQ(ep_->Readiness(), 0u);
}

TEST_F(EpollTest, EdgeTriggeredReportsEachWrite) {
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN | EPOLLET, 1}).ok());
  Write(*ev_, 1);
  EXPECT_EQ(Wait(*ep_).size(), 1u);
  EXPECT_TRUE(Wait(*ep_).empty());
  Write(*ev_, 1);
  EXPECT_EQ(Wait(*ep_).size(), 1u);
}

TEST_F(EpollTest, OneShotUntilModified) {
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN | EPOLLONESHOT, 1}).ok());
  Write(*ev_, 1);
  EXPECT_EQ(Wait(*ep_).size(), 1u);
  Write(*ev_, 1);
  EXPECT_TRUE(Wait(*ep_).empty());
  ASSERT_TRUE(ep_->Modify(5, *ev_, {EPOLLIN | EPOLLONESHOT, 2}).ok());
  EXPECT_EQ(Wait(*ep_), (Got{{EPOLLIN, 2}}));
}

TEST_F(EpollTest, Errors) {
  EXPECT_EQ(ep_->Add(1, ep_, {EPOLLIN, 0}).error(), base::Error(EINVAL));
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN, 0}).ok());
  EXPECT_EQ(ep_->Add(5, ev_, {EPOLLIN, 0}).error(), base::Error(EEXIST));
  EXPECT_TRUE(ep_->Add(6, ev_, {EPOLLIN, 0}).ok());
  EXPECT_EQ(ep_->Modify(7, *ev_, {EPOLLIN, 0}).error(), base::Error(ENOENT));
  EXPECT_TRUE(ep_->Remove(5, *ev_).ok());
  EXPECT_EQ(ep_->Remove(5, *ev_).error(), base::Error(ENOENT));
  EXPECT_EQ(ep_->Add(8, ev_, {EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 0}).error(),
            base::Error(EINVAL));
}

TEST_F(EpollTest, ClosedFilesLeaveTheList) {
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN, 0}).ok());
  Write(*ev_, 1);
  ev_.reset();
  EXPECT_TRUE(Wait(*ep_).empty());
  EXPECT_EQ(ep_->FdInfo(), "");
}

TEST_F(EpollTest, InstanceGoesBeforeTheFile) {
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN, 0}).ok());
  ep_.reset();
  Write(*ev_, 1);
}

TEST_F(EpollTest, NestedReadiness) {
  auto outer = base::MakeRef<EventPoll>(vfs_, 0);
  ASSERT_TRUE(outer->Add(3, ep_, {EPOLLIN, 9}).ok());
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN, 0}).ok());
  EXPECT_TRUE(Wait(*outer).empty());
  Write(*ev_, 1);
  EXPECT_EQ(Wait(*outer), (Got{{EPOLLIN, 9}}));
  Drain(*ev_);
  EXPECT_TRUE(Wait(*outer).empty());
}

TEST_F(EpollTest, LoopsAndDepthAreRefused) {
  std::vector<base::Ref<EventPoll>> chain;
  for (int i = 0; i < 7; ++i) chain.push_back(base::MakeRef<EventPoll>(vfs_, 0));
  EXPECT_TRUE(chain[0]->Add(1, chain[1], {EPOLLIN, 0}).ok());
  EXPECT_EQ(chain[1]->Add(1, chain[0], {EPOLLIN, 0}).error(), base::Error(ELOOP));
  int added = 1;
  while (added < 6 && chain[added]->Add(1, chain[added + 1], {EPOLLIN, 0}).ok()) ++added;
  EXPECT_EQ(added, 4);
}

TEST_F(EpollTest, ReadyListIsFair) {
  std::vector<base::Ref<EventFile>> files;
  for (uint64_t i = 0; i < 4; ++i) {
    files.push_back(base::MakeRef<EventFile>(vfs_, 1, 0));
    ASSERT_TRUE(ep_->Add(static_cast<int>(i), files.back(), {EPOLLIN, i}).ok());
  }
  EXPECT_EQ(Wait(*ep_, 2), (Got{{EPOLLIN, 0}, {EPOLLIN, 1}}));
  EXPECT_EQ(Wait(*ep_, 2), (Got{{EPOLLIN, 2}, {EPOLLIN, 3}}));
}

TEST_F(EpollTest, FailedCopyOutLosesNothing) {
  ASSERT_TRUE(ep_->Add(5, ev_, {EPOLLIN | EPOLLET | EPOLLONESHOT, 7}).ok());
  Write(*ev_, 1);
  auto r = ep_->Wait(1, 0, [](auto) -> base::Status { return base::Error(EFAULT); });
  EXPECT_EQ(r.error(), base::Error(EFAULT));
  EXPECT_EQ(Wait(*ep_), (Got{{EPOLLIN, 7}}));
}

}  // namespace
}  // namespace sentry
