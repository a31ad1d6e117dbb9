// A hostile guest: jumps at every system call instruction that it finds in its own address space,
// the hidden ones of the runtime included, with every call number and harmful arguments.
//
// The calls are tried in children, which survive faults and are replaced when they die; the
// program's end says only that it got through. That nothing happened outside is for the test around
// it to check. Usage: hostile [all]; prints "sites N hidden M tried K deaths D hung H". With `all`
// every site gets every pattern of arguments with every number, else each number gets another
// pattern at each site, several where the runtime itself may make the call, and the x32 forms are
// shared out among the sites.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>

#include "tests/guest/hostile_util.h"

namespace {

using namespace hostile;  // NOLINT

char g_scratch[65536] __attribute__((aligned(4096)));
constexpr int kWorkers = 4;  // some of their children only wait
constexpr size_t kChunk = 64;
constexpr int64_t kPatienceNs = 50'000'000;  // for a child that makes no progress

struct Attempt {
  uint64_t site, nr;
  int pattern;
};

struct Shared {
  std::atomic<size_t> next, tried, deaths, hung;
  std::atomic<size_t> progress[kWorkers];  // how far each worker's child has come
};
Shared* g_shared;

void ScanOwn(std::vector<uint64_t>* sites) {
  FILE* maps = fopen("/proc/self/maps", "r");
  if (!maps) return;
  uint64_t start, end;
  char prot[8];
  while (fscanf(maps, "%lx-%lx %7s %*[^\n]", &start, &end, prot) == 3) {
    if (prot[2] != 'x') continue;
    for (uint64_t page = start; page < end; page += 4096) {
      WithPage(page, [&](const unsigned char* p) {
        for (int i = 0; i + 1 < 4096; i++) {
          if (IsEntry(p + i)) sites->push_back(page + i);
        }
      });
    }
  }
  fclose(maps);
}

// The runtime hides near the top of the address space, below its mailbox; and where patched calls
// jump through. Without `all` every MiB that begins with a hole is taken for one.
void ScanHidden(bool all, std::vector<uint64_t>* sites) {
  auto scan = [&](uint64_t begin, uint64_t end) {
    for (uint64_t page = begin; page < end; page += 4096) {
      bool there = WithPage(page, [&](const unsigned char* p) {
        for (int i = 0; i + 1 < 4096; i++) {
          if (IsEntry(p + i)) sites->push_back(page + i);
        }
      });
      if (!there && !all && page % 0x10'0000 == 0) page += 0xf'f000;
    }
  };
  scan(platform::kRegionBase, platform::kMailboxBase);
  scan(platform::kMailboxBase, platform::kMailboxBase + 4 * platform::kSlotSize);
  scan(platform::kJumpTable, platform::kJumpTable + platform::kJumpTableSize);
}

using Args = uint64_t[6];
const Args* Patterns(size_t* count) {
  static const uint64_t p = reinterpret_cast<uint64_t>(g_scratch);
  static const Args patterns[] = {
      {0, 0, 0, 0, 0, 0},
      {~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull},
      {p, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, ~0ull, 0},
      {0x700000000000, 1ull << 46, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, ~0ull, 0},
      {1, p, 4096, 0, p, 1},
      {3, p, 64, p, 0, 0},
      {0, p, 0, 0, 0, 0},
      {p, 0, 0, 0, 0, 0},  // a futex wait without end
      {p, p, p, p, p, p},
      {0x7ffffff00000, 4096, 7, 0x32, 3, 0},
      {platform::kRegionBase, platform::kRegionEnd - platform::kRegionBase, 7, 0x32, ~0ull, 0},
      {platform::kMailboxBase, platform::kMailboxSize, 4, 0x12, 0, 0},
      {platform::kThreadCloneFlags, p + 8192, p, p, 0, 0},
      {platform::kForkCloneFlags, 0, p, p, 0, 0},
  };
  *count = std::size(patterns);
  return patterns;
}

void Attack(const Attempt& attempt) {
  size_t count;
  pid_t self = getpid();
  ualarm(10000, 0);
  if (sigsetjmp(g_jump, 1) == 0)
    JumpAt(attempt.site, attempt.nr, Patterns(&count)[attempt.pattern], 0);
  if (getpid() != self) _exit(0);
}

// Makes attempts [begin, end), in as many children as it takes.
void Try(int worker, const std::vector<Attempt>& attempts, size_t begin, size_t end) {
  std::atomic<size_t>& progress = g_shared->progress[worker];
  // Each child gets a step further at least, whatever it does to what it shares with us.
  for (size_t at = begin; at < end; at = std::max(at + 1, std::min(progress.load(), end))) {
    progress = at;
    pid_t pid = fork();
    if (pid < 0) _exit(1);
    if (pid == 0) {
      setpgid(0, 0);
      for (size_t i = at; i < end; i++) {
        progress = i + 1;
        g_shared->tried++;
        Attack(attempts[i]);
      }
      _exit(0);
    }
    size_t last = progress;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    timespec patience{0, kPatienceNs};
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
      if (sigtimedwait(&child, nullptr, &patience) >= 0) continue;
      if (progress == last) {  // it hangs
        g_shared->hung++;
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        break;
      }
      last = progress;
    }
    g_shared->deaths++;
    kill(-pid, SIGKILL);
    while (waitpid(-1, &status, WNOHANG) > 0) {
    }
  }
}

// Calls that the runtime's filter lets through in some form.
bool RuntimeMay(uint64_t nr) {
  for (uint64_t n : {3, 9, 10, 11, 15, 24, 25, 28, 47, 56, 60, 131, 157, 158, 202, 228, 231}) {
    if (n == nr) return true;
  }
  return false;
}

// Appends what is tried at the site of this number.
void AddAttempts(size_t index, uint64_t site, bool all, std::vector<Attempt>* attempts) {
  constexpr size_t kOfRuntime = 3;  // patterns at a site of a call that the runtime itself may make
  size_t patterns;
  Patterns(&patterns);
  std::vector<uint64_t> numbers;
  for (uint64_t nr = 0; nr <= 470; nr++) numbers.push_back(nr);
  for (uint64_t nr = 0; nr <= 470; nr++) {  // x32
    if (all || (index + nr) % 4 == 0) numbers.push_back(nr | 0x40000000);
  }
  for (uint64_t nr : {~0ull, 1ull << 32, 1ull << 63}) numbers.push_back(nr);
  for (size_t i = 0; i < numbers.size(); i++) {
    size_t count = all ? patterns : RuntimeMay(numbers[i]) ? kOfRuntime : 1;
    for (size_t p = 0; p < count; p++) {
      attempts->push_back({site, numbers[i], static_cast<int>((index + i + 3 * p) % patterns)});
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc > 1 && strcmp(argv[1], "all") == 0;
  CatchFaults();
  std::vector<uint64_t> own, hidden;
  ScanOwn(&own);
  ScanHidden(all, &hidden);
  size_t own_found = own.size();
  if (own.size() > 2) own.resize(2);  // they are all alike
  std::sort(hidden.begin(), hidden.end());
  hidden.erase(std::unique(hidden.begin(), hidden.end()), hidden.end());
  std::vector<uint64_t> sites = own;
  sites.insert(sites.end(), hidden.begin(), hidden.end());
  g_shared =
      new (mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared{};
  int null = open("/dev/null", O_RDWR);
  int out = dup(1);
  for (int fd : {0, 1, 2}) dup2(null, fd);
  close(null);
  fcntl(out, F_SETFD, FD_CLOEXEC);
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, nullptr);
  // What the program's own sites do is what any program may do: all of it.
  std::vector<Attempt> attempts;
  for (size_t i = 0; i < sites.size(); i++) {
    AddAttempts(i, sites[i], all || i < own.size(), &attempts);
  }
  for (int worker = 0; worker < kWorkers; worker++) {
    if (fork() != 0) continue;
    for (size_t i; (i = g_shared->next.fetch_add(kChunk)) < attempts.size();) {
      Try(worker, attempts, i, std::min(i + kChunk, attempts.size()));
    }
    _exit(0);
  }
  int bad = 0, status;
  for (int worker = 0; worker < kWorkers; worker++) {
    if (wait(&status) < 0 || status != 0) bad++;
  }
  dprintf(out, "sites %zu hidden %zu tried %zu deaths %zu hung %zu\n", own_found, hidden.size(),
          g_shared->tried.load(), g_shared->deaths.load(), g_shared->hung.load());
  return bad;
}
