#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "platform/stream_lane.h"
#include "sentry/lanes/arena.h"
#include "sentry/lanes/domain.h"

namespace sentry {
namespace {

using platform::kLaneRing;
using platform::LaneOutcome;
using platform::StreamLane;

constexpr uint32_t kGeneration = 7, kOwner = 3, kOther = 4;

// A lane as a stub sees it.
class StreamLaneTest : public testing::Test {
 protected:
  StreamLaneTest() : memory_(platform::kLaneStride) {
    lane_->generation = kGeneration;
    lane_->open = 1;
    lane_->limit = kLaneRing;
  }

  LaneOutcome Write(const std::string& text, uint32_t generation = kGeneration) {
    const char* from = text.data();
    return WriteLane(lane_, waker_, generation, kOwner, text.size(), [&](uint64_t at, uint64_t n) {
      EXPECT_LE(at + n, kLaneRing);
      memcpy(ring_ + at, from, n);
      from += n;
      return true;
    });
  }
  LaneOutcome Read(std::string* text, uint64_t most) {
    text->clear();
    LaneOutcome outcome =
        ReadLane(lane_, waker_, kGeneration, kOther, &most, [&](uint64_t at, uint64_t n) {
          EXPECT_LE(at + n, kLaneRing);
          text->append(ring_ + at, n);
          return true;
        });
    if (outcome == LaneOutcome::kDeclined || outcome == LaneOutcome::kWait) text->clear();
    return outcome;
  }

  std::vector<char> memory_;
  StreamLane* lane_ = reinterpret_cast<StreamLane*>(memory_.data());
  char* ring_ = memory_.data() + platform::kLaneHeaderSize;
  uint32_t sleepers_[platform::kLaneSleepers] = {};
  // Counts wake-ups.
  struct Waker {
    uint32_t* sleepers;
    std::atomic<int>* woken;
    void Wake(uint32_t*) const { ++*woken; }
  };
  std::atomic<int> woken_{0};
  Waker waker_{sleepers_, &woken_};
  std::string text_;
};

TEST_F(StreamLaneTest, WhatIsWrittenIsRead) {
  EXPECT_EQ(LaneOutcome::kWait, Read(&text_, 100));
  EXPECT_EQ(LaneOutcome::kDone, Write("hello "));
  EXPECT_EQ(LaneOutcome::kDone, Write("world"));
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 7));
  EXPECT_EQ("hello w", text_);
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 100));
  EXPECT_EQ("orld", text_);
  // Empty: the next bytes stand at the beginning again.
  EXPECT_EQ(lane_->base, lane_->written);
}

TEST_F(StreamLaneTest, WhoWantsToBeToldIs) {
  lane_->want_data = 1;
  EXPECT_EQ(LaneOutcome::kTell, Write("a"));
  EXPECT_EQ(LaneOutcome::kDone, Write("b"));
  lane_->want_room = 1;
  EXPECT_EQ(LaneOutcome::kTell, Read(&text_, 1));
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 1));
}

TEST_F(StreamLaneTest, WhoSleepsIsToldOnce) {
  lane_->want_data = platform::kFirstSleeper + 5;
  EXPECT_EQ(LaneOutcome::kDone, Write("a"));
  sleepers_[5] = 1;
  EXPECT_EQ(LaneOutcome::kTell, Write("b"));
  EXPECT_EQ(LaneOutcome::kDone, Write("c"));
  EXPECT_EQ(platform::kFirstSleeper + 5, lane_->want_data);
  EXPECT_EQ(0u, sleepers_[5] & platform::kLaneWaiters);
  EXPECT_EQ(0, woken_.load());
  // A stub and the sentry may sleep there at once.
  sleepers_[5] |= platform::kStubSleeps | platform::kSentrySleeps;
  EXPECT_EQ(LaneOutcome::kTell, Write("d"));
  EXPECT_EQ(1, woken_.load());
  sleepers_[5] |= platform::kStubSleeps;
  EXPECT_EQ(LaneOutcome::kDone, Write("e"));
  EXPECT_EQ(2, woken_.load());
  // Who only looks sees another value.
  sleepers_[5] |= platform::kStubLooks;
  const uint32_t before = sleepers_[5];
  EXPECT_EQ(LaneOutcome::kDone, Write("f"));
  EXPECT_NE(before, sleepers_[5]);
  EXPECT_EQ(2, woken_.load());
}

TEST_F(StreamLaneTest, WhoWaitsForALaneIsWoken) {
  using platform::kStubSleeps;
  const uint32_t value = platform::AddLaneWaiter(&lane_->data_waiters, kStubSleeps);
  EXPECT_FALSE(platform::LaneHasNews(lane_, kGeneration));
  lane_->want_data = platform::kWish;  // and somebody in the sentry
  EXPECT_EQ(LaneOutcome::kTell, Write("a"));
  EXPECT_EQ(1, woken_.load());
  EXPECT_TRUE(platform::LaneHasNews(lane_, kGeneration));
  // Who has not gone to sleep yet, does not; and nobody is woken twice.
  EXPECT_NE(value, lane_->data_waiters);
  EXPECT_EQ(LaneOutcome::kDone, Write("b"));
  EXPECT_EQ(1, woken_.load());
  // Room is told of when there is enough.
  lane_->limit = 2;
  EXPECT_FALSE(platform::LaneHasRoom(lane_, kGeneration));
  platform::AddLaneWaiter(&lane_->room_waiters, kStubSleeps);
  lane_->kind = platform::kLaneUnix;
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 1));
  EXPECT_EQ(1, woken_.load());
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 1));
  EXPECT_EQ(2, woken_.load());
  // The end is news to all.
  lane_->open = 0;
  EXPECT_TRUE(platform::LaneHasNews(lane_, kGeneration));
  EXPECT_TRUE(platform::LaneHasRoom(lane_, kGeneration));
}

TEST_F(StreamLaneTest, AllOrNothingIsWritten) {
  lane_->limit = 10;
  EXPECT_EQ(LaneOutcome::kDone, Write("12345678"));
  EXPECT_EQ(LaneOutcome::kWait, Write("901"));
  EXPECT_EQ(LaneOutcome::kDone, Write("90"));
  EXPECT_EQ(LaneOutcome::kWait, Write("1"));
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 100));
  EXPECT_EQ("1234567890", text_);
}

TEST_F(StreamLaneTest, OthersAreKeptOut) {
  lane_->write_lock = kOther;
  EXPECT_EQ(LaneOutcome::kDeclined, Write("a"));
  lane_->write_lock = 0;
  EXPECT_EQ(LaneOutcome::kDeclined, Write("a", kGeneration + 1));
  lane_->open = 0;
  EXPECT_EQ(LaneOutcome::kDeclined, Write("a"));
  EXPECT_EQ(0u, lane_->write_lock);
  EXPECT_EQ(0u, lane_->written);
}

TEST_F(StreamLaneTest, AFaultChangesNothing) {
  ASSERT_EQ(LaneOutcome::kDone, Write("abc"));
  EXPECT_EQ(LaneOutcome::kDeclined, WriteLane(lane_, waker_, kGeneration, kOwner, 3,
                                              [](uint64_t, uint64_t) { return false; }));
  uint64_t n = 3;
  EXPECT_EQ(LaneOutcome::kDeclined, ReadLane(lane_, waker_, kGeneration, kOwner, &n,
                                             [](uint64_t, uint64_t) { return false; }));
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 100));
  EXPECT_EQ("abc", text_);
}

TEST_F(StreamLaneTest, APipeHasRoomByThePage) {
  lane_->kind = platform::kLanePipe;
  lane_->limit = 8192;
  ASSERT_EQ(LaneOutcome::kDone, Write(std::string(8192, 'x')));
  lane_->want_room = 1;
  // No page is free yet, and nobody has to know.
  EXPECT_EQ(LaneOutcome::kDone, Read(&text_, 4095));
  EXPECT_EQ(LaneOutcome::kWait, Write("y"));
  EXPECT_FALSE(platform::LaneWritable(lane_));
  EXPECT_EQ(LaneOutcome::kTell, Read(&text_, 1));
  EXPECT_TRUE(platform::LaneWritable(lane_));
  EXPECT_EQ(LaneOutcome::kDone, Write(std::string(4096, 'y')));
  EXPECT_EQ(LaneOutcome::kWait, Write("z"));
}

TEST_F(StreamLaneTest, ACounterCounts) {
  lane_->kind = platform::kLaneCounter;
  auto add = [&](uint64_t n) { return WriteCounter(lane_, waker_, kGeneration, kOwner, n); };
  uint64_t n = 0;
  auto take = [&] { return ReadCounter(lane_, waker_, kGeneration, kOther, &n); };
  EXPECT_EQ(LaneOutcome::kWait, take());
  lane_->want_data = 1;
  EXPECT_EQ(LaneOutcome::kTell, add(2));
  EXPECT_EQ(LaneOutcome::kDone, add(40));
  EXPECT_EQ(LaneOutcome::kDone, take());
  EXPECT_EQ(42u, n);
  EXPECT_EQ(LaneOutcome::kDeclined, add(platform::kCounterMax));
  EXPECT_EQ(LaneOutcome::kDone, add(platform::kCounterMax - 1));
  EXPECT_EQ(LaneOutcome::kDeclined, add(1));
  lane_->kind = platform::kLaneSemaphore;
  EXPECT_EQ(LaneOutcome::kDone, take());
  EXPECT_EQ(1u, n);
  EXPECT_EQ(platform::kCounterMax - 2, lane_->count);
  lane_->open = 0;
  EXPECT_EQ(LaneOutcome::kDeclined, take());
  EXPECT_EQ(LaneOutcome::kDeclined, add(1));
  EXPECT_EQ(3u, lane_->written);
}

TEST_F(StreamLaneTest, LongStreamsWrap) {
  std::minstd_rand random(1);
  uint64_t sent = 0, received = 0;
  auto byte = [](uint64_t position) { return static_cast<char>(position * 31 >> 3); };
  for (int i = 0; i < 5000; ++i) {
    std::string part(1 + random() % 3000, '\0');
    for (char& c : part) c = byte(sent + static_cast<uint64_t>(&c - part.data()));
    if (Write(part) == LaneOutcome::kDone) sent += part.size();
    Read(&text_, random() % 2900);
    for (char c : text_) ASSERT_EQ(byte(received++), c);
  }
  EXPECT_GT(sent, kLaneRing * 4);
}

// Whatever stands in a lane, nothing is touched outside of the ring (LE checks in Write and Read),
// and it ends.
TEST_F(StreamLaneTest, Nonsense) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 20000; ++i) {
    lane_->written = random() >> (random() % 64);
    lane_->read = random() % 2 ? lane_->written - random() % (2 * kLaneRing) : random();
    lane_->base = random();
    lane_->limit = random() >> (random() % 64);
    lane_->kind = static_cast<uint32_t>(random() % 6);
    Write(std::string(random() % 5000, 'x'));
    Read(&text_, random() % 5000);
  }
}

TEST_F(StreamLaneTest, TwoAtOnce) {
  constexpr uint64_t kTotal = 3'000'000;
  std::thread writer([&] {
    std::string part;
    for (uint64_t sent = 0; sent < kTotal;) {
      part.assign(1 + sent % 777, static_cast<char>(sent));
      if (Write(part) == LaneOutcome::kDone) sent += part.size();
    }
  });
  uint64_t received = 0;
  std::string text;
  while (received < kTotal) {
    Read(&text, 1000);
    received += text.size();
  }
  writer.join();
  while (Read(&text, 1000) == LaneOutcome::kDone) received += text.size();
  EXPECT_EQ(lane_->written, received);
}

class Holder : public base::RefCounted, public LaneUser {
 public:
  void LaneWritten() override { ++written; }
  void LaneRead() override { ++read; }
  int written = 0, read = 0;
};

TEST(LaneArenaTest, LanesAreNamedOnce) {
  auto arena = LaneArena::OfDomain("a");
  ASSERT_TRUE(arena.ok());
  EXPECT_EQ(arena->get(), LaneArena::OfDomain("a")->get());
  EXPECT_NE(arena->get(), LaneArena::OfDomain("b")->get());
  auto holder = base::MakeRef<Holder>();
  auto index = (*arena)->Allocate(*holder, *holder);
  ASSERT_TRUE(index.ok());
  uint64_t name = (*arena)->NameOf(*index);
  (*arena)->Tell(name, true);
  (*arena)->Tell(name, false);
  (*arena)->Tell(name + (uint64_t{1} << 32), true);
  (*arena)->Tell(~uint64_t{0}, true);
  EXPECT_EQ(1, holder->written);
  EXPECT_EQ(1, holder->read);
  (*arena)->Free(*index);
  (*arena)->Tell(name, true);
  EXPECT_EQ(1, holder->written);
  // Somebody is still at work in it: another is taken.
  (*arena)->lane(*index)->write_lock = LaneOwner().number();
  {
    LaneOwner lives;
    (*arena)->lane(*index)->write_lock = lives.number();
    auto other = (*arena)->Allocate(*holder, *holder);
    ASSERT_TRUE(other.ok());
    EXPECT_NE(*index, *other);
    (*arena)->Free(*other);
  }
  auto again = (*arena)->Allocate(*holder, *holder);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*index, *again);
  EXPECT_NE(name, (*arena)->NameOf(*again));
  (*arena)->Free(*again);
}

constexpr LaneRights kUser{.uid = 1000,
                           .gid = 100,
                           .permitted = 0,
                           .effective = 0,
                           .inheritable = 0,
                           .user_ns = 0x7fff12345678,
                           .pid_ns = 0x10,
                           .mount_ns = 0x20};
constexpr LaneRights Root() {
  LaneRights root = kUser;
  root.uid = root.gid = 0;
  root.permitted = root.effective = 1 << 6 | 1 << 7 | 1 << 10;  // CAP_SETGID, CAP_SETUID
  return root;
}

TEST(LaneRightsTest, NamesTellAll) {
  for (const LaneRights& rights : {kUser, Root()}) {
    const auto back = LaneRights::FromName(rights.Name());
    ASSERT_TRUE(back.has_value());
    EXPECT_EQ(rights.Name(), back->Name());
    EXPECT_EQ(rights.uid, back->uid);
    EXPECT_EQ(rights.effective, back->effective);
    EXPECT_EQ(rights.mount_ns, back->mount_ns);
  }
  EXPECT_FALSE(LaneRights::FromName("").has_value());
  EXPECT_FALSE(LaneRights::FromName("domain").has_value());
}

TEST(LaneRightsTest, WhoMayBecomeWhom) {
  EXPECT_TRUE(Root().MayBecome(Root()));
  EXPECT_TRUE(Root().MayBecome(kUser));
  EXPECT_FALSE(kUser.MayBecome(Root()));
  EXPECT_FALSE(kUser.MayBecome(kUser));
  for (int cap : {6, 7}) {
    LaneRights less = Root();
    less.effective &= ~(uint64_t{1} << cap);
    EXPECT_FALSE(less.MayBecome(kUser)) << cap;
  }
  LaneRights other = kUser;
  other.permitted = 1 << 12;
  EXPECT_FALSE(Root().MayBecome(other));
  other.permitted = 1 << 10;
  EXPECT_TRUE(Root().MayBecome(other));
  other.inheritable = 1 << 12;
  EXPECT_FALSE(Root().MayBecome(other));
  for (uintptr_t LaneRights::*ns :
       {&LaneRights::user_ns, &LaneRights::pid_ns, &LaneRights::mount_ns}) {
    LaneRights elsewhere = kUser;
    elsewhere.*ns += 1;
    EXPECT_FALSE(Root().MayBecome(elsewhere));
  }
}

TEST(LaneArenaTest, IsFoundByItsDomain) {
  auto arena = LaneArena::OfDomain("found");
  ASSERT_TRUE(arena.ok());
  EXPECT_EQ("found", DomainOf(**arena));
  bool found = false;
  for (const auto& [name, there] : LaneArenas()) found |= name == "found" && there == *arena;
  EXPECT_TRUE(found);
}

TEST(LaneArenaTest, SomeSleepersAreEverybodys) {
  auto arena = LaneArena::OfDomain("sleepers");
  ASSERT_TRUE(arena.ok());
  std::vector<int> taken;
  for (int n; (n = (*arena)->AllocateSleeper()) >= 0;) taken.push_back(n);
  EXPECT_EQ(platform::kLaneSleepers - platform::kCommonLaneSleepers, taken.size());
  for (int n : taken) (*arena)->FreeSleeper(n);
}

TEST(LaneArenaTest, ThereAreSoMany) {
  auto arena = LaneArena::OfDomain("many");
  ASSERT_TRUE(arena.ok());
  auto holder = base::MakeRef<Holder>();
  std::vector<uint32_t> taken;
  while (true) {
    auto index = (*arena)->Allocate(*holder, *holder);
    if (!index.ok()) break;
    taken.push_back(*index);
  }
  EXPECT_EQ(platform::kLanes, taken.size());
  for (uint32_t index : taken) (*arena)->Free(index);
}

}  // namespace
}  // namespace sentry
