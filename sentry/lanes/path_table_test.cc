#include "sentry/lanes/path_table.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "platform/fd_lane.h"

namespace sentry {
namespace {

using platform::PathEntry;
using platform::PathQuery;

class Owner : public base::RefCounted {};

// A path as who asks for it has it.
struct Question {
  explicit Question(const std::string& path, bool follows = true,
                    uint64_t directory = platform::kPathAtRoot)
      : text(platform::kPathBuffer / 8) {
    memcpy(text.data(), path.data(), path.size());
    query = {0, directory, text.data(), static_cast<uint32_t>(path.size()), follows};
    query.hash = platform::HashPath(directory, follows, text.data(), query.length);
  }
  std::vector<uint64_t> text;
  PathQuery query;
};

class PathTableTest : public testing::Test {
 protected:
  PathTableTest() {
    static int domains = 0;
    table_ = *PathTable::OfDomain("test " + std::to_string(domains++), 1, base::MakeRef<Owner>());
    // As a stub has it.
    void* map =
        mmap(nullptr, platform::kPathTableSize, PROT_READ, MAP_SHARED, table_->file()->get(), 0);
    EXPECT_NE(MAP_FAILED, map);
    seen_ = static_cast<const platform::PathTable*>(map);
  }
  ~PathTableTest() override {
    munmap(const_cast<platform::PathTable*>(seen_), platform::kPathTableSize);
  }

  PathEntry EntryOf(int32_t error, std::vector<PathWord*> words, std::vector<PathWord*> attr = {}) {
    PathEntry e{};
    e.error = error;
    e.flags = platform::kPathFollows;
    e.epoch = table_->epoch();
    size_t n = 0;
    for (PathWord* word : words) {
      const uint32_t number = word->Use(*table_);
      e.step[n++] = {table_->ValueOf(number), number, 0};
    }
    e.steps = static_cast<uint8_t>(n);
    for (PathWord* word : attr) {
      const uint32_t number = word->Use(*table_);
      e.step[n++] = {table_->ValueOf(number), number, 0};
    }
    e.attr_words = static_cast<uint8_t>(attr.size());
    return e;
  }
  // The error of what is found, or -1. `attr`: what depends on attributes is asked for.
  int Find(const Question& q, bool attr = false) {
    int error = -1;
    const bool found = TakePath(seen_, q.query, [&](const PathEntry& e, bool* needs) {
      error = e.error;
      *needs = attr;
      return true;
    });
    return found ? error : -1;
  }

  base::Ref<PathTable> table_;
  const platform::PathTable* seen_;
};

TEST_F(PathTableTest, AttributesAtADescriptor) {
  constexpr uint64_t kPlace = 5ull << 31;
  PathWord attr, real;
  const uint64_t mine = table_->NewPlace(kPlace), others = table_->NewPlace(kPlace);
  platform::FdAttr fd{};
  fd.place = kPlace;
  fd.path_place = mine;
  auto use = [&] {
    fd.steps = 0;
    for (PathWord* word : {&attr, &real}) {
      const uint32_t number = word->Use(*table_);
      fd.step[fd.steps++] = {table_->ValueOf(number), number, 0};
    }
  };
  auto holds = [&](uint64_t place, uint64_t path_place) {
    return platform::TakeFdAttr(seen_, &fd, place, path_place, [](const platform::FdAttr&) {});
  };
  use();
  EXPECT_TRUE(holds(kPlace, mine));
  EXPECT_FALSE(holds(kPlace + 1, mine));
  EXPECT_FALSE(holds(kPlace, others));
  fd.sequence++;
  EXPECT_FALSE(holds(kPlace, mine));
  fd.sequence++;
  real.Changed();
  EXPECT_FALSE(holds(kPlace, mine));
  use();
  EXPECT_TRUE(holds(kPlace, mine));
  AllPathsChanged();  // what it is called, and who may go there, is nothing to it
  EXPECT_TRUE(holds(kPlace, mine));
  attr.Changing();
  EXPECT_FALSE(holds(kPlace, mine));
  use();
  fd.steps = 1000;
  EXPECT_FALSE(holds(kPlace, mine));
  use();
  table_->FreePlace(mine);
  EXPECT_FALSE(holds(kPlace, mine));
  // Where the table was taken away there are zeros.
  const auto none = std::make_unique<platform::PathTable>();
  EXPECT_FALSE(platform::TakeFdAttr(none.get(), &fd, kPlace, mine, [](const platform::FdAttr&) {}));
}

TEST_F(PathTableTest, HoldsUntilAWordChanges) {
  PathWord name, other, attr;
  const Question q("/a/b");
  EXPECT_EQ(-1, Find(q));
  table_->Publish(q.query, EntryOf(2, {&name, &other}, {&attr}), "");
  EXPECT_EQ(2, Find(q));
  EXPECT_EQ(2, Find(q, true));
  EXPECT_EQ(-1, Find(Question("/a/c")));
  EXPECT_EQ(-1, Find(Question("/a/b", false)));
  EXPECT_EQ(-1, Find(Question("/a/b", true, 77)));
  attr.Changed();
  EXPECT_EQ(2, Find(q));
  EXPECT_EQ(-1, Find(q, true));
  name.Changed();
  EXPECT_EQ(-1, Find(q));
  table_->Publish(q.query, EntryOf(20, {&name, &other}, {&attr}), "");
  EXPECT_EQ(20, Find(q, true));
  other.Changing();
  EXPECT_EQ(-1, Find(q));
}

TEST_F(PathTableTest, WhatWasLookedAtBeforeAChangeIsNotFound) {
  PathWord word;
  const Question q("/a");
  const PathEntry early = EntryOf(2, {&word});
  word.Changed();
  table_->Publish(q.query, early, "");
  EXPECT_EQ(-1, Find(q));
  const PathEntry before_mount = EntryOf(2, {&word});
  AllPathsChanged();
  table_->Publish(q.query, before_mount, "");
  EXPECT_EQ(-1, Find(q));
}

TEST_F(PathTableTest, AWordOfAnotherIsNotTheSame) {
  const Question q("/a");
  uint32_t number;
  {
    PathWord word;
    table_->Publish(q.query, EntryOf(2, {&word}), "");
    number = word.Use(*table_);
    EXPECT_EQ(2, Find(q));
  }
  EXPECT_EQ(-1, Find(q));
  PathWord next;
  EXPECT_EQ(number, next.Use(*table_));
  EXPECT_EQ(-1, Find(q));
}

TEST_F(PathTableTest, TablesOfOthersChangeToo) {
  auto second = *PathTable::OfDomain("another", 1, base::MakeRef<Owner>());
  PathWord word;
  const uint32_t number = word.Use(*second);
  const uint64_t value = second->ValueOf(number);
  const Question q("/a");
  table_->Publish(q.query, EntryOf(2, {&word}), "");
  word.Changed();
  EXPECT_EQ(-1, Find(q));
  EXPECT_NE(value, second->ValueOf(number));
  // Nothing depends on it any more.
  const uint64_t after = second->ValueOf(number);
  word.Changed();
  EXPECT_EQ(after, second->ValueOf(number));
}

TEST_F(PathTableTest, NobodyElseWrites) {
  const int fd = table_->file()->get();
  EXPECT_EQ(MAP_FAILED, mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  EXPECT_NE(0, mprotect(const_cast<platform::PathTable*>(seen_), 4096, PROT_READ | PROT_WRITE));
  char c = 1;
  EXPECT_EQ(-1, pwrite(fd, &c, 1, 0));
  EXPECT_NE(0, ftruncate(fd, 0));
}

TEST_F(PathTableTest, Places) {
  const uint64_t a = table_->NewPlace(1ull << 40), b = table_->NewPlace(2ull << 40);
  EXPECT_NE(a, b);
  EXPECT_EQ(1ull << 40, platform::PathDirectory(seen_, a));
  table_->SetPlace(b, 3ull << 40);
  EXPECT_EQ(3ull << 40, platform::PathDirectory(seen_, b));
  table_->FreePlace(a);
  EXPECT_EQ(platform::kPathNowhere, platform::PathDirectory(seen_, a));
  const uint64_t c = table_->NewPlace(4ull << 40);
  EXPECT_EQ(a % platform::kPathPlaces, c % platform::kPathPlaces);
  EXPECT_EQ(platform::kPathNowhere, platform::PathDirectory(seen_, a));
  std::vector<uint64_t> all;
  while (const uint64_t place = table_->NewPlace(1)) all.push_back(place);
  EXPECT_EQ(platform::kPathPlaces - 2, all.size());
}

TEST_F(PathTableTest, IsBounded) {
  PathWord word;
  const uint32_t many = 3 * platform::kPathEntries;
  for (uint32_t i = 0; i < many; i++) {
    const Question q("/file" + std::to_string(i));
    table_->Publish(q.query, EntryOf(static_cast<int32_t>(i), {&word}), "");
    ASSERT_EQ(static_cast<int>(i), Find(q));
  }
  uint32_t left = 0;
  for (uint32_t i = 0; i < many; i++) {
    const int found = Find(Question("/file" + std::to_string(i)));
    if (found == -1) continue;
    ASSERT_EQ(static_cast<int>(i), found);
    left++;
  }
  EXPECT_GT(left, platform::kPathEntries / 2);
  EXPECT_LE(left, platform::kPathEntries);
}

TEST_F(PathTableTest, IsAskedTwice) {
  const uint64_t hash = Question("/x").query.hash;
  EXPECT_FALSE(table_->Asked(hash));
  EXPECT_TRUE(table_->Asked(hash));
  table_->Tried(hash, true);
  EXPECT_TRUE(table_->Asked(hash));
  table_->Tried(hash, false);
  for (int i = 0; i < 100; i++) EXPECT_FALSE(table_->Asked(hash));
}

TEST_F(PathTableTest, KeepsTheTextOfLinks) {
  PathWord word;
  const Question q("/link");
  PathEntry e = EntryOf(0, {&word});
  e.flags |= platform::kPathHasLink;
  table_->Publish(q.query, e, "the target");
  std::string text;
  EXPECT_TRUE(TakePath(seen_, q.query, [&](const PathEntry& found, bool*) {
    text.assign(reinterpret_cast<const char*>(found.text) + platform::PathLinkAt(found.path_length),
                found.link_length);
    return true;
  }));
  EXPECT_EQ("the target", text);
}

}  // namespace
}  // namespace sentry
