// ptrace(2): events of clone, exec, exit and seccomp, and tracees with threads.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>

#include "ptrace_util.h"

namespace {

int Fork() { return static_cast<int>(syscall(SYS_fork)); }

// The next stop of any tracee, and whose it is.
pid_t WaitAny(int* status) { return waitpid(-1, status, __WALL); }

TEST(PtraceEvent, Fork) {
  Child child = Child::Stopped([] {
    pid_t pid = Fork();
    if (pid == 0) _exit(11);
    int status;
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
  });
  SetOptions(child, PTRACE_O_TRACEFORK);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_FORK), child.Wait());
  pid_t grandchild = static_cast<pid_t>(Message(child));
  int status;
  ASSERT_EQ(grandchild, waitpid(grandchild, &status, __WALL));
  EXPECT_EQ(Child::W(SIGSTOP), status);
  EXPECT_EQ(std::to_string(getpid()), StatusField(grandchild, "TracerPid"));
  EXPECT_EQ(0u, Regs(grandchild).rax);
  Resume(PTRACE_CONT, child);
  Resume(PTRACE_CONT, grandchild);
  ASSERT_EQ(grandchild, waitpid(grandchild, &status, __WALL));
  EXPECT_EQ(Child::Exited(11), status);
  // Its parent gets it when its tracer has waited.
  int next = child.Wait();
  if (next == Child::W(SIGCHLD)) {
    Resume(PTRACE_CONT, child, SIGCHLD);
    next = child.Wait();
  }
  EXPECT_EQ(Child::Exited(11), next);
}

TEST(PtraceEvent, ForkOfSeized) {
  int fds[2];
  pipe(fds);
  Child child([&] {
    char c;
    read(fds[0], &c, 1);
    pid_t pid = Fork();
    if (pid == 0) _exit(0);
    waitpid(pid, nullptr, 0);
    return 1;
  });
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, child, nullptr, uint64_t{PTRACE_O_TRACEFORK}));
  write(fds[1], "x", 1);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_FORK), child.Wait());
  pid_t grandchild = static_cast<pid_t>(Message(child));
  int status;
  ASSERT_EQ(grandchild, waitpid(grandchild, &status, __WALL));
  EXPECT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), status);
  Resume(PTRACE_CONT, grandchild);
  ASSERT_EQ(grandchild, waitpid(grandchild, &status, __WALL));
  EXPECT_EQ(Child::Exited(0), status);
  Resume(PTRACE_CONT, child);
  int next = child.Wait();
  if (next == Child::W(SIGCHLD)) {
    Resume(PTRACE_CONT, child, SIGCHLD);
    next = child.Wait();
  }
  EXPECT_EQ(Child::Exited(1), next);
}

TEST(PtraceEvent, ForkIsNotFollowedUnasked) {
  Child child = Child::Stopped([] {
    pid_t pid = Fork();
    if (pid == 0) _exit(12);
    int status;
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
  });
  Resume(PTRACE_CONT, child);
  int next = child.Wait();
  if (next == Child::W(SIGCHLD)) {
    Resume(PTRACE_CONT, child, SIGCHLD);
    next = child.Wait();
  }
  EXPECT_EQ(Child::Exited(12), next);
}

TEST(PtraceEvent, VforkAndDone) {
  Child child = Child::Stopped([] {
    signal(SIGCHLD, SIG_DFL);
    pid_t pid = vfork();
    if (pid == 0) _exit(0);
    return waitpid(pid, nullptr, 0) == pid ? 0 : 1;
  });
  SetOptions(child, PTRACE_O_TRACEVFORK | PTRACE_O_TRACEVFORKDONE);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_VFORK), child.Wait());
  pid_t grandchild = static_cast<pid_t>(Message(child));
  int status;
  ASSERT_EQ(grandchild, waitpid(grandchild, &status, __WALL));
  EXPECT_EQ(Child::W(SIGSTOP), status);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(-2, child.Wait(__WALL | WNOHANG));
  Resume(PTRACE_CONT, grandchild);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_VFORK_DONE), child.Wait());
  EXPECT_EQ(static_cast<uint64_t>(grandchild), Message(child));
  ASSERT_EQ(grandchild, waitpid(grandchild, &status, __WALL));
  EXPECT_EQ(Child::Exited(0), status);
  Resume(PTRACE_CONT, child);
  int next = child.Wait();
  if (next == Child::W(SIGCHLD)) {
    Resume(PTRACE_CONT, child, SIGCHLD);
    next = child.Wait();
  }
  EXPECT_EQ(Child::Exited(0), next);
}

TEST(PtraceEvent, CloneOfThread) {
  // What ends while the whole process does has the process's status, so this waits to be let go on.
  int fds[2];
  pipe(fds);
  Child child = Child::Stopped([&] {
    std::thread([] { syscall(SYS_getppid); }).join();
    char c;
    read(fds[0], &c, 1);
    return 4;
  });
  SetOptions(child, PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXIT);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_CLONE), child.Wait());
  pid_t thread = static_cast<pid_t>(Message(child));
  EXPECT_NE(child.pid(), thread);
  int status;
  ASSERT_EQ(thread, waitpid(thread, &status, __WALL));
  EXPECT_EQ(Child::W(SIGSTOP), status);
  Resume(PTRACE_CONT, child);
  Resume(PTRACE_CONT, thread);
  ASSERT_EQ(thread, waitpid(thread, &status, __WALL));
  EXPECT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_EXIT), status);
  EXPECT_EQ(0u, Message(thread));
  Resume(PTRACE_CONT, thread);
  ASSERT_EQ(thread, waitpid(thread, &status, __WALL));
  EXPECT_EQ(Child::Exited(0), status);
  write(fds[1], "x", 1);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_EXIT), child.Wait());
  EXPECT_EQ(static_cast<uint64_t>(Child::Exited(4)), Message(child));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(4), child.Wait());
}

TEST(PtraceEvent, Exec) {
  for (bool option : {false, true}) {
    Child child = Child::Stopped([] {
      execl("/proc/self/exe", "self", "--gtest_filter=PtraceHelper.Nothing", "--gtest_brief=1",
            nullptr);
      return 99;
    });
    if (option) SetOptions(child, PTRACE_O_TRACEEXEC);
    Resume(PTRACE_CONT, child);
    ASSERT_EQ(option ? Child::W(SIGTRAP, PTRACE_EVENT_EXEC) : Child::W(SIGTRAP), child.Wait());
    if (option) {
      EXPECT_EQ(static_cast<uint64_t>(child.pid()), Message(child));
    } else {
      EXPECT_EQ(SI_USER, Siginfo(child).si_code);
    }
    std::string name;
    EXPECT_NE("", StatusField(child, "Name"));
    // The new text is there to be read and changed.
    user_regs_struct regs = Regs(child);
    EXPECT_EQ(static_cast<uint64_t>(SYS_execve), option ? regs.orig_rax : SYS_execve);
    uint64_t word = Peek(child, reinterpret_cast<void*>(regs.rip));
    EXPECT_EQ(0, Ptrace(PTRACE_POKETEXT, child, reinterpret_cast<void*>(regs.rip), word));
    Resume(PTRACE_CONT, child);
    EXPECT_EQ(Child::Exited(0), child.Wait());
  }
}

TEST(PtraceHelper, Nothing) {}

TEST(PtraceEvent, ExecByThread) {
  Child child = Child::Stopped([] {
    std::thread([] {
      execl("/proc/self/exe", "self", "--gtest_filter=PtraceHelper.Nothing", "--gtest_brief=1",
            nullptr);
    }).join();
    return 99;
  });
  SetOptions(child, PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_CLONE), child.Wait());
  pid_t thread = static_cast<pid_t>(Message(child));
  int status;
  ASSERT_EQ(thread, waitpid(thread, &status, __WALL));
  Resume(PTRACE_CONT, child);
  Resume(PTRACE_CONT, thread);
  // The thread has become the process.
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_EXEC), child.Wait());
  EXPECT_EQ(static_cast<uint64_t>(thread), Message(child));
  EXPECT_ERRNO(Resume(PTRACE_CONT, thread), ESRCH);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceEvent, Exit) {
  Child child = Child::Stopped([]() -> int { _exit(23); });
  SetOptions(child, PTRACE_O_TRACEEXIT);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_EXIT), child.Wait());
  EXPECT_EQ(static_cast<uint64_t>(Child::Exited(23)), Message(child));
  // Its memory is still there.
  Peek(child, reinterpret_cast<void*>(Regs(child).rsp));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(23), child.Wait());
}

TEST(PtraceEvent, ExitBySignal) {
  Child child = Child::Stopped([] {
    while (true) pause();
    return 0;
  });
  SetOptions(child, PTRACE_O_TRACEEXIT);
  Resume(PTRACE_CONT, child);
  kill(child, SIGTERM);
  ASSERT_EQ(Child::W(SIGTERM), child.Wait());
  Resume(PTRACE_CONT, child, SIGTERM);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_EXIT), child.Wait());
  EXPECT_EQ(static_cast<uint64_t>(SIGTERM), Message(child));
  kill(child, SIGKILL);  // changes nothing: it is dying
  EXPECT_EQ(-2, child.Wait(__WALL | WNOHANG));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(SIGTERM, child.Wait());
}

// --- seccomp ---

sock_filter Load(uint32_t offset) { return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset); }
sock_filter Return(uint32_t value) { return BPF_STMT(BPF_RET | BPF_K, value); }

int InstallTrace(uint32_t nr, uint16_t data) {
  sock_filter code[] = {Load(offsetof(seccomp_data, nr)),
                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
                        Return(SECCOMP_RET_TRACE | data), Return(SECCOMP_RET_ALLOW)};
  sock_fprog program{sizeof code / sizeof *code, code};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

TEST(PtraceSeccomp, WithoutTracer) {
  EXPECT_EQ(0, ExitStatus([] {
              if (InstallTrace(SYS_getppid, 5) != 0) return 1;
              return syscall(SYS_getppid) == -1 && errno == ENOSYS ? 0 : 2;
            }));
}

TEST(PtraceSeccomp, Event) {
  Child child = Child::Stopped([] {
    if (InstallTrace(SYS_getppid, 77) != 0) return 1;
    long r = syscall(SYS_getppid);
    return r == getpid() ? 3 : r == getppid() ? 4 : 5;
  });
  SetOptions(child, PTRACE_O_TRACESECCOMP);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_SECCOMP), child.Wait());
  EXPECT_EQ(77u, Message(child));
  ptrace_syscall_info info{};
  EXPECT_EQ(84,
            Ptrace(PTRACE_GET_SYSCALL_INFO, child, reinterpret_cast<void*>(sizeof info), &info));
  EXPECT_EQ(PTRACE_SYSCALL_INFO_SECCOMP, info.op);
  EXPECT_EQ(77u, info.seccomp.ret_data);
  EXPECT_EQ(static_cast<uint64_t>(SYS_getppid), info.seccomp.nr);
  user_regs_struct regs = Regs(child);
  regs.orig_rax = SYS_getpid;
  SetRegs(child, regs);
  Resume(PTRACE_CONT, child);
  int next = child.Wait();
  while (next == Child::W(SIGTRAP, PTRACE_EVENT_SECCOMP)) {  // the other one of the body
    Resume(PTRACE_CONT, child);
    next = child.Wait();
  }
  EXPECT_EQ(Child::Exited(3), next);
}

TEST(PtraceSeccomp, Skip) {
  Child child = Child::Stopped([] {
    if (InstallTrace(SYS_getppid, 0) != 0) return 1;
    return static_cast<int>(syscall(SYS_getppid));
  });
  SetOptions(child, PTRACE_O_TRACESECCOMP);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_SECCOMP), child.Wait());
  user_regs_struct regs = Regs(child);
  regs.orig_rax = ~0ull;
  regs.rax = 61;
  SetRegs(child, regs);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(61), child.Wait());
}

// --- threads ---

// Attaches to each thread of a process that has many, and lets all go.
TEST(PtraceThreads, AttachToAll) {
  constexpr int kThreads = 6;
  int fds[2];
  pipe(fds);
  Child child([&] {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; i++) {
      threads.emplace_back([&] {
        pid_t tid = gettid();
        write(fds[1], &tid, sizeof tid);
        while (true) {
          syscall(SYS_getppid);
          sched_yield();
        }
      });
    }
    while (true) pause();
    return 0;
  });
  std::vector<pid_t> tids{child.pid()};
  for (int i = 0; i < kThreads; i++) {
    pid_t tid;
    ASSERT_EQ(static_cast<ssize_t>(sizeof tid), read(fds[0], &tid, sizeof tid));
    tids.push_back(tid);
  }
  for (pid_t tid : tids) ASSERT_EQ(0, Ptrace(PTRACE_ATTACH, tid)) << strerror(errno);
  for (pid_t tid : tids) {
    int status;
    ASSERT_EQ(tid, waitpid(tid, &status, __WALL));
    EXPECT_EQ(Child::W(SIGSTOP), status);
    EXPECT_NE(0u, Regs(tid).rip);
  }
  // Each makes a few calls under the tracer's eyes.
  for (int round = 0; round < 4; round++) {
    for (size_t i = 1; i < tids.size(); i++) ASSERT_EQ(0, Resume(PTRACE_SYSCALL, tids[i]));
    for (size_t i = 1; i < tids.size(); i++) {
      int status;
      ASSERT_EQ(tids[i], waitpid(tids[i], &status, __WALL));
      EXPECT_TRUE(WIFSTOPPED(status));
    }
  }
  for (pid_t tid : tids) ASSERT_EQ(0, Resume(PTRACE_DETACH, tid));
  kill(child, SIGKILL);
  EXPECT_EQ(SIGKILL, child.Wait());
}

TEST(PtraceThreads, ExitGroupEndsAll) {
  Child child = Child::Stopped([] {
    std::thread other([] {
      while (true) pause();
    });
    SleepMs(5);
    syscall(SYS_exit_group, 9);
    return 0;
  });
  SetOptions(child, PTRACE_O_TRACECLONE);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_CLONE), child.Wait());
  pid_t thread = static_cast<pid_t>(Message(child));
  int status;
  ASSERT_EQ(thread, waitpid(thread, &status, __WALL));
  Resume(PTRACE_CONT, thread);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(thread, waitpid(thread, &status, __WALL));
  EXPECT_EQ(Child::Exited(9), status);
  EXPECT_EQ(Child::Exited(9), child.Wait());
}

// A thread stopped for a group stop and the others with it.
TEST(PtraceThreads, GroupStopOfSeizedThreads) {
  int fds[2];
  pipe(fds);
  Child child([&] {
    std::thread other([&] {
      pid_t tid = gettid();
      write(fds[1], &tid, sizeof tid);
      while (true) pause();
    });
    while (true) pause();
    return 0;
  });
  pid_t tid;
  ASSERT_EQ(static_cast<ssize_t>(sizeof tid), read(fds[0], &tid, sizeof tid));
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, child));
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, tid));
  syscall(SYS_tgkill, child.pid(), tid, SIGSTOP);
  int status;
  ASSERT_EQ(tid, waitpid(tid, &status, __WALL));
  ASSERT_EQ(Child::W(SIGSTOP), status);
  ASSERT_EQ(0, Resume(PTRACE_CONT, tid, SIGSTOP));
  ASSERT_EQ(tid, waitpid(tid, &status, __WALL));
  EXPECT_EQ(Child::W(SIGSTOP, PTRACE_EVENT_STOP), status);
  EXPECT_EQ(Child::W(SIGSTOP, PTRACE_EVENT_STOP), child.Wait());
  ASSERT_EQ(0, Ptrace(PTRACE_LISTEN, tid));
  ASSERT_EQ(0, Ptrace(PTRACE_LISTEN, child));
  kill(child, SIGCONT);
  ASSERT_EQ(tid, waitpid(tid, &status, __WALL));
  EXPECT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), status);
  EXPECT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), child.Wait());
  // The process has ended for its tracer when that has waited for the other thread.
  kill(child, SIGKILL);
  EXPECT_TRUE(AwaitState(child, "Z"));
  for (int i = 0; i < 2000 && ReadFile("/proc/" + std::to_string(tid) + "/stat") != ""; i++) {
    if (StatusField(tid, "State")[0] == 'Z') break;
    SleepMs(1);
  }
  EXPECT_EQ(-2, child.Wait(__WALL | WNOHANG));
  ASSERT_EQ(tid, waitpid(tid, &status, __WALL));
  EXPECT_EQ(SIGKILL, status);
  EXPECT_EQ(SIGKILL, child.Wait());
}

}  // namespace
