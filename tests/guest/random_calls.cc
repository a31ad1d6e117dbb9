// Random system calls: workers make calls of every kind with arguments that are plausible, hostile
// or wrong, while a second thread changes the memory under them. For a sandbox alone, whose kernel
// must stay alive; whether it does, is for the test around it to see
// (tests/container/soak_test.py).
//
// Usage: random_calls [--seconds N] [--seed S] [--workers W]. The sequence of each worker's calls
// and arguments follows from the seed, its place and its generation. Prints "generations G calls C
// numbers N succeeded K killed D stuck T".
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include <atomic>
#include <set>
#include <string>

#include "tests/guest/random_calls.h"

namespace {

using namespace random_calls;  // NOLINT

constexpr int kCallsPerWorker = 400;
constexpr int64_t kPatienceNs = 700'000'000;       // for a worker
constexpr int64_t kKillPatienceNs = 20'000'000'000;  // for a killed one to be gone
constexpr int kMaxWorkers = 8;

struct Counts {
  std::atomic<uint64_t> calls, succeeded;
  std::atomic<uint8_t> seen[kCallCount];
};
Counts* g_counts;
std::string g_base;

int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

void OnSignal(int) {}

// What calls of before may have changed, and without which a worker would stand still.
void KeepMoving() {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  struct sigaction action {};
  action.sa_handler = OnSignal;  // no SA_RESTART: it ends a call that blocks
  sigaction(SIGALRM, &action, nullptr);
  const itimerval soon{{0, 5000}, {0, 5000}};
  setitimer(ITIMER_REAL, &soon, nullptr);
}

void Limit(int resource, rlim_t value) {
  const rlimit limit{value, value};
  setrlimit(static_cast<__rlimit_resource>(resource), &limit);
}

// A worker: its own directory, group and limits; another user unless `root`, who has no other root.
[[noreturn]] void Work(uint64_t seed, const std::string& directory, bool root) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int null = open("/dev/null", O_RDWR);
  for (int fd : {0, 1, 2}) dup2(null, fd);
  mkdir(directory.c_str(), 0777);
  chmod(directory.c_str(), 0777);
  if (chdir(directory.c_str()) != 0) _exit(1);
  // Else it could take away from the others what they need, by its rights.
  if (root && chroot(".") != 0) _exit(1);
  Limit(RLIMIT_FSIZE, 1 << 20);
  Limit(RLIMIT_AS, 1 << 30);
  Limit(RLIMIT_CORE, 0);
  Limit(RLIMIT_NOFILE, 256);
  Limit(RLIMIT_MSGQUEUE, 100'000);
  if (!root) {
    Limit(RLIMIT_NPROC, 200);
    if (setgroups(0, nullptr) != 0 || setresgid(1000, 1000, 1000) != 0 ||
        setresuid(1000, 1000, 1000) != 0) {
      _exit(1);
    }
  }
  // Signals that calls bring about are not the end; a fault of our own memory is.
  for (int signo = 1; signo < 65; signo++) {
    if (signo != SIGSEGV && signo != SIGBUS) signal(signo, OnSignal);
  }
  Pool pool(seed, root);
  pool.StartRacing();
  const pid_t self = getpid();
  for (int i = 0; i < kCallsPerWorker; i++) {
    if (i % 16 == 0) KeepMoving();
    const Call call = pool.Next();
    const long result = call.Make();
    if (getpid() != self || syscall(SYS_gettid) != self) syscall(SYS_exit_group, 0);  // a clone
    g_counts->calls.fetch_add(1, std::memory_order_relaxed);
    if (result != -1) g_counts->succeeded.fetch_add(1, std::memory_order_relaxed);
    g_counts->seen[call.nr].store(1, std::memory_order_relaxed);
  }
  _exit(0);
}

// ---- What a generation leaves behind ----

int RemoveOne(const char* path, const struct stat*, int type, struct FTW*) {
  if (type == FTW_DNR) chmod(path, 0700);
  if (remove(path) != 0 && errno == EBUSY) umount2(path, MNT_DETACH);
  return 0;
}

void RemoveTree(const std::string& directory) {
  nftw(directory.c_str(), RemoveOne, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

// The objects of System V IPC outlive their makers.
void RemoveIpc() {
  struct shm_info info {};
  struct shmid_ds shm {};
  int highest = shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&info));
  for (int i = 0; i <= highest; i++) {
    int id = shmctl(i, SHM_STAT, &shm);
    if (id >= 0) shmctl(id, IPC_RMID, nullptr);
  }
  struct semid_ds sem {};
  struct seminfo sems {};
  highest = semctl(0, 0, SEM_INFO, &sems);
  for (int i = 0; i <= highest; i++) {
    int id = semctl(i, 0, SEM_STAT, &sem);
    if (id >= 0) semctl(id, 0, IPC_RMID);
  }
  struct msqid_ds msg {};
  struct msginfo msgs {};
  highest = msgctl(0, MSG_INFO, reinterpret_cast<msqid_ds*>(&msgs));
  for (int i = 0; i <= highest; i++) {
    int id = msgctl(i, MSG_STAT, &msg);
    if (id >= 0) msgctl(id, IPC_RMID, nullptr);
  }
  for (const char* name : kQueueNames) syscall(SYS_mq_unlink, name);
}

// Children of this process, adopted ones included.
std::set<pid_t> Children() {
  std::set<pid_t> children;
  DIR* proc = opendir("/proc");
  while (dirent* e = proc ? readdir(proc) : nullptr) {
    const pid_t pid = atoi(e->d_name);
    FILE* stat =
        pid > 1 ? fopen(("/proc/" + std::string(e->d_name) + "/stat").c_str(), "r") : nullptr;
    if (!stat) continue;
    char line[512] = {};
    const size_t n = fread(line, 1, sizeof line - 1, stat);
    fclose(stat);
    const char* behind = n > 0 ? strrchr(line, ')') : nullptr;
    int parent = 0;
    if (behind && sscanf(behind, ") %*c %d", &parent) == 1 && parent == getpid())
      children.insert(pid);
  }
  if (proc) closedir(proc);
  return children;
}

// Ends all children; how many were not gone in time.
uint64_t EndAll(uint64_t* killed) {
  const int64_t start = NowNs();
  for (;;) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) {
      if (WIFSIGNALED(status)) ++*killed;
    }
    if (pid < 0 && errno == ECHILD) return 0;
    const int64_t since = NowNs() - start;
    if (since > kPatienceNs) {
      for (pid_t child : Children()) kill(child, SIGKILL);
    }
    if (since > kPatienceNs + kKillPatienceNs) return Children().size();
    const timespec pause{0, 2'000'000};
    nanosleep(&pause, nullptr);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int64_t seconds = 10, workers = 4;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const int64_t value = atoll(argv[i + 1]);
    if (flag == "--seconds") seconds = value;
    if (flag == "--seed") seed = static_cast<uint64_t>(value);
    if (flag == "--workers") workers = std::min<int64_t>(std::max<int64_t>(value, 1), kMaxWorkers);
  }
  if (!getenv("TEST_IN_SANDBOX")) {
    fprintf(stderr, "random_calls: for a sandbox alone (TEST_IN_SANDBOX)\n");
    return 2;
  }
  g_counts = static_cast<Counts*>(
      mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  char base[] = "/tmp/random-XXXXXX";
  if (g_counts == MAP_FAILED || !mkdtemp(base)) return 3;
  chmod(base, 0755);
  g_base = base;
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const int64_t end = NowNs() + seconds * 1'000'000'000;
  uint64_t generation = 0, killed = 0, stuck = 0;
  for (; stuck == 0 && (generation == 0 || NowNs() < end); generation++) {
    for (int64_t w = 0; w < workers; w++) {
      const uint64_t worker_seed =
          Mix(seed ^ Mix(generation * kMaxWorkers + static_cast<uint64_t>(w)));
      const pid_t pid = fork();
      if (pid == 0) Work(worker_seed, g_base + "/" + std::to_string(w), w % 4 == 3);
    }
    stuck += EndAll(&killed);
    for (int64_t w = 0; w < workers; w++) RemoveTree(g_base + "/" + std::to_string(w));
    RemoveIpc();
  }
  RemoveTree(g_base);
  uint64_t numbers = 0;
  for (const auto& seen : g_counts->seen) numbers += seen.load() != 0;
  printf("generations %lu calls %lu numbers %lu succeeded %lu killed %lu stuck %lu\n", generation,
         g_counts->calls.load(), numbers, g_counts->succeeded.load(), killed, stuck);
  return stuck == 0 ? 0 : 1;
}
