// Small things that real programs rely on: what poll leaves alone, what a truncation tells, the
// order of execve's errors, CPU clocks, and files of /proc that must not only exist.
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>

#include <atomic>
#include <sstream>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

constexpr long kPage = 4096;

// CPU time is spent until `clock` has advanced by `ms`.
void Burn(int ms, clockid_t clock = CLOCK_THREAD_CPUTIME_ID) {
  int64_t end = NowNs(clock) + ms * 1'000'000LL;
  while (NowNs(clock) < end) {
  }
}

int64_t Ns(const timeval& t) { return t.tv_sec * 1'000'000'000LL + t.tv_usec * 1000LL; }

// The names of the events that can be read now.
std::vector<uint32_t> Events(int fd) {
  std::vector<uint32_t> masks;
  alignas(inotify_event) char buffer[4096];
  ssize_t n;
  while ((n = read(fd, buffer, sizeof buffer)) > 0) {
    for (ssize_t at = 0; at < n;) {
      auto* event = reinterpret_cast<inotify_event*>(buffer + at);
      masks.push_back(event->mask);
      at += static_cast<ssize_t>(sizeof(*event) + event->len);
    }
  }
  return masks;
}

// Of the file's lines "key: value" the number behind `key`, of the first that starts with it after
// `from`.
long NumberIn(const std::string& text, const std::string& key, size_t from = 0) {
  size_t at = text.find("\n" + key, from);
  if (at == std::string::npos) return -1;
  at = text.find_first_of("0123456789", at + 1 + key.size());
  return at == std::string::npos ? -1 : strtol(text.c_str() + at, nullptr, 10);
}

int ExecErrno(const char* path, char* const* argv, char* const* envp) {
  execve(path, argv, envp);
  return errno;
}

}  // namespace

TEST(Poll, NeverChangesEvents) {
  int fds[2];
  ASSERT_OK(pipe(fds));
  volatile pollfd polled[2] = {{fds[0], POLLIN, 0}, {-1, static_cast<short>(0x7fff), 0x55}};
  std::thread other([&] {
    SleepMs(50);
    polled[0].events = POLLPRI;
    write(fds[1], "x", 1);
  });
  EXPECT_EQ(1, poll(const_cast<pollfd*>(polled), 2, 5000));
  other.join();
  EXPECT_EQ(POLLPRI, polled[0].events);
  EXPECT_EQ(POLLIN, polled[0].revents);
  EXPECT_EQ(0x7fff, polled[1].events);
  EXPECT_EQ(0, polled[1].revents);
  EXPECT_EQ(fds[0], polled[0].fd);
  // With events that do not exist, and a descriptor that is not open.
  pollfd odd[2] = {{fds[0], static_cast<short>(0xffff), 0}, {1000, POLLIN | POLLOUT, 0}};
  EXPECT_EQ(2, poll(odd, 2, 0));
  EXPECT_EQ(static_cast<short>(0xffff), odd[0].events);
  EXPECT_EQ(POLLIN | POLLOUT, odd[1].events);
  EXPECT_EQ(POLLNVAL, odd[1].revents);
  close(fds[0]);
  close(fds[1]);
}

TEST(Inotify, TruncatingOpenIsAModification) {
  TempDir dir;
  WriteFile(dir / "f", "content");
  WriteFile(dir / "empty", "");
  int fd = inotify_init1(IN_NONBLOCK);
  ASSERT_OK(inotify_add_watch(fd, dir.path().c_str(), IN_MODIFY | IN_OPEN | IN_CREATE | IN_ATTRIB));
  close(open((dir / "f").c_str(), O_WRONLY | O_TRUNC));
  EXPECT_EQ((std::vector<uint32_t>{IN_OPEN, IN_MODIFY}), Events(fd));
  close(open((dir / "empty").c_str(), O_WRONLY | O_TRUNC));
  EXPECT_EQ((std::vector<uint32_t>{IN_OPEN, IN_MODIFY}), Events(fd));
  close(open((dir / "new").c_str(), O_WRONLY | O_TRUNC | O_CREAT, 0600));
  EXPECT_EQ((std::vector<uint32_t>{IN_CREATE, IN_OPEN}), Events(fd));
  close(open((dir / "f").c_str(), O_WRONLY));
  EXPECT_EQ((std::vector<uint32_t>{IN_OPEN}), Events(fd));
  ASSERT_OK(truncate((dir / "f").c_str(), 3));
  EXPECT_EQ((std::vector<uint32_t>{IN_MODIFY}), Events(fd));
  close(fd);
}

TEST(Sysctl, PipeMaxSizeIsTheLimit) {
  long max = strtol(ReadFile("/proc/sys/fs/pipe-max-size").c_str(), nullptr, 10);
  ASSERT_GE(max, kPage);
  int fds[2];
  ASSERT_OK(pipe(fds));
  EXPECT_EQ(max, fcntl(fds[0], F_SETPIPE_SZ, max));
  EXPECT_EQ(max, fcntl(fds[1], F_GETPIPE_SZ));
  EXPECT_EQ(0, ExitStatus([&] {
              if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 1;
              int own[2];
              if (pipe(own) != 0) return 2;
              if (fcntl(own[0], F_SETPIPE_SZ, max * 2) != -1 || errno != EPERM) return 3;
              return 0;
            }));
  close(fds[0]);
  close(fds[1]);
}

TEST(Sysctl, RandomizeVaSpaceIsTrue) {
  ASSERT_EQ("2\n", ReadFile("/proc/sys/kernel/randomize_va_space"));
  // Where the stack of a new program is, of two programs.
  auto stack = [](bool randomized) {
    int fds[2];
    pipe(fds);
    RunInChild([&] {
      if (!randomized) syscall(SYS_personality, 0x0040000);  // ADDR_NO_RANDOMIZE
      dup2(fds[1], 1);
      execl("/bin/sh", "sh", "-c",
            "while read l; do case \"$l\" in *stack*) echo \"$l\";; esac; done < /proc/self/maps",
            nullptr);
      return 1;
    });
    close(fds[1]);
    char text[256] = {};
    read(fds[0], text, sizeof text - 1);
    close(fds[0]);
    return std::string(text).substr(0, std::string(text).find('-'));
  };
  std::string first = stack(true);
  EXPECT_FALSE(first.empty());
  EXPECT_TRUE(first != stack(true) || first != stack(true));
  EXPECT_EQ(stack(false), stack(false));
}

TEST(Sys, BlockDevicesHaveAFolder) {
  struct stat st;
  ASSERT_OK(stat("/sys/dev/block", &st));
  EXPECT_TRUE(S_ISDIR(st.st_mode));
  ASSERT_OK(stat("/sys/dev/char", &st));
  EXPECT_TRUE(S_ISDIR(st.st_mode));
}

TEST(Pressure, LinesOfEachResource) {
  for (const char* name : {"cpu", "memory", "io"}) {
    std::string text = ReadFile(std::string("/proc/pressure/") + name);
    if (text.empty() && !InSandbox()) GTEST_SKIP() << "no CONFIG_PSI";
    std::istringstream in(text);
    for (const char* kind : {"some", "full"}) {
      std::string line;
      ASSERT_TRUE(std::getline(in, line)) << name << " " << text;
      double avg[3];
      unsigned long long total;
      char which[8];
      ASSERT_EQ(5, sscanf(line.c_str(), "%7s avg10=%lf avg60=%lf avg300=%lf total=%llu", which,
                          &avg[0], &avg[1], &avg[2], &total))
          << line;
      EXPECT_STREQ(kind, which);
      for (double a : avg) EXPECT_TRUE(a >= 0 && a <= 100) << line;
    }
  }
}

TEST(Exec, ErrorsInLinuxOrder) {
  TempDir dir;
  char* bad = BadAddress();
  char** bad_vector = reinterpret_cast<char**>(bad);
  char* good[] = {const_cast<char*>("x"), nullptr};
  char* with_bad[] = {bad, nullptr};
  std::string big(200 << 10, 'a');  // more than MAX_ARG_STRLEN
  char* too_long[] = {big.data(), nullptr};
  std::string missing = dir / "missing", script = dir / "script", plain = dir / "plain",
              data = dir / "data";
  WriteFile(script, "#!/missing/interpreter\n");
  chmod(script.c_str(), 0755);
  WriteFile(plain, "echo\n");  // not executable
  WriteFile(data, "no known format\n");
  chmod(data.c_str(), 0755);
  // The path first.
  EXPECT_EQ(EFAULT, ExecErrno(bad, bad_vector, bad_vector));
  EXPECT_EQ(ENOENT, ExecErrno("", good, good));
  EXPECT_EQ(ENAMETOOLONG, ExecErrno(std::string(5000, 'a').c_str(), bad_vector, good));
  EXPECT_EQ(ENAMETOOLONG, ExecErrno(std::string(300, 'a').c_str(), good, good));
  // The file is opened before the arguments are looked at.
  EXPECT_EQ(ENOENT, ExecErrno(missing.c_str(), bad_vector, good));
  EXPECT_EQ(ENOENT, ExecErrno(missing.c_str(), too_long, good));
  EXPECT_EQ(EACCES, ExecErrno(plain.c_str(), bad_vector, good));
  EXPECT_EQ(EACCES, ExecErrno(dir.path().c_str(), with_bad, good));
  EXPECT_EQ(ENOTDIR, ExecErrno((plain + "/x").c_str(), with_bad, good));
  // The arguments before the format.
  EXPECT_EQ(EFAULT, ExecErrno(data.c_str(), bad_vector, good));
  EXPECT_EQ(EFAULT, ExecErrno(data.c_str(), good, with_bad));
  EXPECT_EQ(E2BIG, ExecErrno(data.c_str(), too_long, good));
  EXPECT_EQ(EFAULT,
            ExecErrno(data.c_str(), too_long, with_bad));  // the environment is copied first
  EXPECT_EQ(ENOEXEC, ExecErrno(data.c_str(), good, good));
  EXPECT_EQ(EFAULT, ExecErrno(script.c_str(), with_bad, good));
  EXPECT_EQ(ENOENT, ExecErrno(script.c_str(), good, good));
  // A file that is being written.
  int fd = open(data.c_str(), O_WRONLY);
  EXPECT_EQ(ETXTBSY, ExecErrno(data.c_str(), with_bad, good));
  close(fd);
  std::string loop = dir / "loop";
  symlink(loop.c_str(), loop.c_str());
  EXPECT_EQ(ELOOP, ExecErrno(loop.c_str(), bad_vector, good));
}

TEST(CpuClock, OfThreadsAndProcesses) {
  int64_t process = NowNs(CLOCK_PROCESS_CPUTIME_ID), thread = NowNs(CLOCK_THREAD_CPUTIME_ID);
  std::thread([] { Burn(60); }).join();
  EXPECT_GE(NowNs(CLOCK_PROCESS_CPUTIME_ID) - process, 60'000'000);
  EXPECT_LT(NowNs(CLOCK_THREAD_CPUTIME_ID) - thread, 40'000'000);
  // Another process's.
  int fds[2];
  ASSERT_OK(pipe(fds));
  pid_t pid = fork();
  if (pid == 0) {
    Burn(100);
    write(fds[1], "x", 1);
    pause();
    _exit(0);
  }
  char c;
  read(fds[0], &c, 1);
  clockid_t clock = ~static_cast<clockid_t>(pid) << 3 | 2;
  int64_t used = NowNs(clock);
  EXPECT_GE(used, 100'000'000);
  EXPECT_LT(used, 5'000'000'000);
  SleepMs(50);
  EXPECT_LT(NowNs(clock) - used, 20'000'000);  // it sleeps
  kill(pid, SIGKILL);
  int status;
  rusage usage;
  ASSERT_EQ(pid, wait4(pid, &status, 0, &usage));
  EXPECT_GE(Ns(usage.ru_utime) + Ns(usage.ru_stime), 90'000'000);
  close(fds[0]);
  close(fds[1]);
}

TEST(Rusage, IsFilled) {
  rusage before, after;
  ASSERT_OK(getrusage(RUSAGE_SELF, &before));
  constexpr size_t kBytes = 64 << 20;
  char* p = static_cast<char*>(
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  madvise(p, kBytes, MADV_NOHUGEPAGE);
  memset(p, 1, kBytes);
  Burn(50);
  SleepMs(5);
  ASSERT_OK(getrusage(RUSAGE_SELF, &after));
  EXPECT_GE(after.ru_maxrss, static_cast<long>(kBytes >> 10));
  EXPECT_LT(after.ru_maxrss, 4 << 20);
  // Only the host knows of faults that it answers itself.
  if (!InSandbox()) EXPECT_GT(after.ru_minflt, before.ru_minflt);
  EXPECT_GT(after.ru_nvcsw, before.ru_nvcsw);
  int64_t cpu = Ns(after.ru_utime) + Ns(after.ru_stime) - Ns(before.ru_utime) - Ns(before.ru_stime);
  EXPECT_GE(cpu, 45'000'000);
  munmap(p, kBytes);
  // The peak stays, and it is not what is mapped now.
  ASSERT_OK(getrusage(RUSAGE_SELF, &after));
  EXPECT_GE(after.ru_maxrss, static_cast<long>(kBytes >> 10));
  std::string status = ReadFile("/proc/self/status");
  EXPECT_GE(NumberIn(status, "VmHWM:"), static_cast<long>(kBytes >> 10));
  EXPECT_LT(NumberIn(status, "VmRSS:"), static_cast<long>(kBytes >> 10));
}

TEST(Sysinfo, IsFilled) {
  struct sysinfo info = {};
  ASSERT_OK(sysinfo(&info));
  EXPECT_GT(info.uptime, 0);
  EXPECT_GT(info.mem_unit, 0u);
  EXPECT_GT(info.totalram, 0u);
  EXPECT_GT(info.freeram, 0u);
  EXPECT_LE(info.freeram, info.totalram);
  EXPECT_GT(info.procs, 0);
  long total = NumberIn("\n" + ReadFile("/proc/meminfo"), "MemTotal:");
  EXPECT_EQ(static_cast<unsigned long>(total), info.totalram * info.mem_unit / 1024);
  double uptime = 0, load = -1;
  sscanf(ReadFile("/proc/uptime").c_str(), "%lf", &uptime);
  EXPECT_NEAR(uptime, static_cast<double>(info.uptime), 3);
  sscanf(ReadFile("/proc/loadavg").c_str(), "%lf", &load);
  EXPECT_NEAR(load, static_cast<double>(info.loads[0]) / 65536, 3);
  // The machine's other processes end, and give memory back, now and then.
  bool less = false;
  for (int i = 0; i < 20 && !less; ++i) {
    struct sysinfo before = {}, after = {};
    ASSERT_OK(sysinfo(&before));
    char* p = static_cast<char*>(
        mmap(nullptr, 256 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(p, 1, 256 << 20);
    ASSERT_OK(sysinfo(&after));
    less = after.freeram * after.mem_unit < before.freeram * before.mem_unit;
    munmap(p, 256 << 20);
  }
  EXPECT_TRUE(less);
}

TEST(Cpus, AgreeEverywhere) {
  cpu_set_t set;
  ASSERT_OK(sched_getaffinity(0, sizeof set, &set));
  std::string text = "\n" + ReadFile("/proc/cpuinfo");
  int count = 0;
  for (size_t at = 0; (at = text.find("\nprocessor\t", at)) != std::string::npos; ++at) ++count;
  EXPECT_EQ(sysconf(_SC_NPROCESSORS_ONLN), count);
  EXPECT_LE(CPU_COUNT(&set), count);
  if (InSandbox()) EXPECT_EQ(CPU_COUNT(&set), count);
  std::string stat = "\n" + ReadFile("/proc/stat");
  int in_stat = 0;
  for (int i = 0; stat.find("\ncpu" + std::to_string(i) + " ") != std::string::npos; ++i) ++in_stat;
  EXPECT_EQ(count, in_stat);
  int first = 0;
  while (!CPU_ISSET(first, &set)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  EXPECT_EQ(0, ExitStatus([&] {
              cpu_set_t got;
              if (sched_setaffinity(0, sizeof one, &one) != 0) return 1;
              if (sched_getaffinity(0, sizeof got, &got) != 0 || CPU_COUNT(&got) != 1) return 2;
              return CPU_ISSET(first, &got) ? 0 : 3;
            }));
}

TEST(Smaps, TellsWhatIsResident) {
  char* p = static_cast<char*>(
      mmap(nullptr, 64 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(p + 32 * kPage, kPage, PROT_NONE);  // so that the first half is a mapping of its own
  memset(p, 1, 8 * kPage);
  char head[64];
  snprintf(head, sizeof head, "%lx-%lx rw-p", reinterpret_cast<long>(p),
           reinterpret_cast<long>(p) + 32 * kPage);
  std::string smaps = ReadFile("/proc/self/smaps");
  size_t at = smaps.find(head);
  ASSERT_NE(std::string::npos, at);
  EXPECT_EQ(128, NumberIn(smaps, "Size:", at));
  EXPECT_GE(NumberIn(smaps, "Rss:", at), 32);
  EXPECT_GE(NumberIn(smaps, "Anonymous:", at), 32);
  EXPECT_LE(NumberIn(smaps, "Rss:", at), 128);
  EXPECT_EQ(4, NumberIn(smaps, "KernelPageSize:", at));
  EXPECT_NE(std::string::npos, smaps.find("VmFlags: rd wr mr mw me", at));
  munmap(p, 64 * kPage);
}

TEST(Pagemap, PresentPages) {
  char* p = static_cast<char*>(
      mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  p[0] = 1;
  p[kPage] = 1;
  int fd = open("/proc/self/pagemap", O_RDONLY);
  ASSERT_GE(fd, 0);
  uint64_t entries[2] = {};
  off_t at = static_cast<off_t>(reinterpret_cast<uint64_t>(p) / kPage * 8);
  ASSERT_EQ(16, pread(fd, entries, 16, at));
  EXPECT_EQ(1u, entries[0] >> 63);
  EXPECT_EQ(1u, entries[1] >> 63);
  EXPECT_EQ(0u, entries[0] >> 61 & 1);  // neither of a file nor shared
  EXPECT_EQ(0u, entries[0] >> 62 & 1);
  munmap(p, 4 * kPage);
  ASSERT_EQ(16, pread(fd, entries, 16, at));
  EXPECT_EQ(0u, entries[0] >> 63);
  EXPECT_ERRNO(pread(fd, entries, 8, at + 4), EINVAL);
  EXPECT_ERRNO(pread(fd, entries, 12, at), EINVAL);
  EXPECT_EQ(0, pread(fd, entries, 8, 1L << 62));
  close(fd);
}

TEST(ProcPid, Syscall) {
  unsigned long long nr, args[6], sp, pc;
  std::string own = ReadFile("/proc/self/syscall");
  if (own.empty() && !InSandbox()) GTEST_SKIP() << "no CONFIG_HAVE_ARCH_TRACEHOOK";
  ASSERT_EQ(9, sscanf(own.c_str(), "%llu 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx",
                      &nr, &args[0], &args[1], &args[2], &args[3], &args[4], &args[5], &sp, &pc))
      << own;
  EXPECT_EQ(SYS_read, static_cast<long>(nr));
  int fds[2];
  ASSERT_OK(pipe(fds));
  char c;
  pid_t pid = fork();
  if (pid == 0) {
    close(fds[1]);
    read(fds[0], &c, 1);
    for (;;) asm volatile("pause");
  }
  SleepMs(100);
  std::string path = "/proc/" + std::to_string(pid) + "/syscall";
  std::string text = ReadFile(path);
  ASSERT_EQ(9, sscanf(text.c_str(), "%llu 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx",
                      &nr, &args[0], &args[1], &args[2], &args[3], &args[4], &args[5], &sp, &pc))
      << text;
  EXPECT_EQ(SYS_read, static_cast<long>(nr));
  EXPECT_EQ(static_cast<unsigned long long>(fds[0]), args[0]);
  EXPECT_EQ(reinterpret_cast<unsigned long long>(&c), args[1]);
  EXPECT_EQ(1u, args[2]);
  EXPECT_NE(0u, sp);
  write(fds[1], "x", 1);
  SleepMs(100);
  EXPECT_EQ("running\n", ReadFile(path));
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  close(fds[0]);
  close(fds[1]);
}

TEST(ProcPid, StackAndSched) {
  // The stack of a task that runs is shown to nobody who lacks CAP_SYS_ADMIN.
  struct stat st;
  if (stat("/proc/self/stack", &st) == 0) {
    EXPECT_EQ(0400u, st.st_mode & 07777);
    EXPECT_EQ(0, ExitStatus([] {
                if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 1;
                prctl(PR_SET_DUMPABLE, 1);
                int fd = open("/proc/self/stack", O_RDONLY);
                char b[64];
                return read(fd, b, sizeof b) == -1 && errno == EACCES ? 0 : 2;
              }));
  } else {
    EXPECT_FALSE(InSandbox());
  }
  std::string sched = ReadFile("/proc/self/sched");
  if (sched.empty() && !InSandbox()) GTEST_SKIP() << "no CONFIG_SCHED_DEBUG";
  char comm[32];
  prctl(PR_GET_NAME, comm);
  std::string head = std::string(comm) + " (" + std::to_string(getpid()) + ", #threads: 1)\n";
  EXPECT_EQ(head, sched.substr(0, head.size()));
  EXPECT_NE(std::string::npos, sched.find("se.sum_exec_runtime"));
  EXPECT_GE(NumberIn(sched, "nr_switches"), 0);
  EXPECT_EQ(120, NumberIn(sched, "prio"));
  EXPECT_EQ(0, NumberIn(sched, "policy"));
}

TEST(Unmapped, AllMemoryEndsBySigsegv) {
  for (unsigned long length : {0x7ffffffff000ul, 0x400000000000ul}) {
    pid_t pid = fork();
    if (pid == 0) {
      prctl(PR_SET_DUMPABLE, 0);  // no core
      munmap(nullptr, length);
      munmap(reinterpret_cast<void*>(length), 0x7ffffffff000ul - length);
      _exit(1);
    }
    int status = 0;
    ASSERT_EQ(pid, waitpid(pid, &status, 0));
    ASSERT_TRUE(WIFSIGNALED(status)) << status;
    EXPECT_EQ(SIGSEGV, WTERMSIG(status));
  }
}

TEST(StackGrowth, CopiesOfTheKernelGrowIt) {
  // A mapping that grows down, as the stack of old thread libraries.
  char* area =
      static_cast<char*>(mmap(nullptr, 512 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(MAP_FAILED, area);
  munmap(area, 512 * kPage);
  char* top = area + 511 * kPage;
  ASSERT_EQ(top, mmap(top, kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
  int zero = open("/dev/zero", O_RDONLY);
  // Right below, and further away.
  EXPECT_EQ(100, read(zero, top - 200, 100));
  EXPECT_EQ(0, top[-200]);
  EXPECT_EQ(8, read(zero, top - 40 * kPage, 8));
  struct stat st;
  EXPECT_OK(fstat(zero, reinterpret_cast<struct stat*>(top - 60 * kPage)));
  // Reads of the kernel grow it too.
  int fds[2];
  ASSERT_OK(pipe(fds));
  EXPECT_EQ(10, write(fds[1], top - 80 * kPage, 10));
  EXPECT_EQ(0, top[-80 * kPage]);
  EXPECT_OK(fstat(zero, &st));
  close(zero);
  close(fds[0]);
  close(fds[1]);
  munmap(top - 80 * kPage, 81 * kPage);
}

TEST(StackGrowth, CopiesToTheMainStackWithoutALimit) {
  EXPECT_EQ(0, ExitStatus([] {
              rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
              if (setrlimit(RLIMIT_STACK, &unlimited) != 0) return 1;
              char here;
              char* low =
                  reinterpret_cast<char*>(reinterpret_cast<uint64_t>(&here) & ~(kPage - 1)) -
                  (32 << 20);
              int zero = open("/dev/zero", O_RDONLY);
              if (read(zero, low, 100) != 100) return 2;
              if (low[5] != 0) return 3;
              return read(zero, low - kPage * 5, 7) == 7 ? 0 : 4;
            }));
}
