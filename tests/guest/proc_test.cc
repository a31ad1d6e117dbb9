// /proc as programs read it, and /sys and /dev in outline.
#include <dirent.h>
#include <limits.h>
#include <sys/sysmacros.h>

#include <map>
#include <sstream>
#include <thread>

#include "guest_util.h"

namespace {
std::string Field(const std::string& text, const std::string& key) {
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key + ":", 0) == 0) {
      size_t i = line.find_first_not_of(" \t", key.size() + 1);
      return i == std::string::npos ? "" : line.substr(i);
    }
  }
  return "<missing>";
}
std::string Link(const std::string& path) {
  char b[PATH_MAX] = {};
  if (readlink(path.c_str(), b, sizeof b - 1) < 0) return std::string("errno ") + strerror(errno);
  return b;
}
}  // namespace

TEST(ProcSelf, StatusAndStat) {
  std::string status = ReadFile("/proc/self/status");
  EXPECT_EQ(std::to_string(getpid()), Field(status, "Pid"));
  EXPECT_EQ(std::to_string(getppid()), Field(status, "PPid"));
  EXPECT_EQ("R (running)", Field(status, "State"));
  EXPECT_EQ("1", Field(status, "Threads"));
  std::string uid = std::to_string(getuid());
  EXPECT_EQ(uid + "\t" + uid + "\t" + uid + "\t" + uid, Field(status, "Uid"));
  std::string stat = ReadFile("/proc/self/stat");
  int pid, ppid, pgrp, session;
  char comm[64], state;
  ASSERT_EQ(6, sscanf(stat.c_str(), "%d (%63[^)]) %c %d %d %d", &pid, comm, &state, &ppid, &pgrp,
                      &session));
  EXPECT_EQ(getpid(), pid);
  EXPECT_EQ('R', state);
  EXPECT_EQ(getppid(), ppid);
  EXPECT_EQ(getpgrp(), pgrp);
  int fields = 0;
  std::istringstream in(stat.substr(stat.rfind(')') + 2));
  for (std::string f; in >> f;) fields++;
  EXPECT_GE(fields, 50);
}

TEST(ProcSelf, MapsShowMappings) {
  char* p =
      static_cast<char*>(mmap(nullptr, 3 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(p + 4096, 4096, PROT_READ | PROT_WRITE);
  char line[64];
  snprintf(line, sizeof line, "%lx-%lx rw-p 00000000 00:00 0", reinterpret_cast<long>(p) + 4096,
           reinterpret_cast<long>(p) + 8192);
  std::string maps = ReadFile("/proc/self/maps");
  EXPECT_NE(std::string::npos, maps.find(line)) << maps;
  EXPECT_NE(std::string::npos, maps.find("[stack]"));
  EXPECT_NE(std::string::npos, maps.find(Link("/proc/self/exe")));
  munmap(p, 3 * 4096);
}

TEST(ProcSelf, LinksAndDescriptors) {
  EXPECT_EQ(std::to_string(getpid()), Link("/proc/self"));
  EXPECT_EQ("/", Link("/proc/self/root"));
  char cwd[PATH_MAX];
  getcwd(cwd, sizeof cwd);
  EXPECT_EQ(cwd, Link("/proc/self/cwd"));
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_CREAT | O_RDWR | O_APPEND, 0600);
  std::string name = std::to_string(fd);
  EXPECT_EQ(dir / "f", Link("/proc/self/fd/" + name));
  write(fd, "abc", 3);
  std::string info = ReadFile("/proc/self/fdinfo/" + name);
  EXPECT_EQ("3", Field(info, "pos"));
  EXPECT_EQ(O_RDWR | O_APPEND,
            strtol(Field(info, "flags").c_str(), nullptr, 8) & (O_ACCMODE | O_APPEND));
  int again = open(("/proc/self/fd/" + name).c_str(), O_RDONLY);
  EXPECT_OK(again);
  char b[4];
  EXPECT_EQ(3, read(again, b, 4));
  int fds[2];
  pipe(fds);
  EXPECT_EQ(0u, Link("/proc/self/fd/" + std::to_string(fds[0])).rfind("pipe:[", 0));
  close(fd);
  close(again);
  close(fds[0]);
  close(fds[1]);
  EXPECT_EQ(-1, open(("/proc/self/fd/" + name).c_str(), O_RDONLY));
}

TEST(ProcSelf, CmdlineEnvironComm) {
  std::string cmdline = ReadFile("/proc/self/cmdline");
  EXPECT_EQ('\0', cmdline.back());
  EXPECT_FALSE(ReadFile("/proc/self/environ").empty() && getenv("PATH"));
  WriteFile("/proc/self/comm", "renamed");
  EXPECT_EQ("renamed\n", ReadFile("/proc/self/comm"));
}

TEST(ProcSelf, TasksOfThreads) {
  std::string before = Field(ReadFile("/proc/self/status"), "Threads");
  std::thread t([] {
    std::string tid = std::to_string(syscall(SYS_gettid));
    EXPECT_EQ(tid, Field(ReadFile("/proc/self/task/" + tid + "/status"), "Pid"));
    EXPECT_EQ("2", Field(ReadFile("/proc/self/status"), "Threads"));
    EXPECT_EQ(std::to_string(getpid()) + "/task/" + tid, Link("/proc/thread-self"));
  });
  t.join();
}

TEST(ProcPid, ShowsOtherProcessesAndZombies) {
  pid_t pid = fork();
  if (pid == 0) _exit(0);
  siginfo_t info;
  waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
  std::string status = ReadFile("/proc/" + std::to_string(pid) + "/status");
  EXPECT_EQ("Z (zombie)", Field(status, "State"));
  EXPECT_EQ("", ReadFile("/proc/" + std::to_string(pid) + "/cmdline"));
  waitpid(pid, nullptr, 0);
  EXPECT_ERRNO(open(("/proc/" + std::to_string(pid)).c_str(), O_RDONLY), ENOENT);
}

TEST(ProcPid, ListsProcesses) {
  DIR* d = opendir("/proc");
  bool self = false;
  while (dirent* e = readdir(d)) self |= std::to_string(getpid()) == e->d_name;
  closedir(d);
  EXPECT_TRUE(self);
}

TEST(Proc, SystemWideFiles) {
  EXPECT_NE("<missing>", Field(ReadFile("/proc/meminfo"), "MemTotal"));
  EXPECT_NE("<missing>", Field(ReadFile("/proc/meminfo"), "MemAvailable"));
  EXPECT_NE(std::string::npos, ReadFile("/proc/cpuinfo").find("model name"));
  EXPECT_EQ(0u, ReadFile("/proc/stat").rfind("cpu ", 0));
  EXPECT_NE(std::string::npos, ReadFile("/proc/stat").find("\nbtime "));
  double up, idle;
  EXPECT_EQ(2, sscanf(ReadFile("/proc/uptime").c_str(), "%lf %lf", &up, &idle));
  EXPECT_EQ(0u, ReadFile("/proc/version").rfind("Linux version ", 0));
  EXPECT_NE(std::string::npos, ReadFile("/proc/filesystems").find("tmpfs"));
  EXPECT_NE(std::string::npos, ReadFile("/proc/mounts").find(" /proc proc "));
  EXPECT_NE(std::string::npos, ReadFile("/proc/self/mountinfo").find(" / /proc "));
  EXPECT_EQ("Linux\n", ReadFile("/proc/sys/kernel/ostype"));
  EXPECT_GT(atoi(ReadFile("/proc/sys/kernel/pid_max").c_str()), 1000);
  EXPECT_EQ("1048576\n", ReadFile("/proc/sys/fs/pipe-max-size"));
  float loads[3];
  std::string loadavg = ReadFile("/proc/loadavg");
  EXPECT_EQ(3, sscanf(loadavg.c_str(), "%f %f %f", &loads[0], &loads[1], &loads[2]));
  EXPECT_EQ(37u, ReadFile("/proc/sys/kernel/random/uuid").size());
}

TEST(Proc, LimitsAndStatm) {
  EXPECT_NE(std::string::npos, ReadFile("/proc/self/limits").find("Max open files"));
  long size, resident;
  ASSERT_EQ(2, sscanf(ReadFile("/proc/self/statm").c_str(), "%ld %ld", &size, &resident));
  EXPECT_GE(size, resident);
  EXPECT_GT(resident, 0);
}

TEST(Proc, MemOfTheProcessItself) {
  static char text[] = "findme";
  int fd = open("/proc/self/mem", O_RDWR);
  ASSERT_OK(fd);
  char b[7] = {};
  EXPECT_EQ(6, pread(fd, b, 6, reinterpret_cast<off_t>(text)));
  EXPECT_STREQ("findme", b);
  EXPECT_EQ(1, pwrite(fd, "F", 1, reinterpret_cast<off_t>(text)));
  EXPECT_STREQ("Findme", text);
  close(fd);
}

TEST(Sys, CpuTopology) {
  EXPECT_FALSE(ReadFile("/sys/devices/system/cpu/online").empty());
  EXPECT_OK(access("/sys/devices/system/cpu/cpu0", F_OK));
}

// What libnuma reads, and with it ps and a JVM, which complain when it is not there.
TEST(Sys, MemoryOfANode) {
  std::istringstream in(ReadFile("/sys/devices/system/node/node0/meminfo"));
  std::map<std::string, uint64_t> kilobytes;
  for (std::string line; std::getline(in, line);) {
    char name[64] = {};
    unsigned long long value = 0;
    ASSERT_EQ(2, sscanf(line.c_str(), "Node 0 %63[^:]: %llu", name, &value)) << line;
    kilobytes[name] = value;
  }
  EXPECT_GT(kilobytes["MemFree"], 0u);
  EXPECT_GT(kilobytes["MemUsed"], 0u);
  EXPECT_EQ(kilobytes["MemTotal"], kilobytes["MemFree"] + kilobytes["MemUsed"]);
}

TEST(Dev, StandardNodes) {
  for (const char* name : {"null", "zero", "full", "random", "urandom", "tty"}) {
    struct stat st;
    ASSERT_OK(stat((std::string("/dev/") + name).c_str(), &st)) << name;
    EXPECT_TRUE(S_ISCHR(st.st_mode)) << name;
  }
  EXPECT_EQ("/proc/self/fd", Link("/dev/fd"));
}
