// Makes a running process do one system call, for tests of what its filter does about it. The
// process is stopped by ptrace in a system call in which it waits, and made to do the other
// instead.
//
// Usage: inject PID NUMBER [ARGUMENT...]. Prints what came of it: "killed SIGNAL", "exited STATUS",
// "signal SIGNAL" (delivered to the process, which goes on) or "returned VALUE" (undone).
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <fstream>
#include <string>
#include <vector>

namespace {

int Fail(const char* what) {
  fprintf(stderr, "inject: %s: %s\n", what, strerror(errno));
  return 1;
}

std::vector<int> Threads(int pid) {
  std::vector<int> threads;
  DIR* dir = opendir(("/proc/" + std::to_string(pid) + "/task").c_str());
  if (!dir) return threads;
  while (dirent* entry = readdir(dir)) {
    if (entry->d_name[0] != '.') threads.push_back(atoi(entry->d_name));
  }
  closedir(dir);
  return threads;
}

// Stops the thread; true if it is in a system call, at whose instruction `regs` are then set.
bool StopInCall(int tid, user_regs_struct* regs) {
  if (ptrace(PTRACE_SEIZE, tid, nullptr, PTRACE_O_TRACESYSGOOD) != 0) return false;
  int status;
  if (ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) == 0 &&
      waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status) &&
      ptrace(PTRACE_GETREGS, tid, nullptr, regs) == 0) {
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, tid, regs->rip - 2, nullptr);
    if (errno == 0 && (word & 0xffff) == 0x050f) return true;
  }
  ptrace(PTRACE_DETACH, tid, nullptr, nullptr);
  return false;
}

// Whether SIGSYS waits to be delivered to the thread: its call was refused.
bool Refused(int tid) {
  std::ifstream status("/proc/" + std::to_string(tid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("SigPnd:", 0) == 0) {
      return (std::stoull(line.substr(7), nullptr, 16) >> (SIGSYS - 1) & 1) != 0;
    }
  }
  return false;
}

// Follows the thread from the way into its call until it is known what came of it.
int Report(int tid, const user_regs_struct& before) {
  int stops = 0;
  for (;;) {
    int status;
    if (waitpid(tid, &status, __WALL) != tid) return Fail("waitpid");
    if (WIFSIGNALED(status)) return printf("killed %d\n", WTERMSIG(status)) < 0;
    if (WIFEXITED(status)) return printf("exited %d\n", WEXITSTATUS(status)) < 0;
    int stopped = WSTOPSIG(status);
    if (status >> 16 != 0) {  // a stop of ptrace's own
      ptrace(PTRACE_SYSCALL, tid, nullptr, nullptr);
    } else if (stopped != (SIGTRAP | 0x80)) {
      printf("signal %d\n", stopped);
      ptrace(PTRACE_DETACH, tid, nullptr, reinterpret_cast<void*>(static_cast<intptr_t>(stopped)));
      return 0;
    } else if (++stops == 2 && !Refused(tid)) {  // on the way out
      user_regs_struct after;
      if (ptrace(PTRACE_GETREGS, tid, nullptr, &after) != 0) return Fail("PTRACE_GETREGS");
      printf("returned %lld\n", static_cast<long long>(after.rax));
      ptrace(PTRACE_SETREGS, tid, nullptr, &before);
      ptrace(PTRACE_DETACH, tid, nullptr, nullptr);
      return 0;
    } else {
      ptrace(stops == 2 ? PTRACE_CONT : PTRACE_SYSCALL, tid, nullptr, nullptr);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  user_regs_struct before;
  int tid = 0;
  for (int thread : Threads(atoi(argv[1]))) {
    if (StopInCall(thread, &before)) {
      tid = thread;
      break;
    }
  }
  if (tid == 0) return Fail("no thread in a system call");
  user_regs_struct regs = before;
  unsigned long long args[6] = {};
  for (int i = 3; i < argc && i < 9; i++) args[i - 3] = strtoull(argv[i], nullptr, 0);
  regs.rip -= 2;
  regs.orig_rax = ~0ull;
  regs.rax = strtoull(argv[2], nullptr, 0);
  regs.rdi = args[0];
  regs.rsi = args[1];
  regs.rdx = args[2];
  regs.r10 = args[3];
  regs.r8 = args[4];
  regs.r9 = args[5];
  // The call that it was in begins anew when its registers are restored.
  before.rip -= 2;
  before.rax = before.orig_rax;
  before.orig_rax = ~0ull;
  if (ptrace(PTRACE_SETREGS, tid, nullptr, &regs) != 0) return Fail("PTRACE_SETREGS");
  if (ptrace(PTRACE_SYSCALL, tid, nullptr, nullptr) != 0) return Fail("PTRACE_SYSCALL");
  return Report(tid, before);
}
