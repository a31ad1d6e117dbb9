// The life of containers, with the real processes and confinement but a sandbox without a kernel.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "sentry/base/sanitizer.h"

namespace runsc {
namespace {

using Json = nlohmann::json;

std::string Slurp(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

struct Result {
  int code = -1;
  std::string out, err;
};

bool Eventually(const std::function<bool()>& f, int ms = 1000) {
  for (int i = 0; i < ms / 10; ++i) {
    if (f()) return true;
    usleep(10'000);
  }
  return f();
}

class LifecycleTest : public testing::Test {
 protected:
  // What this process was started with beyond its standard files is no part of any test.
  static void SetUpTestSuite() { close_range(3, ~0u, 0); }
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    if (base::kSanitized) GTEST_SKIP() << "sanitizers make host calls that the filters refuse";
    char name[] = "/tmp/runsc-life-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    dir_ = name;
    chmod(name, 0755);
    ASSERT_EQ(
        Shell("mkdir -p " + dir_ + "/b/rootfs && cd " + dir_ + "/b && " RUNSC_FAKE " spec").code,
        0);
    config_ = Json::parse(Slurp(dir_ + "/b/config.json"));
    config_["process"]["terminal"] = false;
  }
  void TearDown() override {
    if (dir_.empty()) return;
    for (const std::string& id : Lines(Runsc("list -q").out)) Runsc("delete -f " + id);
    EXPECT_EQ(Shell("ls -A " + dir_ + "/root 2>/dev/null").out, "");
    Shell("rm -rf " + dir_);
  }

  static std::vector<std::string> Lines(const std::string& text) {
    std::istringstream in(text);
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }
  Result Shell(const std::string& command) {
    std::string base = dir_ + "/r" + std::to_string(++runs_);
    Result r;
    int status = system(("( " + command + " ) >" + base + ".out 2>" + base + ".err").c_str());
    r.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    r.out = Slurp(base + ".out");
    r.err = Slurp(base + ".err");
    return r;
  }
  std::string Command(const std::string& args) {
    return std::string(RUNSC_FAKE) + " --root " + dir_ + "/root " + args;
  }
  Result Runsc(const std::string& args) { return Shell(Command(args) + " </dev/null"); }
  void Configure(std::vector<std::string> args, Json patch = Json::object()) {
    Json c = config_;
    c["process"]["args"] = args;
    c.merge_patch(patch);
    std::ofstream(dir_ + "/b/config.json") << c.dump();
  }
  Result Run(std::vector<std::string> args, Json patch = Json::object()) {
    Configure(std::move(args), std::move(patch));
    return Runsc("run -b " + dir_ + "/b c");
  }
  // Creates "c"; returns the sandbox's pid.
  pid_t Create(std::vector<std::string> args, Json patch = Json::object()) {
    Configure(std::move(args), std::move(patch));
    Result r = Runsc("create -b " + dir_ + "/b --pid-file " + dir_ + "/pid c");
    EXPECT_EQ(r.code, 0) << r.err;
    return atoi(Slurp(dir_ + "/pid").c_str());
  }
  Json State() {
    Result r = Runsc("state c");
    return r.code == 0 ? Json::parse(r.out) : Json();
  }
  std::string Status() {
    Json s = State();
    return s.is_null() ? "none" : s["status"];
  }
  // Lines of the table but the first.
  int Processes() {
    const std::string table = Runsc("ps c").out;
    return static_cast<int>(std::count(table.begin(), table.end(), '\n')) - 1;
  }
  pid_t GoferPid() { return Json::parse(Slurp(dir_ + "/root/c/state.json"))["gofer"]["pid"]; }
  static bool Gone(pid_t pid) {
    std::string stat = Slurp("/proc/" + std::to_string(pid) + "/stat");
    return stat.empty() || stat.find(") Z") != std::string::npos;
  }
  std::string Field(pid_t pid, const std::string& name) {
    for (const std::string& line : Lines(Slurp("/proc/" + std::to_string(pid) + "/status"))) {
      if (line.rfind(name + ":", 0) == 0) return line.substr(name.size() + 2);
    }
    return "";
  }

  std::string dir_;
  Json config_;
  std::atomic<int> runs_ = 0;
};

TEST_F(LifecycleTest, RunPassesOutputAndStatusOn) {
  Result r = Run({"echo", "hello", "there"});
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.out, "hello there\n");
  EXPECT_EQ(r.err, "");
  EXPECT_EQ(Run({"exit", "7"}).code, 7);
  EXPECT_EQ(Run({"signal", "15"}).code, 143);
  Configure({"cat"});
  EXPECT_EQ(Shell("echo data | " + Command("run -b " + dir_ + "/b c")).out, "data\n");
}

TEST_F(LifecycleTest, ErrorsAreOneLineAndLeaveNothing) {
  auto expect = [&](const Result& r, const std::string& message) {
    EXPECT_EQ(r.code, 1);
    EXPECT_EQ(r.out, "");
    EXPECT_EQ(Lines(r.err).size(), 1u) << r.err;
    EXPECT_NE(r.err.find(message), std::string::npos) << r.err;
    EXPECT_EQ(Shell("ls -A " + dir_ + "/root").out, "");
  };
  expect(Run({"nosuch"}),
         "unable to start container process: exec: \\\"nosuch\\\": executable file not found");
  expect(Run({"echo"}, {{"root", {{"path", "nowhere"}}}}), "invalid rootfs: ");
  expect(Run({"echo"}, {{"root", {{"path", "config.json"}}}}), "is not a directory");
  expect(Run({"echo"}, {{"process", {{"terminal", 3}}}}),
         "config.json: process.terminal: must be a boolean, is a number");
  expect(Run({"echo"}, {{"mounts",
                         {{{"destination", "/m"},
                           {"type", "bind"},
                           {"source", "/no/such"},
                           {"options", {"bind"}}}}}}),
         "mount of /m: /no/such: No such file or directory");
  unlink((dir_ + "/b/config.json").c_str());
  expect(Runsc("run -b " + dir_ + "/b c"), "config.json not found");
  std::ofstream(dir_ + "/b/config.json") << "{\"a\": ";
  expect(Runsc("run -b " + dir_ + "/b c"), "config.json: malformed JSON at line 1");
  expect(Runsc("run -b " + dir_ + "/b a/b"), "invalid container ID format");
  expect(Runsc("run -b " + dir_ + "/nobundle c"), "nobundle");
  Configure({"echo"});
  // Whatever this test has inherited.
  expect(Shell("exec 3>&- 4>&- 5>&-; " + Command("create -b " + dir_ + "/b --preserve-fds 3 c")),
         "to be preserved, but is not open");
  // The log gets the same line.
  Runsc("--log " + dir_ + "/log --log-format json state nope");
  Json entry = Json::parse(Slurp(dir_ + "/log"));
  EXPECT_EQ(entry["level"], "error");
  EXPECT_EQ(entry["msg"], "container nope does not exist");
}

TEST_F(LifecycleTest, CreatedStartedKilledDeleted) {
  pid_t pid = Create({"sleep", "60"}, {{"annotations", {{"a", "b"}}}});
  Json state = State();
  EXPECT_EQ(state["status"], "created");
  EXPECT_EQ(state["pid"], pid);
  EXPECT_EQ(state["annotations"]["a"], "b");
  EXPECT_NE(Runsc("create -b " + dir_ + "/b c").err.find("already exists"), std::string::npos);
  EXPECT_EQ(Runsc("start c").code, 0);
  EXPECT_EQ(Status(), "running");
  EXPECT_NE(Runsc("start c").err.find("cannot start an already running container"),
            std::string::npos);
  EXPECT_NE(Runsc("delete c").err.find("cannot delete container c that is not stopped: running"),
            std::string::npos);
  EXPECT_EQ(Runsc("list -q").out, "c\n");
  EXPECT_EQ(Json::parse(Runsc("list -f json").out)[0]["pid"], pid);
  EXPECT_EQ(Runsc("ps -f json c").out, "[" + std::to_string(pid) + "]\n");
  EXPECT_NE(Runsc("syscalls c").out.find("read"), std::string::npos);
  EXPECT_EQ(Runsc("kill c TERM").code, 0);
  EXPECT_TRUE(Eventually([&] { return Status() == "stopped"; }));
  EXPECT_EQ(State()["pid"], 0);
  EXPECT_EQ(Json::parse(Runsc("wait c").out)["exitStatus"], 143);
  EXPECT_NE(Runsc("kill c").err.find("container not running"), std::string::npos);
  EXPECT_EQ(Runsc("kill -a c").code, 0);
  EXPECT_NE(Runsc("start c").err.find("cannot start a container that has stopped"),
            std::string::npos);
  EXPECT_EQ(Runsc("delete c").code, 0);
  EXPECT_EQ(Status(), "none");
  EXPECT_EQ(Runsc("delete -f c").code, 0);
  EXPECT_EQ(Runsc("delete c").code, 1);
}

TEST_F(LifecycleTest, CommandNamesAreGoodIds) {
  Configure({"exit", "4"});
  EXPECT_EQ(Runsc("run -b " + dir_ + "/b list").code, 4);
  EXPECT_EQ(Runsc("run -b " + dir_ + "/b --keep state").code, 4);
  EXPECT_EQ(Json::parse(Runsc("state state").out)["status"], "stopped");
  EXPECT_EQ(Runsc("delete state").code, 0);
}

TEST_F(LifecycleTest, ExecRunsMoreProcesses) {
  Create({"sleep", "60"});
  EXPECT_EQ(Runsc("start c").code, 0);
  EXPECT_EQ(Runsc("exec c echo -n a --b").out, "-n a --b\n");
  EXPECT_EQ(Runsc("exec c exit 5").code, 5);
  EXPECT_EQ(Runsc("exec c signal 11").code, 139);
  EXPECT_EQ(Runsc("exec -e FOO=bar c env FOO").out, "FOO=bar\n");
  EXPECT_EQ(Shell("echo x | " + Command("exec c cat")).out, "x\n");
  Result r = Runsc("exec c nosuch");
  EXPECT_EQ(r.code, 255);
  EXPECT_NE(r.err.find("exec failed: unable to start container process: exec: "),
            std::string::npos);
  EXPECT_EQ(Runsc("exec nope echo").code, 255);
  std::ofstream(dir_ + "/p.json") << R"({"args":["echo","from","file"],"cwd":"/"})";
  EXPECT_EQ(Runsc("exec -p " + dir_ + "/p.json c").out, "from file\n");

  // A detached one is represented by a process of the host.
  EXPECT_EQ(Runsc("exec -d --pid-file " + dir_ + "/e c sleep 60").code, 0);
  pid_t pid = atoi(Slurp(dir_ + "/e").c_str());
  EXPECT_FALSE(Gone(pid));
  EXPECT_EQ(Processes(), 2);
  ASSERT_GT(pid, 0);  // as none, it would name others
  kill(pid, SIGKILL);
  EXPECT_TRUE(Eventually([&] { return Processes() == 1; }));
  EXPECT_EQ(Runsc("delete -f c").code, 0);
}

TEST_F(LifecycleTest, ASandboxThatIsKilledIsStopped) {
  for (const std::string victim : {"sentry", "gofer"}) {
    for (bool started : {false, true}) {
      pid_t sentry = Create({"sleep", "60"});
      pid_t gofer = GoferPid();
      if (started) {
        EXPECT_EQ(Runsc("start c").code, 0);
      }
      kill(victim == "sentry" ? sentry : gofer, SIGKILL);
      EXPECT_TRUE(Eventually([&] { return Status() == "stopped"; })) << victim;
      EXPECT_TRUE(Eventually([&] { return Gone(sentry) && Gone(gofer); })) << victim;
      EXPECT_EQ(Json::parse(Runsc("wait c").out)["exitStatus"], 137);
      EXPECT_EQ(Runsc("delete c").code, 0);
    }
  }
}

TEST_F(LifecycleTest, AKilledRunTakesTheContainerAlong) {
  Configure({"sleep", "60"});
  pid_t pid = fork();
  if (pid == 0) {
    execl(RUNSC_FAKE, "runsc", "--root", (dir_ + "/root").c_str(), "run", "-b",
          (dir_ + "/b").c_str(), "c", nullptr);
    _exit(127);
  }
  ASSERT_TRUE(Eventually([&] { return Status() == "running"; }, 5000));
  pid_t sentry = State()["pid"], gofer = GoferPid();
  ASSERT_GT(pid, 0);  // as none, it would name others
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  EXPECT_TRUE(Eventually([&] { return Status() == "stopped"; }));
  EXPECT_TRUE(Eventually([&] { return Gone(sentry) && Gone(gofer); }));
  EXPECT_EQ(Runsc("delete c").code, 0);
}

TEST_F(LifecycleTest, RunForwardsSignals) {
  Configure({"sleep", "60"});
  pid_t pid = fork();
  if (pid == 0) {
    execl(RUNSC_FAKE, "runsc", "--root", (dir_ + "/root").c_str(), "run", "-b",
          (dir_ + "/b").c_str(), "c", nullptr);
    _exit(127);
  }
  ASSERT_TRUE(Eventually([&] { return Status() == "running"; }, 5000));
  ASSERT_GT(pid, 0);
  kill(pid, SIGINT);
  int status;
  waitpid(pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 130);
  EXPECT_EQ(Status(), "none");
}

TEST_F(LifecycleTest, HalfMadeDirectoriesAreReportedAndRemoved) {
  ASSERT_EQ(Shell("mkdir -p " + dir_ + "/root/c").code, 0);
  for (const char* command : {"state c", "start c", "kill c", "delete c", "ps c"}) {
    Result r = Runsc(command);
    EXPECT_EQ(r.code, 1) << command;
    EXPECT_NE(r.err.find("container c is incomplete: "), std::string::npos) << r.err;
    EXPECT_EQ(Lines(r.err).size(), 1u);
  }
  EXPECT_NE(Runsc("list").err.find("container c is incomplete"), std::string::npos);
  EXPECT_EQ(Runsc("delete -f c").code, 0);
  EXPECT_EQ(Status(), "none");
}

TEST_F(LifecycleTest, BothProcessesAreConfined) {
  pid_t sentry = Create({"sleep", "60"});
  pid_t gofer = GoferPid();
  EXPECT_EQ(Field(sentry, "Uid"), "65534\t65534\t65534\t65534");
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    EXPECT_EQ(Field(sentry, set), "0000000000000000") << set;
  }
  for (pid_t pid : {sentry, gofer}) {
    SCOPED_TRACE(pid == sentry ? "the sentry" : "the gofer");
    // Nobody waits for the gofer before it is asked for something.
    EXPECT_TRUE(Eventually([&] { return Field(pid, "Seccomp") == "2"; }, 5000));
    EXPECT_EQ(Field(pid, "NoNewPrivs"), "1");
    std::string proc = "/proc/" + std::to_string(pid);
    EXPECT_EQ(Shell("ls -A " + proc + "/root/").out, "");
    EXPECT_EQ(Lines(Slurp(proc + "/mountinfo")).size(), 1u);
    for (const char* ns : {"user", "mnt", "pid", "ipc", "uts", "net"}) {
      char mine[64] = {}, its[64] = {};
      EXPECT_GT(readlink((std::string("/proc/self/ns/") + ns).c_str(), mine, 63), 0);
      EXPECT_GT(readlink((proc + "/ns/" + ns).c_str(), its, 63), 0);
      EXPECT_STRNE(mine, its) << ns;
    }
  }
  // Three of its own, the guest's three, gofer (twice), control, exit file, loop; what it waits
  // with.
  EXPECT_LE(Lines(Shell("ls /proc/" + std::to_string(sentry) + "/fd").out).size(), 15u);
}

TEST_F(LifecycleTest, TheHeapGrowsWhereTheBreakDoesNot) {
  Result r = Run({"heap"});
  EXPECT_EQ(r.code, 0) << r.err;
}

TEST_F(LifecycleTest, ARefusedHostCallEndsTheSandbox) {
  Result r = Run({"hostcall", "41"});  // socket(2)
  EXPECT_EQ(r.code, 128 + SIGSYS);
  Runsc("--debug-log " + dir_ + "/debug.%COMMAND% run -b " + dir_ + "/b c");
  EXPECT_NE(Slurp(dir_ + "/debug.boot").find("refused host call 41"), std::string::npos);
}

TEST_F(LifecycleTest, HooksRunInOrder) {
  auto hook = [&](const std::string& name) {
    return Json::array({{{"path", "/bin/sh"},
                         {"args",
                          {"sh", "-c",
                           "echo " + name + " $(sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') >>" +
                               dir_ + "/hooks"}}}});
  };
  Json hooks;
  for (const char* name :
       {"prestart", "createRuntime", "createContainer", "poststart", "poststop"}) {
    hooks[name] = hook(name);
  }
  Result r = Run({"sleep", "0.2"}, {{"hooks", hooks}});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(Slurp(dir_ + "/hooks"),
            "prestart creating\ncreateRuntime creating\ncreateContainer creating\n"
            "poststart running\npoststop stopped\n");
}

// A startContainer hook runs inside the sandbox, before init. (The fake finds programs by the
// path.)
TEST_F(LifecycleTest, StartContainerHooksRunInTheContainer) {
  auto hooks = [](const char* path, const char* argument) {
    return Json{{"hooks",
                 {{"startContainer",
                   Json::array({{{"path", path}, {"args", {path, argument}}, {"timeout", 5}}})}}}};
  };
  Result r = Run({"echo", "x"}, hooks("/exit", "0"));
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.out, "x\n");
  r = Run({"echo", "x"}, hooks("/exit", "6"));
  EXPECT_EQ(r.code, 1);
  EXPECT_NE(r.err.find("error running startContainer hook #0 (/exit): exited with status 6"),
            std::string::npos)
      << r.err;
  EXPECT_EQ(r.out, "");
  EXPECT_EQ(Shell("ls -A " + dir_ + "/root").out, "");
}

TEST_F(LifecycleTest, AFailingHookEndsTheCreation) {
  Json fails =
      Json::array({{{"path", "/bin/sh"}, {"args", {"sh", "-c", "echo no luck >&2; exit 3"}}}});
  Result r = Run({"echo"}, {{"hooks", {{"createRuntime", fails}}}});
  EXPECT_EQ(r.code, 1);
  EXPECT_NE(
      r.err.find("error running createRuntime hook #0 (/bin/sh): exited with status 3: no luck"),
      std::string::npos)
      << r.err;
  Json slow = Json::array({{{"path", "/bin/sleep"}, {"args", {"sleep", "20"}}, {"timeout", 1}}});
  r = Run({"echo"}, {{"hooks", {{"prestart", slow}}}});
  EXPECT_NE(r.err.find("hook ran past specified timeout of 1 seconds"), std::string::npos) << r.err;
  EXPECT_EQ(Shell("ls -A " + dir_ + "/root").out, "");
}

TEST_F(LifecycleTest, CgroupsAreMadeAndRemoved) {
  std::string path = "/runsc-test-" + std::to_string(getpid());
  pid_t pid =
      Create({"sleep", "60"},
             {{"linux",
               {{"cgroupsPath", path + "/c"},
                {"resources", {{"memory", {{"limit", 256 << 20}}}, {"pids", {{"limit", 99}}}}}}}});
  if (pid == 0) GTEST_SKIP() << "no right to make cgroups";
  std::string groups = Slurp("/proc/" + std::to_string(pid) + "/cgroup");
  EXPECT_NE(groups.find(path + "/c"), std::string::npos) << groups;
  std::string limit = Shell("cat /sys/fs/cgroup/memory" + path +
                            "/c/memory.limit_in_bytes "
                            "/sys/fs/cgroup" +
                            path + "/c/memory.max 2>/dev/null")
                          .out;
  EXPECT_EQ(limit, "268435456\n");
  EXPECT_EQ(Runsc("delete -f c").code, 0);
  EXPECT_EQ(Shell("ls -d /sys/fs/cgroup/*" + path + " /sys/fs/cgroup" + path).out, "");
}

TEST_F(LifecycleTest, ATerminalIsProxied) {
  Configure({"tty"}, {{"process", {{"terminal", true}}}});
  int master;
  pid_t pid = forkpty(&master, nullptr, nullptr, nullptr);
  if (pid == 0) {
    execl(RUNSC_FAKE, "runsc", "--root", (dir_ + "/root").c_str(), "run", "-b",
          (dir_ + "/b").c_str(), "c", nullptr);
    _exit(127);
  }
  ASSERT_TRUE(Eventually([&] { return Status() == "running"; }, 5000));
  winsize size{33, 77, 0, 0};
  ioctl(master, TIOCSWINSZ, &size);
  std::string text;
  char buffer[256];
  ssize_t n;
  while ((n = read(master, buffer, sizeof(buffer))) > 0) text.append(buffer, n);
  int status;
  waitpid(pid, &status, 0);
  close(master);
  EXPECT_EQ(WEXITSTATUS(status), 0) << text;
  EXPECT_NE(text.find("33 77"), std::string::npos) << text;
}

// Receives a console as conmon and containerd do.
int ReceiveConsole(int listener) {
  int connection = accept(listener, nullptr, nullptr);
  char name[128];
  iovec iov{name, sizeof(name)};
  char control[CMSG_SPACE(sizeof(int))];
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof(control);
  int fd = -1;
  if (recvmsg(connection, &msg, 0) > 0) {
    if (cmsghdr* c = CMSG_FIRSTHDR(&msg)) memcpy(&fd, CMSG_DATA(c), sizeof(fd));
  }
  close(connection);
  return fd;
}

TEST_F(LifecycleTest, AConsoleSocketReceivesTheTerminal) {
  std::string path = dir_ + "/console";
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  strcpy(addr.sun_path, path.c_str());
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&addr), sizeof(addr)), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  Configure({"tty"}, {{"process", {{"terminal", true}}}});
  EXPECT_NE(Runsc("create -b " + dir_ + "/b c").err.find("cannot allocate tty"), std::string::npos);
  int master = -1;
  std::thread receiver([&] { master = ReceiveConsole(listener); });
  Result r = Runsc("create -b " + dir_ + "/b --console-socket " + path + " c");
  receiver.join();
  ASSERT_EQ(r.code, 0) << r.err;
  ASSERT_GE(master, 0);
  EXPECT_EQ(Runsc("start c").code, 0);
  winsize size{11, 22, 0, 0};
  ioctl(master, TIOCSWINSZ, &size);
  char buffer[64] = {};
  EXPECT_GT(read(master, buffer, sizeof(buffer) - 1), 0);
  EXPECT_EQ(std::string(buffer).rfind("11 22", 0), 0u) << buffer;
  EXPECT_TRUE(Eventually([&] { return Status() == "stopped"; }));
  close(master);

  // A second terminal, of a detached exec: its stand-in watches the size.
  Runsc("delete -f c");
  Create({"sleep", "60"});
  EXPECT_EQ(Runsc("start c").code, 0);
  receiver = std::thread([&] { master = ReceiveConsole(listener); });
  r = Runsc("exec -t -d --console-socket " + path + " c tty");
  receiver.join();
  EXPECT_EQ(r.code, 0) << r.err;
  usleep(100'000);
  size = {44, 55, 0, 0};
  ioctl(master, TIOCSWINSZ, &size);
  memset(buffer, 0, sizeof(buffer));
  EXPECT_GT(read(master, buffer, sizeof(buffer) - 1), 0);
  EXPECT_EQ(std::string(buffer).rfind("44 55", 0), 0u) << buffer;
  close(master);
  close(listener);
}

TEST_F(LifecycleTest, PreservedDescriptorsArrive) {
  Configure({"env", "LISTEN_FDS"});
  Result r = Shell("LISTEN_FDS=1 " + Command("run -b " + dir_ + "/b --preserve-fds 1 c") +
                   " 3</dev/null 4</dev/null");
  EXPECT_EQ(r.out, "LISTEN_FDS=1\n") << r.err;
}

TEST_F(LifecycleTest, ManyAtOnce) {
  Configure({"echo", "x"});
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int i = 0; i < 12; ++i) {
    threads.emplace_back([&, i] {
      Result r = Runsc("run -b " + dir_ + "/b c" + std::to_string(i));
      good += r.code == 0 && r.out == "x\n";
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(good, 12);
}

TEST_F(LifecycleTest, UsageErrorsAreAsRuncs) {
  EXPECT_EQ(Runsc("create").code, 1);
  EXPECT_NE(Runsc("create").err.find("requires exactly 1 argument(s)"), std::string::npos);
  EXPECT_EQ(Runsc("create --foo a").code, 1);
  EXPECT_EQ(Runsc("nosuch").code, 3);
  EXPECT_NE(Runsc("nosuch").err.find("No help topic for 'nosuch'"), std::string::npos);
  EXPECT_EQ(Runsc("--nosuch").code, 1);
  EXPECT_EQ(Runsc("list -f foo").code, 1);
  EXPECT_EQ(Runsc("--version").code, 0);
  EXPECT_EQ(Runsc("").code, 0);
  EXPECT_NE(Runsc("create --help").out.find("runsc create - create a container"),
            std::string::npos);
  EXPECT_TRUE(Json::accept(Runsc("features").out));
}

}  // namespace
}  // namespace runsc
