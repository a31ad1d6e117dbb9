// A hostile guest: jumps at every system call instruction that it finds in its own address space,
// the hidden ones of the runtime included, with every call number and harmful arguments.
//
// The calls are tried in children, which survive faults and are replaced when they die; the
// program's end says only that it got through. That nothing happened outside is for the test around
// it to check. Usage: hostile [OWN_SITES [HIDDEN_SITES]]; prints "sites N hidden M tried K".
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <vector>

namespace {

sigjmp_buf g_jump;
char g_scratch[65536] __attribute__((aligned(4096)));
char g_alt_stack[65536];

void OnFault(int) { siglongjmp(g_jump, 1); }

void CatchFaults() {
  stack_t ss{};
  ss.ss_sp = g_alt_stack;
  ss.ss_size = sizeof g_alt_stack;
  sigaltstack(&ss, nullptr);
  struct sigaction sa {};
  sa.sa_handler = OnFault;
  sa.sa_flags = SA_ONSTACK | SA_NODEFER;
  for (int s : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS, SIGALRM})
    sigaction(s, &sa, nullptr);
}

// Loads the registers of a system call and jumps to `site`; comes back if what follows returns.
extern "C" void JumpAt(uint64_t site, uint64_t nr, const uint64_t* args);
asm(R"(
.globl JumpAt
JumpAt:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rdi, %r11
  mov %rsi, %rax
  mov %rdx, %rbx
  mov 0(%rbx), %rdi
  mov 8(%rbx), %rsi
  mov 16(%rbx), %rdx
  mov 24(%rbx), %r10
  mov 32(%rbx), %r8
  mov 40(%rbx), %r9
  mov 8(%rbx), %rcx
  call *%r11
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
)");

bool IsEntry(const unsigned char* p) {
  return (p[0] == 0x0f && (p[1] == 0x05 || p[1] == 0x34)) || (p[0] == 0xcd && p[1] == 0x80);
}

// Looks for entries in one readable page; false if it cannot be read.
bool ScanPage(uint64_t page, std::vector<uint64_t>* sites) {
  if (sigsetjmp(g_jump, 1)) return false;
  const unsigned char* p = reinterpret_cast<const unsigned char*>(page);
  for (int i = 0; i + 1 < 4096; i++) {
    if (IsEntry(p + i)) sites->push_back(page + i);
  }
  return true;
}

void ScanOwn(std::vector<uint64_t>* sites) {
  FILE* maps = fopen("/proc/self/maps", "r");
  if (!maps) return;
  uint64_t start, end;
  char prot[8];
  while (fscanf(maps, "%lx-%lx %7s %*[^\n]", &start, &end, prot) == 3) {
    if (prot[2] != 'x') continue;
    for (uint64_t page = start; page < end; page += 4096) ScanPage(page, sites);
  }
  fclose(maps);
}

// The runtime hides near the top of the address space.
void ScanHidden(std::vector<uint64_t>* sites) {
  const uint64_t top = 0x7ffffffff000, depth = 1ull << 32;
  for (uint64_t page = top - 4096; page > top - depth; page -= 4096) ScanPage(page, sites);
}

void Attack(uint64_t site, uint64_t nr) {
  uint64_t p = reinterpret_cast<uint64_t>(g_scratch);
  const uint64_t patterns[][6] = {
      {0, 0, 0, 0, 0, 0},
      {~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull},
      {p, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, ~0ull, 0},
      {0x700000000000, 1ull << 46, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, ~0ull, 0},
      {1, p, 4096, 0, p, 1},
      {3, p, 64, p, 0, 0},
      {p, p, p, p, p, p},
      {0x7ffffff00000, 4096, 7, 0x32, 3, 0},
  };
  pid_t self = getpid();
  for (const auto& pattern : patterns) {
    ualarm(10000, 0);
    if (sigsetjmp(g_jump, 1) == 0) JumpAt(site, nr, pattern);
    if (getpid() != self) _exit(0);
  }
}

int64_t Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// How far the child that attacks has come; it may die at any call.
volatile size_t* g_progress;

// Tries all of `numbers` at `site`, in as many children as it takes.
void Try(uint64_t site, const std::vector<uint64_t>& numbers) {
  *g_progress = 0;
  while (*g_progress < numbers.size()) {
    pid_t pid = fork();
    if (pid < 0) return;
    if (pid == 0) {
      setpgid(0, 0);
      int null = open("/dev/null", O_RDWR);
      for (int fd : {0, 1, 2}) dup2(null, fd);
      CatchFaults();
      while (*g_progress < numbers.size()) {
        uint64_t nr = numbers[*g_progress];
        *g_progress = *g_progress + 1;
        Attack(site, nr);
      }
      _exit(0);
    }
    int64_t end = Now() + 2000000000;
    size_t last = *g_progress;
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
      if (*g_progress != last) {
        last = *g_progress;
        end = Now() + 2000000000;
      }
      if (Now() > end) {  // it hangs, all signals blocked
        kill(-pid, SIGKILL);
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        break;
      }
      timespec nap{0, 500000};
      nanosleep(&nap, nullptr);
    }
    kill(-pid, SIGKILL);
    while (waitpid(-1, &status, WNOHANG) > 0) {
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t own_limit = argc > 1 ? strtoul(argv[1], nullptr, 10) : 2;
  CatchFaults();
  const size_t hidden_limit = argc > 2 ? strtoul(argv[2], nullptr, 10) : SIZE_MAX;
  std::vector<uint64_t> own, hidden;
  ScanOwn(&own);
  ScanHidden(&hidden);
  size_t own_found = own.size();
  // The program's own sites are all alike: a few of them stand for the rest.
  if (own.size() > own_limit) own.resize(own_limit);
  const size_t hidden_found = hidden.size();
  if (hidden.size() > hidden_limit) {  // evenly spread
    std::vector<uint64_t> some;
    for (size_t i = 0; i < hidden_limit; i++)
      some.push_back(hidden[i * hidden_found / hidden_limit]);
    hidden = some;
  }
  std::vector<uint64_t> sites = own;
  sites.insert(sites.end(), hidden.begin(), hidden.end());
  g_progress = static_cast<size_t*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::vector<uint64_t> numbers;
  for (uint64_t nr = 0; nr <= 470; nr++) numbers.push_back(nr);
  for (uint64_t nr = 0; nr <= 470; nr++) numbers.push_back(nr | 0x40000000);  // x32
  for (uint64_t nr : {~0ull, 1ull << 32, 1ull << 63}) numbers.push_back(nr);
  for (uint64_t site : sites) Try(site, numbers);
  size_t tried = sites.size() * numbers.size();
  printf("sites %zu hidden %zu tried %zu\n", own_found, hidden_found, tried);
  return 0;
}
