// ptrace(2): attaching, signals, group stops, and who may wait for what.
#include <pthread.h>

#include <atomic>
#include <thread>

#include "ptrace_util.h"

namespace {

int Pause() {
  while (true) pause();
}

TEST(PtraceAttach, AttachAndDetach) {
  Child child([] { return Pause(); });
  EXPECT_EQ("0", StatusField(child, "TracerPid"));
  ASSERT_EQ(0, Ptrace(PTRACE_ATTACH, child));
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  EXPECT_EQ(std::to_string(getpid()), StatusField(child, "TracerPid"));
  EXPECT_EQ("t (tracing stop)", StatusField(child, "State"));
  EXPECT_EQ(SIGSTOP, Siginfo(child).si_signo);
  EXPECT_ERRNO(Ptrace(PTRACE_ATTACH, child), EPERM);
  EXPECT_EQ(-2, child.Wait(__WALL | WNOHANG));  // told once
  ASSERT_EQ(0, Resume(PTRACE_DETACH, child));
  EXPECT_TRUE(AwaitState(child, "S"));
  EXPECT_EQ("0", StatusField(child, "TracerPid"));
  EXPECT_ERRNO(Resume(PTRACE_CONT, child), ESRCH);
  kill(child, SIGTERM);
  EXPECT_EQ(SIGTERM, child.Wait());
}

TEST(PtraceAttach, Errors) {
  EXPECT_ERRNO(Ptrace(PTRACE_ATTACH, getpid()), EPERM);
  EXPECT_ERRNO(Ptrace(PTRACE_ATTACH, 999999), ESRCH);
  Child child([] { return Pause(); });
  uint64_t word;
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKDATA, child, &word, &word), ESRCH);
  EXPECT_ERRNO(Resume(PTRACE_CONT, child), ESRCH);
  EXPECT_ERRNO(Ptrace(PTRACE_SEIZE, child, reinterpret_cast<void*>(1)), EIO);
  EXPECT_ERRNO(Ptrace(PTRACE_SEIZE, child, nullptr, uint64_t{1} << 30), EIO);
  ASSERT_EQ(0, Ptrace(PTRACE_ATTACH, child));
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  EXPECT_ERRNO(Ptrace(PTRACE_SETOPTIONS, child, nullptr, uint64_t{1} << 30), EINVAL);
  EXPECT_ERRNO(Ptrace(PTRACE_INTERRUPT, child), EIO);
  EXPECT_ERRNO(Ptrace(PTRACE_LISTEN, child), EIO);
  EXPECT_ERRNO(Resume(PTRACE_CONT, child, 65), EIO);
  EXPECT_ERRNO(Resume(PTRACE_DETACH, child, 99), EIO);
  EXPECT_ERRNO(Ptrace(0x5555, child), EIO);
  ASSERT_EQ(0, Resume(PTRACE_CONT, child));
  AwaitState(child, "S");
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKDATA, child, &word, &word), ESRCH);  // it runs
}

TEST(PtraceAttach, TraceMeTwice) {
  Child child =
      Child::Stopped([] { return Ptrace(PTRACE_TRACEME, 0) == -1 && errno == EPERM ? 0 : 1; });
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceAttach, Seize) {
  Child child([] { return Pause(); });
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, child, nullptr, uint64_t{PTRACE_O_TRACESYSGOOD}));
  AwaitState(child, "S");
  EXPECT_EQ(-2, child.Wait(__WALL | WNOHANG));  // it was not stopped
  ASSERT_EQ(0, Ptrace(PTRACE_INTERRUPT, child));
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), child.Wait());
  EXPECT_EQ(SIGTRAP | PTRACE_EVENT_STOP << 8, Siginfo(child).si_code);
  ASSERT_EQ(0, Resume(PTRACE_CONT, child));
  AwaitState(child, "S");
  // A stop for an interrupt is not one of a signal: nothing is injected.
  ASSERT_EQ(0, Ptrace(PTRACE_INTERRUPT, child));
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), child.Wait());
  ASSERT_EQ(0, Resume(PTRACE_DETACH, child));
  kill(child, SIGTERM);
  EXPECT_EQ(SIGTERM, child.Wait());
}

TEST(PtraceAttach, InterruptWhileStopped) {
  Child child([] { return Pause(); });
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, child));
  ASSERT_EQ(0, Ptrace(PTRACE_INTERRUPT, child));
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), child.Wait());
  ASSERT_EQ(0, Ptrace(PTRACE_INTERRUPT, child));
  ASSERT_EQ(0, Resume(PTRACE_CONT, child));
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), child.Wait());  // once more
}

TEST(PtraceAttach, OtherUsersAndDumpable) {
  int fds[2];
  pipe(fds);
  Child hidden([&] {
    prctl(PR_SET_DUMPABLE, 0);
    setgid(1000);
    setuid(1000);
    prctl(PR_SET_DUMPABLE, 0);
    write(fds[1], "x", 1);
    return Pause();
  });
  Child open([&] {
    setgid(1000);
    setuid(1000);
    prctl(PR_SET_DUMPABLE, 1);
    write(fds[1], "x", 1);
    return Pause();
  });
  char c[2];
  while (read(fds[0], c, 1) == 1 && hidden.pid() != 0) {
    if (read(fds[0], c, 1) == 1) break;
  }
  pid_t root = getpid();
  EXPECT_EQ(0, ExitStatus([&] {
              setgid(1000);
              setuid(1000);
              if (Ptrace(PTRACE_ATTACH, root) != -1 || errno != EPERM) return 1;
              if (Ptrace(PTRACE_SEIZE, hidden) != -1 || errno != EPERM) return 2;
              if (Ptrace(PTRACE_SEIZE, open) != 0) return 3;
              return 0;
            }));
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, hidden));  // we may
}

// --- signals ---

TEST(PtraceSignal, SuppressChangeInject) {
  static volatile int got;
  Child child = Child::Stopped([] {
    signal(SIGUSR1, [](int s) { got = got * 16 + s; });
    signal(SIGUSR2, [](int s) { got = got * 16 + s; });
    raise(SIGUSR1);  // suppressed
    raise(SIGUSR1);  // becomes SIGUSR2
    raise(SIGUSR1);  // let through
    return got == SIGUSR2 * 16 + SIGUSR1 ? 0 : 1;
  });
  Resume(PTRACE_CONT, child);
  for (int signo : {0, SIGUSR2, SIGUSR1}) {
    ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
    siginfo_t info = Siginfo(child);
    EXPECT_EQ(SIGUSR1, info.si_signo);
    EXPECT_EQ(SI_TKILL, info.si_code);
    EXPECT_EQ(child.pid(), info.si_pid);
    Resume(PTRACE_CONT, child, static_cast<uint64_t>(signo));
  }
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceSignal, SetSiginfo) {
  static volatile int value;
  Child child = Child::Stopped([] {
    struct sigaction sa {};
    sa.sa_flags = SA_SIGINFO;
    sa.sa_sigaction = [](int, siginfo_t* info, void*) { value = info->si_value.sival_int; };
    sigaction(SIGUSR1, &sa, nullptr);
    raise(SIGUSR1);
    return value;
  });
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
  siginfo_t info{};
  info.si_signo = SIGUSR1;
  info.si_code = SI_QUEUE;
  info.si_value.sival_int = 55;
  ASSERT_EQ(0, Ptrace(PTRACE_SETSIGINFO, child, nullptr, &info));
  Resume(PTRACE_CONT, child, SIGUSR1);
  EXPECT_EQ(Child::Exited(55), child.Wait());
}

TEST(PtraceSignal, IgnoredIsSeen) {
  Child child = Child::Stopped([] {
    signal(SIGUSR1, SIG_IGN);
    raise(SIGUSR1);
    raise(SIGWINCH);
    return 3;
  });
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
  Resume(PTRACE_CONT, child, SIGUSR1);
  ASSERT_EQ(Child::W(SIGWINCH), child.Wait());
  Resume(PTRACE_CONT, child, SIGWINCH);
  EXPECT_EQ(Child::Exited(3), child.Wait());
}

TEST(PtraceSignal, FatalIsSeenFirst) {
  Child child = Child::Stopped([] { return Pause(); });
  Resume(PTRACE_CONT, child);
  kill(child, SIGTERM);
  ASSERT_EQ(Child::W(SIGTERM), child.Wait());
  Resume(PTRACE_CONT, child, SIGTERM);
  EXPECT_EQ(SIGTERM, child.Wait());
}

TEST(PtraceSignal, Fault) {
  Child child = Child::Stopped([] {
    *static_cast<volatile char*>(BadAddress()) = 1;
    return 0;
  });
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGSEGV), child.Wait());
  siginfo_t info = Siginfo(child);
  EXPECT_EQ(SEGV_MAPERR, info.si_code);
  EXPECT_EQ(BadAddress(), info.si_addr);
  Resume(PTRACE_CONT, child, SIGSEGV);
  EXPECT_EQ(SIGSEGV, child.Wait() & 0x7f);
}

TEST(PtraceSignal, KillInEveryStop) {
  for (int how = 0; how < 3; how++) {
    Child child = Child::Stopped([] { return static_cast<int>(syscall(SYS_getppid)); });
    if (how == 1) {
      Resume(PTRACE_SYSCALL, child);
      ASSERT_TRUE(WIFSTOPPED(child.Wait()));
    }
    pid_t pid = child;
    if (how == 2) {
      ASSERT_EQ(0, Ptrace(PTRACE_KILL, child));
    } else {
      kill(child, SIGKILL);
    }
    EXPECT_EQ(SIGKILL, child.Wait());
    EXPECT_ERRNO(Resume(PTRACE_CONT, pid), ESRCH);
  }
}

TEST(PtraceSignal, MaskAndPending) {
  Child child = Child::Stopped([] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    raise(SIGSTOP);
    return 6;
  });
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  uint64_t mask = 0;
  EXPECT_ERRNO(Ptrace(PTRACE_GETSIGMASK, child, reinterpret_cast<void*>(4), &mask), EINVAL);
  ASSERT_EQ(0, Ptrace(PTRACE_GETSIGMASK, child, reinterpret_cast<void*>(8), &mask));
  EXPECT_EQ((1ull << (SIGUSR1 - 1)) | (1ull << (SIGRTMIN - 1)), mask);
  syscall(SYS_tgkill, child.pid(), child.pid(), SIGUSR1);
  for (int i = 0; i < 3; i++) {
    union sigval v;
    v.sival_int = i;
    sigqueue(child, SIGRTMIN, v);
  }
  struct {
    uint64_t offset;
    uint32_t flags;
    int32_t count;
  } args{0, 0, 4};
  siginfo_t found[4]{};
  EXPECT_EQ(1, Ptrace(PTRACE_PEEKSIGINFO, child, &args, found));
  EXPECT_EQ(SIGUSR1, found[0].si_signo);
  args = {1, PTRACE_PEEKSIGINFO_SHARED, 4};
  EXPECT_EQ(2, Ptrace(PTRACE_PEEKSIGINFO, child, &args, found));
  EXPECT_EQ(1, found[0].si_value.sival_int);
  EXPECT_EQ(2, found[1].si_value.sival_int);
  args.flags = 8;
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKSIGINFO, child, &args, found), EINVAL);
  // Unblocked by the tracer it comes at once.
  mask = 1ull << (SIGRTMIN - 1);
  ASSERT_EQ(0, Ptrace(PTRACE_SETSIGMASK, child, reinterpret_cast<void*>(8), &mask));
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(6), child.Wait());
}

TEST(PtraceSignal, TracerGetsSigchld) {
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, &old);
  {
    Child child = Child::Stopped([] { return 0; });
    siginfo_t info{};
    ASSERT_EQ(SIGCHLD, sigwaitinfo(&set, &info));
    EXPECT_EQ(CLD_TRAPPED, info.si_code);
    EXPECT_EQ(child.pid(), info.si_pid);
    EXPECT_EQ(SIGSTOP, info.si_status);
    Resume(PTRACE_CONT, child);
    ASSERT_EQ(SIGCHLD, sigwaitinfo(&set, &info));
    EXPECT_EQ(CLD_EXITED, info.si_code);
    EXPECT_EQ(Child::Exited(0), child.Wait());
  }
  sigprocmask(SIG_SETMASK, &old, nullptr);
}

// --- group stops ---

TEST(PtraceGroupStop, Attached) {
  Child child = Child::Stopped([] { return 0; });
  // The signal is let through: the process stops, which is a stop of its own.
  ASSERT_EQ(0, Resume(PTRACE_CONT, child, SIGSTOP));
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  siginfo_t info;
  EXPECT_ERRNO(Ptrace(PTRACE_GETSIGINFO, child, nullptr, &info), EINVAL);
  // Who was attached goes on all the same.
  ASSERT_EQ(0, Resume(PTRACE_CONT, child));
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceGroupStop, SeizedListens) {
  Child child([] { return Pause(); });
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, child));
  kill(child, SIGSTOP);
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  EXPECT_ERRNO(Ptrace(PTRACE_LISTEN, child), EIO);  // a signal's
  ASSERT_EQ(0, Resume(PTRACE_CONT, child, SIGSTOP));
  ASSERT_EQ(Child::W(SIGSTOP, PTRACE_EVENT_STOP), child.Wait());
  ASSERT_EQ(0, Ptrace(PTRACE_LISTEN, child));
  uint64_t word;
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKDATA, child, &word, &word), ESRCH);
  EXPECT_EQ(-2, child.Wait(__WALL | WNOHANG));
  kill(child, SIGCONT);
  ASSERT_EQ(Child::W(SIGTRAP, PTRACE_EVENT_STOP), child.Wait());
  ASSERT_EQ(0, Resume(PTRACE_CONT, child));
  ASSERT_EQ(Child::W(SIGCONT), child.Wait());
  ASSERT_EQ(0, Resume(PTRACE_CONT, child, SIGCONT));
  AwaitState(child, "S");
  EXPECT_EQ(-2, child.Wait(__WALL | WNOHANG));
}

TEST(PtraceGroupStop, InterruptEndsListening) {
  Child child([] { return Pause(); });
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, child));
  kill(child, SIGSTOP);
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  ASSERT_EQ(0, Resume(PTRACE_CONT, child, SIGSTOP));
  ASSERT_EQ(Child::W(SIGSTOP, PTRACE_EVENT_STOP), child.Wait());
  ASSERT_EQ(0, Ptrace(PTRACE_LISTEN, child));
  ASSERT_EQ(0, Ptrace(PTRACE_INTERRUPT, child));
  ASSERT_EQ(Child::W(SIGSTOP, PTRACE_EVENT_STOP), child.Wait());
}

TEST(PtraceGroupStop, AttachToStopped) {
  Child child([] { return Pause(); });
  kill(child, SIGSTOP);
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait(WUNTRACED));
  ASSERT_EQ(0, Ptrace(PTRACE_ATTACH, child));
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  ASSERT_EQ(0, Resume(PTRACE_DETACH, child, SIGSTOP));
  EXPECT_TRUE(AwaitState(child, "T"));
  kill(child, SIGCONT);
  EXPECT_TRUE(AwaitState(child, "S"));
}

TEST(PtraceGroupStop, SeizeStopped) {
  Child child([] { return Pause(); });
  kill(child, SIGSTOP);
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait(WUNTRACED));
  ASSERT_EQ(0, Ptrace(PTRACE_SEIZE, child));
  ASSERT_EQ(Child::W(SIGSTOP, PTRACE_EVENT_STOP), child.Wait());
  // Its stop goes on when the tracer leaves.
  ASSERT_EQ(0, Resume(PTRACE_DETACH, child));
  EXPECT_TRUE(AwaitState(child, "T"));
  kill(child, SIGCONT);
  EXPECT_TRUE(AwaitState(child, "S"));
}

// --- who waits ---

TEST(PtraceWait, Waitid) {
  Child child = Child::Stopped([] { return 0; });
  Resume(PTRACE_SYSCALL, child);
  siginfo_t info{};
  ASSERT_EQ(0, waitid(P_PID, child, &info, WSTOPPED | WNOWAIT));
  EXPECT_EQ(CLD_TRAPPED, info.si_code);
  EXPECT_EQ(SIGTRAP, info.si_status);
  EXPECT_EQ(child.pid(), info.si_pid);
  ASSERT_EQ(0, waitid(P_PID, child, &info, WEXITED));  // shows stops too
  EXPECT_EQ(CLD_TRAPPED, info.si_code);
  info.si_pid = 1;
  ASSERT_EQ(0, waitid(P_PID, child, &info, WSTOPPED | WNOHANG));
  EXPECT_EQ(0, info.si_pid);
}

TEST(PtraceWait, OnlyTheTracingThread) {
  Child child = Child::Stopped([] { return 0; });
  std::thread([&] {
    uint64_t word;
    EXPECT_ERRNO(Ptrace(PTRACE_PEEKDATA, child, &word, &word), ESRCH);
    EXPECT_ERRNO(Resume(PTRACE_CONT, child), ESRCH);
    EXPECT_ERRNO(waitpid(child, nullptr, __WALL | WNOHANG | __WNOTHREAD), ECHILD);
  }).join();
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

// The tracer is a sibling: the parent waits until that has seen the end.
TEST(PtraceWait, ParentOfAnothersTracee) {
  Child child([] { return Pause(); });
  int fds[2], back[2];
  pipe(fds);
  pipe(back);
  Child tracer([&] {
    if (Ptrace(PTRACE_SEIZE, child) != 0) return 1;
    write(fds[1], "x", 1);
    char c;
    read(back[0], &c, 1);
    int status = 0;
    if (waitpid(child, &status, __WALL) != child.pid()) return 2;
    return WIFSTOPPED(status) && WSTOPSIG(status) == SIGTERM &&
                   Resume(PTRACE_CONT, child, SIGTERM) == 0 && write(fds[1], "y", 1) == 1 &&
                   read(back[0], &c, 1) == 1 && waitpid(child, &status, __WALL) == child.pid() &&
                   WIFSIGNALED(status)
               ? 0
               : 3;
  });
  char c;
  ASSERT_EQ(1, read(fds[0], &c, 1));
  EXPECT_EQ(std::to_string(tracer.pid()), StatusField(child, "TracerPid"));
  kill(child, SIGTERM);
  write(back[1], "x", 1);
  ASSERT_EQ(1, read(fds[0], &c, 1));
  EXPECT_TRUE(AwaitState(child, "Z"));
  EXPECT_EQ(-2, child.Wait(WNOHANG));  // not ours yet
  write(back[1], "x", 1);
  EXPECT_EQ(SIGTERM, child.Wait());
  EXPECT_EQ(Child::Exited(0), tracer.Wait());
}

TEST(PtraceWait, TracerDies) {
  Child child([] { return Pause(); });
  for (bool kill_too : {false, true}) {
    int fds[2];
    pipe(fds);
    EXPECT_EQ(0, ExitStatus([&] {
                if (Ptrace(PTRACE_SEIZE, child, nullptr,
                           uint64_t{kill_too ? PTRACE_O_EXITKILL : 0u}) != 0) {
                  return 1;
                }
                if (Ptrace(PTRACE_INTERRUPT, child) != 0) return 2;
                int status;
                return waitpid(child, &status, __WALL) == child.pid() ? 0 : 3;
              }));
    if (!kill_too) {
      EXPECT_TRUE(AwaitState(child, "S"));
      EXPECT_EQ("0", StatusField(child, "TracerPid"));
    }
  }
  EXPECT_EQ(SIGKILL, child.Wait());
}

TEST(PtraceWait, TracingThreadEnds) {
  Child child([] { return Pause(); });
  std::thread([&] {
    ASSERT_EQ(0, Ptrace(PTRACE_ATTACH, child));
    int status;
    ASSERT_EQ(child.pid(), waitpid(child, &status, __WALL));
  }).join();
  EXPECT_TRUE(AwaitState(child, "S"));
  for (int i = 0; i < 1000 && StatusField(child, "TracerPid") != "0"; i++) SleepMs(1);
  EXPECT_EQ("0", StatusField(child, "TracerPid"));
}

TEST(PtraceWait, ProcessVmOfTracee) {
  static char text[] = "before";
  Child child = Child::Stopped([] { return text[0] == 'B' ? 0 : 1; });
  char c = 'B';
  iovec local{&c, 1}, remote{text, 1};
  EXPECT_EQ(1, process_vm_writev(child, &local, 1, &remote, 1, 0));
  // Unlike ptrace it minds the protection.
  remote.iov_base = reinterpret_cast<void*>(&Pause);
  EXPECT_ERRNO(process_vm_writev(child, &local, 1, &remote, 1, 0), EFAULT);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

}  // namespace
