// The filesystem over a gofer in this process and a temporary directory, for tests.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "gofer/server.h"
#include "sentry/base/counter.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fiber/scheduler.h"
#include "sentry/fs/gofer/gofer_fs.h"
#include "sentry/fs/gofer/inode.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

class GoferFsTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/gofer_fs_test_XXXXXX";
    dir_ = mkdtemp(name);
    proc_.reset(open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC));
    ASSERT_EQ(fchdir(proc_.get()), 0);
  }
  void TearDown() override {
    Run([this] {
      root_ = {};
      ns_.reset();
    });
    connection_.reset();
    server_.reset();
    scheduler_.Shutdown();
    std::filesystem::remove_all(dir_);
  }

  void Mount(GoferCache cache, uint32_t max_handles = 5000) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    std::vector<gofer::MountConfig> mounts(1);
    mounts[0].fd.reset(open(dir_.c_str(), O_PATH | O_CLOEXEC));
    server_ = std::make_unique<gofer::Server>(
        gofer::Server::Options{.mounts = std::move(mounts),
                               .connection = base::UniqueFd(pair[1]),
                               .proc_fd = proc_.get(),
                               .threads = 2,
                               .max_handles = max_handles});
    server_->Start();
    server_->Release();
    // As at boot: off the fibers.
    auto connection = ConnectGofer(base::UniqueFd(pair[0]), [] {});
    ASSERT_TRUE(connection.ok());
    connection_ = *connection;
    auto root = MountGofer(connection_, 0, cache);
    ASSERT_TRUE(root.ok());
    ns_ = MountNamespace::New(Vfs::NewMount(*root, 0, "root"));
    root_ = Path{ns_->root_mount(), ns_->root_mount()->root()};
  }

  // Runs `fn` on a fiber.
  static void Run(std::function<void()> fn) {
    std::atomic<bool> done = false;
    fiber::Spawn("test", [&] {
      fn();
      done.store(true);
      done.notify_one();
    });
    done.wait(false);
  }

  WalkContext Ctx() { return WalkContext{*creds_, *ns_, root_, root_, 022, 0}; }
  base::Ref<FileDescription> Open(std::string_view path, uint32_t flags, mode_t mode = 0644) {
    auto file = vfs_.Open(Ctx(), path, flags, mode);
    EXPECT_TRUE(file.ok()) << path << ": " << file.error().code();
    return file.ok() ? *file : nullptr;
  }
  int OpenError(std::string_view path, uint32_t flags) {
    auto file = vfs_.Open(Ctx(), path, flags, 0644);
    return file.ok() ? 0 : file.error().code();
  }
  static size_t Write(FileDescription& f, std::string_view s) {
    BufferSource src(std::as_bytes(std::span(s)));
    auto n = f.Write(src, false);
    return n.ok() ? *n : 0;
  }
  static std::string PRead(FileDescription& f, uint64_t offset, size_t n) {
    std::string out(n, 'x');
    BufferDest dst(std::as_writable_bytes(std::span(out)));
    auto got = f.PRead(dst, offset, false);
    out.resize(got.ok() ? *got : 0);
    return out;
  }
  std::multiset<std::string> List(std::string_view path) {
    std::multiset<std::string> names;
    auto dir = Open(path, O_RDONLY | O_DIRECTORY);
    EXPECT_TRUE(dir->GetDents([&](const DirEntry& e) {
                     names.emplace(e.name);
                     return true;
                   })
                    .ok());
    return names;
  }
  InodeAttr Stat(std::string_view path) {
    auto p = vfs_.Walk(Ctx(), path, {.follow_last = false});
    EXPECT_TRUE(p.ok()) << path;
    return p.ok() ? *vfs_.GetAttr(*p) : InodeAttr{};
  }
  int WalkError(std::string_view path) {
    auto p = vfs_.Walk(Ctx(), path, {});
    return p.ok() ? 0 : p.error().code();
  }
  // How many requests the gofer has been sent.
  static uint64_t Requests() {
    for (const base::Counter* c = base::Counter::First(); c != nullptr; c = c->next()) {
      if (c->name() == std::string_view("gofer.requests")) return c->value();
    }
    return 0;
  }
  static int Code(const base::Status& s) { return s.ok() ? 0 : s.error().code(); }
  std::string Host(const std::string& name) { return dir_ + name; }
  std::string HostText(const std::string& name) {
    std::ifstream in(Host(name));
    return std::string(std::istreambuf_iterator<char>(in), {});
  }
  void SetHostText(const std::string& name, const std::string& text) {
    std::ofstream(Host(name)) << text;
  }

  fiber::Scheduler scheduler_{{.workers = 2}};
  std::string dir_;
  base::UniqueFd proc_;
  std::unique_ptr<gofer::Server> server_;
  base::Ref<GoferConnection> connection_;
  Vfs vfs_;
  base::Ref<Credentials> creds_ = Credentials::NewRoot(UserNamespace::NewRoot());
  base::Ref<MountNamespace> ns_;
  Path root_;
};

}  // namespace sentry
