// A hostile guest: jumps at every system call instruction that it finds in its own address space,
// the hidden ones of the runtime included, with every call number and harmful arguments.
//
// Each (site, number) is tried in a child of its own, which survives faults; the program's end says
// only that it got through. That nothing happened outside is for the test around it to check.
// Usage: hostile [OWN_SITES]; prints "sites N hidden M tried K".
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
  for (int s : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS, SIGALRM}) sigaction(s, &sa, nullptr);
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
  CatchFaults();
  pid_t self = getpid();
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
  for (const auto& pattern : patterns) {
    alarm(1);
    if (sigsetjmp(g_jump, 1) == 0) JumpAt(site, nr, pattern);
    if (getpid() != self) _exit(0);
  }
  _exit(0);
}

int64_t Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void Try(uint64_t site, uint64_t nr) {
  pid_t pid = fork();
  if (pid == 0) {
    setpgid(0, 0);
    Attack(site, nr);
  }
  if (pid < 0) return;
  int64_t end = Now() + 3000000000;
  int status;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (Now() > end) {
      kill(-pid, SIGKILL);
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      break;
    }
    timespec nap{0, 200000};
    nanosleep(&nap, nullptr);
  }
  while (waitpid(-1, &status, WNOHANG) > 0) {
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t own_limit = argc > 1 ? strtoul(argv[1], nullptr, 10) : 2;
  CatchFaults();
  std::vector<uint64_t> own, hidden;
  ScanOwn(&own);
  ScanHidden(&hidden);
  size_t own_found = own.size();
  // The program's own sites are all alike: a few of them stand for the rest.
  if (own.size() > own_limit) own.resize(own_limit);
  std::vector<uint64_t> sites = own;
  sites.insert(sites.end(), hidden.begin(), hidden.end());
  long tried = 0;
  for (uint64_t site : sites) {
    for (uint64_t nr = 0; nr <= 470; nr++, tried++) Try(site, nr);
    for (uint64_t nr = 0; nr <= 64; nr++, tried++) Try(site, nr | 0x40000000);  // x32
    for (uint64_t nr : {~0ull, 1ull << 32, 1ull << 63}) Try(site, nr);
  }
  printf("sites %zu hidden %zu tried %ld\n", own_found, hidden.size(), tried);
  return 0;
}
