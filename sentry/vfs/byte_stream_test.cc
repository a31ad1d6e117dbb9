#include "sentry/vfs/byte_stream.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace sentry {
namespace {

class Holder : public base::RefCounted, public LaneUser {
 public:
  void LaneWritten() override {}
  void LaneRead() override {}
};

class ByteStreamTest : public testing::Test {
 protected:
  // Fills in, then gives all but the last `held` bytes of what is there to the reader.
  void Put(ByteStream& stream, const std::string& text, size_t held, bool keep) {
    ByteStream::WriterTurn turn(stream);
    ASSERT_TRUE(stream.Ensure().ok());
    BufferSource src{std::as_bytes(std::span(text))};
    auto n = stream.Fill(src, text.size());
    ASSERT_TRUE(n.ok());
    const size_t all = stream.held() + *n;
    stream.Produced(all - held, held);
    stream.KeepTurn(keep);
  }
  std::string Take(ByteStream& stream) {
    ByteStream::ReaderTurn turn(stream);
    std::string text(stream.Used(), 0);
    BufferDest dst{std::as_writable_bytes(std::span(text))};
    EXPECT_TRUE(stream.Copy(stream.read(), text.size(), dst).ok());
    stream.ConsumedTo(stream.read() + text.size());
    stream.Rewind();
    return text;
  }
};

TEST_F(ByteStreamTest, HeldBytesAreSeenLater) {
  ByteStream stream;
  const size_t room = stream.Room();
  Put(stream, "abcde", 2, /*keep=*/true);
  EXPECT_EQ(3u, stream.Used());
  EXPECT_EQ(2u, stream.held());
  EXPECT_EQ(room - 5, stream.Room());
  // The ring does not begin anew under them.
  EXPECT_EQ("abc", Take(stream));
  Put(stream, "fg", 0, /*keep=*/false);
  EXPECT_EQ("defg", Take(stream));
  EXPECT_EQ(room, stream.Room());
}

TEST_F(ByteStreamTest, HeldBytesAndKeptTurnsMoveIntoLanes) {
  auto arena = LaneArena::OfDomain("byte_stream_test");
  ASSERT_TRUE(arena.ok());
  auto holder = base::MakeRef<Holder>();
  auto of_first = [&] { return &(*arena)->lane(0)->write_lock; };
  {
    ByteStream stream;
    Put(stream, "abcde", 3, /*keep=*/true);
    ASSERT_TRUE(stream.EnterLane(**arena, *holder, *holder));
    // Nobody else writes before it is given up.
    EXPECT_EQ(LaneArena::kSentryOwner, *of_first());
    EXPECT_EQ("ab", Take(stream));
    Put(stream, "f", 1, /*keep=*/true);
    EXPECT_EQ(LaneArena::kSentryOwner, *of_first());
    EXPECT_EQ("cde", Take(stream));
    Put(stream, "", 0, /*keep=*/false);
    EXPECT_EQ(0u, *of_first());
    EXPECT_EQ("f", Take(stream));
    Put(stream, "g", 1, /*keep=*/true);
  }
  // The lane serves again, though its turn was kept to the end.
  ByteStream next;
  Put(next, "x", 0, /*keep=*/false);
  ASSERT_TRUE(next.EnterLane(**arena, *holder, *holder));
  next.OpenLane(true);
  EXPECT_EQ(0u, platform::LaneIndex(next.LaneName()));
  EXPECT_EQ("x", Take(next));
}

}  // namespace
}  // namespace sentry
