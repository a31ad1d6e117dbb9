// Tracers and tracees for the tests of ptrace(2).
#pragma once

#include <linux/ptrace.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/user.h>

#include <string>
#include <vector>

#include "guest_util.h"

// ptrace(2) without libc's own ideas of it.
inline long Ptrace(long request, pid_t pid, const void* addr = nullptr, uint64_t data = 0) {
  return syscall(SYS_ptrace, request, pid, addr, data);
}
inline long Ptrace(long request, pid_t pid, const void* addr, const void* data) {
  return Ptrace(request, pid, addr, reinterpret_cast<uint64_t>(data));
}
inline long Resume(long request, pid_t pid, uint64_t signo = 0) {
  return Ptrace(request, pid, nullptr, signo);
}

// A child that is killed and reaped at the end, if the test has not seen to it.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    fflush(nullptr);
    pid_ = fork();
    if (pid_ == 0) _exit(body());
  }
  // One that has asked to be traced and stopped itself; the stop has been waited for.
  static Child Stopped(const std::function<int()>& body) {
    Child child([&] {
      if (Ptrace(PTRACE_TRACEME, 0) != 0) return 99;
      raise(SIGSTOP);
      return body();
    });
    EXPECT_EQ(W(SIGSTOP), child.Wait());
    return child;
  }
  Child(Child&& other) : pid_(other.pid_) { other.pid_ = 0; }
  ~Child() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    int status;
    while (waitpid(pid_, &status, __WALL) == pid_ && !WIFEXITED(status) && !WIFSIGNALED(status)) {
      Resume(PTRACE_CONT, pid_);
    }
  }
  pid_t pid() const { return pid_; }
  operator pid_t() const { return pid_; }
  void Forget() { pid_ = 0; }

  // The wait status of a stop with `signo`, and with an event.
  static int W(int signo, int event = 0) { return (event << 16) | (signo << 8) | 0x7f; }
  static int Exited(int code) { return code << 8; }
  int Wait(int options = __WALL) {
    int status = -1;
    pid_t r = waitpid(pid_, &status, options);
    if (r != pid_) return r == 0 ? -2 : -1;
    if (WIFEXITED(status) || WIFSIGNALED(status)) pid_ = 0;
    return status;
  }

 private:
  pid_t pid_;
};

inline user_regs_struct Regs(pid_t pid) {
  user_regs_struct regs{};
  EXPECT_EQ(0, Ptrace(PTRACE_GETREGS, pid, nullptr, &regs)) << strerror(errno);
  return regs;
}
inline void SetRegs(pid_t pid, const user_regs_struct& regs) {
  EXPECT_EQ(0, Ptrace(PTRACE_SETREGS, pid, nullptr, &regs)) << strerror(errno);
}
inline siginfo_t Siginfo(pid_t pid) {
  siginfo_t info{};
  EXPECT_EQ(0, Ptrace(PTRACE_GETSIGINFO, pid, nullptr, &info)) << strerror(errno);
  return info;
}
inline uint64_t Message(pid_t pid) {
  uint64_t message = ~0ull;
  EXPECT_EQ(0, Ptrace(PTRACE_GETEVENTMSG, pid, nullptr, &message)) << strerror(errno);
  return message;
}
inline uint64_t Peek(pid_t pid, const void* addr) {
  uint64_t word = 0;
  EXPECT_EQ(0, Ptrace(PTRACE_PEEKDATA, pid, addr, &word)) << strerror(errno);
  return word;
}
inline void SetOptions(pid_t pid, uint64_t options) {
  EXPECT_EQ(0, Ptrace(PTRACE_SETOPTIONS, pid, nullptr, options)) << strerror(errno);
}
// A field of /proc/PID/status.
inline std::string StatusField(pid_t pid, const std::string& name) {
  std::string text = "\n" + ReadFile("/proc/" + std::to_string(pid) + "/status");
  size_t at = text.find("\n" + name + ":\t");
  if (at == std::string::npos) return "";
  at += name.size() + 3;
  return text.substr(at, text.find('\n', at) - at);
}
// Waits until the task is in one of `states`, as in /proc.
inline bool AwaitState(pid_t pid, const std::string& states) {
  for (int i = 0; i < 2000; i++) {
    std::string state = StatusField(pid, "State");
    if (!state.empty() && states.find(state[0]) != std::string::npos) return true;
    SleepMs(1);
  }
  return false;
}
