// Descriptors that stubs close (platform/fd_lane.h).
#include "sentry/vfs/fd_table.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "platform/fd_lane.h"
#include "platform/test_space.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/notify.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

constexpr uint64_t kLimit = 1024;

// A space of which only what its stub may close is there.
class Space : public platform::test::HostlessSpace, public platform::ClosesFds {
 public:
  platform::FdCloses* Closes() override { return &closes; }
  platform::FdCloses closes{};
};

class TestFs : public Filesystem {
 public:
  TestFs() : Filesystem("testfs", 1) {}
};

std::atomic<int> g_open{0};

class TestFile : public FileDescription {
 public:
  TestFile(Path path, uint32_t flags) : FileDescription(std::move(path), flags) {
    ClosesUnseen();
    g_open++;
  }

 protected:
  ~TestFile() override { g_open--; }
};

class Watch : public InodeWatch {
 public:
  uint32_t mask() const override { return IN_CLOSE_NOWRITE; }
  void OnEvent(uint32_t, uint32_t, std::string_view) override { events++; }
  int events = 0;
};

class FdTableTest : public testing::Test {
 protected:
  FdTableTest()
      : root_(Dentry::NewRoot(base::MakeRef<AnonInode>(fs_.get(), S_IFDIR | 0755, 0, 0))),
        inode_(base::MakeRef<AnonInode>(fs_.get(), S_IFREG | 0644, 0, 0)),
        dentry_(root_->AddChild("file", inode_)) {
    g_open = 0;
  }
  ~FdTableTest() override { places_->Unbind(); }

  int Open(FdTable& table) {
    auto file = base::MakeRef<TestFile>(Path{nullptr, dentry_}, O_RDONLY);
    const int fd = *table.Install(file, false, 0, kLimit);
    lent_ = table.LendClose(fd, *file, places_);
    return fd;
  }
  int Open() { return Open(*table_); }
  // What the stub does.
  bool Close(int fd) {
    return platform::CloseFd(&space_.closes, places_->owner(), static_cast<uint32_t>(fd));
  }
  bool StubSaysClosed(int fd) {
    return platform::FdIsClosed(&space_.closes, static_cast<uint32_t>(fd));
  }
  int Error(const base::Status& s) { return s.ok() ? 0 : s.error().code(); }

  Space space_;
  base::Ref<TestFs> fs_ = base::MakeRef<TestFs>();
  base::Ref<Dentry> root_;
  base::Ref<Inode> inode_;
  base::Ref<Dentry> dentry_;
  base::Ref<FdPlaces> places_ = base::MakeRef<FdPlaces>(&space_);
  base::Ref<FdTable> table_ = base::MakeRef<FdTable>();
  bool lent_ = false;
};

TEST_F(FdTableTest, ClosedOnceAndReused) {
  const int a = Open(), b = Open();
  EXPECT_TRUE(lent_);
  EXPECT_FALSE(StubSaysClosed(a));
  EXPECT_TRUE(Close(a));
  EXPECT_TRUE(StubSaysClosed(a));
  EXPECT_FALSE(Close(a));
  EXPECT_EQ(table_->Get(a), nullptr);
  EXPECT_EQ(table_->List(), std::vector<int>{b});
  EXPECT_EQ(table_->size(), static_cast<size_t>(b) + 1);
  EXPECT_EQ(Error(table_->SetCloexec(a, true)), EBADF);
  EXPECT_EQ(g_open, 1);
  EXPECT_EQ(Open(), a);
  EXPECT_FALSE(StubSaysClosed(a));
  EXPECT_TRUE(Close(b));
  EXPECT_EQ(table_->size(), static_cast<size_t>(a) + 1);
  EXPECT_EQ(Error(table_->Close(b)), EBADF);
  EXPECT_EQ(g_open, 1);
  EXPECT_EQ(Error(table_->Close(a)), 0);
  EXPECT_EQ(g_open, 0);
  EXPECT_FALSE(Close(a));
  EXPECT_FALSE(StubSaysClosed(a));
}

TEST_F(FdTableTest, OthersCannot) {
  const int a = Open();
  platform::FdCloses& closes = space_.closes;
  EXPECT_FALSE(platform::CloseFd(&closes, places_->owner() + 1, static_cast<uint32_t>(a)));
  EXPECT_FALSE(platform::CloseFd(&closes, 0, static_cast<uint32_t>(a)));
  EXPECT_FALSE(Close(-1));
  EXPECT_FALSE(Close(1 << 30));
  EXPECT_FALSE(Close(platform::kCloseFds));
  EXPECT_NE(table_->Get(a), nullptr);
  auto other = base::MakeRef<FdTable>();
  EXPECT_EQ(Open(*other), 0);
  EXPECT_FALSE(lent_);
}

TEST_F(FdTableTest, ForgedBitsCloseNothingElse) {
  auto file = base::MakeRef<TestFile>(Path{nullptr, dentry_}, O_RDONLY);
  const int plain = *table_->Install(file, false, 0, kLimit);
  const int a = Open();
  for (size_t i = 0; i < platform::kCloseWords; i++) space_.closes.lent[i] = ~uint64_t{0};
  for (size_t i = 0; i < platform::kCloseWords; i++) space_.closes.open[i] = 0;
  EXPECT_NE(table_->Get(plain), nullptr);
  EXPECT_EQ(table_->Get(a), nullptr);
  EXPECT_EQ(Open(), a);
  EXPECT_EQ(table_->List(), (std::vector<int>{plain, a}));
  for (size_t i = 0; i < platform::kCloseWords; i++) space_.closes.open[i] = ~uint64_t{0};
  EXPECT_EQ(Error(table_->Close(a)), 0);
  EXPECT_EQ(table_->List(), std::vector<int>{plain});
}

TEST_F(FdTableTest, CopiesAndReplacements) {
  const int a = Open(), b = Open();
  EXPECT_TRUE(Close(a));
  base::Ref<FdTable> copy = table_->Fork();
  EXPECT_EQ(copy->List(), std::vector<int>{b});
  EXPECT_EQ(Open(*copy), a);
  EXPECT_FALSE(lent_);
  EXPECT_TRUE(Close(b));
  EXPECT_NE(copy->Get(b), nullptr);
  auto file = base::MakeRef<TestFile>(Path{nullptr, dentry_}, O_RDONLY);
  EXPECT_EQ(Error(table_->InstallAt(b, file, false, kLimit)), 0);
  EXPECT_FALSE(Close(b));  // not lent
  EXPECT_EQ(table_->List(), std::vector<int>{b});
  const int c = Open();
  EXPECT_TRUE(Close(c));
  EXPECT_EQ(table_->RemoveRange(0, UINT32_MAX).size(), 1u);
  EXPECT_TRUE(table_->List().empty());
}

TEST_F(FdTableTest, KeptWhenTheSpaceGoes) {
  const int a = Open(), b = Open();
  EXPECT_TRUE(Close(a));
  places_->Unbind();
  EXPECT_EQ(space_.closes.owner, 0u);
  EXPECT_FALSE(Close(b));
  EXPECT_EQ(table_->Get(a), nullptr);
  EXPECT_NE(table_->Get(b), nullptr);
  Space next;
  auto places = base::MakeRef<FdPlaces>(&next);
  EXPECT_TRUE(table_->LendClose(b, *table_->Get(b), places));
  EXPECT_EQ(g_open, 1);
  EXPECT_EQ(table_->List(), std::vector<int>{b});
  EXPECT_TRUE(platform::CloseFd(&next.closes, places->owner(), static_cast<uint32_t>(b)));
  table_->LeavePlaces();
  EXPECT_EQ(g_open, 0);
  EXPECT_TRUE(table_->List().empty());
  places->Unbind();
}

TEST_F(FdTableTest, LocksTakeItBack) {
  const int a = Open(), b = Open();
  EXPECT_TRUE(Close(a));
  EXPECT_EQ(g_open, 2);
  inode_->locks();
  EXPECT_EQ(g_open, 1);
  EXPECT_FALSE(Close(b));
  EXPECT_EQ(Open(), a);
  EXPECT_FALSE(lent_);
  EXPECT_FALSE(Close(a));
}

TEST_F(FdTableTest, LostNamesTakeItBack) {
  const int a = Open(), b = Open();
  EXPECT_TRUE(Close(a));
  dentry_->MarkUnlinked();
  inode_->SeeCloses();
  EXPECT_EQ(g_open, 1);
  EXPECT_FALSE(Close(b));
  Open();
  EXPECT_FALSE(lent_);
}

TEST_F(FdTableTest, WatchesAreToldOfLaterOnes) {
  const int a = Open(), b = Open();
  EXPECT_TRUE(Close(a));
  auto watch = base::MakeRef<Watch>();
  inode_->MakeWatches().Add(watch);
  EXPECT_EQ(g_open, 1);
  EXPECT_EQ(watch->events, 0);
  EXPECT_FALSE(Close(b));
  EXPECT_EQ(Error(table_->Close(b)), 0);
  EXPECT_EQ(watch->events, 1);
  EXPECT_EQ(Open(), a);
  EXPECT_FALSE(lent_);
  inode_->MakeWatches().Remove(*watch);
}

TEST_F(FdTableTest, TakenOverEverywhere) {
  const int a = Open();
  const int b = Open();
  EXPECT_TRUE(Close(a));
  FdTable::TakeAllClosed();
  EXPECT_EQ(g_open, 1);
  EXPECT_TRUE(Close(b));
  table_ = nullptr;
  EXPECT_EQ(g_open, 0);
}

TEST_F(FdTableTest, NotLent) {
  auto nameless =
      Dentry::NewRoot(base::MakeRef<AnonInode>(fs_.get(), S_IFREG | 0644, 0, 0), "memfd");
  auto file = base::MakeRef<TestFile>(Path{nullptr, nameless}, O_RDONLY);
  const int fd = *table_->Install(file, false, 0, kLimit);
  EXPECT_FALSE(table_->LendClose(fd, *file, places_));
  EXPECT_FALSE(Close(fd));
  EXPECT_FALSE(base::MakeRef<TestFile>(Path{nullptr, dentry_}, O_RDWR)->closes_unseen());
  EXPECT_FALSE(base::MakeRef<TestFile>(Path{nullptr, dentry_}, O_PATH)->closes_unseen());
}

// Each descriptor is closed by one of those who try, and the table agrees.
TEST_F(FdTableTest, StubAndSentryAtOnce) {
  constexpr int kRounds = 20'000;
  std::atomic<int> fd{-1}, closed{0};
  std::atomic<bool> done{false};
  std::thread stub([&] {
    while (!done.load()) {
      if (Close(fd.load())) closed++;
    }
  });
  for (int i = 0; i < kRounds; i++) {
    const int now = Open();
    fd.store(now);
    if (i % 3 == 0) std::this_thread::yield();
    if (table_->Close(now).ok()) closed++;
    ASSERT_EQ(table_->Get(now), nullptr);
    ASSERT_EQ(g_open, 0);
  }
  done = true;
  stub.join();
  EXPECT_EQ(closed, kRounds);
}

}  // namespace
}  // namespace sentry
