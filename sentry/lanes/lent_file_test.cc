#include "sentry/lanes/lent_file.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "platform/file_lane.h"
#include "platform/test_space.h"

namespace sentry {
namespace {

using platform::FileLane;
using platform::LanePosition;

// A space of which only the lanes of files are there.
class Space : public platform::test::HostlessSpace {
 public:
  FileLane* FileLaneAt(int fd) override {
    return fd >= 0 && static_cast<size_t>(fd) < lanes.size() ? &lanes[static_cast<size_t>(fd)]
                                                             : nullptr;
  }
  std::span<std::byte> FileBeginAt(uint32_t place) override { return begins[place]; }
  std::array<FileLane, 8> lanes{};
  std::array<std::array<std::byte, platform::kFileBeginSize>, platform::kFileBegins> begins{};
};

class LentFileTest : public testing::Test {
 protected:
  // What LendTo of a description does.
  bool Lend(LentFile& file, int fd, uint64_t size, uint64_t position) {
    file.Watch();
    return file.Show(binding_, fd, size, 7) && file.Lend(position);
  }
  // The same for a file that was opened just now.
  bool LendBegin(LentFile& file, int fd, std::string_view text) {
    file.Watch();
    return file.Show(binding_, fd, text.size(), 0, std::as_bytes(std::span(text)));
  }
  // What the stub finds at the descriptor.
  std::string Begin(int fd) {
    FileLane& lane = space_.lanes[static_cast<size_t>(fd)];
    if (lane.name == 0) return "nothing";
    lane.begin_used = 1;
    return std::string(reinterpret_cast<const char*>(space_.begins[lane.begin_place].data()),
                       lane.begin_length);
  }
  // What the stub does: true if there was something to move.
  bool Move(int fd, uint64_t to) {
    FileLane& lane = space_.lanes[static_cast<size_t>(fd)];
    return lane.position.name != 0 && platform::MoveLanePosition(&lane.position, lane.position, to);
  }

  Space space_;
  base::Ref<LaneArena> arena_ = *LaneArena::OfDomain("lent files");
  base::Ref<LaneBinding> binding_ = base::MakeRef<LaneBinding>(&space_, arena_);
  PathWord word_;
};

TEST_F(LentFileTest, PositionGoesAndComesBack) {
  LentFile file(word_);
  ASSERT_TRUE(Lend(file, 3, 100, 10));
  EXPECT_EQ(space_.lanes[3].size, 100u);
  EXPECT_EQ(space_.lanes[3].source, 7u);
  EXPECT_NE(space_.lanes[3].name, 0u);
  EXPECT_FALSE(file.Lend(20));  // it is lent
  EXPECT_TRUE(Move(3, 30));
  EXPECT_EQ(file.Recall(), 30u);
  EXPECT_FALSE(Move(3, 40));
  EXPECT_EQ(file.Recall(), std::nullopt);
  ASSERT_TRUE(file.Lend(50));
  EXPECT_EQ(file.Recall(), 50u);
}

TEST_F(LentFileTest, ChangeHides) {
  LentFile file(word_);
  ASSERT_TRUE(Lend(file, 3, 100, 10));
  word_.Changed();
  EXPECT_EQ(space_.lanes[3].name, 0u);
  EXPECT_TRUE(Move(3, 30));  // the position stays
  EXPECT_FALSE(file.Show(binding_, 3, 100, 7));
  file.Watch();
  word_.Changed();
  EXPECT_FALSE(file.Show(binding_, 3, 100, 7));
  file.Watch();
  EXPECT_TRUE(file.Show(binding_, 3, 200, 7));
  EXPECT_EQ(space_.lanes[3].size, 200u);
  AllWatchedChanged();
  EXPECT_EQ(space_.lanes[3].name, 0u);
}

TEST_F(LentFileTest, NamesAreNotGivenTwice) {
  LentFile file(word_);
  ASSERT_TRUE(Lend(file, 3, 100, 10));
  const uint64_t name = space_.lanes[3].name;
  EXPECT_TRUE(file.Show(binding_, 3, 100, 7));
  EXPECT_EQ(space_.lanes[3].name, name);  // nothing has changed
  EXPECT_TRUE(file.Show(binding_, 3, 100, 8));
  EXPECT_NE(space_.lanes[3].name, name);
}

TEST_F(LentFileTest, ClosedDescriptor) {
  LentFile file(word_);
  ASSERT_TRUE(Lend(file, 3, 100, 10));
  EXPECT_TRUE(Move(3, 30));
  binding_->Set(3, 0, 0);
  EXPECT_EQ(space_.lanes[3].name, 0u);
  EXPECT_FALSE(Move(3, 40));
  LentFile other(word_);
  ASSERT_TRUE(Lend(other, 3, 5, 1));
  EXPECT_EQ(file.Recall(), 30u);
  EXPECT_TRUE(Move(3, 4));
  EXPECT_EQ(other.Recall(), 4u);
}

TEST_F(LentFileTest, AnotherDescriptor) {
  LentFile file(word_);
  ASSERT_TRUE(Lend(file, 3, 100, 10));
  file.Watch();
  EXPECT_TRUE(file.Show(binding_, 4, 100, 7));
  EXPECT_EQ(space_.lanes[3].name, 0u);
  EXPECT_NE(space_.lanes[4].name, 0u);
  EXPECT_FALSE(file.Lend(10));  // still where it was
  EXPECT_EQ(file.Recall(), 10u);
  EXPECT_TRUE(file.Lend(11));
  EXPECT_TRUE(Move(4, 12));
  EXPECT_EQ(file.Recall(), 12u);
  EXPECT_FALSE(Lend(file, 100, 100, 1));  // there is no such lane
}

TEST_F(LentFileTest, SpaceGoes) {
  LentFile file(word_);
  ASSERT_TRUE(Lend(file, 3, 100, 10));
  EXPECT_TRUE(Move(3, 77));
  binding_->Unbind();
  EXPECT_EQ(space_.lanes[3].name, 0u);
  EXPECT_EQ(space_.lanes[3].position.name, 0u);
  EXPECT_EQ(file.Recall(), 77u);
  EXPECT_FALSE(Lend(file, 3, 100, 10));
}

TEST_F(LentFileTest, FirstBytes) {
  std::vector<std::unique_ptr<LentFile>> files;
  for (int fd = 0; fd < 6; fd++) {
    files.push_back(std::make_unique<LentFile>(word_));
    ASSERT_TRUE(LendBegin(*files.back(), fd, "file " + std::to_string(fd)));
  }
  // There is room for four.
  for (int fd : {0, 1}) EXPECT_EQ(Begin(fd), "nothing");
  for (int fd : {2, 3, 4, 5}) EXPECT_EQ(Begin(fd), "file " + std::to_string(fd));
  word_.Changed();
  for (int fd = 0; fd < 6; fd++) EXPECT_EQ(Begin(fd), "nothing");
  ASSERT_TRUE(LendBegin(*files[0], 0, "again"));
  EXPECT_EQ(Begin(0), "again");
  // Without them when it is shown another time.
  files[0]->Watch();
  EXPECT_TRUE(files[0]->Show(binding_, 0, 100, 7));
  EXPECT_EQ(Begin(0), "");
  // More than there is room for is as good as nothing.
  EXPECT_TRUE(LendBegin(*files[1], 1, std::string(platform::kFileBeginSize + 1, 'x')));
  EXPECT_EQ(Begin(1), "");
  binding_->Unbind();
  EXPECT_FALSE(LendBegin(*files[2], 2, "late"));
}

TEST_F(LentFileTest, FirstBytesThatNobodyReads) {
  const auto open_and_close = [&](bool reads) {
    LentFile file(word_);
    EXPECT_TRUE(LendBegin(file, 3, "text"));
    if (reads) {
      EXPECT_EQ(Begin(3), "text");
    }
    binding_->Set(3, 0, 0);
  };
  EXPECT_TRUE(binding_->WantsBegin());
  for (int i = 0; i < 20; i++) open_and_close(true);
  EXPECT_TRUE(binding_->WantsBegin());
  for (int i = 0; i < 20; i++) open_and_close(false);
  int wanted = 0;
  for (int i = 0; i < 320; i++) wanted += binding_->WantsBegin();
  EXPECT_EQ(wanted, 10);  // once in a while
  open_and_close(true);
  EXPECT_TRUE(binding_->WantsBegin());
}

TEST_F(LentFileTest, HostileGuest) {
  LentFile file(word_);
  ASSERT_TRUE(Lend(file, 3, 100, 10));
  space_.lanes[3].position = LanePosition{12345, 678};
  EXPECT_EQ(file.Recall(), 10u);  // not what was lent
  ASSERT_TRUE(file.Lend(20));
  space_.lanes[3].position.offset = ~uint64_t{0};
  EXPECT_EQ(file.Recall(), ~uint64_t{0});  // the description's to check
  ASSERT_TRUE(file.Lend(20));
  space_.lanes[3].position.name = 0;
  EXPECT_EQ(file.Recall(), 20u);
}

TEST_F(LentFileTest, WhatComesBackUnusedIsLentRarely) {
  LentFile file(word_);
  int lent = 0;
  for (int i = 0; i < 1000; i++) {
    if (!file.Pays()) continue;
    ASSERT_TRUE(Lend(file, 3, 100, 10));
    lent++;
    file.Recall();
  }
  EXPECT_LT(lent, 100);
  EXPECT_GT(lent, 10);
}

// Who moves the position has it for itself, and what the sentry takes back nobody moves any more.
TEST_F(LentFileTest, ManyMove) {
  LanePosition position{};
  constexpr uint64_t kMoves = 100'000;
  std::atomic<uint64_t> moves{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; t++) {
    threads.emplace_back([&] {
      while (!stop) {
        LanePosition at{__atomic_load_n(&position.name, __ATOMIC_SEQ_CST),
                        __atomic_load_n(&position.offset, __ATOMIC_SEQ_CST)};
        if (at.name != 0 && platform::MoveLanePosition(&position, at, at.offset + 1)) moves++;
      }
    });
  }
  uint64_t offset = 0, name = 1;
  while (moves < kMoves) {
    platform::LendLanePosition(&position, name, offset);
    for (int i = 0; i < 50; i++) std::this_thread::yield();
    ASSERT_EQ(platform::TakeLanePosition(&position, &offset), name++);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(offset, moves);
}

}  // namespace
}  // namespace sentry
