// System V shared memory, semaphores and message queues.
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"

#ifndef MSG_COPY
#define MSG_COPY 040000
#endif
#ifndef MSG_EXCEPT
#define MSG_EXCEPT 020000
#endif

namespace {

constexpr int kRw = 0600;
key_t UniqueKey(int n) { return (getpid() << 8 | n) & 0x7fffffff; }

// --- shared memory ---

class Segment {
 public:
  explicit Segment(size_t size) : id_(shmget(IPC_PRIVATE, size, kRw)) {}
  ~Segment() { shmctl(id_, IPC_RMID, nullptr); }
  int id() const { return id_; }
  shmid_ds Stat() const {
    shmid_ds ds{};
    EXPECT_EQ(0, shmctl(id_, IPC_STAT, &ds));
    return ds;
  }

 private:
  int id_;
};

void* const kFailed = reinterpret_cast<void*>(-1);

TEST(Shm, GetByKey) {
  key_t key = UniqueKey(1);
  EXPECT_ERRNO(shmget(key, 4096, kRw), ENOENT);
  EXPECT_ERRNO(shmget(key, 0, kRw | IPC_CREAT), EINVAL);
  int id = shmget(key, 5000, kRw | IPC_CREAT);
  ASSERT_OK(id);
  EXPECT_EQ(id, shmget(key, 5000, kRw));
  EXPECT_EQ(id, shmget(key, 0, 0));
  EXPECT_EQ(id, shmget(key, 100, kRw | IPC_CREAT));
  EXPECT_ERRNO(shmget(key, 5000, kRw | IPC_CREAT | IPC_EXCL), EEXIST);
  EXPECT_ERRNO(shmget(key, 5001, kRw), EINVAL);
  shmid_ds ds;
  ASSERT_EQ(0, shmctl(id, IPC_STAT, &ds));
  EXPECT_EQ(5000u, ds.shm_segsz);
  EXPECT_EQ(key, ds.shm_perm.__key);
  EXPECT_EQ(0600, ds.shm_perm.mode);
  EXPECT_EQ(getpid(), ds.shm_cpid);
  EXPECT_EQ(0, ds.shm_lpid);
  EXPECT_EQ(0u, ds.shm_nattch);
  EXPECT_EQ(0, ds.shm_atime);
  EXPECT_LE(ds.shm_ctime, time(nullptr));
  EXPECT_ERRNO(shmctl(id, IPC_STAT, reinterpret_cast<shmid_ds*>(BadAddress())), EFAULT);
  EXPECT_EQ(0, shmctl(id, IPC_RMID, nullptr));
  EXPECT_ERRNO(shmget(key, 5000, kRw), ENOENT);
  EXPECT_ERRNO(shmctl(id, IPC_STAT, &ds), EINVAL);
  EXPECT_ERRNO(shmctl(id, IPC_RMID, nullptr), EINVAL);
  EXPECT_ERRNO(shmctl(-1, IPC_STAT, &ds), EINVAL);
}

TEST(Shm, AttachShareDetach) {
  Segment segment(10000);
  char* a = static_cast<char*>(shmat(segment.id(), nullptr, 0));
  ASSERT_NE(kFailed, a);
  EXPECT_EQ(1u, segment.Stat().shm_nattch);
  char* b = static_cast<char*>(shmat(segment.id(), nullptr, SHM_RDONLY));
  ASSERT_NE(kFailed, b);
  EXPECT_EQ(2u, segment.Stat().shm_nattch);
  a[9999] = 'x';
  EXPECT_EQ('x', b[9999]);
  EXPECT_EQ(0, a[10001]);  // to the end of the page
  pid_t child = fork();
  if (child == 0) {
    shmid_ds ds;
    if (shmctl(segment.id(), IPC_STAT, &ds) != 0 || ds.shm_nattch != 4) _exit(1);
    a[0] = 'c';
    if (shmdt(a) != 0) _exit(2);
    if (shmctl(segment.id(), IPC_STAT, &ds) != 0 || ds.shm_nattch != 3) _exit(3);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  EXPECT_EQ(0, status);
  EXPECT_EQ('c', b[0]);
  EXPECT_EQ(2u, segment.Stat().shm_nattch);
  EXPECT_EQ(child, segment.Stat().shm_lpid);
  EXPECT_GT(segment.Stat().shm_dtime, 0);
  EXPECT_ERRNO(shmdt(a + 4096), EINVAL);
  EXPECT_ERRNO(shmdt(a + 1), EINVAL);
  EXPECT_EQ(0, shmdt(a));
  EXPECT_ERRNO(shmdt(a), EINVAL);
  EXPECT_EQ(0, shmdt(b));
  EXPECT_EQ(0u, segment.Stat().shm_nattch);
  EXPECT_EQ(getpid(), segment.Stat().shm_lpid);
}

TEST(Shm, AttachAtAnAddress) {
  Segment segment(8192);
  char* place =
      static_cast<char*>(mmap(nullptr, 65536, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  munmap(place + 16384, 49152);
  char* free = place + 32768;
  EXPECT_EQ(kFailed, shmat(segment.id(), free + 1, 0));
  EXPECT_EQ(EINVAL, errno);
  EXPECT_EQ(free, shmat(segment.id(), free + 1, SHM_RND));
  EXPECT_EQ(kFailed, shmat(segment.id(), free, 0));
  EXPECT_EQ(EINVAL, errno);
  EXPECT_EQ(kFailed, shmat(segment.id(), nullptr, SHM_REMAP));
  EXPECT_EQ(EINVAL, errno);
  EXPECT_EQ(place, shmat(segment.id(), place, SHM_REMAP));
  EXPECT_EQ(2u, segment.Stat().shm_nattch);
  EXPECT_EQ(kFailed, shmat(-1, nullptr, 0));
  EXPECT_EQ(EINVAL, errno);
  // What is left of an attachment with a hole goes as a whole.
  munmap(place, 4096);
  EXPECT_EQ(0, shmdt(place));
  EXPECT_EQ(0, shmdt(free));
  EXPECT_EQ(0u, segment.Stat().shm_nattch);
  munmap(place, 65536);
}

TEST(Shm, RemovedWhenTheLastDetaches) {
  int id = shmget(IPC_PRIVATE, 4096, kRw);
  char* a = static_cast<char*>(shmat(id, nullptr, 0));
  ASSERT_NE(kFailed, a);
  a[5] = 7;
  EXPECT_EQ(0, shmctl(id, IPC_RMID, nullptr));
  shmid_ds ds;
  ASSERT_EQ(0, shmctl(id, IPC_STAT, &ds));
  EXPECT_TRUE(ds.shm_perm.mode & SHM_DEST);
  EXPECT_EQ(1u, ds.shm_nattch);
  char* b = static_cast<char*>(shmat(id, nullptr, 0));  // Linux lets it be attached still
  ASSERT_NE(kFailed, b);
  EXPECT_EQ(7, b[5]);
  EXPECT_EQ(0, shmdt(a));
  EXPECT_EQ(0, shmctl(id, IPC_STAT, &ds));
  EXPECT_EQ(0, shmdt(b));
  EXPECT_ERRNO(shmctl(id, IPC_STAT, &ds), EINVAL);
}

TEST(Shm, ExitAndExecDetach) {
  Segment segment(4096);
  for (bool exec : {false, true}) {
    pid_t child = fork();
    if (child == 0) {
      shmat(segment.id(), nullptr, 0);
      if (exec) execl("/bin/busybox", "busybox", "true", nullptr);
      _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    EXPECT_EQ(0, status);
    EXPECT_EQ(0u, segment.Stat().shm_nattch);
    EXPECT_EQ(child, segment.Stat().shm_lpid);
  }
}

TEST(Shm, Permissions) {
  int id = shmget(IPC_PRIVATE, 4096, 0600);
  EXPECT_EQ(0, ExitStatus([id] {
              if (setgid(1000) != 0 || setuid(1000) != 0) return 1;
              shmid_ds ds;
              if (shmctl(id, IPC_STAT, &ds) != -1 || errno != EACCES) return 2;
              if (shmat(id, nullptr, SHM_RDONLY) != kFailed || errno != EACCES) return 3;
              if (shmctl(id, IPC_RMID, nullptr) != -1 || errno != EPERM) return 4;
              return 0;
            }));
  shmid_ds ds;
  ASSERT_EQ(0, shmctl(id, IPC_STAT, &ds));
  ds.shm_perm.mode = 0604;
  ASSERT_EQ(0, shmctl(id, IPC_SET, &ds));
  EXPECT_EQ(0, ExitStatus([id] {
              if (setgid(1000) != 0 || setuid(1000) != 0) return 1;
              shmid_ds now;
              if (shmctl(id, IPC_STAT, &now) != 0 || now.shm_perm.mode != 0604) return 2;
              if (shmat(id, nullptr, 0) != kFailed || errno != EACCES) return 3;
              return shmat(id, nullptr, SHM_RDONLY) != kFailed ? 0 : 4;
            }));
  EXPECT_EQ(0, shmctl(id, SHM_LOCK, nullptr));
  ASSERT_EQ(0, shmctl(id, IPC_STAT, &ds));
  EXPECT_TRUE(ds.shm_perm.mode & SHM_LOCKED);
  EXPECT_EQ(0, shmctl(id, SHM_UNLOCK, nullptr));
  EXPECT_EQ(0, shmctl(id, IPC_RMID, nullptr));
}

TEST(Shm, InfoAndListing) {
  Segment segment(12345);
  shminfo limits;
  EXPECT_GE(shmctl(0, IPC_INFO, reinterpret_cast<shmid_ds*>(&limits)), 0);
  EXPECT_EQ(1u, limits.shmmin);
  shm_info info;
  int highest = shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&info));
  ASSERT_GE(highest, 0);
  EXPECT_GE(info.used_ids, 1);
  bool found = false;
  for (int i = 0; i <= highest; i++) {
    shmid_ds ds;
    int id = shmctl(i, SHM_STAT, &ds);
    if (id == segment.id()) found = ds.shm_segsz == 12345;
  }
  EXPECT_TRUE(found);
  std::string list = ReadFile("/proc/sysvipc/shm");
  EXPECT_NE(std::string::npos, list.find("shmid perms                  size"));
  EXPECT_NE(std::string::npos, list.find(" " + std::to_string(segment.id()) + "   600"));
  EXPECT_NE(std::string::npos, list.find(" 12345 "));
}

TEST(Shm, NamespaceOfItsOwn) {
  key_t key = UniqueKey(7);
  int id = shmget(key, 4096, kRw | IPC_CREAT);
  EXPECT_EQ(0, ExitStatus([key] {
              if (unshare(CLONE_NEWIPC) != 0) return 1;
              if (shmget(key, 4096, kRw) != -1 || errno != ENOENT) return 2;
              return shmget(key, 4096, kRw | IPC_CREAT | IPC_EXCL) >= 0 ? 0 : 3;
            }));
  EXPECT_EQ(0, shmctl(id, IPC_RMID, nullptr));
}

TEST(Shm, FutexesAreShared) {
  Segment segment(4096);
  auto* word = static_cast<std::atomic<uint32_t>*>(shmat(segment.id(), nullptr, 0));
  pid_t child = fork();
  if (child == 0) {
    auto* other = static_cast<std::atomic<uint32_t>*>(shmat(segment.id(), nullptr, 0));
    SleepMs(20);
    *other = 1;
    while (syscall(SYS_futex, other, 1 /* FUTEX_WAKE */, 1, 0, 0, 0) == 0 && *other != 2)
      SleepMs(1);
    _exit(0);
  }
  while (*word == 0) syscall(SYS_futex, word, 0 /* FUTEX_WAIT */, 0, 0, 0, 0);
  *word = 2;
  waitpid(child, nullptr, 0);
  shmdt(word);
}

// --- semaphores ---

class Set {
 public:
  explicit Set(int count) : id_(semget(IPC_PRIVATE, count, kRw)) {}
  ~Set() { semctl(id_, 0, IPC_RMID); }
  int id() const { return id_; }
  int Op(short op, unsigned short num = 0, short flags = 0) {
    sembuf buffer{num, op, flags};
    return semop(id_, &buffer, 1);
  }
  int Value(int num = 0) { return semctl(id_, num, GETVAL); }
  void WaitForWaiters(int command, int count, int num = 0) {
    while (semctl(id_, num, command) != count) SleepMs(1);
  }

 private:
  int id_;
};

TEST(Sem, GetAndLimits) {
  key_t key = UniqueKey(2);
  EXPECT_ERRNO(semget(key, 1, kRw), ENOENT);
  EXPECT_ERRNO(semget(key, 0, kRw | IPC_CREAT), EINVAL);
  EXPECT_ERRNO(semget(key, -1, kRw | IPC_CREAT), EINVAL);
  int id = semget(key, 3, kRw | IPC_CREAT | IPC_EXCL);
  ASSERT_OK(id);
  EXPECT_EQ(id, semget(key, 0, 0));
  EXPECT_EQ(id, semget(key, 3, 0));
  EXPECT_ERRNO(semget(key, 4, 0), EINVAL);
  EXPECT_ERRNO(semget(key, 3, kRw | IPC_CREAT | IPC_EXCL), EEXIST);
  sembuf op{3, 1, 0};
  EXPECT_ERRNO(semop(id, &op, 1), EFBIG);
  EXPECT_ERRNO(semop(id, &op, 0), EINVAL);
  EXPECT_ERRNO(semop(-1, &op, 1), EINVAL);
  EXPECT_ERRNO(semop(id, reinterpret_cast<sembuf*>(BadAddress()), 1), EFAULT);
  std::vector<sembuf> many(501);
  EXPECT_ERRNO(semop(id, many.data(), 501), E2BIG);
  timespec bad{-1, 0};
  op.sem_num = 0;
  EXPECT_ERRNO(semtimedop(id, &op, 1, &bad), EINVAL);
  EXPECT_ERRNO(semtimedop(id, &op, 1, reinterpret_cast<timespec*>(BadAddress())), EFAULT);
  EXPECT_ERRNO(semctl(id, 3, GETVAL), EINVAL);
  EXPECT_ERRNO(semctl(id, 0, SETVAL, 32768), ERANGE);
  EXPECT_ERRNO(semctl(id, 0, SETVAL, -1), ERANGE);
  EXPECT_EQ(0, semctl(id, 0, SETVAL, 32767));
  EXPECT_ERRNO(semop(id, &op, 1), ERANGE);
  EXPECT_ERRNO(semctl(id, 0, 99), EINVAL);
  semid_ds ds;
  EXPECT_EQ(0, semctl(id, 0, IPC_STAT, &ds));
  EXPECT_EQ(3u, ds.sem_nsems);
  EXPECT_EQ(0, ds.sem_otime);
  EXPECT_EQ(0, semctl(id, 0, IPC_RMID));
  EXPECT_ERRNO(semctl(id, 0, GETVAL), EINVAL);
}

TEST(Sem, AllOrNothing) {
  Set set(2);
  unsigned short values[2] = {1, 0};
  ASSERT_EQ(0, semctl(set.id(), 0, SETALL, values));
  sembuf ops[2] = {{0, -1, 0}, {1, -1, IPC_NOWAIT}};
  EXPECT_ERRNO(semop(set.id(), ops, 2), EAGAIN);
  EXPECT_EQ(1, set.Value(0));
  // One may take what an earlier one of the same call has put.
  sembuf chain[3] = {{1, 2, 0}, {1, -2, 0}, {1, 0, 0}};
  EXPECT_EQ(0, semop(set.id(), chain, 3));
  unsigned short now[2] = {9, 9};
  EXPECT_EQ(0, semctl(set.id(), 0, GETALL, now));
  EXPECT_EQ(1, now[0]);
  EXPECT_EQ(0, now[1]);
  EXPECT_EQ(getpid(), semctl(set.id(), 1, GETPID));
  semid_ds ds;
  EXPECT_EQ(0, semctl(set.id(), 0, IPC_STAT, &ds));
  EXPECT_GT(ds.sem_otime, 0);
  unsigned short big[2] = {40000, 0};
  EXPECT_ERRNO(semctl(set.id(), 0, SETALL, big), ERANGE);
}

TEST(Sem, WaitsAndCounts) {
  Set set(1);
  std::atomic<int> done{0};
  std::thread grow([&] {
    EXPECT_EQ(0, set.Op(-3));
    done++;
  });
  set.WaitForWaiters(GETNCNT, 1);
  EXPECT_EQ(0, semctl(set.id(), 0, GETZCNT));
  EXPECT_EQ(0, set.Op(2));
  SleepMs(20);
  EXPECT_EQ(0, done);
  std::thread zero([&] {
    EXPECT_EQ(0, set.Op(0));
    done++;
  });
  set.WaitForWaiters(GETZCNT, 1);
  EXPECT_EQ(0, set.Op(1));
  grow.join();
  zero.join();
  EXPECT_EQ(2, done);
  EXPECT_EQ(0, set.Value());
}

TEST(Sem, EndsOfWaits) {
  auto* set = new Set(1);
  timespec t{0, 30000000};
  sembuf take{0, -1, 0};
  int64_t start = NowNs();
  EXPECT_ERRNO(semtimedop(set->id(), &take, 1, &t), EAGAIN);
  EXPECT_GE(NowNs() - start, 29000000);
  // A signal ends it whatever SA_RESTART says.
  struct sigaction action {};
  action.sa_handler = [](int) {};
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  pthread_t self = pthread_self();
  std::thread sender([&] {
    set->WaitForWaiters(GETNCNT, 1);
    SleepMs(10);
    pthread_kill(self, SIGUSR1);
  });
  EXPECT_ERRNO(semop(set->id(), &take, 1), EINTR);
  sender.join();
  std::thread remover([&] {
    set->WaitForWaiters(GETNCNT, 1);
    delete set;
  });
  EXPECT_ERRNO(semop(set->id(), &take, 1), EIDRM);
  remover.join();
}

TEST(Sem, Undo) {
  Set set(2);
  ASSERT_EQ(0, semctl(set.id(), 0, SETVAL, 5));
  EXPECT_EQ(0, ExitStatus([&] {
              if (set.Op(-3, 0, SEM_UNDO) != 0 || set.Op(4, 1, SEM_UNDO) != 0) return 1;
              return set.Value() == 2 && set.Value(1) == 4 ? 0 : 2;
            }));
  EXPECT_EQ(5, set.Value());
  EXPECT_EQ(0, set.Value(1));
  // A kill undoes as well, and lets those who wait go on.
  ASSERT_EQ(0, semctl(set.id(), 0, SETVAL, 1));
  pid_t child = fork();
  if (child == 0) {
    set.Op(-1, 0, SEM_UNDO);
    pause();
  }
  while (set.Value() != 0) SleepMs(1);
  std::thread waiter([&] { EXPECT_EQ(0, set.Op(-1)); });
  set.WaitForWaiters(GETNCNT, 1);
  kill(child, SIGKILL);
  waiter.join();
  waitpid(child, nullptr, 0);
  // SETVAL forgets what would be undone; exec keeps it.
  EXPECT_EQ(0, ExitStatus([&] {
              set.Op(3, 0, SEM_UNDO);
              semctl(set.id(), 0, SETVAL, 7);
              return 0;
            }));
  EXPECT_EQ(7, set.Value());
  int input[2], executed[2];
  ASSERT_EQ(0, pipe2(input, O_CLOEXEC));
  ASSERT_EQ(0, pipe2(executed, O_CLOEXEC));
  child = fork();
  if (child == 0) {
    set.Op(-2, 0, SEM_UNDO);
    dup2(input[0], 0);
    execl("/bin/busybox", "busybox", "cat", nullptr);
    _exit(1);
  }
  close(executed[1]);
  char none;
  EXPECT_EQ(0, read(executed[0], &none, 1));
  EXPECT_EQ(5, set.Value());
  for (int fd : {input[0], input[1], executed[0]}) close(fd);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(7, set.Value());
  // Threads of glibc share the list: their end undoes nothing.
  std::thread([&] { EXPECT_EQ(0, set.Op(-1, 0, SEM_UNDO)); }).join();
  EXPECT_EQ(6, set.Value());
  // A thread can be joined before it has left the list.
  while (ReadFile("/proc/self/status").find("Threads:\t1\n") == std::string::npos) SleepMs(1);
  EXPECT_EQ(0, unshare(CLONE_SYSVSEM));
  EXPECT_EQ(7, set.Value());
  EXPECT_ERRNO(set.Op(32767, 0, SEM_UNDO), ERANGE);
}

TEST(Sem, PermissionsAndListing) {
  Set set(1);
  EXPECT_EQ(0, ExitStatus([&] {
              if (setgid(1000) != 0 || setuid(1000) != 0) return 1;
              if (set.Op(1) != -1 || errno != EACCES) return 2;
              if (semctl(set.id(), 0, GETVAL) != -1 || errno != EACCES) return 3;
              if (semctl(set.id(), 0, SETVAL, 1) != -1 || errno != EACCES) return 4;
              if (semctl(set.id(), 0, IPC_RMID) != -1 || errno != EPERM) return 5;
              return 0;
            }));
  seminfo info;
  EXPECT_GE(semctl(0, 0, SEM_INFO, &info), 0);
  EXPECT_GE(info.semusz, 1);
  EXPECT_EQ(32767, info.semvmx);
  std::string list = ReadFile("/proc/sysvipc/sem");
  EXPECT_NE(std::string::npos, list.find(" " + std::to_string(set.id()) + "   600"));
}

TEST(Sem, ManyProcessesCount) {
  Set set(1);
  auto* count = static_cast<int*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  semctl(set.id(), 0, SETVAL, 1);
  for (int i = 0; i < 4; i++) {
    if (fork() == 0) {
      for (int j = 0; j < 500; j++) {
        if (set.Op(-1, 0, SEM_UNDO) != 0) _exit(1);
        volatile int v = *count;
        *count = v + 1;
        if (set.Op(1, 0, SEM_UNDO) != 0) _exit(1);
      }
      _exit(0);
    }
  }
  int status;
  while (wait(&status) > 0) EXPECT_EQ(0, status);
  EXPECT_EQ(2000, *count);
}

// --- message queues ---

struct Message {
  long type;
  char text[100];
};

class Queue {
 public:
  Queue() : id_(msgget(IPC_PRIVATE, kRw)) {}
  ~Queue() { msgctl(id_, IPC_RMID, nullptr); }
  int id() const { return id_; }
  int Send(long type, const std::string& text, int flags = IPC_NOWAIT) {
    Message m{type, {}};
    memcpy(m.text, text.data(), text.size());
    return msgsnd(id_, &m, text.size(), flags);
  }
  std::string Receive(long type, int flags = IPC_NOWAIT, size_t size = 100) {
    Message m{};
    ssize_t n = msgrcv(id_, &m, size, type, flags);
    if (n < 0) return "errno " + std::to_string(errno);
    return std::to_string(m.type) + ":" + std::string(m.text, static_cast<size_t>(n));
  }

 private:
  int id_;
};

std::string Errno(int e) { return "errno " + std::to_string(e); }

TEST(Msg, TypesAndOrder) {
  Queue q;
  for (long type : {5, 3, 4, 3, 9}) ASSERT_EQ(0, q.Send(type, "m" + std::to_string(type)));
  EXPECT_EQ("4:m4", q.Receive(4));
  EXPECT_EQ(Errno(ENOMSG), q.Receive(4));
  EXPECT_EQ("3:m3", q.Receive(-4));
  EXPECT_EQ("3:m3", q.Receive(-9));
  EXPECT_EQ(Errno(ENOMSG), q.Receive(-2));
  EXPECT_EQ("9:m9", q.Receive(5, IPC_NOWAIT | MSG_EXCEPT));
  EXPECT_EQ("5:m5", q.Receive(0));
  EXPECT_EQ(Errno(ENOMSG), q.Receive(0));
  ASSERT_EQ(0, q.Send(1, ""));
  EXPECT_EQ("1:", q.Receive(0));
}

TEST(Msg, SizesAndErrors) {
  Queue q;
  EXPECT_ERRNO(q.Send(0, "x"), EINVAL);
  EXPECT_ERRNO(q.Send(-1, "x"), EINVAL);
  std::vector<char> big(9000);
  big[0] = 1;
  EXPECT_ERRNO(msgsnd(q.id(), big.data(), 8193, 0), EINVAL);
  EXPECT_ERRNO(msgsnd(q.id(), BadAddress(), 1, 0), EFAULT);
  EXPECT_ERRNO(msgsnd(-1, big.data(), 1, 0), EINVAL);
  EXPECT_ERRNO(msgsnd(0x7fffffff, big.data(), 1, 0), EINVAL);
  EXPECT_ERRNO(msgrcv(q.id(), big.data(), static_cast<size_t>(-1), 0, 0), EINVAL);
  EXPECT_ERRNO(msgrcv(q.id(), big.data(), 10, 0, MSG_COPY), EINVAL);
  ASSERT_EQ(0, q.Send(7, "hello world"));
  EXPECT_EQ(Errno(E2BIG), q.Receive(0, IPC_NOWAIT, 5));
  EXPECT_EQ("7:hello", q.Receive(0, IPC_NOWAIT | MSG_NOERROR, 5));
  EXPECT_EQ(Errno(ENOMSG), q.Receive(0));
  ASSERT_EQ(0, q.Send(7, "lost"));
  EXPECT_ERRNO(msgrcv(q.id(), BadAddress(), 10, 0, 0), EFAULT);
  EXPECT_EQ(Errno(ENOMSG), q.Receive(0));
}

TEST(Msg, CopyLeavesIt) {
  Queue q;
  ASSERT_EQ(0, q.Send(1, "a"));
  ASSERT_EQ(0, q.Send(2, "b"));
  std::string copy = q.Receive(1, IPC_NOWAIT | MSG_COPY);
  if (copy == Errno(ENOSYS)) GTEST_SKIP() << "the host has no MSG_COPY";
  EXPECT_EQ("2:b", copy);
  EXPECT_EQ("1:a", q.Receive(0, IPC_NOWAIT | MSG_COPY));
  EXPECT_EQ(Errno(ENOMSG), q.Receive(2, IPC_NOWAIT | MSG_COPY));
  EXPECT_EQ("1:a", q.Receive(0));
}

TEST(Msg, FullQueueAndStat) {
  Queue q;
  msqid_ds ds;
  ASSERT_EQ(0, msgctl(q.id(), IPC_STAT, &ds));
  EXPECT_GT(ds.msg_qbytes, 100u);
  ds.msg_qbytes = 100;
  ASSERT_EQ(0, msgctl(q.id(), IPC_SET, &ds));
  ASSERT_EQ(0, q.Send(1, std::string(60, 'x')));
  EXPECT_ERRNO(q.Send(1, std::string(60, 'x')), EAGAIN);
  ASSERT_EQ(0, msgctl(q.id(), IPC_STAT, &ds));
  EXPECT_EQ(1u, ds.msg_qnum);
  EXPECT_EQ(60u, ds.__msg_cbytes);
  EXPECT_EQ(getpid(), ds.msg_lspid);
  EXPECT_EQ(0, ds.msg_lrpid);
  EXPECT_GT(ds.msg_stime, 0);
  std::thread receiver([&] {
    SleepMs(30);
    EXPECT_EQ(62u, q.Receive(0).size());
  });
  EXPECT_EQ(0, q.Send(1, std::string(60, 'y'), 0));
  receiver.join();
  std::string list = ReadFile("/proc/sysvipc/msg");
  EXPECT_NE(std::string::npos, list.find(" " + std::to_string(q.id()) + "   600"));
}

TEST(Msg, WaitsEnd) {
  auto* q = new Queue;
  std::thread sender([&] {
    SleepMs(20);
    q->Send(3, "other");
    SleepMs(20);
    q->Send(8, "mine");
  });
  EXPECT_EQ("8:mine", q->Receive(8, 0));
  sender.join();
  EXPECT_EQ("3:other", q->Receive(0));
  std::thread remover([&] {
    SleepMs(30);
    msgctl(q->id(), IPC_RMID, nullptr);
  });
  EXPECT_EQ(Errno(EIDRM), q->Receive(0, 0));
  remover.join();
  delete q;
}

}  // namespace
