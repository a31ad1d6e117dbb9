// Pipes that are used so much that a kernel may find shorter ways for their bytes: whatever way
// they take, all else about them stays as it is.
#include <limits.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include <atomic>
#include <thread>
#include <vector>

#include "lanes/lane_util.h"

namespace {

// A pipe that has been in use.
struct BusyPipe {
  explicit BusyPipe(int flags = 0) {
    int fds[2];
    EXPECT_OK(pipe2(fds, flags));
    reader = fds[0];
    writer = fds[1];
    for (int i = 0; i < 300; ++i) {
      const std::string message = "message " + std::to_string(i);
      Put(message);
      EXPECT_EQ(message, ReadAll(reader, message.size()));
    }
  }
  ~BusyPipe() {
    CloseReader();
    CloseWriter();
  }
  void Put(const std::string& text) {
    EXPECT_EQ(static_cast<ssize_t>(text.size()), write(writer, text.data(), text.size()));
  }
  void CloseReader() {
    if (reader >= 0) close(reader);
    reader = -1;
  }
  void CloseWriter() {
    if (writer >= 0) close(writer);
    writer = -1;
  }
  int Unread() const {
    int n = -1;
    EXPECT_OK(ioctl(reader, FIONREAD, &n));
    return n;
  }
  int reader, writer;
};

TEST(PipeLane, EveryWayOfReadingAndWriting) {
  BusyPipe p;
  iovec parts[2] = {{const_cast<char*>("abc"), 3}, {const_cast<char*>("defg"), 4}};
  ASSERT_EQ(7, writev(p.writer, parts, 2));
  EXPECT_EQ(7, p.Unread());
  EXPECT_EQ(POLLIN, Poll(p.reader, POLLIN));
  char a[4], b[8];
  iovec into[2] = {{a, 4}, {b, 8}};
  ASSERT_EQ(7, readv(p.reader, into, 2));
  EXPECT_EQ("abcd", std::string(a, 4));
  EXPECT_EQ("efg", std::string(b, 3));
  EXPECT_EQ(0, Poll(p.reader, POLLIN));
  EXPECT_EQ(POLLOUT, Poll(p.writer, POLLOUT));
  EXPECT_ERRNO(write(p.reader, "x", 1), EBADF);
  EXPECT_ERRNO(read(p.writer, a, 1), EBADF);
  EXPECT_ERRNO(send(p.writer, "x", 1, 0), ENOTSOCK);
  EXPECT_ERRNO(recv(p.reader, a, 1, 0), ENOTSOCK);
  ASSERT_EQ(0, write(p.writer, "", 0));
}

TEST(PipeLane, BadBuffers) {
  BusyPipe p;
  EXPECT_ERRNO(write(p.writer, BadAddress(), 5), EFAULT);
  p.Put("there");
  EXPECT_ERRNO(read(p.reader, BadAddress(), 5), EFAULT);
}

TEST(PipeLane, EndsAreSeen) {
  BusyPipe p;
  p.Put("left");
  p.CloseWriter();
  EXPECT_EQ(POLLIN | POLLHUP, Poll(p.reader, POLLIN));
  EXPECT_EQ("left", ReadAll(p.reader, 4));
  char c;
  EXPECT_EQ(0, read(p.reader, &c, 1));
  EXPECT_EQ(0, read(p.reader, &c, 1));
  EXPECT_EQ(POLLHUP, Poll(p.reader, POLLIN));
}

TEST(PipeLane, WithoutReadersThereIsSigpipe) {
  EXPECT_EQ(-SIGPIPE, ExitStatus([] {
    BusyPipe p;
    p.CloseReader();
    write(p.writer, "x", 1);
    return 0;
  }));
  signal(SIGPIPE, SIG_IGN);
  BusyPipe p;
  p.Put("unread");
  p.CloseReader();
  EXPECT_ERRNO(write(p.writer, "x", 1), EPIPE);
  EXPECT_EQ(POLLOUT | POLLERR, Poll(p.writer, POLLOUT));
  signal(SIGPIPE, SIG_DFL);
}

TEST(PipeLane, CapacityCountsInPages) {
  BusyPipe p(O_NONBLOCK);
  int total = 0;
  while (write(p.writer, "x", 1) == 1) ++total;
  EXPECT_EQ(EAGAIN, errno);
  EXPECT_EQ(65536, total);
  EXPECT_EQ(0, Poll(p.writer, POLLOUT));
  // There is room again only when a page is free.
  ReadAll(p.reader, 1);
  EXPECT_ERRNO(write(p.writer, "x", 1), EAGAIN);
  EXPECT_EQ(0, Poll(p.writer, POLLOUT));
  ReadAll(p.reader, 4095);
  EXPECT_EQ(POLLOUT, Poll(p.writer, POLLOUT));
  EXPECT_EQ(61440, p.Unread());
  EXPECT_EQ(61440u, ReadAll(p.reader, 61440).size());
  EXPECT_ERRNO(read(p.reader, &total, 1), EAGAIN);
}

TEST(PipeLane, SmallWritesAreWholeOrNothing) {
  BusyPipe p(O_NONBLOCK);
  const std::string block(PIPE_BUF, 'b'), most(15 * PIPE_BUF + 1, 'm'), large(100'000, 'l');
  p.Put(most);
  EXPECT_ERRNO(write(p.writer, block.data(), block.size()), EAGAIN);
  EXPECT_EQ(PIPE_BUF - 1, write(p.writer, block.data(), PIPE_BUF - 1));
  EXPECT_EQ(65536u, ReadAll(p.reader, 65536).size());
  EXPECT_EQ(65536, write(p.writer, large.data(), large.size()));
  std::string all(70'000, ' ');
  EXPECT_EQ(65536, read(p.reader, all.data(), all.size()));
}

TEST(PipeLane, SizeCanBeChanged) {
  BusyPipe p(O_NONBLOCK);
  EXPECT_EQ(65536, fcntl(p.writer, F_GETPIPE_SZ));
  EXPECT_EQ(4096, fcntl(p.writer, F_SETPIPE_SZ, 4096));
  p.Put("x");
  EXPECT_EQ(0, Poll(p.writer, POLLOUT));
  p.Put(std::string(4095, 'y'));
  EXPECT_ERRNO(write(p.writer, "x", 1), EAGAIN);
  EXPECT_EQ(262144, fcntl(p.writer, F_SETPIPE_SZ, 262144));
  const std::string big(258048, 'z');
  ASSERT_EQ(258048, write(p.writer, big.data(), big.size()));
  EXPECT_ERRNO(fcntl(p.writer, F_SETPIPE_SZ, 65536), EBUSY);
  EXPECT_EQ(1048576, fcntl(p.writer, F_SETPIPE_SZ, 1048576));
  ASSERT_EQ(258048, write(p.writer, big.data(), big.size()));
  EXPECT_EQ("x" + std::string(4095, 'y') + big + big, ReadAll(p.reader, 4096 + 2 * big.size()));
}

TEST(PipeLane, PacketsKeepTheirBounds) {
  BusyPipe p;
  p.Put(std::string(4096, 's'));  // a whole page, to which nothing can be added
  ASSERT_OK(fcntl(p.writer, F_SETFL, O_DIRECT));
  p.Put("one");
  p.Put("three");
  ASSERT_OK(fcntl(p.writer, F_SETFL, 0));
  p.Put("after");
  char text[64];
  EXPECT_EQ(4096u, ReadAll(p.reader, 4096).size());
  EXPECT_EQ(3, read(p.reader, text, sizeof(text)));
  EXPECT_EQ(2, read(p.reader, text, 2));  // the rest of the packet is lost
  EXPECT_EQ("after", ReadAll(p.reader, 5));
}

TEST(PipeLane, SpliceAndTee) {
  BusyPipe p, q;
  p.Put("bytes on their way");
  EXPECT_EQ(5, tee(p.reader, q.writer, 5, 0));
  EXPECT_EQ("bytes", ReadAll(q.reader, 5));
  EXPECT_EQ(9, splice(p.reader, nullptr, q.writer, nullptr, 9, 0));
  EXPECT_EQ("bytes on ", ReadAll(q.reader, 9));
  iovec part{const_cast<char*>("!"), 1};
  EXPECT_EQ(1, vmsplice(p.writer, &part, 1, 0));
  EXPECT_EQ("their way!", ReadAll(p.reader, 10));
}

TEST(PipeLane, LongStreamsKeepTheirOrder) {
  BusyPipe p;
  constexpr size_t kTotal = 10'000'000;
  std::thread writer([&] {
    std::vector<char> part(100'000);
    size_t sent = 0;
    for (size_t size = 1; sent < kTotal; size = size * 7 % 99'991 + 1) {
      const size_t n = std::min(size, kTotal - sent);
      for (size_t i = 0; i < n; ++i) part[i] = static_cast<char>((sent + i) * 31 >> 4);
      ASSERT_EQ(static_cast<ssize_t>(n), write(p.writer, part.data(), n));
      sent += n;
    }
    p.CloseWriter();
  });
  std::vector<char> buffer(70'000);
  size_t got = 0, size = 1;
  while (true) {
    const ssize_t n = read(p.reader, buffer.data(), size);
    if (n <= 0) break;
    for (ssize_t i = 0; i < n; ++i, ++got) {
      ASSERT_EQ(static_cast<char>(got * 31 >> 4), buffer[static_cast<size_t>(i)]) << got;
    }
    size = size * 5 % 69'997 + 1;
  }
  writer.join();
  EXPECT_EQ(kTotal, got);
}

// Messages of many writers, each a number often repeated, never mixed; each is read by one of many.
TEST(PipeLane, ManyReadersAndWriters) {
  BusyPipe p;
  constexpr int kThreads = 4, kMessages = 4000;
  std::atomic<int> whole{0};
  std::vector<std::thread> writers, readers;
  for (int t = 0; t < kThreads; ++t) {
    writers.emplace_back([&, t] {
      const std::string message(512, static_cast<char>('a' + t));
      for (int i = 0; i < kMessages; ++i) p.Put(message);
    });
    readers.emplace_back([&] {
      char text[512];
      while (read(p.reader, text, sizeof(text)) == sizeof(text)) {
        if (std::string(text, 512) == std::string(512, text[0])) ++whole;
      }
    });
  }
  for (auto& t : writers) t.join();
  p.CloseWriter();
  for (auto& t : readers) t.join();
  EXPECT_EQ(kThreads * kMessages, whole.load());
}

TEST(PipeLane, EachOfManyWaitersIsWoken) {
  BusyPipe p;
  constexpr int kThreads = 4;
  for (int round = 0; round < 50; ++round) {
    std::vector<std::thread> readers;
    for (int t = 0; t < kThreads; ++t) {
      readers.emplace_back([&] {
        char c;
        EXPECT_EQ(1, read(p.reader, &c, 1));
      });
    }
    if (round % 2 == 0) SleepMs(1);
    for (int t = 0; t < kThreads; ++t) p.Put("x");
    for (auto& t : readers) t.join();
  }
}

TEST(PipeLane, ProcessesTalk) {
  BusyPipe there, back;
  const pid_t child = fork();
  if (child == 0) {
    there.CloseWriter();
    char c;
    while (read(there.reader, &c, 1) == 1) {
      if (write(back.writer, &c, 1) != 1) _exit(1);
    }
    _exit(0);
  }
  there.CloseReader();
  for (int i = 0; i < 2000; ++i) {
    const char c = static_cast<char>(i);
    ASSERT_EQ(1, write(there.writer, &c, 1));
    ASSERT_EQ(std::string(1, c), ReadAll(back.reader, 1));
  }
  there.CloseWriter();
  int status;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
}

// The other process is killed at any moment.
TEST(PipeLane, OthersMayBeKilled) {
  BusyPipe p;
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      while (true) write(p.writer, "0123456789", 10);
    }
    size_t got = 0;
    while (got < 200'000) got += ReadAll(p.reader, 1000).size();
    kill(child, SIGKILL);
    int status;
    ASSERT_EQ(child, waitpid(child, &status, 0));
    ASSERT_EQ(0u, (static_cast<size_t>(p.Unread()) + got) % 10);
    while (p.Unread() > 0) ReadAll(p.reader, static_cast<size_t>(p.Unread()));
    p.Put("still");
    ASSERT_EQ("still", ReadAll(p.reader, 5));
  }
}

TEST(PipeLane, SignalsWhenReady) {
  BusyPipe p;
  ASSERT_OK(fcntl(p.reader, F_SETOWN, getpid()));
  static std::atomic<int> count;
  count = 0;
  signal(SIGIO, [](int) { ++count; });
  ASSERT_OK(fcntl(p.reader, F_SETFL, O_ASYNC));
  for (int i = 1; i <= 20; ++i) {
    p.Put("x");
    const int64_t end = NowNs() + 2'000'000'000;
    while (count.load() < i && NowNs() < end) SleepMs(1);
    ASSERT_EQ(i, count.load());
    ReadAll(p.reader, 1);
  }
  signal(SIGIO, SIG_DFL);
}

TEST(PipeLane, EpollOfEitherEnd) {
  BusyPipe p(O_NONBLOCK);
  const int epoll = epoll_create1(0);
  for (int fd : {p.reader, p.writer}) {
    epoll_event e{EPOLLIN | EPOLLOUT, {.u32 = static_cast<uint32_t>(fd)}};
    ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e));
  }
  auto wait = [&] {
    epoll_event events[4];
    const int n = epoll_wait(epoll, events, 4, 0);
    std::string text;
    for (int i = 0; i < n; ++i) {
      text += std::string(text.empty() ? "" : " ") +
              (events[i].data.u32 == static_cast<uint32_t>(p.reader) ? "reader" : "writer") + ":" +
              std::to_string(events[i].events);
    }
    return text;
  };
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ("writer:4", wait());
    p.Put("x");
    const std::string both = wait();
    ASSERT_TRUE(both == "reader:1 writer:4" || both == "writer:4 reader:1") << both;
    p.Put(std::string(65536 - 4096, 'y'));
    ASSERT_EQ("reader:1", wait());
    ReadAll(p.reader, 65536 - 4095);
  }
  p.CloseWriter();
  ASSERT_EQ("reader:16", wait());
  close(epoll);
}

}  // namespace
