// poll and epoll of /proc/self/mounts and mountinfo; PROCMAP_QUERY of /proc/self/maps.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <thread>

#include "mount_util.h"

namespace {

int Poll(int fd, short events, int ms) {
  pollfd p{fd, events, 0};
  EXPECT_GE(poll(&p, 1, ms), 0);
  return p.revents;
}

TEST(MountPoll, ChangesAreTold) {
  EXPECT_EQ(0, WithMounts([] {
              for (const char* name : {"/proc/self/mounts", "/proc/self/mountinfo"}) {
                const int fd = open(name, O_RDONLY);
                ASSERT_OK(fd);
                EXPECT_EQ(POLLIN, Poll(fd, POLLIN | POLLPRI, 0));
                EXPECT_EQ(0, Poll(fd, POLLPRI, 0));
                ASSERT_OK(Tmpfs("a"));
                EXPECT_EQ(POLLERR | POLLPRI, Poll(fd, POLLPRI, 0));
                EXPECT_EQ(0, Poll(fd, POLLPRI, 0));
                ASSERT_OK(mount(nullptr, "a", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr));
                EXPECT_EQ(POLLERR | POLLPRI, Poll(fd, POLLPRI, 0));
                ASSERT_OK(umount("a"));
                EXPECT_EQ(POLLERR | POLLIN | POLLPRI, Poll(fd, POLLIN | POLLPRI, 0));
                close(fd);
              }
            }));
}

TEST(MountPoll, ASleeperIsWoken) {
  EXPECT_EQ(0, WithMounts([] {
              const int fd = open("/proc/self/mountinfo", O_RDONLY);
              const int e = epoll_create1(0);
              epoll_event event{.events = EPOLLPRI | EPOLLET, .data = {}};
              ASSERT_OK(epoll_ctl(e, EPOLL_CTL_ADD, fd, &event));
              EXPECT_EQ(0, epoll_wait(e, &event, 1, 0));
              for (int i = 0; i < 3; ++i) {
                std::thread changer([] {
                  usleep(20000);
                  EXPECT_OK(Tmpfs("/tmp/a"));
                });
                ASSERT_EQ(1, epoll_wait(e, &event, 1, 5000));
                EXPECT_EQ(EPOLLERR | EPOLLPRI, event.events);
                changer.join();
              }
              std::thread changer([] {
                usleep(20000);
                EXPECT_OK(umount("/tmp/a"));
              });
              EXPECT_EQ(POLLERR | POLLPRI, Poll(fd, POLLPRI, 5000));
              changer.join();
              close(e);
              close(fd);
            }));
}

TEST(MountPoll, OtherNamespacesDoNotMatter) {
  EXPECT_EQ(0, WithMounts([] {
              const int fd = open("/proc/self/mounts", O_RDONLY);
              EXPECT_EQ(0, ExitStatus([] {
                          if (unshare(CLONE_NEWNS) != 0) return 1;
                          return Tmpfs("a") == 0 ? 0 : 2;
                        }));
              EXPECT_EQ(0, Poll(fd, POLLPRI, 0));
              close(fd);
            }));
}

// struct procmap_query.
struct Query {
  uint64_t size, flags, address;
  uint64_t start, end, vma_flags, page_size, offset, inode;
  uint32_t major, minor, name_size, build_id_size;
  uint64_t name, build_id;
};

TEST(ProcMaps, Queries) {
  const unsigned long kQuery = _IOWR('f', 17, Query);
  const int fd = open("/proc/self/maps", O_RDONLY);
  ASSERT_OK(fd);
  auto* page = static_cast<char*>(
      mmap(nullptr, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(MAP_FAILED, page);
  ASSERT_OK(mprotect(page + 4096, 4096, PROT_READ));
  ASSERT_OK(munmap(page + 8192, 4096));
  Query q{.size = sizeof(Query), .address = reinterpret_cast<uint64_t>(page) + 4100};
  if (ioctl(fd, kQuery, &q) != 0 && errno == ENOTTY) GTEST_SKIP() << "not in this kernel";
  EXPECT_EQ(reinterpret_cast<uint64_t>(page) + 4096, q.start);
  EXPECT_EQ(reinterpret_cast<uint64_t>(page) + 8192, q.end);
  EXPECT_EQ(1u, q.vma_flags);
  EXPECT_EQ(4096u, q.page_size);
  EXPECT_EQ(0u, q.inode);
  // Its own text, with a name.
  char name[4096] = {};
  q = {.size = sizeof(Query), .flags = 0x20, .address = reinterpret_cast<uint64_t>(&Poll)};
  q.name = reinterpret_cast<uint64_t>(name);
  q.name_size = sizeof(name);
  ASSERT_OK(ioctl(fd, kQuery, &q));
  EXPECT_NE(0u, q.inode);
  EXPECT_EQ(5u, q.vma_flags);
  EXPECT_EQ(strlen(name) + 1, q.name_size);
  char exe[4096] = {};
  ASSERT_GT(readlink("/proc/self/exe", exe, sizeof(exe) - 1), 0);
  EXPECT_STREQ(exe, name);
  q.name_size = 2;
  EXPECT_ERRNO(ioctl(fd, kQuery, &q), ENAMETOOLONG);
  // The next one that may be written, from the beginning on.
  q = {.size = sizeof(Query), .flags = 0x12, .address = 0};
  ASSERT_OK(ioctl(fd, kQuery, &q));
  EXPECT_EQ(2u, q.vma_flags & 2);
  q = {.size = sizeof(Query), .flags = 0, .address = 0};
  EXPECT_ERRNO(ioctl(fd, kQuery, &q), ENOENT);
  q.flags = 0x100;
  EXPECT_ERRNO(ioctl(fd, kQuery, &q), EINVAL);
  q = {.size = 8, .flags = 0, .address = 0};
  EXPECT_ERRNO(ioctl(fd, kQuery, &q), EINVAL);
  q = {.size = 5000, .flags = 0, .address = 0};
  EXPECT_ERRNO(ioctl(fd, kQuery, &q), E2BIG);
  q = {.size = sizeof(Query), .flags = 0, .address = reinterpret_cast<uint64_t>(page)};
  q.name_size = 10;
  EXPECT_ERRNO(ioctl(fd, kQuery, &q), EINVAL);
  EXPECT_ERRNO(ioctl(fd, kQuery, nullptr), EFAULT);
  munmap(page, 8192);
  close(fd);
}

}  // namespace
