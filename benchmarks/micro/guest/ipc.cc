// Rows of pipes, event counters, sockets, readiness and futexes.
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "benchmarks/micro/guest/row.h"

namespace micro {
namespace {

// Two one-way channels, or one pair of ends used both ways. The descriptors are closed at the end.
struct Channel {
  int ask_read = -1, ask_write = -1, answer_read = -1, answer_write = -1;
  size_t unit = 1;  // bytes of a message
  Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  ~Channel() {
    for (int fd : {ask_read, ask_write}) close(fd);
    if (answer_read != ask_write) close(answer_read);
    if (answer_write != ask_read) close(answer_write);
  }
  bool Set(int a, int b, int c, int d) {
    ask_read = a, ask_write = b, answer_read = c, answer_write = d;
    return a >= 0 && b >= 0 && c >= 0 && d >= 0;
  }
};

bool OpenPipes(Channel& c) {
  int a[2], b[2];
  return pipe(a) == 0 && pipe(b) == 0 && c.Set(a[0], a[1], b[0], b[1]);
}
bool OpenEventfds(Channel& c) {
  int a = eventfd(0, 0), b = eventfd(0, 0);
  c.unit = 8;
  return c.Set(a, dup(a), b, dup(b));
}
bool OpenSocketpair(Channel& c) {
  int s[2];
  return socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0 && c.Set(s[1], s[0], s[0], s[1]);
}
sockaddr_in Loopback() {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}
// A connected pair over loopback.
bool OpenTcp(Channel& c) {
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0) return false;
  sockaddr_in address = Loopback();
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  int client = -1, server = -1, on = 1;
  if (bind(listener, generic, length) == 0 && listen(listener, 8) == 0 &&
      getsockname(listener, generic, &length) == 0 &&
      (client = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(client, generic, length) == 0) {
    server = accept(listener, nullptr, nullptr);
  }
  int saved = errno;
  close(listener);
  errno = saved;
  if (server < 0) return false;
  setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return c.Set(server, client, client, server);
}

// One byte in and out again, by one thread.
void OneThread(benchmark::State& state, bool (*open_channel)(Channel&)) {
  Channel c;
  if (!open_channel(c)) return Fail(state, "open");
  uint64_t value = 1;
  for (auto _ : state) {
    if (write(c.ask_write, &value, c.unit) < 0 || read(c.ask_read, &value, c.unit) < 0) {
      Fail(state, "read");
      break;
    }
  }
}
void PipeByte(benchmark::State& state) { OneThread(state, OpenPipes); }
void EventfdByte(benchmark::State& state) { OneThread(state, OpenEventfds); }
void SocketpairByte(benchmark::State& state) { OneThread(state, OpenSocketpair); }
ROW("pipe_byte", PipeByte);
ROW("eventfd_byte", EventfdByte);
ROW("socketpair_byte", SocketpairByte);

// There and back between two processes; an iteration is the round.
void PingPong(benchmark::State& state, bool (*open_channel)(Channel&)) {
  Channel c;
  if (!open_channel(c)) return Fail(state, "open");
  pid_t child = fork();
  if (child < 0) return Fail(state, "fork");
  uint64_t value = 1;
  if (child == 0) {
    while (read(c.ask_read, &value, c.unit) == static_cast<ssize_t>(c.unit) && value != 2) {
      if (write(c.answer_write, &value, c.unit) < 0) break;
    }
    _exit(0);
  }
  for (auto _ : state) {
    value = 1;
    if (write(c.ask_write, &value, c.unit) < 0 || read(c.answer_read, &value, c.unit) < 0) {
      Fail(state, "read");
      break;
    }
  }
  value = 2;
  if (write(c.ask_write, &value, c.unit) < 0) perror("write");
  waitpid(child, nullptr, 0);
}
void PipePingPong(benchmark::State& state) { PingPong(state, OpenPipes); }
void EventfdPingPong(benchmark::State& state) { PingPong(state, OpenEventfds); }
void SocketpairPingPong(benchmark::State& state) { PingPong(state, OpenSocketpair); }
void TcpRoundTrip(benchmark::State& state) { PingPong(state, OpenTcp); }
ROW("pipe_pingpong", PipePingPong);
ROW("eventfd_pingpong", EventfdPingPong);
ROW("socketpair_pingpong", SocketpairPingPong);
ROW("tcp_roundtrip", TcpRoundTrip);

void TcpConnectClose(benchmark::State& state) {
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0) return Fail(state, "socket");
  sockaddr_in address = Loopback();
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(listener, generic, length) != 0 || listen(listener, 8) != 0 ||
      getsockname(listener, generic, &length) != 0) {
    close(listener);
    return Fail(state, "listen");
  }
  for (auto _ : state) {
    int client = socket(AF_INET, SOCK_STREAM, 0), server = -1;
    // Closing with a reset keeps the port from waiting a minute.
    linger reset = {1, 0};
    setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    if (connect(client, generic, length) == 0) server = accept(listener, nullptr, nullptr);
    close(client);
    if (server < 0) {
      Fail(state, "connect");
      break;
    }
    close(server);
  }
  close(listener);
}
ROW("tcp_connect_close", TcpConnectClose);

// One iteration sends 64 MiB from one process to another; the time is given for 1 GiB.
void TcpStream(benchmark::State& state) {
  constexpr size_t kBlock = 64 << 10, kBytes = 64 << 20;
  Channel c;
  if (!OpenTcp(c)) return Fail(state, "socket");
  std::vector<char> block(kBlock);
  pid_t child = fork();
  if (child < 0) return Fail(state, "fork");
  if (child == 0) {
    close(c.ask_write);
    size_t got = 0;
    for (ssize_t n; (n = read(c.ask_read, block.data(), kBlock)) > 0;) {
      got += static_cast<size_t>(n);
      if (got >= kBytes) {
        got -= kBytes;
        if (write(c.answer_write, block.data(), 1) < 0) break;
      }
    }
    _exit(0);
  }
  for (auto _ : state) {
    double start = NowNs();
    for (size_t sent = 0; sent < kBytes;) {
      ssize_t n = write(c.ask_write, block.data(), std::min(kBlock, kBytes - sent));
      if (n < 0) break;
      sent += static_cast<size_t>(n);
    }
    if (read(c.answer_read, block.data(), 1) != 1) {
      Fail(state, "stream");
      break;
    }
    state.SetIterationTime((NowNs() - start) / 1e9 * 16);
  }
  shutdown(c.ask_write, SHUT_RDWR);
  waitpid(child, nullptr, 0);
}
ROW_MANUAL("tcp_stream_1g", TcpStream);

// 1,000 pipes in the interest list, one ready.
void EpollWait1000(benchmark::State& state) {
  rlimit limit = {4096, 4096};
  setrlimit(RLIMIT_NOFILE, &limit);
  int epoll = epoll_create1(0);
  std::vector<int> fds;
  bool ok = epoll >= 0;
  for (int i = 0; ok && i < 1000; ++i) {
    int fd = eventfd(i == 500 ? 1 : 0, EFD_NONBLOCK);
    epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};
    ok = fd >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
    fds.push_back(fd);
  }
  if (!ok) {
    Fail(state, "epoll_ctl");
  } else {
    epoll_event events[16];
    for (auto _ : state) {
      if (epoll_wait(epoll, events, 16, -1) != 1) {
        Fail(state, "epoll_wait");
        break;
      }
    }
  }
  for (int fd : fds) close(fd);
  close(epoll);
}
ROW("epoll_wait_1000", EpollWait1000);

void Poll64(benchmark::State& state) {
  pollfd fds[64];
  for (int i = 0; i < 64; ++i) fds[i] = {eventfd(i == 32 ? 1 : 0, EFD_NONBLOCK), POLLIN, 0};
  for (auto _ : state) {
    if (poll(fds, 64, -1) != 1) {
      Fail(state, "poll");
      break;
    }
  }
  for (pollfd& p : fds) close(p.fd);
}
ROW("poll_64", Poll64);

long Futex(std::atomic<uint32_t>* word, int op, uint32_t value) {
  return syscall(SYS_futex, word, op, value, nullptr, nullptr, 0);
}
void WaitWhile(std::atomic<uint32_t>* word, uint32_t value) {
  while (word->load() == value) Futex(word, FUTEX_WAIT_PRIVATE, value);
}

// Two threads wake each other; an iteration is the round.
void FutexPingPong(benchmark::State& state) {
  alignas(64) static std::atomic<uint32_t> ask, answer;
  ask = answer = 0;
  bool stop = false;
  std::thread other([&] {
    for (uint32_t round = 0;; ++round) {
      WaitWhile(&ask, round);
      if (stop) return;
      answer.store(round + 1);
      Futex(&answer, FUTEX_WAKE_PRIVATE, 1);
    }
  });
  uint32_t round = 0;
  for (auto _ : state) {
    ask.store(round + 1);
    Futex(&ask, FUTEX_WAKE_PRIVATE, 1);
    WaitWhile(&answer, round);
    ++round;
  }
  stop = true;
  ask.store(round + 1);
  Futex(&ask, FUTEX_WAKE_PRIVATE, 1);
  other.join();
}
ROW("futex_pingpong", FutexPingPong);

void MutexUncontended(benchmark::State& state) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  for (auto _ : state) {
    pthread_mutex_lock(&mutex);
    pthread_mutex_unlock(&mutex);
  }
}
ROW("mutex_uncontended", MutexUncontended);

void FutexWakeNone(benchmark::State& state) {
  std::atomic<uint32_t> word{0};
  for (auto _ : state) benchmark::DoNotOptimize(Futex(&word, FUTEX_WAKE_PRIVATE, 1));
}
ROW("futex_wake_none", FutexWakeNone);

}  // namespace
}  // namespace micro
