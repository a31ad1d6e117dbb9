// Many of a kind at once: threads, processes, descriptors.
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <atomic>
#include <vector>

#include "guest_util.h"

namespace {

// As many as wanted under the soft and hard limit; false if that is not allowed.
bool Raise(int resource, rlim_t wanted) {
  rlimit limit;
  if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return false;
  if (limit.rlim_cur >= wanted) return true;
  limit = {wanted, std::max(wanted, limit.rlim_max)};
  return setrlimit(static_cast<__rlimit_resource>(resource), &limit) == 0;
}

}  // namespace

TEST(Many, TwoThousandThreads) {
  constexpr int kThreads = 2000;
  struct Shared {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t all_here = PTHREAD_COND_INITIALIZER, go = PTHREAD_COND_INITIALIZER;
    int here = 0, sum = 0;
    bool started = false;
  } shared;
  auto body = [](void* p) -> void* {
    auto* s = static_cast<Shared*>(p);
    pthread_mutex_lock(&s->mutex);
    if (++s->here == kThreads) pthread_cond_signal(&s->all_here);
    while (!s->started) pthread_cond_wait(&s->go, &s->mutex);
    s->sum++;
    pthread_mutex_unlock(&s->mutex);
    return nullptr;
  };
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 64 << 10);
  std::vector<pthread_t> threads(kThreads);
  for (pthread_t& t : threads) ASSERT_EQ(0, pthread_create(&t, &attr, body, &shared));
  pthread_mutex_lock(&shared.mutex);
  while (shared.here < kThreads) pthread_cond_wait(&shared.all_here, &shared.mutex);
  EXPECT_NE(std::string::npos, ReadFile("/proc/self/status").find("Threads:\t2001\n"));
  shared.started = true;
  pthread_cond_broadcast(&shared.go);
  pthread_mutex_unlock(&shared.mutex);
  for (pthread_t t : threads) pthread_join(t, nullptr);
  EXPECT_EQ(kThreads, shared.sum);
}

TEST(Many, FiveThousandProcesses) {
  constexpr int kProcesses = 5000;
  if (!Raise(RLIMIT_NPROC, 2 * kProcesses)) GTEST_SKIP() << "RLIMIT_NPROC";
  int hold[2], here[2];
  ASSERT_OK(pipe(hold));
  ASSERT_OK(pipe(here));
  int started = 0;
  for (; started < kProcesses; ++started) {
    pid_t pid = fork();
    ASSERT_OK(pid) << "after " << started;
    if (pid == 0) {
      close(hold[1]);
      char c = 'x';
      write(here[1], &c, 1);
      read(hold[0], &c, 1);  // until the parent closes it
      _exit(started % 7);
    }
  }
  char buffer[4096];
  for (int seen = 0; seen < kProcesses;) {
    ssize_t n = read(here[0], buffer, sizeof buffer);
    ASSERT_GT(n, 0);
    seen += static_cast<int>(n);
  }
  close(hold[1]);
  int statuses[7] = {}, status;
  for (int i = 0; i < kProcesses; ++i) {
    ASSERT_OK(wait(&status));
    ASSERT_TRUE(WIFEXITED(status));
    statuses[WEXITSTATUS(status)]++;
  }
  for (int i = 0; i < 7; ++i) EXPECT_EQ(kProcesses / 7 + (i < kProcesses % 7), statuses[i]);
  EXPECT_ERRNO(wait(&status), ECHILD);
}

TEST(Many, HundredThousandDescriptors) {
  constexpr int kDescriptors = 100'000;
  if (!Raise(RLIMIT_NOFILE, kDescriptors + 100)) GTEST_SKIP() << "RLIMIT_NOFILE";
  auto body = [] {
    int event = eventfd(0, 0), poller = epoll_create1(0), last = -1;
    epoll_event e{.events = EPOLLIN, .data = {}};
    for (int i = 0; i < kDescriptors; ++i) {
      last = i % 10 == 0 ? eventfd(0, 0) : dup(event);
      if (last < 0) return 1;
      if (i % 10 == 0 && epoll_ctl(poller, EPOLL_CTL_ADD, last, &e) != 0) return 2;
    }
    if (last < kDescriptors) return 3;
    pollfd polled{last, POLLIN, 0};
    if (poll(&polled, 1, 0) != 0) return 4;
    eventfd_write(event, 1);
    if (poll(&polled, 1, 0) != 1) return 5;
    if (epoll_wait(poller, &e, 1, 0) != 0) return 6;
    // A child has them all, and closes them all.
    if (ExitStatus([&] {
          return fcntl(last, F_GETFD) == 0 && syscall(SYS_close_range, 3, ~0u, 0) == 0 ? 7 : 8;
        }) != 7) {
      return 7;
    }
    return close(last) == 0 && dup(event) == last ? 0 : 9;
  };
  EXPECT_EQ(0, ExitStatus(body));
}
