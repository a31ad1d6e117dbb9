// A gofer over a temporary directory, for tests: in this process, or confined in one of its own.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gofer/client.h"
#include "gofer/server.h"
#include "sentry/base/sanitizer.h"

namespace gofer {

inline void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}
inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path);
  return std::string(std::istreambuf_iterator<char>(in), {});
}
inline std::string ReadFd(const base::UniqueFd& fd) {
  char buffer[4096];
  const ssize_t n = pread(fd.get(), buffer, sizeof(buffer), 0);
  return n < 0 ? "error: " + std::string(strerror(errno)) : std::string(buffer, n);
}

// <dir>/mount is mount 0, <dir>/readonly mount 1, <dir>/connect mount 2 (connections allowed);
// <dir>/outside is none.
class GoferFixture : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && base::kSanitized) GTEST_SKIP() << "sanitizers make host calls of their own";
    char name[] = "/tmp/gofer_test_XXXXXX";
    dir_ = mkdtemp(name);
    for (const char* d : {"/mount", "/readonly", "/connect", "/outside"}) {
      mkdir((dir_ + d).c_str(), 0755);
    }
    WriteFile(dir_ + "/outside/secret", "secret");
    WriteFile(dir_ + "/mount/file", "hello");
    WriteFile(dir_ + "/readonly/file", "fixed");
  }

  void TearDown() override {
    client_.reset();
    if (server_ != nullptr) server_->Join();
    server_.reset();
    if (pid_ > 0) {
      int status = 0;
      EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "wait status " << status;
    }
    if (!dir_.empty()) std::filesystem::remove_all(dir_);
  }

  // Starts the server and says hello.
  void Launch(uint32_t max_handles = 1000) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    base::UniqueFd ours(pair[0]), theirs(pair[1]);
    if (GetParam()) {
      LaunchConfined(std::move(theirs), ours.get());
    } else {
      proc_.reset(open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC));
      ASSERT_EQ(fchdir(proc_.get()), 0);
      server_ = std::make_unique<Server>(Server::Options{.mounts = Mounts(),
                                                         .connection = std::move(theirs),
                                                         .proc_fd = proc_.get(),
                                                         .threads = 3,
                                                         .max_handles = max_handles});
      server_->Start();
      server_->Release();
    }
    client_ = std::make_unique<Client>(std::move(ours), [this] { broke_ = true; });
    ASSERT_TRUE(ParseHello(Call(MakeHello())).ok());
    auto root = ParseAttach(Call(MakeAttach(0)));
    ASSERT_TRUE(root.ok());
    root_ = root->root.handle;
    readonly_ = ParseAttach(Call(MakeAttach(1)))->root.handle;
    connect_ = ParseAttach(Call(MakeAttach(2)))->root.handle;
  }

  std::vector<MountConfig> Mounts() {
    std::vector<MountConfig> mounts;
    for (const char* d : {"/mount", "/readonly", "/connect"}) {
      MountConfig mount;
      mount.fd.reset(open((dir_ + d).c_str(), O_PATH | O_CLOEXEC));
      mount.readonly = strcmp(d, "/readonly") == 0;
      mount.allow_connect = strcmp(d, "/connect") == 0;
      mounts.push_back(std::move(mount));
    }
    return mounts;
  }

  // As the launcher does: new namespaces, all ids mapped to themselves.
  void LaunchConfined(base::UniqueFd connection, int other_end) {
    int go[2];
    ASSERT_EQ(pipe2(go, O_CLOEXEC), 0);
    pid_ = static_cast<pid_t>(syscall(SYS_clone,
                                      CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
                                          CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD,
                                      0, 0, 0, 0));
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      // The heap is this process's, with arenas of earlier tests' threads: trimming one would read
      // a file in /proc. The real gofer starts with a heap of its own.
      mallopt(M_TRIM_THRESHOLD, 1 << 30);
      char c;
      close(other_end);
      close(go[1]);
      if (read(go[0], &c, 1) != 1) _exit(2);
      GoferConfig config;
      config.mounts = Mounts();
      config.connection = std::move(connection);
      std::string error;
      _exit(RunGofer(std::move(config), &error));
    }
    const std::string proc = "/proc/" + std::to_string(pid_);
    WriteFile(proc + "/uid_map", "0 0 4294967295\n");
    WriteFile(proc + "/gid_map", "0 0 4294967295\n");
    ASSERT_EQ(write(go[1], "x", 1), 1);
    close(go[0]);
    close(go[1]);
  }

  Reply Call(Request request) {
    Reply result;
    bool done = false;
    client_->Submit(std::move(request), [&](Reply reply) {
      result = std::move(reply);
      done = true;
    });
    while (!done) {
      pollfd p = {client_->fd(), POLLIN, 0};
      poll(&p, 1, -1);
      client_->Receive();
    }
    return result;
  }

  base::Result<WalkResult> Walk(Handle from, const std::vector<std::string_view>& names,
                                uint32_t flags = 0, uint32_t open_flags = 0) {
    return ParseWalk(Call(MakeWalk(from, names, flags, open_flags)), names.size(), flags);
  }
  // The handle of a path below the root of mount 0, 0 if there is none.
  Handle At(const std::vector<std::string_view>& names) {
    auto walk = Walk(root_, names);
    return walk.ok() && walk->stop == 0 ? walk->nodes.back().handle : 0;
  }

  std::string dir_;
  base::UniqueFd proc_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
  pid_t pid_ = 0;
  bool broke_ = false;
  Handle root_ = 0, readonly_ = 0, connect_ = 0;
};

inline std::string ModeName(const testing::TestParamInfo<bool>& info) {
  return info.param ? "confined" : "inProcess";
}

}  // namespace gofer
