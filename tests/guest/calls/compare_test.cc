// kcmp(KCMP_EPOLL_TFD, KCMP_IO), and file handles that only identify (AT_HANDLE_FID).
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <fstream>
#include <string>

#include "guest_util.h"

namespace {

long Kcmp(int type, unsigned long first, unsigned long second) {
  return syscall(SYS_kcmp, getpid(), getpid(), type, first, second);
}

TEST(Kcmp, WhatAnEpollInstanceWatches) {
  const int e = epoll_create1(0), a = eventfd(0, 0), b = eventfd(0, 0);
  epoll_event event{.events = EPOLLIN, .data = {}};
  ASSERT_OK(epoll_ctl(e, EPOLL_CTL_ADD, a, &event));
  kcmp_epoll_slot slot{static_cast<uint32_t>(e), static_cast<uint32_t>(a), 0};
  const auto at = reinterpret_cast<unsigned long>(&slot);
  EXPECT_EQ(0, Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(a), at));
  EXPECT_GT(Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(b), at), 0);
  slot.toff = 1;
  EXPECT_ERRNO(Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(a), at), ENOENT);
  // Another file that is watched by the same number.
  const int kept = dup(a);
  ASSERT_OK(dup2(b, a));
  ASSERT_OK(epoll_ctl(e, EPOLL_CTL_ADD, a, &event));
  bool found_a = false, found_b = false;
  for (uint32_t i = 0; i < 2; ++i) {
    slot.toff = i;
    found_a = found_a || Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(kept), at) == 0;
    found_b = found_b || Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(b), at) == 0;
  }
  EXPECT_TRUE(found_a && found_b);
  slot = {static_cast<uint32_t>(e), 1000, 0};
  EXPECT_ERRNO(Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(a), at), ENOENT);
  slot = {static_cast<uint32_t>(b), static_cast<uint32_t>(a), 0};
  EXPECT_ERRNO(Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(a), at), EINVAL);
  slot = {1000, static_cast<uint32_t>(a), 0};
  EXPECT_ERRNO(Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(a), at), EBADF);
  EXPECT_ERRNO(Kcmp(KCMP_EPOLL_TFD, 1000, at), EBADF);
  EXPECT_ERRNO(Kcmp(KCMP_EPOLL_TFD, static_cast<unsigned long>(a), 0), EFAULT);
  for (int fd : {e, a, b, kept}) close(fd);
}

struct Handle {
  unsigned bytes = 128;
  int type = 0;
  char data[128] = {};
};
constexpr int kUnique = 1, kConnectable = 2, kFid = 0x200;

int NameToHandle(const char* path, Handle* handle, void* id, int flags) {
  return static_cast<int>(syscall(SYS_name_to_handle_at, AT_FDCWD, path, handle, id, flags));
}

TEST(Handles, TheyTellFilesApart) {
  std::ofstream("/tmp/handle-a") << "a";
  std::ofstream("/tmp/handle-b") << "b";
  ASSERT_OK(link("/tmp/handle-a", "/tmp/handle-c"));
  Handle a, b, c;
  int id = -1;
  ASSERT_OK(NameToHandle("/tmp/handle-a", &a, &id, kFid));
  ASSERT_OK(NameToHandle("/tmp/handle-b", &b, &id, kFid));
  ASSERT_OK(NameToHandle("/tmp/handle-c", &c, &id, kFid));
  EXPECT_GT(a.bytes, 0u);
  EXPECT_EQ(a.bytes, c.bytes);
  EXPECT_EQ(a.type, c.type);
  EXPECT_EQ(std::string(a.data, a.bytes), std::string(c.data, c.bytes));
  EXPECT_NE(std::string(a.data, a.bytes), std::string(b.data, b.bytes));
  // Too little room: how much it takes is told.
  Handle none;
  none.bytes = 0;
  EXPECT_ERRNO(NameToHandle("/tmp/handle-a", &none, &id, kFid), EOVERFLOW);
  EXPECT_EQ(a.bytes, none.bytes);
  none.bytes = 129;
  EXPECT_ERRNO(NameToHandle("/tmp/handle-a", &none, &id, kFid), EINVAL);
  EXPECT_ERRNO(NameToHandle("/tmp/handle-a", &a, &id, kFid | kConnectable), EINVAL);
  EXPECT_ERRNO(NameToHandle("/tmp/handle-a", &a, &id, 0x4000), EINVAL);
  EXPECT_ERRNO(NameToHandle("/tmp/handle-none", &a, &id, kFid), ENOENT);
  for (const char* name : {"/tmp/handle-a", "/tmp/handle-b", "/tmp/handle-c"}) unlink(name);
}

TEST(Handles, MountIds) {
  struct statx st {};
  ASSERT_OK(statx(AT_FDCWD, "/tmp", 0, 0x1000 /* STATX_MNT_ID */, &st));
  Handle h;
  int id = -1;
  ASSERT_OK(NameToHandle("/tmp", &h, &id, kFid));
  uint64_t plain = 0;
  memcpy(&plain, reinterpret_cast<char*>(&st) + 0x90, sizeof(plain));
  EXPECT_EQ(plain, static_cast<uint64_t>(id));
  uint64_t unique = 0, told = 0;
  ASSERT_OK(NameToHandle("/tmp", &h, &unique, kFid | kUnique));
  ASSERT_OK(statx(AT_FDCWD, "/tmp", 0, 0x4000 /* STATX_MNT_ID_UNIQUE */, &st));
  memcpy(&told, reinterpret_cast<char*>(&st) + 0x90, sizeof(told));
  EXPECT_EQ(told, unique);
}

// Who has been given an I/O priority has a context of his own.
TEST(Kcmp, ContextsOfPriority) {
  constexpr int kBestEffort4 = 2 << 13 | 4;
  EXPECT_EQ(0, ExitStatus([] {
              const pid_t self = getpid();
              if (syscall(SYS_ioprio_set, 1, 0, kBestEffort4) != 0) return 2;
              const pid_t child = fork();  // with a context that has the same priority
              if (child == 0) pause(), _exit(0);
              const long order = syscall(SYS_kcmp, self, child, KCMP_IO, 0, 0);
              const long back = syscall(SYS_kcmp, child, self, KCMP_IO, 0, 0);
              const long same = syscall(SYS_kcmp, self, self, KCMP_IO, 0, 0);
              kill(child, SIGKILL);
              waitpid(child, nullptr, 0);
              if (same != 0) return 3;
              return (order == 1 && back == 2) || (order == 2 && back == 1) ? 0 : 4;
            }));
}

}  // namespace
