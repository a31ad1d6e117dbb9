// seccomp(2): strict mode, filters and what they answer.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <ucontext.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

long Seccomp(unsigned op, unsigned flags, const void* args) {
  return syscall(SYS_seccomp, op, flags, args);
}

using Code = std::vector<sock_filter>;
sock_filter Load(uint32_t offset) { return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset); }
sock_filter Return(uint32_t value) { return BPF_STMT(BPF_RET | BPF_K, value); }

// Answers call `nr` with `action` and allows the others.
Code Deny(uint32_t nr, uint32_t action) {
  return {Load(offsetof(seccomp_data, arch)),
          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
          Return(SECCOMP_RET_KILL_PROCESS),
          Load(offsetof(seccomp_data, nr)),
          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
          Return(action),
          Return(SECCOMP_RET_ALLOW)};
}

long Install(const Code& code, unsigned flags = 0) {
  sock_fprog program{static_cast<unsigned short>(code.size()),
                     const_cast<sock_filter*>(code.data())};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  return Seccomp(SECCOMP_SET_MODE_FILTER, flags, &program);
}

TEST(Seccomp, BadArguments) {
  EXPECT_ERRNO(Seccomp(99, 0, nullptr), EINVAL);
  EXPECT_ERRNO(Seccomp(SECCOMP_SET_MODE_STRICT, 1, nullptr), EINVAL);
  EXPECT_ERRNO(Seccomp(SECCOMP_SET_MODE_STRICT, 0, BadAddress()), EINVAL);
  EXPECT_ERRNO(Seccomp(SECCOMP_SET_MODE_FILTER, 0, nullptr), EFAULT);
  EXPECT_ERRNO(Seccomp(SECCOMP_SET_MODE_FILTER, 1 << 20, nullptr), EINVAL);
  sock_fprog none{0, nullptr};
  EXPECT_ERRNO(Seccomp(SECCOMP_SET_MODE_FILTER, 0, &none), EINVAL);
  sock_fprog bad{1, reinterpret_cast<sock_filter*>(BadAddress())};
  EXPECT_EQ(0, ExitStatus([&] {
              prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
              if (Seccomp(SECCOMP_SET_MODE_FILTER, 0, &bad) != -1 || errno != EFAULT) return 1;
              if (Install({Load(0)}) != -1 || errno != EINVAL) return 2;
              if (Install({Load(1), Return(0)}) != -1 || errno != EINVAL) return 3;
              if (prctl(PR_GET_SECCOMP) != 0) return 4;
              return 0;
            }));
  EXPECT_ERRNO(prctl(PR_SET_SECCOMP, 5, 0), EINVAL);
  uint32_t action = SECCOMP_RET_KILL_PROCESS;
  EXPECT_EQ(0, Seccomp(SECCOMP_GET_ACTION_AVAIL, 0, &action));
  action = SECCOMP_RET_TRACE;
  EXPECT_EQ(0, Seccomp(SECCOMP_GET_ACTION_AVAIL, 0, &action));
  action = 0x12345678;
  EXPECT_ERRNO(Seccomp(SECCOMP_GET_ACTION_AVAIL, 0, &action), EOPNOTSUPP);
  EXPECT_ERRNO(Seccomp(SECCOMP_GET_ACTION_AVAIL, 1, &action), EINVAL);
  EXPECT_ERRNO(Seccomp(SECCOMP_GET_ACTION_AVAIL, 0, nullptr), EFAULT);
  seccomp_notif_sizes sizes{};
  EXPECT_EQ(0, Seccomp(SECCOMP_GET_NOTIF_SIZES, 0, &sizes));
  EXPECT_EQ(sizeof(seccomp_notif), sizes.seccomp_notif);
  EXPECT_EQ(sizeof(seccomp_data), sizes.seccomp_data);
}

TEST(Seccomp, NeedsNoNewPrivsOrCapability) {
  EXPECT_EQ(0, ExitStatus([] {
              if (setresuid(1000, 1000, 1000) != 0) return 1;
              Code code = {Return(SECCOMP_RET_ALLOW)};
              sock_fprog program{1, code.data()};
              if (Seccomp(SECCOMP_SET_MODE_FILTER, 0, &program) != -1 || errno != EACCES) return 2;
              prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
              return Seccomp(SECCOMP_SET_MODE_FILTER, 0, &program) == 0 ? 0 : 3;
            }));
}

TEST(Seccomp, StrictMode) {
  EXPECT_EQ(7, ExitStatus([]() -> int {
              if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) _exit(1);
              write(1, "", 0);
              syscall(SYS_exit, 7);
              return 0;
            }));
  int status = RunInChild([]() -> int {
    if (Seccomp(SECCOMP_SET_MODE_STRICT, 0, nullptr) != 0) _exit(1);
    syscall(SYS_getpid);
    syscall(SYS_exit, 2);
    return 0;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(SIGKILL, WTERMSIG(status));
  EXPECT_EQ(0, ExitStatus([] {
              if (Install({Return(SECCOMP_RET_ALLOW)}) != 0) return 1;
              return Seccomp(SECCOMP_SET_MODE_STRICT, 0, nullptr) == -1 && errno == EINVAL ? 0 : 2;
            }));
}

TEST(Seccomp, Errno) {
  EXPECT_EQ(0, ExitStatus([] {
              if (Install(Deny(SYS_getppid, SECCOMP_RET_ERRNO | 77)) != 0) return 1;
              if (syscall(SYS_getppid) != -1 || errno != 77) return 2;
              if (prctl(PR_GET_SECCOMP) != 2) return 3;
              // The newest of equals decides; the stricter always.
              if (Install(Deny(SYS_getppid, SECCOMP_RET_ERRNO | 5)) != 0) return 4;
              if (syscall(SYS_getppid) != -1 || errno != 5) return 5;
              if (Install(Deny(SYS_getppid, SECCOMP_RET_ALLOW)) != 0) return 6;
              if (syscall(SYS_getppid) != -1 || errno != 5) return 7;
              if (Install(Deny(SYS_getuid, SECCOMP_RET_ERRNO | 0xffff)) != 0) return 8;
              if (syscall(SYS_getuid) != -1 || errno != 4095) return 9;
              if (Install(Deny(SYS_getgid, SECCOMP_RET_ERRNO)) != 0) return 10;
              if (syscall(SYS_getgid) != 0) return 11;
              return 0;
            }));
}

// What the sandbox answers on short ways must ask the filter too.
TEST(Seccomp, FastCallsAreAskedAbout) {
  for (long nr : {SYS_getpid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid,
                  SYS_sched_yield, SYS_clock_gettime, SYS_futex}) {
    EXPECT_EQ(0, ExitStatus([nr] {
                timespec ts;
                uint32_t word = 0;
                auto call = [&] {
                  return nr == SYS_clock_gettime ? syscall(nr, CLOCK_THREAD_CPUTIME_ID, &ts)
                         : nr == SYS_futex       ? syscall(nr, &word, FUTEX_WAKE, 1, 0, 0, 0)
                                                 : syscall(nr);
                };
                for (int i = 0; i < 20; i++) call();  // so that the site is known
                if (Install(Deny(static_cast<uint32_t>(nr), SECCOMP_RET_ERRNO | 99)) != 0) return 1;
                for (int i = 0; i < 20; i++) {
                  if (call() != -1 || errno != 99) return 2;
                }
                return 0;
              }))
        << nr;
  }
}

TEST(Seccomp, FutexByArguments) {
  EXPECT_EQ(0, ExitStatus([] {
              // Only FUTEX_WAKE_BITSET is denied.
              Code code = {Load(offsetof(seccomp_data, nr)),
                           BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 0, 3),
                           Load(offsetof(seccomp_data, args) + 8),
                           BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FUTEX_WAKE_BITSET, 0, 1),
                           Return(SECCOMP_RET_ERRNO | 99),
                           Return(SECCOMP_RET_ALLOW)};
              if (Install(code) != 0) return 1;
              std::atomic<uint32_t> word{0};
              timespec t{0, 20000000};
              if (syscall(SYS_futex, &word, FUTEX_WAKE_BITSET, 1, 0, 0, 1) != -1 || errno != 99)
                return 2;
              if (syscall(SYS_futex, &word, FUTEX_WAKE, 1, 0, 0, 0) != 0) return 3;
              if (syscall(SYS_futex, &word, FUTEX_WAIT, 1, &t, 0, 0) != -1 || errno != EAGAIN)
                return 4;
              int64_t start = NowNs();
              if (syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, 0, 0) != -1 || errno != ETIMEDOUT)
                return 5;
              if (NowNs() - start < 19000000) return 6;
              int count = 0;
              pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
              std::vector<std::thread> threads;
              for (int i = 0; i < 4; i++) {
                threads.emplace_back([&] {
                  for (int j = 0; j < 1000; j++) {
                    pthread_mutex_lock(&mutex);
                    count++;
                    pthread_mutex_unlock(&mutex);
                  }
                });
              }
              for (auto& th : threads) th.join();
              return count == 4000 ? 0 : 7;
            }));
}

TEST(Seccomp, ArgumentsAndPlace) {
  EXPECT_EQ(0, ExitStatus([] {
              Code code = {Load(offsetof(seccomp_data, nr)),
                           BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_dup, 0, 5),
                           Load(offsetof(seccomp_data, args) + 4),
                           BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x12345678, 0, 3),
                           Load(offsetof(seccomp_data, args)),
                           BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x9abcdef0, 0, 1),
                           Return(SECCOMP_RET_ERRNO | 99),
                           Return(SECCOMP_RET_ALLOW)};
              if (Install(code) != 0) return 1;
              if (syscall(SYS_dup, 0x123456789abcdef0) != -1 || errno != 99) return 2;
              if (syscall(SYS_dup, -1) != -1 || errno != EBADF) return 3;
              return 0;
            }));
}

siginfo_t g_info;
uint64_t g_rax, g_rip;
void OnSys(int, siginfo_t* info, void* context) {
  g_info = *info;
  auto& regs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  g_rax = static_cast<uint64_t>(regs[REG_RAX]);
  g_rip = static_cast<uint64_t>(regs[REG_RIP]);
  regs[REG_RAX] = 4711;
}

TEST(Seccomp, Trap) {
  EXPECT_EQ(0, ExitStatus([] {
              struct sigaction action {};
              action.sa_sigaction = OnSys;
              action.sa_flags = SA_SIGINFO;
              sigaction(SIGSYS, &action, nullptr);
              if (Install(Deny(SYS_getppid, SECCOMP_RET_TRAP | 123)) != 0) return 1;
              if (syscall(SYS_getppid) != 4711) return 2;
              if (g_info.si_signo != SIGSYS || g_info.si_code != 1 || g_info.si_errno != 123)
                return 3;
              if (g_info.si_syscall != SYS_getppid || g_info.si_arch != AUDIT_ARCH_X86_64) return 4;
              if (g_rax != SYS_getppid || reinterpret_cast<uint64_t>(g_info.si_call_addr) != g_rip)
                return 5;
              return 0;
            }));
  int status = RunInChild([] {
    if (Install(Deny(SYS_getppid, SECCOMP_RET_TRAP)) != 0) return 1;
    syscall(SYS_getppid);
    return 2;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(SIGSYS, WTERMSIG(status));
}

TEST(Seccomp, KillsProcessOrThread) {
  int status = RunInChild([] {
    signal(SIGSYS, SIG_IGN);
    if (Install(Deny(SYS_getppid, SECCOMP_RET_KILL_PROCESS)) != 0) return 1;
    syscall(SYS_getppid);
    return 2;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(SIGSYS, WTERMSIG(status));
  // The last thread's end is the process's.
  status = RunInChild([] {
    if (Install(Deny(SYS_getppid, SECCOMP_RET_KILL_THREAD)) != 0) return 1;
    syscall(SYS_getppid);
    return 2;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(SIGSYS, WTERMSIG(status));
  EXPECT_EQ(5, ExitStatus([] {
              std::thread([] {
                if (Install(Deny(SYS_getppid, SECCOMP_RET_KILL_THREAD)) != 0) _exit(1);
                syscall(SYS_getppid);
                _exit(2);
              }).join();
              return 5;
            }));
  // A tracer's action without a tracer.
  EXPECT_EQ(0, ExitStatus([] {
              if (Install(Deny(SYS_getppid, SECCOMP_RET_TRACE | 3)) != 0) return 1;
              return syscall(SYS_getppid) == -1 && errno == ENOSYS ? 0 : 2;
            }));
}

TEST(Seccomp, StaysOverForkAndExec) {
  EXPECT_EQ(
      0, ExitStatus([] {
        if (Install(Deny(SYS_mkdir, SECCOMP_RET_ERRNO | 99)) != 0) return 1;
        pid_t child = fork();
        if (child == 0) {
          if (syscall(SYS_mkdir, "/tmp/never", 0700) != -1 || errno != 99) _exit(1);
          execl("/bin/busybox", "busybox", "mkdir", "/tmp/never", nullptr);
          _exit(127);
        }
        int status;
        waitpid(child, &status, 0);
        return WIFEXITED(status) && WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 127 ? 0 : 3;
      }));
  EXPECT_EQ(0, ExitStatus([] {
              if (Install(Deny(SYS_mkdir, SECCOMP_RET_ERRNO | 99)) != 0) return 1;
              std::string text = ReadFile("/proc/self/status");
              if (text.find("Seccomp:\t2\n") == std::string::npos) return 2;
              return text.find("NoNewPrivs:\t1\n") != std::string::npos ? 0 : 3;
            }));
}

TEST(Seccomp, AllThreadsAtOnce) {
  EXPECT_EQ(
      0, ExitStatus([] {
        std::atomic<int> go{0}, bad{0};
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; i++) {
          threads.emplace_back([&] {
            while (go == 0) SleepMs(1);
            if (syscall(SYS_getppid) != -1 || errno != 99) bad++;
            if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) bad++;
          });
        }
        SleepMs(20);
        if (Install(Deny(SYS_getppid, SECCOMP_RET_ERRNO | 99), SECCOMP_FILTER_FLAG_TSYNC) != 0) {
          _exit(1);
        }
        go = 1;
        for (auto& t : threads) t.join();
        return bad == 0 ? 0 : 2;
      }));
  // A thread with filters of its own cannot be brought into line.
  EXPECT_EQ(
      0, ExitStatus([] {
        std::atomic<int> state{0};
        std::atomic<long> tid{0};
        std::thread other([&] {
          tid = syscall(SYS_gettid);
          Install({Return(SECCOMP_RET_ALLOW)});
          state = 1;
          while (state != 2) SleepMs(1);
        });
        while (state != 1) SleepMs(1);
        int result = 0;
        Code code = Deny(SYS_getppid, SECCOMP_RET_ERRNO | 99);
        if (Install(code, SECCOMP_FILTER_FLAG_TSYNC) != tid) result = 1;
        if (Install(code, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH) != -1 ||
            errno != ESRCH) {
          result = 2;
        }
        if (syscall(SYS_getppid) == -1) result = 3;
        state = 2;
        other.join();
        return result;
      }));
}

}  // namespace
