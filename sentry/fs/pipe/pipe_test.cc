#include "sentry/fs/pipe/pipe.h"

#include <sys/epoll.h>

#include <numeric>

#include "gtest/gtest.h"
#include "sentry/lanes/arena.h"

namespace sentry {
namespace {

std::vector<std::byte> Bytes(size_t n, int first = 0) {
  std::vector<std::byte> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<std::byte>(first + i * 7);
  return v;
}

// With `true`, of a pipe in a lane.
class PipeTest : public ::testing::TestWithParam<bool> {
 protected:
  PipeTest() {
    EXPECT_TRUE(pipe_->Open(true, true, false, false, &seen_).ok());
    if (GetParam()) {
      EXPECT_NE(pipe_->EnterLane(arena()), 0u);
    }
  }
  static LaneArena& arena() { return **LaneArena::OfDomain("test"); }
  base::Result<size_t> Write(const std::vector<std::byte>& v, bool packet = false) {
    BufferSource src(v);
    return pipe_->Write(src, true, packet, &broken_);
  }
  base::Result<std::vector<std::byte>> Read(size_t n) {
    std::vector<std::byte> v(n);
    BufferDest dst(v);
    auto r = pipe_->Read(dst, true);
    if (!r.ok()) return r.error();
    v.resize(*r);
    return v;
  }
  base::Ref<Pipe> pipe_ = base::MakeRef<Pipe>();
  uint32_t seen_;
  bool broken_ = false;
};

TEST_P(PipeTest, BytesComeOutInOrderAcrossTheWrap) {
  for (int round = 0; round < 50; ++round) {
    auto in = Bytes(5000, round);
    ASSERT_EQ(*Write(in), in.size());
    ASSERT_EQ(*Write(Bytes(3, 1)), 3u);
    EXPECT_EQ(*Read(5000), in);
    EXPECT_EQ(*Read(100), Bytes(3, 1));
  }
}

TEST_P(PipeTest, HoldsExactlyItsCapacityOfSmallWrites) {
  size_t n = 0;
  while (Write(Bytes(1)).ok()) ++n;
  EXPECT_EQ(n, 65536u);
  EXPECT_EQ(pipe_->BytesReadable(), 65536u);
  EXPECT_EQ(pipe_->Readiness(false, true, seen_), 0u);
  // As in Linux there is room again only when a whole page is free.
  EXPECT_TRUE(Read(1).ok());
  EXPECT_EQ(Write(Bytes(1)).error(), base::Error(EAGAIN));
  EXPECT_EQ(Read(4095)->size(), 4095u);
  EXPECT_EQ(pipe_->Readiness(false, true, seen_), uint32_t{EPOLLOUT | EPOLLWRNORM});
}

TEST_P(PipeTest, AtomicWritesAreNotSplit) {
  ASSERT_EQ(*Write(Bytes(15 * 4096 + 10)), 15u * 4096 + 10);
  EXPECT_EQ(Write(Bytes(4096)).error(), base::Error(EAGAIN));
  EXPECT_EQ(*Write(Bytes(4086)), 4086u);
}

TEST_P(PipeTest, LargeNonblockingWriteIsPartial) {
  EXPECT_EQ(*Write(Bytes(100000)), 65536u);
  EXPECT_EQ(*Read(70000), Bytes(65536));
  EXPECT_EQ(Read(1).error(), base::Error(EAGAIN));
}

TEST_P(PipeTest, Packets) {
  ASSERT_EQ(*Write(Bytes(10), true), 10u);
  ASSERT_EQ(*Write(Bytes(5000), true), 5000u);
  EXPECT_EQ(Read(4)->size(), 4u);  // the rest of the packet is lost
  EXPECT_EQ(Read(8000)->size(), 4096u);
  EXPECT_EQ(Read(8000)->size(), 904u);
}

TEST_P(PipeTest, ClosedEnds) {
  ASSERT_TRUE(Write(Bytes(3)).ok());
  pipe_->Close(false, true);
  EXPECT_EQ(pipe_->Readiness(true, false, seen_), uint32_t{EPOLLIN | EPOLLRDNORM | EPOLLHUP});
  EXPECT_EQ(Read(10)->size(), 3u);
  EXPECT_EQ(Read(10)->size(), 0u);
  uint32_t seen;
  ASSERT_TRUE(pipe_->Open(false, true, false, false, &seen).ok());
  pipe_->Close(true, false);
  EXPECT_EQ(Write(Bytes(1)).error(), base::Error(EPIPE));
  EXPECT_TRUE(broken_);
  EXPECT_EQ(pipe_->Readiness(false, true, seen_) & EPOLLERR, uint32_t{EPOLLERR});
}

TEST_P(PipeTest, Resize) {
  auto in = Bytes(3 * 4096);
  ASSERT_TRUE(Write(in).ok());
  EXPECT_EQ(pipe_->SetSize(4096, false).error(), base::Error(EBUSY));
  EXPECT_EQ(*pipe_->SetSize(3 * 4096, false), 4u * 4096);
  EXPECT_EQ(*pipe_->SetSize(1 << 20, false), 1u << 20);
  EXPECT_EQ(pipe_->SetSize(1 << 21, false).error(), base::Error(EPERM));
  EXPECT_EQ(*Read(100000), in);
}

TEST_P(PipeTest, FifoOpenWithoutPartner) {
  auto fifo = base::MakeRef<Pipe>();
  uint32_t seen;
  EXPECT_EQ(fifo->Open(false, true, true, true, &seen).error(), base::Error(ENXIO));
  ASSERT_TRUE(fifo->Open(true, false, true, true, &seen).ok());
  EXPECT_EQ(fifo->Readiness(true, false, seen), 0u);  // no hang-up before a writer was there
  uint32_t writer;
  ASSERT_TRUE(fifo->Open(false, true, true, true, &writer).ok());
  fifo->Close(false, true);
  EXPECT_EQ(fifo->Readiness(true, false, seen), uint32_t{EPOLLHUP});
}

TEST_P(PipeTest, PeekLeavesTheContent) {
  auto in = Bytes(9000);
  ASSERT_TRUE(Write(in).ok());
  std::vector<std::byte> out(9000);
  BufferDest dst(out);
  EXPECT_EQ(*pipe_->Peek(dst, true), 9000u);
  EXPECT_EQ(out, in);
  pipe_->Discard(8999);
  EXPECT_EQ(pipe_->BytesReadable(), 1u);
}

TEST_P(PipeTest, ContentMovesIntoALaneAndOut) {
  auto in = Bytes(9000);
  ASSERT_TRUE(Write(in).ok());
  ASSERT_EQ(*Read(5000), std::vector<std::byte>(in.begin(), in.begin() + 5000));
  ASSERT_NE(pipe_->EnterLane(arena()), 0u);
  EXPECT_TRUE(pipe_->lane_open());
  EXPECT_EQ(pipe_->BytesReadable(), 4000u);
  ASSERT_EQ(*Write(Bytes(3), true), 3u);  // a packet: out of the lane for good
  EXPECT_FALSE(pipe_->lane_open());
  EXPECT_EQ(pipe_->EnterLane(arena()), 0u);
  EXPECT_EQ(pipe_->BytesReadable(), 4003u);
  EXPECT_EQ(*Read(4000), std::vector<std::byte>(in.begin() + 5000, in.end()));
  EXPECT_EQ(*Read(100), Bytes(3));
}

TEST_P(PipeTest, PacketsStayOutOfLanes) {
  auto pipe = base::MakeRef<Pipe>();
  uint32_t seen;
  ASSERT_TRUE(pipe->Open(true, true, false, false, &seen).ok());
  auto in = Bytes(3);
  BufferSource src(in);
  ASSERT_TRUE(pipe->Write(src, true, true, &broken_).ok());
  EXPECT_EQ(pipe->EnterLane(arena()), 0u);
  pipe_->LeaveLanes();
  EXPECT_EQ(pipe_->EnterLane(arena()), 0u);
}

TEST_P(PipeTest, AnEndClosesTheLane) {
  ASSERT_NE(pipe_->EnterLane(arena()), 0u);
  ASSERT_TRUE(Write(Bytes(3)).ok());
  pipe_->Close(false, true);
  EXPECT_FALSE(pipe_->lane_open());
  EXPECT_EQ(pipe_->EnterLane(arena()), 0u);
  EXPECT_EQ(*Read(10), Bytes(3));
  EXPECT_EQ(*Read(10), Bytes(0));
}

INSTANTIATE_TEST_SUITE_P(Both, PipeTest, ::testing::Bool());

}  // namespace
}  // namespace sentry
