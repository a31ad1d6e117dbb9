// Clocks, sleeps, interval and POSIX timers, CPU clocks.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"

TEST(Clock, MonotonicAndRealtimeAdvance) {
  int64_t a = NowNs(), b = NowNs();
  EXPECT_LE(a, b);
  EXPECT_GT(NowNs(CLOCK_REALTIME), 1700000000ll * 1000000000);
  timespec t;
  EXPECT_ERRNO(syscall(SYS_clock_gettime, 77, &t), EINVAL);
  EXPECT_ERRNO(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, BadAddress()), EFAULT);
  ASSERT_OK(clock_getres(CLOCK_MONOTONIC, &t));
  EXPECT_EQ(1, t.tv_nsec);
  // The system call agrees with the vDSO.
  timespec s;
  ASSERT_OK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &s));
  EXPECT_NEAR(NowNs(), s.tv_sec * 1e9 + s.tv_nsec, 1e8);
  timeval v;
  ASSERT_OK(syscall(SYS_gettimeofday, &v, nullptr));
  EXPECT_NEAR(time(nullptr), v.tv_sec, 1);
}

TEST(Clock, CpuClocksCountWorkOnly) {
  int64_t p = NowNs(CLOCK_PROCESS_CPUTIME_ID), t = NowNs(CLOCK_THREAD_CPUTIME_ID);
  SleepMs(100);
  int64_t p1 = NowNs(CLOCK_PROCESS_CPUTIME_ID);
  EXPECT_LT(p1 - p, 60000000);
  // However long a busy machine takes for it.
  while (NowNs(CLOCK_THREAD_CPUTIME_ID) - t < 20000000) continue;
  EXPECT_GT(NowNs(CLOCK_PROCESS_CPUTIME_ID) - p1, 15000000);
  EXPECT_GT(NowNs(CLOCK_THREAD_CPUTIME_ID) - t, 15000000);
  rusage usage;
  ASSERT_OK(getrusage(RUSAGE_SELF, &usage));
  EXPECT_GT(usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec +
                usage.ru_stime.tv_sec * 1000000 + usage.ru_stime.tv_usec,
            10000);
  EXPECT_GT(usage.ru_maxrss, 0);
  tms buffer;
  EXPECT_NE(static_cast<clock_t>(-1), times(&buffer));
}

TEST(Sleep, RelativeAndAbsolute) {
  timespec t{0, 20000000};
  int64_t start = NowNs();
  EXPECT_EQ(0, nanosleep(&t, nullptr));
  EXPECT_GE(NowNs() - start, 20000000);
  EXPECT_LT(NowNs() - start, 2000000000);
  int64_t target = NowNs() + 20000000;
  t = {static_cast<time_t>(target / 1000000000), static_cast<long>(target % 1000000000)};
  EXPECT_EQ(0, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr));
  EXPECT_GE(NowNs(), target);
  EXPECT_EQ(0, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr));  // in the past
  t = {0, 1000000000};
  EXPECT_ERRNO(nanosleep(&t, nullptr), EINVAL);
  t = {-1, 0};
  EXPECT_ERRNO(nanosleep(&t, nullptr), EINVAL);
}

TEST(Itimer, RealFiresRepeatedly) {
  static std::atomic<int> count;
  count = 0;
  signal(SIGALRM, [](int) { count++; });
  itimerval v{{0, 5000}, {0, 5000}}, old;
  ASSERT_OK(setitimer(ITIMER_REAL, &v, nullptr));
  int64_t end = NowNs() + 2000000000;
  while (count < 10 && NowNs() < end) pause();
  EXPECT_GE(count, 10);
  v = {};
  ASSERT_OK(setitimer(ITIMER_REAL, &v, &old));
  EXPECT_EQ(5000, old.it_interval.tv_usec);
  EXPECT_ERRNO(setitimer(static_cast<__itimer_which>(9), &v, nullptr), EINVAL);
}

TEST(Itimer, ProfCountsCpu) {
  static std::atomic<int> count;
  count = 0;
  signal(SIGPROF, [](int) { count++; });
  itimerval v{{0, 10000}, {0, 10000}};
  ASSERT_OK(setitimer(ITIMER_PROF, &v, nullptr));
  int64_t end = NowNs() + 3000000000;
  while (count < 3 && NowNs() < end) {
  }
  EXPECT_GE(count, 3);
  v = {};
  setitimer(ITIMER_PROF, &v, nullptr);
}

// A timer that counts CPU time expires while the process's memory changes all the time.
TEST(Itimer, CpuTimerBesideMappings) {
  static std::atomic<int> count;
  static std::atomic<bool> stop;
  count = 0;
  stop = false;
  signal(SIGVTALRM, [](int) { count++; });
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; i++) {
    threads.emplace_back([] {
      while (!stop) {
        void* p =
            mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(p, 1 << 16, PROT_READ);
        munmap(p, 1 << 20);
      }
    });
  }
  const itimerval often{{0, 1000}, {0, 1000}};
  ASSERT_OK(setitimer(ITIMER_VIRTUAL, &often, nullptr));
  const int64_t end = NowNs() + 1000000000;
  while (NowNs() < end) {
    itimerval now;
    ASSERT_OK(getitimer(ITIMER_VIRTUAL, &now));
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_GT(count, 3);
  const itimerval off{};
  setitimer(ITIMER_VIRTUAL, &off, nullptr);
}

TEST(Alarm, ReturnsTheRest) {
  signal(SIGALRM, SIG_IGN);
  EXPECT_EQ(0u, alarm(100));
  EXPECT_NEAR(100, alarm(0), 1);
}

TEST(PosixTimer, SignalWithValueAndOverrun) {
  static std::atomic<int> count, value;
  count = 0;
  struct sigaction sa {};
  sa.sa_sigaction = [](int, siginfo_t* info, void*) {
    if (info->si_code == SI_TIMER) count++;
    value = info->si_value.sival_int;
  };
  sa.sa_flags = SA_SIGINFO;
  sigaction(SIGRTMIN + 5, &sa, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 5;
  event.sigev_value.sival_int = 99;
  timer_t timer;
  ASSERT_OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
  itimerspec spec{{0, 10000000}, {0, 10000000}};
  ASSERT_OK(timer_settime(timer, 0, &spec, nullptr));
  int64_t end = NowNs() + 2000000000;
  while (count < 5 && NowNs() < end) pause();
  EXPECT_GE(count, 5);
  EXPECT_EQ(99, value);
  itimerspec now;
  ASSERT_OK(timer_gettime(timer, &now));
  EXPECT_EQ(10000000, now.it_interval.tv_nsec);
  ASSERT_OK(timer_delete(timer));
  EXPECT_ERRNO(timer_delete(timer), EINVAL);
}
