// POSIX message queues.
#include <mqueue.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>

#include "guest_util.h"

namespace {

std::string UniqueName(const char* suffix = "") {
  return "/guest-" + std::to_string(getpid()) + suffix;
}

// A queue that goes with the test.
class Queue {
 public:
  explicit Queue(long messages = 4, long size = 64, int flags = O_RDWR) : name_(UniqueName()) {
    mq_unlink(name_.c_str());
    mq_attr attr{};
    attr.mq_maxmsg = messages;
    attr.mq_msgsize = size;
    fd_ = mq_open(name_.c_str(), flags | O_CREAT | O_EXCL, 0600, &attr);
    EXPECT_GE(fd_, 0) << strerror(errno);
  }
  ~Queue() {
    mq_close(fd_);
    mq_unlink(name_.c_str());
  }
  mqd_t fd() const { return fd_; }
  const std::string& name() const { return name_; }
  int Send(const std::string& text, unsigned priority = 0) {
    return mq_send(fd_, text.data(), text.size(), priority);
  }
  std::string Receive() {
    char buffer[8192];
    unsigned priority;
    ssize_t n = mq_receive(fd_, buffer, sizeof buffer, &priority);
    if (n < 0) return "errno " + std::to_string(errno);
    return std::to_string(priority) + ":" + std::string(buffer, static_cast<size_t>(n));
  }

 private:
  std::string name_;
  mqd_t fd_;
};

long RawOpen(const char* name, int flags, mode_t mode = 0, mq_attr* attr = nullptr) {
  return syscall(SYS_mq_open, name, flags, mode, attr);
}

TEST(Mqueue, OpenErrors) {
  std::string name = UniqueName("-errors");
  const char* raw = name.c_str() + 1;
  EXPECT_ERRNO(RawOpen(raw, O_RDWR), ENOENT);
  EXPECT_ERRNO(RawOpen("", O_RDWR | O_CREAT, 0600), ENOENT);
  EXPECT_ERRNO(RawOpen("/a", O_RDWR | O_CREAT, 0600), EACCES);
  EXPECT_ERRNO(RawOpen("a/b", O_RDWR | O_CREAT, 0600), EACCES);
  EXPECT_ERRNO(RawOpen(std::string(256, 'x').c_str(), O_RDWR | O_CREAT, 0600), ENAMETOOLONG);
  EXPECT_ERRNO(RawOpen(BadAddress(), O_RDWR), EFAULT);
  EXPECT_ERRNO(RawOpen(raw, O_RDWR | O_CREAT, 0600, reinterpret_cast<mq_attr*>(BadAddress())),
               EFAULT);
  mq_attr attr{};
  EXPECT_ERRNO(RawOpen(raw, O_RDWR | O_CREAT, 0600, &attr), EINVAL);
  attr.mq_maxmsg = 1;
  attr.mq_msgsize = 1 << 30;
  EXPECT_ERRNO(RawOpen(raw, O_RDWR | O_CREAT, 0600, &attr), EINVAL);
  long fd = RawOpen(raw, O_RDWR | O_CREAT, 0600);
  ASSERT_OK(fd);
  EXPECT_EQ(FD_CLOEXEC, fcntl(static_cast<int>(fd), F_GETFD));
  EXPECT_ERRNO(RawOpen(raw, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
  close(static_cast<int>(fd));
  EXPECT_EQ(0, mq_unlink(name.c_str()));
  EXPECT_ERRNO(mq_unlink(name.c_str()), ENOENT);
  EXPECT_EQ(0, ExitStatus([] {
              if (setgid(1000) != 0 || setuid(1000) != 0) return 1;
              std::string mine = UniqueName("-user");
              mq_attr big{};
              big.mq_maxmsg = 11;
              big.mq_msgsize = 10;
              if (mq_open(mine.c_str(), O_RDWR | O_CREAT, 0600, &big) != -1 || errno != EINVAL)
                return 2;
              rlimit limit{100, 100};
              setrlimit(RLIMIT_MSGQUEUE, &limit);
              if (mq_open(mine.c_str(), O_RDWR | O_CREAT, 0600, nullptr) != -1 || errno != EMFILE)
                return 3;
              return 0;
            }));
}

TEST(Mqueue, PrioritiesAndOrder) {
  Queue q;
  ASSERT_EQ(0, q.Send("a", 1));
  ASSERT_EQ(0, q.Send("b", 5));
  ASSERT_EQ(0, q.Send("c", 1));
  ASSERT_EQ(0, q.Send("", 32767));
  EXPECT_EQ("32767:", q.Receive());
  EXPECT_EQ("5:b", q.Receive());
  EXPECT_EQ("1:a", q.Receive());
  EXPECT_EQ("1:c", q.Receive());
  EXPECT_ERRNO(q.Send("x", 32768), EINVAL);
  EXPECT_ERRNO(q.Send(std::string(65, 'x')), EMSGSIZE);
  char small[63];
  EXPECT_ERRNO(mq_receive(q.fd(), small, sizeof small, nullptr), EMSGSIZE);
  EXPECT_ERRNO(mq_send(q.fd(), BadAddress(), 10, 0), EFAULT);
  int pipe_fds[2];
  ASSERT_EQ(0, pipe(pipe_fds));
  EXPECT_ERRNO(mq_send(pipe_fds[1], "x", 1, 0), EBADF);
  EXPECT_ERRNO(mq_send(-1, "x", 1, 0), EBADF);
  mqd_t reader = mq_open(q.name().c_str(), O_RDONLY);
  EXPECT_ERRNO(mq_send(reader, "x", 1, 0), EBADF);
  mq_close(reader);
}

TEST(Mqueue, NonblockAndAttributes) {
  Queue q(2, 32, O_RDWR | O_NONBLOCK);
  EXPECT_EQ("errno " + std::to_string(EAGAIN), q.Receive());
  EXPECT_EQ(0, q.Send("1"));
  EXPECT_EQ(0, q.Send("2"));
  EXPECT_ERRNO(q.Send("3"), EAGAIN);
  mq_attr attr{};
  ASSERT_EQ(0, mq_getattr(q.fd(), &attr));
  EXPECT_EQ(2, attr.mq_maxmsg);
  EXPECT_EQ(32, attr.mq_msgsize);
  EXPECT_EQ(2, attr.mq_curmsgs);
  EXPECT_EQ(O_NONBLOCK, attr.mq_flags);
  mq_attr none{}, old{};
  ASSERT_EQ(0, mq_setattr(q.fd(), &none, &old));
  EXPECT_EQ(O_NONBLOCK, old.mq_flags);
  EXPECT_EQ(0, fcntl(q.fd(), F_GETFL) & O_NONBLOCK);
  none.mq_flags = O_APPEND;
  EXPECT_ERRNO(mq_setattr(q.fd(), &none, nullptr), EINVAL);
  EXPECT_ERRNO(mq_getattr(-1, &attr), EBADF);
}

TEST(Mqueue, Timeouts) {
  Queue q(1, 16);
  char buffer[16];
  timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  at.tv_nsec += 30000000;
  if (at.tv_nsec >= 1000000000) at.tv_nsec -= 1000000000, at.tv_sec++;
  int64_t start = NowNs();
  EXPECT_ERRNO(mq_timedreceive(q.fd(), buffer, 16, nullptr, &at), ETIMEDOUT);
  EXPECT_GE(NowNs() - start, 25000000);
  EXPECT_ERRNO(mq_timedreceive(q.fd(), buffer, 16, nullptr, &at), ETIMEDOUT);
  EXPECT_EQ(0, q.Send("full"));
  EXPECT_ERRNO(mq_timedsend(q.fd(), "x", 1, 0, &at), ETIMEDOUT);
  at.tv_nsec = -1;
  EXPECT_ERRNO(syscall(SYS_mq_timedsend, q.fd(), "x", 1, 0, &at), EINVAL);
  EXPECT_EQ("0:full", q.Receive());
}

TEST(Mqueue, BlockingBothWays) {
  Queue q(1, 16);
  std::thread receiver([&] { EXPECT_EQ("3:hello", q.Receive()); });
  SleepMs(30);
  EXPECT_EQ(0, q.Send("hello", 3));
  receiver.join();
  EXPECT_EQ(0, q.Send("one"));
  std::atomic<bool> sent{false};
  std::thread sender([&] {
    EXPECT_EQ(0, q.Send("two"));
    sent = true;
  });
  SleepMs(30);
  EXPECT_FALSE(sent);
  EXPECT_EQ("0:one", q.Receive());
  sender.join();
  EXPECT_EQ("0:two", q.Receive());
}

TEST(Mqueue, SignalEndsAWait) {
  Queue q(1, 16);
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, nullptr);
  pthread_t self = pthread_self();
  std::thread sender([&] {
    WaitUntilAsleep(getpid());
    pthread_kill(self, SIGUSR1);
  });
  EXPECT_EQ("errno " + std::to_string(EINTR), q.Receive());
  sender.join();
}

TEST(Mqueue, Poll) {
  Queue q(1, 16);
  pollfd p{q.fd(), POLLIN | POLLOUT, 0};
  EXPECT_EQ(1, poll(&p, 1, 0));
  EXPECT_EQ(POLLOUT, p.revents);
  ASSERT_EQ(0, q.Send("x"));
  EXPECT_EQ(1, poll(&p, 1, 0));
  EXPECT_EQ(POLLIN, p.revents);
  p.events = POLLOUT;
  std::thread receiver([&] {
    SleepMs(30);
    q.Receive();
  });
  EXPECT_EQ(1, poll(&p, 1, 5000));
  receiver.join();
}

volatile sig_atomic_t g_count, g_code, g_value, g_pid;
void OnMessage(int, siginfo_t* info, void*) {
  g_count = g_count + 1;
  g_code = info->si_code;
  g_value = info->si_value.sival_int;
  g_pid = info->si_pid;
}

TEST(Mqueue, NotifyBySignal) {
  Queue q(4, 16);
  struct sigaction action {};
  action.sa_sigaction = OnMessage;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGUSR2, &action, nullptr);
  g_count = 0;
  sigevent event{};
  event.sigev_notify = 99;
  EXPECT_ERRNO(mq_notify(q.fd(), &event), EINVAL);
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = 65;
  EXPECT_ERRNO(mq_notify(q.fd(), &event), EINVAL);
  event.sigev_signo = SIGUSR2;
  event.sigev_value.sival_int = 4711;
  EXPECT_ERRNO(mq_notify(-1, &event), EBADF);
  ASSERT_EQ(0, mq_notify(q.fd(), &event));
  EXPECT_ERRNO(mq_notify(q.fd(), &event), EBUSY);
  // (Read by another process: closing it here would end the registration.)
  EXPECT_EQ(0, ExitStatus([&] {
              std::string status = ReadFile("/proc/self/fd/" + std::to_string(q.fd()));
              return status.find("QSIZE:0          NOTIFY:0     SIGNO:12    NOTIFY_PID:" +
                                 std::to_string(getppid())) == 0
                         ? 0
                         : 1;
            }));
  pid_t child = fork();
  if (child == 0) _exit(q.Send("first") == 0 ? 0 : 1);
  waitpid(child, nullptr, 0);
  while (g_count == 0) SleepMs(1);
  EXPECT_EQ(SI_MESGQ, g_code);
  EXPECT_EQ(4711, g_value);
  EXPECT_EQ(child, g_pid);
  // Once only, and only when the queue was empty.
  ASSERT_EQ(0, mq_notify(q.fd(), &event));
  EXPECT_EQ(0, q.Send("second"));
  SleepMs(20);
  EXPECT_EQ(1, g_count);
  q.Receive();
  q.Receive();
  // Who waits in mq_receive gets the message, and nobody is told.
  std::atomic<pid_t> tid{0};
  std::thread receiver([&] {
    tid = static_cast<pid_t>(syscall(SYS_gettid));
    EXPECT_EQ("0:third", q.Receive());
  });
  while (tid == 0) SleepMs(1);
  WaitUntilAsleep(tid);
  EXPECT_EQ(0, q.Send("third"));
  receiver.join();
  EXPECT_EQ(1, g_count);
  EXPECT_EQ(0, mq_notify(q.fd(), nullptr));
  EXPECT_EQ(0, mq_notify(q.fd(), nullptr));
  EXPECT_EQ(0, q.Send("fourth"));
  SleepMs(10);
  EXPECT_EQ(1, g_count);
  q.Receive();
  // Closing a descriptor of it ends the registration.
  ASSERT_EQ(0, mq_notify(q.fd(), &event));
  close(dup(q.fd()));
  ASSERT_EQ(0, mq_notify(q.fd(), &event));
}

std::atomic<int> g_thread_value{0};
void OnThread(sigval value) { g_thread_value = value.sival_int; }

// libc's own thread waits on a netlink socket for it.
TEST(Mqueue, NotifyByThread) {
  Queue q(4, 16);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD;
  event.sigev_notify_function = OnThread;
  event.sigev_value.sival_int = 815;
  ASSERT_EQ(0, mq_notify(q.fd(), &event)) << strerror(errno);
  EXPECT_ERRNO(mq_notify(q.fd(), &event), EBUSY);
  EXPECT_EQ(0, q.Send("x"));
  for (int i = 0; i < 2000 && g_thread_value == 0; i++) SleepMs(1);
  EXPECT_EQ(815, g_thread_value);
  ASSERT_EQ(0, mq_notify(q.fd(), &event));
  EXPECT_EQ(0, mq_notify(q.fd(), nullptr));
  // What is given as the socket must be one.
  struct {
    sigval value;
    int32_t signo, notify, pad[12];
  } raw{};
  char cookie[32] = {};
  raw.notify = SIGEV_THREAD;
  raw.value.sival_ptr = cookie;
  raw.signo = -1;
  EXPECT_ERRNO(syscall(SYS_mq_notify, q.fd(), &raw), EBADF);
  raw.signo = q.fd();
  EXPECT_ERRNO(syscall(SYS_mq_notify, q.fd(), &raw), ENOTSOCK);
  raw.value.sival_ptr = BadAddress();
  EXPECT_ERRNO(syscall(SYS_mq_notify, q.fd(), &raw), EFAULT);
}

TEST(Mqueue, LivesOnWithoutItsName) {
  std::string name = UniqueName("-unlinked");
  mqd_t a = mq_open(name.c_str(), O_RDWR | O_CREAT, 0600, nullptr);
  ASSERT_GE(a, 0);
  EXPECT_EQ(0, mq_unlink(name.c_str()));
  EXPECT_ERRNO(mq_open(name.c_str(), O_RDWR), ENOENT);
  mqd_t b = mq_open(name.c_str(), O_RDWR | O_CREAT, 0600, nullptr);
  EXPECT_EQ(0, mq_send(a, "x", 1, 0));
  mq_attr attr;
  EXPECT_EQ(0, mq_getattr(b, &attr));
  EXPECT_EQ(0, attr.mq_curmsgs);
  mq_close(a);
  mq_close(b);
  EXPECT_EQ(0, mq_unlink(name.c_str()));
}

TEST(Mqueue, Files) {
  EXPECT_EQ(0, ExitStatus([] {
              if (unshare(CLONE_NEWNS | CLONE_NEWIPC) != 0) return 1;
              mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
              if (mount("mqueue", "/tmp", "mqueue", 0, nullptr) != 0) return 2;
              struct stat st;
              if (stat("/tmp", &st) != 0 || st.st_mode != (S_IFDIR | S_ISVTX | 0777)) return 3;
              umask(022);
              mqd_t fd = mq_open("/one", O_RDWR | O_CREAT, 0666, nullptr);
              if (fd < 0 || stat("/tmp/one", &st) != 0) return 4;
              if (st.st_mode != (S_IFREG | 0644) || st.st_size != 80) return 5;
              if (mq_send(fd, "hello", 5, 0) != 0) return 6;
              std::string text = ReadFile("/tmp/one");
              if (text != "QSIZE:5          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n") return 7;
              int other = open("/tmp/two", O_RDWR | O_CREAT, 0600);
              if (other < 0) return 8;
              mq_attr attr;
              if (mq_getattr(other, &attr) != 0 || attr.mq_maxmsg != 10 || attr.mq_msgsize != 8192)
                return 9;
              if (unlink("/tmp/one") != 0 || mq_open("/one", O_RDWR) != -1 || errno != ENOENT)
                return 10;
              if (mq_unlink("/two") != 0 || access("/tmp/two", F_OK) == 0) return 11;
              if (setgid(1000) != 0 || setuid(1000) != 0) return 12;
              if (mq_open("/three", O_RDWR | O_CREAT, 0600, nullptr) < 0) return 13;
              return 0;
            }));
  // The other namespace's queues are not here.
  EXPECT_ERRNO(mq_open("/three", O_RDWR), ENOENT);
  EXPECT_NE("", ReadFile("/proc/sys/fs/mqueue/msg_max"));
}

TEST(Mqueue, Permissions) {
  Queue q(1, 16);
  EXPECT_EQ(0, ExitStatus([&] {
              if (setgid(1000) != 0 || setuid(1000) != 0) return 1;
              if (mq_open(q.name().c_str(), O_RDONLY) != -1 || errno != EACCES) return 2;
              if (mq_unlink(q.name().c_str()) != -1 || (errno != EACCES && errno != EPERM))
                return 3;
              return 0;
            }));
}

}  // namespace
