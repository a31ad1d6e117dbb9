#include <fcntl.h>
#include <sys/epoll.h>

#include "gtest/gtest.h"
#include "sentry/net/unix/unix_socket.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

using Pair = std::pair<base::Ref<FileDescription>, base::Ref<FileDescription>>;

class UnixTest : public ::testing::Test {
 protected:
  Pair Make(int type) { return *NewUnixPair(vfs_, type, 0, 0); }
  base::Result<size_t> Send(base::Ref<FileDescription>& f, std::string_view text,
                            FileList files = {}) {
    SendArgs args;
    args.nonblock = true;
    args.flags = MSG_NOSIGNAL;
    args.files = std::move(files);
    BufferSource src(std::as_bytes(std::span(text)));
    return Socket::From(*f)->Send(src, std::move(args));
  }
  base::Result<std::string> Recv(base::Ref<FileDescription>& f, size_t n, int flags = 0) {
    std::string text(n, '\0');
    BufferDest dst(std::as_writable_bytes(std::span(text)));
    args_ = RecvArgs();
    args_.nonblock = true;
    args_.flags = flags;
    auto got = Socket::From(*f)->Receive(dst, &args_);
    if (!got.ok()) return got.error();
    text.resize(*got);
    return text;
  }
  Vfs vfs_;
  RecvArgs args_;
};

TEST_F(UnixTest, StreamGluesAndSplits) {
  auto [a, b] = Make(SOCK_STREAM);
  EXPECT_EQ(Recv(b, 1).error(), base::Error(EAGAIN));
  EXPECT_EQ(*Send(a, "hello"), 5u);
  EXPECT_EQ(*Send(a, "world"), 5u);
  EXPECT_EQ(*Recv(b, 20, MSG_PEEK), "helloworld");
  EXPECT_EQ(*Recv(b, 7), "hellowo");
  EXPECT_EQ(*Recv(b, 20), "rld");
}

TEST_F(UnixTest, StreamBackpressureAndReadiness) {
  auto [a, b] = Make(SOCK_STREAM);
  std::string big(1 << 20, 'x');
  size_t n = *Send(a, big);
  EXPECT_EQ(n, 212992u);
  EXPECT_EQ(Send(a, "x").error(), base::Error(EAGAIN));
  EXPECT_EQ(a->Readiness() & EPOLLOUT, 0u);
  EXPECT_EQ(b->Readiness() & EPOLLIN, uint32_t{EPOLLIN});
  EXPECT_EQ(Recv(b, n)->size(), n);
  EXPECT_EQ(a->Readiness() & EPOLLOUT, uint32_t{EPOLLOUT});
}

TEST_F(UnixTest, ClosedPeer) {
  auto [a, b] = Make(SOCK_STREAM);
  EXPECT_TRUE(Send(a, "bye").ok());
  a.reset();
  EXPECT_EQ(b->Readiness() & (EPOLLHUP | EPOLLRDHUP), uint32_t{EPOLLHUP | EPOLLRDHUP});
  EXPECT_EQ(*Recv(b, 10), "bye");
  EXPECT_EQ(*Recv(b, 10), "");
  EXPECT_EQ(Send(b, "x").error(), base::Error(EPIPE));
  auto [c, d] = Make(SOCK_STREAM);
  EXPECT_TRUE(Send(c, "unread").ok());
  d.reset();
  EXPECT_EQ(Recv(c, 1).error(), base::Error(ECONNRESET));
}

TEST_F(UnixTest, Messages) {
  for (int type : {SOCK_DGRAM, SOCK_SEQPACKET}) {
    auto [a, b] = Make(type);
    EXPECT_EQ(*Send(a, "one"), 3u);
    EXPECT_EQ(*Send(a, ""), 0u);
    EXPECT_EQ(*Send(a, "three"), 5u);
    EXPECT_EQ(*Recv(b, 2), "on");
    EXPECT_EQ(args_.out_flags, MSG_TRUNC);
    EXPECT_EQ(args_.full_length, 3u);
    EXPECT_EQ(*Recv(b, 10), "");
    EXPECT_EQ(*Recv(b, 10), "three");
    EXPECT_EQ(Send(a, std::string(300000, 'x')).error(), base::Error(EMSGSIZE));
  }
}

TEST_F(UnixTest, ShutdownEndsOneDirection) {
  auto [a, b] = Make(SOCK_STREAM);
  ASSERT_TRUE(Socket::From(*a)->Shutdown(SHUT_WR).ok());
  EXPECT_EQ(*Recv(b, 1), "");
  EXPECT_EQ(Send(a, "x").error(), base::Error(EPIPE));
  EXPECT_TRUE(Send(b, "x").ok());
  EXPECT_EQ(*Recv(a, 1), "x");
}

TEST_F(UnixTest, FilesTravelAndStopTheRead) {
  auto [a, b] = Make(SOCK_STREAM);
  auto [c, d] = Make(SOCK_STREAM);
  EXPECT_TRUE(Send(a, "1").ok());
  EXPECT_TRUE(Send(a, "2", {c}).ok());
  EXPECT_TRUE(Send(a, "3").ok());
  EXPECT_EQ(*Recv(b, 10), "12");
  ASSERT_EQ(args_.files.size(), 1u);
  EXPECT_EQ(args_.files[0], c);
  EXPECT_EQ(*Recv(b, 10), "3");
  EXPECT_TRUE(args_.files.empty());
}

TEST_F(UnixTest, UnreachableCycleIsCollected) {
  base::Ref<FileDescription> pipe_like;
  {
    auto [witness, other] = Make(SOCK_STREAM);
    pipe_like = witness;
    auto [a, b] = Make(SOCK_STREAM);
    // b's queue holds b itself and `other`; then both ends are closed.
    EXPECT_TRUE(Send(a, "x", {b, other}).ok());
    other.reset();
  }
  // The cycle went with the close of a or b, and with it the last reference to `other`.
  EXPECT_EQ(pipe_like->Readiness() & EPOLLHUP, uint32_t{EPOLLHUP});
}

TEST_F(UnixTest, DeepNestingIsDroppedWithoutRecursion) {
  Pair inner = Make(SOCK_STREAM);
  for (int i = 0; i < 500; ++i) {
    Pair outer = Make(SOCK_STREAM);
    ASSERT_TRUE(Send(outer.first, "x", {inner.first, inner.second}).ok()) << i;
    inner = std::move(outer);
  }
}

TEST_F(UnixTest, ConnectAndAccept) {
  auto listener = base::MakeRef<UnixEndpoint>(SOCK_STREAM);
  auto client = base::MakeRef<UnixEndpoint>(SOCK_STREAM);
  auto names = base::MakeRef<AbstractNames>();
  EXPECT_EQ(client->ConnectTo(*listener, {}, true, 0).error(), base::Error(ECONNREFUSED));
  EXPECT_EQ(listener->Listen(1, {}).error(), base::Error(EINVAL));
  ASSERT_TRUE(listener->BindAbstract(*names, std::string("\0n", 2)).ok());
  ASSERT_TRUE(listener->Listen(0, {}).ok());
  EXPECT_EQ(listener->Accept(true, 0).error(), base::Error(EAGAIN));
  ASSERT_TRUE(client->ConnectTo(*listener, {}, true, 0).ok());
  auto second = base::MakeRef<UnixEndpoint>(SOCK_STREAM);
  EXPECT_EQ(second->ConnectTo(*listener, {}, true, 0).error(), base::Error(EAGAIN));
  EXPECT_EQ(listener->Readiness() & EPOLLIN, uint32_t{EPOLLIN});
  auto server = listener->Accept(true, 0);
  ASSERT_TRUE(server.ok());
  EXPECT_EQ((*server)->peer().get(), client.get());
  EXPECT_EQ((*server)->name(), std::string("\0n", 2));
  ASSERT_TRUE(second->ConnectTo(*listener, {}, true, 0).ok());
  EXPECT_NE(names->Find(std::string("\0n", 2), SOCK_STREAM), nullptr);
  listener->Release();
  EXPECT_EQ(second->TakeError(), ECONNRESET);
  EXPECT_EQ(names->Find(std::string("\0n", 2), SOCK_STREAM), nullptr);
  client->Release();
  second->Release();
  (*server)->Release();
}

}  // namespace
}  // namespace sentry
