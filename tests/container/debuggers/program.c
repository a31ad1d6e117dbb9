// What the debuggers look at: functions to break at, a global to watch, threads, a fault.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int total;

__attribute__((noinline)) int add(int a, int b) {
  __atomic_fetch_add(&total, a, __ATOMIC_RELAXED);
  return a + b;
}

__attribute__((noinline)) int sum_up(int n) {
  int sum = 0;
  for (int i = 1; i <= n; i++) sum = add(i, sum);
  return sum;
}

static void* work(void* arg) {
  long n = (long)arg;
  return (void*)(long)sum_up((int)n);
}

__attribute__((noinline)) int with_threads(int n) {
  pthread_t threads[4];
  long all = 0;
  for (int i = 0; i < n; i++) pthread_create(&threads[i], NULL, work, (void*)(long)(i + 1));
  for (int i = 0; i < n; i++) {
    void* result;
    pthread_join(threads[i], &result);
    all += (long)result;
  }
  return (int)all;
}

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "sum";
  if (strcmp(what, "fault") == 0) *(volatile int*)16 = 1;
  if (strcmp(what, "wait") == 0) {
    puts("waiting");
    fflush(stdout);
    for (int i = 0; i < 600; i++) {
      sum_up(3);
      usleep(50000);
    }
  }
  int result = strcmp(what, "threads") == 0 ? with_threads(4) : sum_up(5);
  printf("result %d total %d\n", result, total);
  return result;
}
