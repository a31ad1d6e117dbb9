// What the confined gofer is, seen from the host, and what it dies of.
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include "gofer/confine.h"
#include "gofer/test_support.h"

namespace gofer {
namespace {

class ConfineTest : public GoferFixture {
 protected:
  std::string Status(const std::string& field) {
    std::ifstream in("/proc/" + std::to_string(pid_) + "/status");
    std::string line;
    while (std::getline(in, line)) {
      if (line.starts_with(field + ":")) return line.substr(line.find_last_of(" \t") + 1);
    }
    return "?";
  }
};
INSTANTIATE_TEST_SUITE_P(All, ConfineTest, testing::Values(true), ModeName);

TEST_P(ConfineTest, StateSeenFromTheHost) {
  Launch();
  EXPECT_EQ(Status("NoNewPrivs"), "1");
  EXPECT_EQ(Status("Seccomp"), "2");
  EXPECT_EQ(Status("CapBnd"), "0000000000000000");
  EXPECT_EQ(Status("CapInh"), "0000000000000000");
  EXPECT_EQ(Status("CapAmb"), "0000000000000000");
  EXPECT_EQ(Status("CapEff"), "000000000000001f");  // chown, dac_*, fowner, fsetid
  EXPECT_EQ(Status("CapPrm"), "000000000000001f");
  const std::string proc = "/proc/" + std::to_string(pid_);
  for (const char* ns : {"user", "mnt", "pid", "net", "ipc", "uts"}) {
    EXPECT_NE(std::filesystem::read_symlink(proc + "/ns/" + ns),
              std::filesystem::read_symlink(std::string("/proc/self/ns/") + ns));
  }
  // Its root is empty and read-only, and nothing else is mounted.
  EXPECT_TRUE(std::filesystem::is_empty(proc + "/root"));
  std::ifstream mounts(proc + "/mounts");
  std::string line, rest;
  std::getline(mounts, line);
  EXPECT_TRUE(line.starts_with("none / tmpfs ro,")) << line;
  EXPECT_FALSE(std::getline(mounts, rest)) << rest;
  // Standard streams, the connection, three mounts and their roots' handles, /proc/self/fd.
  size_t total = 0, sockets = 0;
  for (const auto& entry : std::filesystem::directory_iterator(proc + "/fd")) {
    ++total;
    struct stat st;
    ASSERT_EQ(stat(entry.path().c_str(), &st), 0);
    if (S_ISSOCK(st.st_mode)) ++sockets;
    const int fd = std::stoi(entry.path().filename());
    if (fd <= 1) {
      EXPECT_EQ(st.st_rdev, makedev(1, 3));
    }
  }
  EXPECT_EQ(sockets, 1u);
  EXPECT_EQ(total, 3u + 1 + 3 + 1);
}

TEST_P(ConfineTest, FilterIsShort) {
  FilterFds fds;
  EXPECT_LE(FilterCalls(fds).size(), 40u);
}

// Runs `attack` in a process that is confined as the gofer is; returns its wait status.
int Attack(const std::string& mount, void (*attack)(int mount_fd)) {
  int go[2];
  EXPECT_EQ(pipe2(go, O_CLOEXEC), 0);
  const auto pid = static_cast<pid_t>(syscall(
      SYS_clone, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0));
  if (pid == 0) {
    char c;
    if (read(go[0], &c, 1) != 1) _exit(2);
    GoferConfig config;
    config.mounts.emplace_back();
    config.mounts[0].fd.reset(open(mount.c_str(), O_PATH));
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0) _exit(2);
    config.connection.reset(pair[0]);
    const char* step = "";
    if (!LimitProcess(config, -1, &step).ok()) _exit(2);
    auto proc = CloneMounts(config, &step);
    if (!proc.ok() || !EnterEmptyRoot(proc->get(), &step).ok()) _exit(2);
    if (!DropCapabilities(false, &step).ok()) _exit(2);
    if (!InstallFilter({config.connection.get(), proc->get(), 2, false}, &step).ok()) _exit(2);
    attack(config.mounts[0].fd.get());
    syscall(SYS_exit_group, 0);
  }
  const std::string proc = "/proc/" + std::to_string(pid);
  WriteFile(proc + "/uid_map", "0 0 4294967295\n");
  WriteFile(proc + "/gid_map", "0 0 4294967295\n");
  EXPECT_EQ(write(go[1], "x", 1), 1);
  close(go[0]);
  close(go[1]);
  int status = 0;
  waitpid(pid, &status, 0);
  return status;
}

TEST_P(ConfineTest, ForbiddenCallsKill) {
  const std::string mount = dir_ + "/mount";
  void (*const attacks[])(int) = {
      [](int) { syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY); },
      [](int fd) { syscall(SYS_openat, fd, "file", O_RDONLY); },
      [](int) { syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); },
      [](int) { syscall(SYS_execve, "/bin/sh", nullptr, nullptr); },
      [](int) { syscall(SYS_fork); },
      [](int fd) { syscall(SYS_mknodat, fd, "dev", S_IFCHR | 0666, 0x103); },
      [](int fd) { syscall(SYS_linkat, fd, "file", fd, "x", 0); },
      [](int) {
        syscall(SYS_mmap, nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      },
      [](int) { syscall(SYS_ptrace, 0, 1, 0, 0); },
      [](int) { syscall(SYS_kill, 1, 9); },
  };
  int index = 0;
  for (auto attack : attacks) {
    const int status = Attack(mount, attack);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
        << "attack " << index << ", wait status " << status;
    ++index;
  }
  const int status = Attack(mount, [](int) {});
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// Even code that has taken the gofer over finds nothing above a mount or above /proc/self/fd.
TEST_P(ConfineTest, NothingAboveTheMounts) {
  const int status = Attack(dir_ + "/mount", [](int fd) {
    struct statx root, up;
    syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_INO, &root);
    syscall(SYS_statx, fd, "..", AT_SYMLINK_NOFOLLOW, STATX_INO, &up);
    if (root.stx_ino != up.stx_ino) syscall(SYS_exit_group, 10);
    if (syscall(SYS_statx, fd, "../outside", AT_SYMLINK_NOFOLLOW, STATX_INO, &up) == 0) {
      syscall(SYS_exit_group, 11);
    }
    char target[100];
    // ".." of the working directory, which is the copy of /proc/self/fd.
    if (syscall(SYS_getxattr, "../../version", "user.x", target, 0) >= 0 || errno != ENOENT) {
      syscall(SYS_exit_group, 12);
    }
    if (syscall(SYS_getxattr, "/etc/passwd", "user.x", target, 0) >= 0 || errno != ENOENT) {
      syscall(SYS_exit_group, 13);
    }
  });
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << WEXITSTATUS(status);
}

}  // namespace
}  // namespace gofer
