// execve: arguments, environment, errors, scripts, what survives.
#include <fcntl.h>
#include <limits.h>
#include <sys/auxv.h>
#include <sys/prctl.h>

#include <vector>

#include "guest_util.h"

namespace {
std::string Self() {
  char path[PATH_MAX] = {};
  readlink("/proc/self/exe", path, sizeof path - 1);
  return path;
}
// Runs a program and returns its output.
std::string Output(const std::string& program, std::vector<const char*> args,
                   std::vector<const char*> env = {}) {
  int fds[2];
  if (pipe(fds)) return "pipe";
  pid_t pid = fork();
  if (pid == 0) {
    dup2(fds[1], 1);
    close(fds[0]);
    close(fds[1]);
    args.push_back(nullptr);
    env.push_back(nullptr);
    execve(program.c_str(), const_cast<char* const*>(args.data()),
           const_cast<char* const*>(env.data()));
    dprintf(1, "errno %d", errno);
    _exit(127);
  }
  close(fds[1]);
  std::string out;
  char b[4096];
  for (ssize_t n; (n = read(fds[0], b, sizeof b)) > 0;) out.append(b, n);
  close(fds[0]);
  waitpid(pid, nullptr, 0);
  return out;
}
int ExecErrno(const std::string& path) {
  return ExitStatus([&] {
    execl(path.c_str(), path.c_str(), nullptr);
    return errno;
  });
}
}  // namespace

TEST(Exec, ArgumentsAndEnvironment) {
  EXPECT_EQ("a b|c|\n", Output("/bin/sh", {"sh", "-c", "echo \"$1|$2|$NOTSET\"", "x", "a b", "c"}));
  EXPECT_EQ("value\n", Output("/bin/sh", {"sh", "-c", "echo $NAME"}, {"NAME=value"}));
}

TEST(Exec, Errors) {
  TempDir dir;
  EXPECT_EQ(ENOENT, ExecErrno(dir / "none"));
  WriteFile(dir / "f", "not a program");
  EXPECT_EQ(EACCES, ExecErrno(dir / "f"));
  chmod((dir / "f").c_str(), 0755);
  EXPECT_EQ(ENOEXEC, ExecErrno(dir / "f"));
  EXPECT_EQ(EACCES, ExecErrno(dir.path()));
  EXPECT_EQ(ENOTDIR, ExecErrno(dir / "f/x"));
  WriteFile(dir / "empty", "");
  chmod((dir / "empty").c_str(), 0755);
  EXPECT_EQ(ENOEXEC, ExecErrno(dir / "empty"));
  EXPECT_ERRNO(execve(BadAddress(), nullptr, nullptr), EFAULT);
  int fd = open((dir / "f").c_str(), O_WRONLY);
  EXPECT_EQ(ETXTBSY, ExecErrno(dir / "f"));
  close(fd);
}

TEST(Exec, Scripts) {
  TempDir dir;
  WriteFile(dir / "s", "#!/bin/sh -e\necho \"$0 $1\"\n");
  chmod((dir / "s").c_str(), 0755);
  EXPECT_EQ(dir / "s arg\n", Output(dir / "s", {"ignored", "arg"}));
  WriteFile(dir / "t", "#! " + (dir / "s") + "\n");
  chmod((dir / "t").c_str(), 0755);
  EXPECT_EQ(dir / "s " + (dir / "t") + "\n", Output(dir / "t", {"t"}));
  WriteFile(dir / "m", "#!/no/such/interpreter\n");
  chmod((dir / "m").c_str(), 0755);
  EXPECT_EQ(ENOENT, ExecErrno(dir / "m"));
  WriteFile(dir / "l", "#!" + (dir / "l") + "\n");
  chmod((dir / "l").c_str(), 0755);
  EXPECT_EQ(ELOOP, ExecErrno(dir / "l"));
}

TEST(Exec, TooLong) {
  std::string big(200000, 'x');
  EXPECT_EQ("errno 7", Output("/bin/true", {"true", big.c_str()}));
  std::string piece(100000, 'x');
  std::vector<const char*> many(40, piece.c_str());
  EXPECT_EQ("errno 7", Output("/bin/true", many));
  std::vector<const char*> fits(10, piece.c_str());
  EXPECT_EQ("", Output("/bin/true", fits));
}

TEST(Exec, TruncatedElf) {
  TempDir dir;
  std::string self = ReadFile(Self());
  ASSERT_GT(self.size(), 10000u);
  for (size_t length = 1; length < 400; length += 7) {
    WriteFile(dir / "cut", self.substr(0, length));
    chmod((dir / "cut").c_str(), 0755);
    int status = RunInChild([&] {
      execl((dir / "cut").c_str(), "cut", nullptr);
      return errno == ENOEXEC || errno == EIO || errno == EINVAL || errno == ENOMEM ? 1 : 2;
    });
    EXPECT_TRUE((WIFEXITED(status) && WEXITSTATUS(status) == 1) || WIFSIGNALED(status)) << length;
  }
}

TEST(Exec, KeepsPidAndDropsCloexecAndHandlers) {
  int keep = open("/dev/null", O_RDONLY), drop = open("/dev/null", O_RDONLY | O_CLOEXEC);
  signal(SIGUSR1, [](int) {});
  signal(SIGUSR2, SIG_IGN);
  std::string script = "[ -e /proc/self/fd/" + std::to_string(keep) +
                       " ] && echo kept; [ -e /proc/self/fd/" + std::to_string(drop) +
                       " ] || echo dropped; grep -E 'SigIgn|SigCgt' /proc/self/status";
  std::string out = Output("/bin/sh", {"sh", "-c", script.c_str()}, {"PATH=/bin:/usr/bin"});
  EXPECT_NE(std::string::npos, out.find("kept\ndropped\n"));
  signal(SIGUSR1, SIG_DFL);
  signal(SIGUSR2, SIG_DFL);
  close(keep);
  close(drop);
}

TEST(Exec, AuxiliaryVector) {
  EXPECT_EQ(4096u, getauxval(AT_PAGESZ));
  EXPECT_EQ(100u, getauxval(AT_CLKTCK));
  EXPECT_EQ(getuid(), getauxval(AT_UID));
  EXPECT_EQ(0u, getauxval(AT_SECURE));
  EXPECT_STREQ("x86_64", reinterpret_cast<const char*>(getauxval(AT_PLATFORM)));
  EXPECT_NE(0u, getauxval(AT_RANDOM));
  EXPECT_NE(0u, getauxval(AT_SYSINFO_EHDR));
  EXPECT_EQ(Self(), reinterpret_cast<const char*>(getauxval(AT_EXECFN)));
}

TEST(Exec, CommIsTheFileName) {
  TempDir dir;
  ASSERT_OK(symlink("/bin/sh", (dir / "other").c_str()));  // argv[0] stays what busybox goes by
  EXPECT_EQ("other\n", Output(dir / "other", {"sh", "-c", "read x < /proc/$$/comm; echo $x"}));
}

TEST(Exec, SetuidBitChangesTheEffectiveId) {
  if (getuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  chmod(dir.path().c_str(), 0755);
  std::string copy = dir / "copy";
  WriteFile(copy, ReadFile(Self()));
  chown(copy.c_str(), 1234, 1234);
  chmod(copy.c_str(), 04755);
  std::string out = Output(copy, {"copy"}, {"GUEST_PRINTS_IDS=1"});
  EXPECT_NE(std::string::npos, out.find("ids 0 1234")) << out;
  out.clear();
  EXPECT_EQ(0, ExitStatus([&] {
              prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
              std::string text = Output(copy, {"copy"}, {"GUEST_PRINTS_IDS=1"});
              return text.find("ids 0 0") == std::string::npos;
            }));
}

TEST(Exec, FexecveAndExecveat) {
  int fd = open("/bin/sh", O_RDONLY | O_CLOEXEC);
  int status = ExitStatus([&] {
    const char* argv[] = {"sh", "-c", "exit 9", nullptr};
    const char* env[] = {nullptr};
    fexecve(fd, const_cast<char**>(argv), const_cast<char**>(env));
    return 1;
  });
  EXPECT_EQ(9, status);
  close(fd);
}
