# overlay
# C programs: 200 threads, a map of 4 GiB, 1,000 forks, SIGSEGV on an alternate stack, AVX state
# across signals; each as dynamic PIE, dynamic, static and static PIE.
mkdir /tmp/c && cd /tmp/c || exit 1
cat > threads.c <<'E'
#include <pthread.h>
#include <stdio.h>
static pthread_barrier_t barrier;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long sum;
static __thread long own;
static void *run(void *arg) {
  own = (long)arg;
  pthread_barrier_wait(&barrier);
  for (int i = 0; i < 100; i++) { pthread_mutex_lock(&mutex); sum += own; pthread_mutex_unlock(&mutex); }
  return (void *)own;
}
int main(void) {
  pthread_t t[200];
  pthread_barrier_init(&barrier, 0, 200);
  for (long i = 0; i < 200; i++) if (pthread_create(&t[i], 0, run, (void *)i)) return 1;
  long joined = 0;
  for (int i = 0; i < 200; i++) { void *r; pthread_join(t[i], &r); joined += (long)r; }
  printf("threads %ld %ld\n", sum, joined);
  return 0;
}
E
cat > map.c <<'E'
#include <stdio.h>
#include <sys/mman.h>
int main(void) {
  size_t size = 4UL << 30;
  char *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return 1;
  for (size_t i = 0; i < size; i += 64UL << 20) p[i] = (char)(i >> 26);
  long sum = 0;
  for (size_t i = 0; i < size; i += 64UL << 20) sum += (unsigned char)p[i] + p[i + 4096];
  printf("map %ld %d\n", sum, munmap(p, size));
  return 0;
}
E
cat > forks.c <<'E'
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  long sum = 0;
  for (int i = 0; i < 1000; i++) {
    pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) _exit(i % 100);
    int status;
    if (waitpid(pid, &status, 0) != pid) return 2;
    sum += WEXITSTATUS(status);
  }
  printf("forks %ld\n", sum);
  return 0;
}
E
cat > altstack.c <<'E'
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
static sigjmp_buf jump;
static char stack[65536];
static volatile int on_stack, count;
static void handler(int signo, siginfo_t *info, void *context) {
  char here;
  on_stack += &here >= stack && &here < stack + sizeof stack && info->si_signo == signo;
  siglongjmp(jump, 1);
}
static int deep(int n) { volatile char big[4096]; big[0] = (char)n; return n == -1 ? 0 : deep(n + 1) + big[0]; }
int main(void) {
  stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
  struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_ONSTACK | SA_SIGINFO};
  sigaltstack(&ss, 0); sigaction(SIGSEGV, &sa, 0);
  for (count = 0; count < 100; count++) if (!sigsetjmp(jump, 1)) *(volatile int *)8 = 1;
  for (int i = 0; i < 3; i++) if (!sigsetjmp(jump, 1)) deep(0);
  printf("altstack %d\n", on_stack);
  return 0;
}
E
cat > avx.c <<'E'
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
static volatile int ticks;
static void handler(int signo) {
  (void)signo;
  if (__builtin_cpu_supports("avx")) __asm__ volatile("vpxor %%xmm0,%%xmm0,%%xmm0; vxorps %%ymm1,%%ymm1,%%ymm1;"
                                                      "vxorps %%ymm15,%%ymm15,%%ymm15" ::: "xmm0", "xmm1", "xmm15");
  else __asm__ volatile("xorps %%xmm0,%%xmm0; xorps %%xmm1,%%xmm1" ::: "xmm0", "xmm1");
  ticks++;
}
int main(void) {
  __builtin_cpu_init();
  signal(SIGALRM, handler);
  struct itimerval every = {{0, 2000}, {0, 2000}};
  setitimer(ITIMER_REAL, &every, 0);
  unsigned char in[96], out[96];
  for (int i = 0; i < 96; i++) in[i] = (unsigned char)(i * 7 + 1);
  int bad = 0;
  while (ticks < 100) {
    memset(out, 0, sizeof out);
    if (__builtin_cpu_supports("avx")) {
      __asm__ volatile("vmovdqu (%0),%%ymm0; vmovdqu 32(%0),%%ymm1; vmovdqu 64(%0),%%ymm15;"
                       "mov $20000,%%ecx; 1: dec %%ecx; jnz 1b;"
                       "vmovdqu %%ymm0,(%1); vmovdqu %%ymm1,32(%1); vmovdqu %%ymm15,64(%1)"
                       :: "r"(in), "r"(out) : "ecx", "xmm0", "xmm1", "xmm15", "memory");
    } else {
      memcpy(out, in, sizeof out);
    }
    bad += memcmp(in, out, sizeof in) != 0;
  }
  printf("avx %d\n", bad);
  return 0;
}
E
for program in threads map forks altstack avx; do
  for flags in "" "-no-pie" "-static" "-static-pie"; do
    gcc -O1 -w -pthread $flags -o $program $program.c && timeout 120 ./$program; echo "$program $flags $?"
  done
done
