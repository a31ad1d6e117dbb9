// Linux AIO, by its system calls.
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include <thread>

#include "guest_util.h"

namespace {

long IoSetup(unsigned n, aio_context_t* ctx) { return syscall(SYS_io_setup, n, ctx); }
long Destroy(aio_context_t ctx) { return syscall(SYS_io_destroy, ctx); }
long Submit(aio_context_t ctx, long n, iocb** list) { return syscall(SYS_io_submit, ctx, n, list); }
long GetEvents(aio_context_t ctx, long least, long most, io_event* events,
               const timespec* timeout = nullptr) {
  return syscall(SYS_io_getevents, ctx, least, most, events, timeout);
}

class Context {
 public:
  explicit Context(unsigned n = 8) { EXPECT_EQ(0, IoSetup(n, &id)) << strerror(errno); }
  ~Context() { Destroy(id); }
  long Submit1(iocb& cb) {
    iocb* list[1] = {&cb};
    return Submit(id, 1, list);
  }
  int64_t Run(iocb& cb) {
    if (Submit1(cb) != 1) return -1000 - errno;
    io_event event{};
    if (GetEvents(id, 1, 1, &event) != 1) return -2000;
    EXPECT_EQ(reinterpret_cast<uint64_t>(&cb), event.obj);
    EXPECT_EQ(cb.aio_data, event.data);
    return event.res;
  }
  aio_context_t id = 0;
};

iocb Make(int op, int fd, const void* buffer = nullptr, size_t size = 0, int64_t offset = 0) {
  iocb cb{};
  cb.aio_lio_opcode = static_cast<uint16_t>(op);
  cb.aio_fildes = static_cast<uint32_t>(fd);
  cb.aio_buf = reinterpret_cast<uint64_t>(buffer);
  cb.aio_nbytes = size;
  cb.aio_offset = offset;
  cb.aio_data = 4711;
  return cb;
}

TEST(Aio, SetupAndErrors) {
  aio_context_t ctx = 0;
  EXPECT_ERRNO(IoSetup(0, &ctx), EINVAL);
  EXPECT_ERRNO(IoSetup(1, reinterpret_cast<aio_context_t*>(BadAddress())), EFAULT);
  ctx = 1;
  EXPECT_ERRNO(IoSetup(1, &ctx), EINVAL);
  ctx = 0;
  EXPECT_ERRNO(IoSetup(0x7fffffff, &ctx), EINVAL);
  EXPECT_ERRNO(IoSetup(4000000, &ctx), EAGAIN);
  ASSERT_EQ(0, IoSetup(4, &ctx));
  EXPECT_NE(0u, ctx);
  iocb* none[1] = {reinterpret_cast<iocb*>(BadAddress())};
  EXPECT_EQ(0, Submit(ctx, 0, none));
  EXPECT_ERRNO(Submit(ctx, -1, none), EINVAL);
  EXPECT_ERRNO(Submit(ctx, 1, none), EFAULT);
  EXPECT_ERRNO(Submit(ctx, 1, reinterpret_cast<iocb**>(BadAddress())), EFAULT);
  EXPECT_ERRNO(Submit(ctx + 1, 1, none), EINVAL);
  io_event events[2];
  EXPECT_ERRNO(GetEvents(ctx, 2, 1, events), EINVAL);
  EXPECT_ERRNO(GetEvents(ctx, -1, 1, events), EINVAL);
  timespec zero{0, 0}, soon{0, 20000000};
  EXPECT_EQ(0, GetEvents(ctx, 1, 1, events, &zero));
  int64_t start = NowNs();
  EXPECT_EQ(0, GetEvents(ctx, 1, 1, events, &soon));
  EXPECT_GE(NowNs() - start, 19000000);
  EXPECT_EQ(0, Destroy(ctx));
  EXPECT_ERRNO(Destroy(ctx), EINVAL);
  EXPECT_ERRNO(GetEvents(ctx, 0, 1, events, &zero), EINVAL);
  EXPECT_NE("", ReadFile("/proc/sys/fs/aio-max-nr"));
}

TEST(Aio, ReadWriteSync) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_RDWR | O_CREAT, 0600);
  Context c;
  iocb write = Make(IOCB_CMD_PWRITE, fd, "hello world", 11, 100);
  EXPECT_EQ(11, c.Run(write));
  char buffer[32] = {};
  iocb read = Make(IOCB_CMD_PREAD, fd, buffer, 32, 106);
  EXPECT_EQ(5, c.Run(read));
  EXPECT_STREQ("world", buffer);
  char a[3], b[10];
  iovec parts[2] = {{a, 3}, {b, 10}};
  iocb readv = Make(IOCB_CMD_PREADV, fd, parts, 2, 100);
  EXPECT_EQ(11, c.Run(readv));
  EXPECT_EQ(0, memcmp(b, "lo world", 8));
  iocb sync = Make(IOCB_CMD_FSYNC, fd);
  EXPECT_EQ(0, c.Run(sync));
  iocb data_sync = Make(IOCB_CMD_FDSYNC, fd);
  EXPECT_EQ(0, c.Run(data_sync));
  iocb fault = Make(IOCB_CMD_PREAD, fd, BadAddress(), 4, 100);
  EXPECT_EQ(-EFAULT, c.Run(fault));
  // What is wrong with the request itself is told at once.
  iocb bad = Make(IOCB_CMD_PREAD, -1, buffer, 4);
  EXPECT_ERRNO(c.Submit1(bad), EBADF);
  bad = Make(IOCB_CMD_NOOP, fd);
  EXPECT_ERRNO(c.Submit1(bad), EINVAL);
  bad = Make(IOCB_CMD_PREAD, fd, buffer, 4, -1);
  EXPECT_ERRNO(c.Submit1(bad), EINVAL);
  bad = Make(IOCB_CMD_PREAD, fd, buffer, 4);
  bad.aio_reserved2 = 1;
  EXPECT_ERRNO(c.Submit1(bad), EINVAL);
  int read_only = open((dir / "f").c_str(), O_RDONLY);
  bad = Make(IOCB_CMD_PWRITE, read_only, buffer, 4);
  EXPECT_ERRNO(c.Submit1(bad), EBADF);
  bad = Make(IOCB_CMD_PREAD, fd, buffer, 4);
  bad.aio_flags = IOCB_FLAG_RESFD;
  bad.aio_resfd = static_cast<uint32_t>(fd);
  EXPECT_ERRNO(c.Submit1(bad), EINVAL);
  close(read_only);
  close(fd);
}

TEST(Aio, ManyAndAnEventfd) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_RDWR | O_CREAT, 0600);
  int notify = eventfd(0, 0);
  Context c(16);
  iocb cbs[10];
  iocb* list[10];
  for (int i = 0; i < 10; i++) {
    cbs[i] = Make(IOCB_CMD_PWRITE, fd, "x", 1, i);
    cbs[i].aio_flags = IOCB_FLAG_RESFD;
    cbs[i].aio_resfd = static_cast<uint32_t>(notify);
    list[i] = &cbs[i];
  }
  cbs[7].aio_fildes = static_cast<uint32_t>(-1);
  EXPECT_EQ(7, Submit(c.id, 10, list));
  io_event events[16];
  EXPECT_EQ(7, GetEvents(c.id, 7, 16, events));
  uint64_t count = 0;
  EXPECT_EQ(8, read(notify, &count, 8));
  EXPECT_EQ(7u, count);
  EXPECT_EQ(7, lseek(fd, 0, SEEK_END));
  close(notify);
  close(fd);
}

TEST(Aio, Poll) {
  int fds[2];
  ASSERT_EQ(0, pipe(fds));
  Context c;
  iocb poll_in = Make(IOCB_CMD_POLL, fds[0]);
  poll_in.aio_buf = POLLIN;
  ASSERT_EQ(1, c.Submit1(poll_in));
  io_event event;
  timespec soon{0, 20000000};
  EXPECT_EQ(0, GetEvents(c.id, 1, 1, &event, &soon));
  std::thread writer([&] {
    SleepMs(20);
    write(fds[1], "x", 1);
  });
  EXPECT_EQ(1, GetEvents(c.id, 1, 1, &event));
  EXPECT_TRUE(event.res & POLLIN);
  writer.join();
  iocb poll_out = Make(IOCB_CMD_POLL, fds[1]);
  poll_out.aio_buf = POLLOUT;
  EXPECT_TRUE(c.Run(poll_out) & POLLOUT);
  iocb bad = Make(IOCB_CMD_POLL, fds[0]);
  bad.aio_buf = 0x10000;
  EXPECT_ERRNO(c.Submit1(bad), EINVAL);
  char byte;
  read(fds[0], &byte, 1);
  ASSERT_EQ(1, c.Submit1(poll_in));
  io_event result;
  EXPECT_ERRNO(syscall(SYS_io_cancel, c.id, &poll_in, &result), EINPROGRESS);
  EXPECT_EQ(1, GetEvents(c.id, 1, 1, &event));
  EXPECT_ERRNO(syscall(SYS_io_cancel, c.id, &poll_in, &result), EINVAL);
  // What is left at the end of the process is no hindrance.
  EXPECT_EQ(0, ExitStatus([&] {
              Context own;
              return own.Submit1(poll_in) == 1 ? 0 : 1;
            }));
  close(fds[0]);
  close(fds[1]);
}

TEST(Aio, NotInheritedByFork) {
  Context c;
  EXPECT_EQ(0, ExitStatus([&] {
              io_event event;
              timespec zero{0, 0};
              return GetEvents(c.id, 0, 1, &event, &zero) == -1 && errno == EINVAL ? 0 : 1;
            }));
}

TEST(Aio, SignalEndsTheWait) {
  Context c;
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, nullptr);
  pthread_t self = pthread_self();
  std::thread sender([&] {
    WaitUntilAsleep(getpid());
    pthread_kill(self, SIGUSR1);
  });
  io_event event;
  EXPECT_ERRNO(GetEvents(c.id, 1, 1, &event), EINTR);
  sender.join();
  sigset_t all, none;
  sigfillset(&all);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &all, nullptr);
  raise(SIGUSR1);
  struct {
    const sigset_t* set;
    size_t size;
  } mask{&none, 8};
  EXPECT_ERRNO(syscall(SYS_io_pgetevents, c.id, 1, 1, &event, nullptr, &mask), EINTR);
  mask.size = 4;
  EXPECT_ERRNO(syscall(SYS_io_pgetevents, c.id, 1, 1, &event, nullptr, &mask), EINVAL);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

}  // namespace
