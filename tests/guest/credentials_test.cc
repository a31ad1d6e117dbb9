// User and group ids, capabilities, prctl, rlimits, uname and other facts about the process.
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include "guest_util.h"

namespace {
int GetCaps(uint32_t effective[2]) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (syscall(SYS_capget, &header, data)) return -1;
  effective[0] = data[0].effective;
  effective[1] = data[1].effective;
  return 0;
}
}  // namespace

TEST(Ids, SetresuidDropsForGood) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  EXPECT_EQ(0, ExitStatus([] {
              gid_t groups[3] = {10, 20, 30};
              if (setgroups(3, groups)) return 1;
              gid_t back[3];
              if (getgroups(3, back) != 3 || back[1] != 20) return 2;
              if (getgroups(2, back) != -1 || errno != EINVAL) return 3;
              if (setresgid(100, 100, 100) || setresuid(1000, 1000, 1000)) return 4;
              uid_t r, e, s;
              getresuid(&r, &e, &s);
              if (r != 1000 || e != 1000 || s != 1000) return 5;
              if (setuid(0) != -1 || errno != EPERM) return 6;
              if (setgroups(0, nullptr) != -1 || errno != EPERM) return 7;
              uint32_t caps[2];
              if (GetCaps(caps) || caps[0] || caps[1]) return 8;
              return 0;
            }));
}

TEST(Ids, SavedIdComesBack) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  EXPECT_EQ(0, ExitStatus([] {
              if (seteuid(1000)) return 1;
              uint32_t caps[2];
              if (GetCaps(caps) || caps[0]) return 2;
              if (seteuid(0)) return 3;
              if (GetCaps(caps) || !caps[0]) return 4;
              if (setreuid(1000, 1001)) return 5;
              uid_t r, e, s;
              getresuid(&r, &e, &s);
              return r == 1000 && e == 1001 && s == 1001 ? 0 : 6;
            }));
}

TEST(Ids, KillNeedsPermission) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  pid_t victim = fork();
  if (victim == 0) {
    for (;;) pause();
  }
  EXPECT_EQ(0, ExitStatus([&] {
              if (setuid(1000)) return 1;
              return kill(victim, SIGTERM) == -1 && errno == EPERM ? 0 : 2;
            }));
  kill(victim, SIGKILL);
  waitpid(victim, nullptr, 0);
}

TEST(Capabilities, DropAndErrors) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  EXPECT_EQ(0, ExitStatus([] {
              __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
              __user_cap_data_struct data[2]{};
              if (syscall(SYS_capget, &header, data)) return 1;
              data[0].effective &= ~(1u << CAP_CHOWN);
              if (syscall(SYS_capset, &header, data)) return 2;
              TempDir dir;
              WriteFile(dir / "f", "");
              if (chown((dir / "f").c_str(), 1, 1) != -1 || errno != EPERM) return 3;
              data[0].permitted &= ~(1u << CAP_CHOWN);
              if (syscall(SYS_capset, &header, data)) return 4;
              data[0].permitted |= 1u << CAP_CHOWN;
              if (syscall(SYS_capset, &header, data) != -1 || errno != EPERM) return 5;
              if (prctl(PR_CAPBSET_READ, CAP_KILL) != 1) return 6;
              if (prctl(PR_CAPBSET_DROP, CAP_KILL)) return 7;
              if (prctl(PR_CAPBSET_READ, CAP_KILL) != 0) return 8;
              if (prctl(PR_CAPBSET_READ, 99) != -1 || errno != EINVAL) return 9;
              header.version = 1;
              if (syscall(SYS_capget, &header, data) != -1 || errno != EINVAL) return 10;
              if (header.version != _LINUX_CAPABILITY_VERSION_3) return 11;
              return 0;
            }));
}

TEST(Prctl, NamesAndFlags) {
  char name[16] = {};
  ASSERT_OK(prctl(PR_SET_NAME, "a-name-that-is-too-long"));
  ASSERT_OK(prctl(PR_GET_NAME, name));
  EXPECT_STREQ("a-name-that-is-", name);
  EXPECT_EQ("a-name-that-is-\n", ReadFile("/proc/self/comm"));
  EXPECT_EQ(0, ExitStatus([] {
              if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 0) return 1;
              if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return 2;
              if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) return 3;
              if (prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) != -1 || errno != EINVAL) return 4;
              if (prctl(PR_SET_PDEATHSIG, SIGTERM)) return 5;
              int s = 0;
              if (prctl(PR_GET_PDEATHSIG, &s) || s != SIGTERM) return 6;
              if (prctl(PR_SET_DUMPABLE, 7) != -1 || errno != EINVAL) return 7;
              return 0;
            }));
  EXPECT_ERRNO(prctl(9999), EINVAL);
}

TEST(Prctl, ParentDeathSignal) {
  int fds[2];
  pipe(fds);
  pid_t middle = fork();
  if (middle == 0) {
    int ready[2];
    pipe(ready);
    if (fork() == 0) {
      close(fds[0]);
      signal(SIGUSR1, [](int) {});
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGUSR1);
      sigprocmask(SIG_BLOCK, &set, nullptr);
      prctl(PR_SET_PDEATHSIG, SIGUSR1);
      write(ready[1], "r", 1);
      timespec t{5, 0};
      if (sigtimedwait(&set, nullptr, &t) == SIGUSR1) write(fds[1], "d", 1);
      _exit(0);
    }
    char c;
    read(ready[0], &c, 1);
    _exit(0);
  }
  close(fds[1]);
  waitpid(middle, nullptr, 0);
  char c = 0;
  EXPECT_EQ(1, read(fds[0], &c, 1));
  EXPECT_EQ('d', c);
  close(fds[0]);
}

TEST(Facts, UnameSysinfoCpus) {
  utsname u;
  ASSERT_OK(uname(&u));
  EXPECT_STREQ("Linux", u.sysname);
  EXPECT_STREQ("x86_64", u.machine);
  struct sysinfo s;
  ASSERT_OK(sysinfo(&s));
  EXPECT_GT(s.totalram, 0u);
  EXPECT_GT(s.procs, 0);
  cpu_set_t set;
  ASSERT_OK(sched_getaffinity(0, sizeof set, &set));
  EXPECT_GT(CPU_COUNT(&set), 0);
  EXPECT_GE(sysconf(_SC_NPROCESSORS_ONLN), CPU_COUNT(&set));
  EXPECT_ERRNO(syscall(SYS_sched_getaffinity, 0, 1, &set), EINVAL);
  char b[16];
  EXPECT_EQ(16, syscall(SYS_getrandom, b, 16, 0));
  EXPECT_ERRNO(syscall(SYS_getrandom, b, 16, 0x100), EINVAL);
}

TEST(Facts, HostnameCanBeSetByRootWithTheCapability) {
  char name[65] = {};
  ASSERT_OK(gethostname(name, sizeof name));
  EXPECT_EQ(0, ExitStatus([] {
              if (getuid() == 0 && setuid(1000)) return 1;
              return sethostname("x", 1) == -1 && errno == EPERM ? 0 : 2;
            }));
}

TEST(Priority, NiceAndErrors) {
  EXPECT_EQ(0, ExitStatus([] {
              errno = 0;
              int before = getpriority(PRIO_PROCESS, 0);
              if (errno) return 1;
              if (setpriority(PRIO_PROCESS, 0, before + 3)) return 2;
              if (getpriority(PRIO_PROCESS, 0) != before + 3) return 3;
              if (getpriority(static_cast<__priority_which_t>(9), 0) != -1 || errno != EINVAL)
                return 4;
              errno = 0;
              if (getpriority(PRIO_PROCESS, 1 << 21) != -1 || errno != ESRCH) return 5;
              return 0;
            }));
}

TEST(Unknown, SystemCallIsEnosys) {
  EXPECT_ERRNO(syscall(999), ENOSYS);
  EXPECT_ERRNO(syscall(-1), ENOSYS);
}
