// Helpers shared by the guest test programs.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "gtest/gtest.h"

// Expects a call to fail with -1 and the given errno.
#define EXPECT_ERRNO(expr, code)                                \
  do {                                                          \
    errno = 0;                                                  \
    EXPECT_EQ(-1, static_cast<long>(expr)) << #expr;            \
    EXPECT_EQ(code, errno) << #expr << ": " << strerror(errno); \
  } while (0)
#define ASSERT_OK(expr) ASSERT_GE(static_cast<long>(expr), 0) << #expr << ": " << strerror(errno)
#define EXPECT_OK(expr) EXPECT_GE(static_cast<long>(expr), 0) << #expr << ": " << strerror(errno)

// Runs `body` in a forked child; its return value is the exit status. Returns the wait status.
inline int RunInChild(const std::function<int()>& body) {
  fflush(nullptr);
  pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = -1;
  EXPECT_EQ(pid, waitpid(pid, &status, 0));
  return status;
}
inline int ExitStatus(const std::function<int()>& body) {
  int status = RunInChild(body);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

inline int64_t NowNs(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}
inline void SleepMs(int ms) {
  timespec t{ms / 1000, ms % 1000 * 1000000L};
  nanosleep(&t, nullptr);
}

// A temporary directory, removed at the end.
class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/guest-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TempDir() {
    std::string command = "rm -rf " + path_;
    [[maybe_unused]] int r = system(command.c_str());
  }
  const std::string& path() const { return path_; }
  std::string operator/(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// A page of unmapped memory between nothing: its address faults.
inline char* BadAddress() { return reinterpret_cast<char*>(0x10); }

inline bool InSandbox() { return getenv("TEST_IN_SANDBOX") != nullptr; }

inline std::string ReadFile(const std::string& path) {
  std::string out;
  int fd = open(path.c_str(), O_RDONLY);
  if (fd < 0) return out;
  char buffer[4096];
  ssize_t n;
  while ((n = read(fd, buffer, sizeof buffer)) > 0) out.append(buffer, n);
  close(fd);
  return out;
}
// Returns once the thread sleeps, in whatever call, or has ended and is not waited for yet.
inline void WaitUntilAsleep(pid_t tid) {
  const std::string path = "/proc/" + std::to_string(tid) + "/stat";
  for (;;) {
    const std::string stat = ReadFile(path);
    const size_t name_end = stat.rfind(')');
    const std::string state = name_end == std::string::npos ? "" : stat.substr(name_end + 1, 2);
    if (state == " S" || state == " Z") return;
    SleepMs(1);
  }
}
inline void WriteFile(const std::string& path, const std::string& content) {
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  ASSERT_GE(fd, 0) << path << ": " << strerror(errno);
  ASSERT_EQ(static_cast<ssize_t>(content.size()), write(fd, content.data(), content.size()));
  close(fd);
}
