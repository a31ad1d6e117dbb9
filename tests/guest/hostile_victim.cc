// The neighbour of a hostile guest: makes system calls of many kinds, checks every result and
// measures how long they take. Usage: hostile_victim SECONDS SECRET; prints
// "rounds N median_us M worst_us W wrong X".
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

namespace {

int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

size_t g_wrong = 0;
void Check(bool right) {
  if (!right) g_wrong++;
}

void* Echo(void* fds) {
  char buffer[256];
  ssize_t n;
  int fd = static_cast<int*>(fds)[1];
  while ((n = read(fd, buffer, sizeof buffer)) > 0) write(fd, buffer, static_cast<size_t>(n));
  return nullptr;
}

// One of everything.
void Round(int echo, const std::string& secret, size_t number) {
  Check(syscall(SYS_getpriority, PRIO_PROCESS, 0) == 20);
  std::string message = secret + std::to_string(number);
  char buffer[256];
  Check(write(echo, message.data(), message.size()) == static_cast<ssize_t>(message.size()));
  ssize_t n = read(echo, buffer, sizeof buffer);
  Check(n == static_cast<ssize_t>(message.size()) &&
        memcmp(buffer, message.data(), message.size()) == 0);
  int fd = open("victim.tmp", O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
  Check(fd >= 0);
  Check(pwrite(fd, message.data(), message.size(), 4096) == static_cast<ssize_t>(message.size()));
  struct stat st;
  Check(fstat(fd, &st) == 0 && st.st_size == static_cast<off_t>(4096 + message.size()));
  auto* map = static_cast<char*>(mmap(nullptr, 8192, PROT_READ, MAP_SHARED, fd, 0));
  Check(map != MAP_FAILED && memcmp(map + 4096, message.data(), message.size()) == 0);
  munmap(map, 8192);
  close(fd);
  auto* memory = static_cast<char*>(
      mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  Check(memory != MAP_FAILED && memory[4096 * 3] == 0);
  memory[0] = 'a';
  Check(mprotect(memory, 4096, PROT_READ) == 0 && memory[0] == 'a');
  munmap(memory, 65536);
  Check(access("/no/such/file", F_OK) != 0);
  if (number % 10 != 0) return;
  pid_t pid = fork();
  if (pid == 0) _exit(static_cast<int>(number % 100));
  int status = 0;
  Check(pid > 0 && waitpid(pid, &status, 0) == pid);
  Check(WIFEXITED(status) && WEXITSTATUS(status) == static_cast<int>(number % 100));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || chdir("/tmp") != 0) return 2;
  std::string secret = argv[2];
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return 2;
  pthread_t thread;
  pthread_create(&thread, nullptr, Echo, fds);
  std::vector<int64_t> times;
  int64_t begin = NowNs(), last = begin;
  int64_t end = begin + strtoll(argv[1], nullptr, 10) * 1000000000;
  while (last < end) {
    Round(fds[0], secret, times.size());
    int64_t now = NowNs();
    times.push_back(now - last);
    last = now;
  }
  std::sort(times.begin(), times.end());
  printf("rounds %zu median_us %ld worst_us %ld wrong %zu\n", times.size(),
         static_cast<long>(times[times.size() / 2] / 1000), static_cast<long>(times.back() / 1000),
         g_wrong);
  return 0;
}
