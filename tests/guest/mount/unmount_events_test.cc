// What inotify tells of an unmounted filesystem.
#include <sys/inotify.h>

#include <map>
#include <vector>

#include "mount_util.h"

namespace {

// All events that are there, by watch.
std::map<int, std::vector<uint32_t>> Events(int fd) {
  std::map<int, std::vector<uint32_t>> events;
  alignas(inotify_event) char buffer[4096];
  const ssize_t n = read(fd, buffer, sizeof(buffer));
  for (ssize_t at = 0; at < n;) {
    const auto* e = reinterpret_cast<const inotify_event*>(buffer + at);
    events[e->wd].push_back(e->mask);
    at += static_cast<ssize_t>(sizeof(*e) + e->len);
  }
  return events;
}

TEST(UnmountEvents, OfTheLastMount) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              WriteFile("a/f", "x");
              ASSERT_OK(Bind("a", "b"));
              const int fd = inotify_init1(IN_NONBLOCK);
              const int dir = inotify_add_watch(fd, "a", IN_MODIFY);
              const int file = inotify_add_watch(fd, "b/f", IN_MODIFY);
              const int other = inotify_add_watch(fd, ".", IN_MODIFY);
              ASSERT_OK(dir);
              ASSERT_OK(file);
              ASSERT_OK(umount("a"));
              EXPECT_TRUE(Events(fd).empty());  // it is still mounted
              ASSERT_OK(umount("b"));
              auto events = Events(fd);
              EXPECT_EQ((std::vector<uint32_t>{IN_UNMOUNT | IN_ISDIR, IN_IGNORED}), events[dir]);
              EXPECT_EQ((std::vector<uint32_t>{IN_UNMOUNT, IN_IGNORED}), events[file]);
              EXPECT_EQ(0u, events.count(other));
              EXPECT_ERRNO(inotify_rm_watch(fd, dir), EINVAL);
              EXPECT_OK(inotify_rm_watch(fd, other));
            }));
}

TEST(UnmountEvents, AfterADetachWhenTheLastUserGoes) {
  EXPECT_EQ(
      0, WithMounts([] {
        ASSERT_OK(Tmpfs("a"));
        const int fd = inotify_init1(IN_NONBLOCK);
        const int dir = inotify_add_watch(fd, "a", IN_MODIFY);
        const int user = open("a", O_RDONLY | O_DIRECTORY);
        ASSERT_OK(user);
        ASSERT_OK(umount2("a", MNT_DETACH));
        EXPECT_TRUE(Events(fd).empty());
        close(user);
        EXPECT_EQ((std::vector<uint32_t>{IN_UNMOUNT | IN_ISDIR, IN_IGNORED}), Events(fd)[dir]);
      }));
}

}  // namespace
