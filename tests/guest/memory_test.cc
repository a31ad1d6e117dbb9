// mmap, munmap, mprotect, mremap, madvise, brk, shared memory, memfd.
#include <setjmp.h>

#include <vector>

#include "guest_util.h"

namespace {
constexpr size_t kPage = 4096;
char* Map(size_t length, int prot = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS,
          int fd = -1, off_t offset = 0) {
  void* p = mmap(nullptr, length, prot, flags, fd, offset);
  EXPECT_NE(MAP_FAILED, p) << strerror(errno);
  return static_cast<char*>(p);
}
sigjmp_buf g_jump;
// True if reading (or writing) the byte faults.
bool Faults(volatile char* p, bool write) {
  struct sigaction sa {
  }, old_segv, old_bus;
  sa.sa_handler = [](int) { siglongjmp(g_jump, 1); };
  sigaction(SIGSEGV, &sa, &old_segv);
  sigaction(SIGBUS, &sa, &old_bus);
  volatile bool faulted = true;
  if (sigsetjmp(g_jump, 1) == 0) {
    char c = *p;
    if (write) *p = c;
    faulted = false;
  }
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  return faulted;
}
}  // namespace

TEST(Mmap, AnonymousIsZeroAndPrivate) {
  char* p = Map(16 * kPage);
  for (size_t i = 0; i < 16 * kPage; i += 512) ASSERT_EQ(0, p[i]);
  p[5] = 1;
  EXPECT_EQ(0, ExitStatus([&] {
              p[5] = 2;
              return p[5] == 2 ? 0 : 1;
            }));
  EXPECT_EQ(1, p[5]);
  EXPECT_OK(munmap(p, 16 * kPage));
  EXPECT_TRUE(Faults(p, false));
}

TEST(Mmap, SharedAnonymousIsShared) {
  char* p = Map(kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  EXPECT_EQ(0, ExitStatus([&] {
              p[5] = 42;
              return 0;
            }));
  EXPECT_EQ(42, p[5]);
  munmap(p, kPage);
}

TEST(Mmap, Errors) {
  auto fails = [](void* addr, size_t length, int prot, int flags, int fd, off_t offset) {
    void* p = mmap(addr, length, prot, flags, fd, offset);
    if (p != MAP_FAILED) munmap(p, length);
    return p == MAP_FAILED ? errno : 0;
  };
  int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
  EXPECT_EQ(EINVAL, fails(nullptr, 0, rw, anon, -1, 0));
  EXPECT_EQ(EINVAL, fails(nullptr, kPage, rw, MAP_ANONYMOUS, -1, 0));
  EXPECT_EQ(EBADF, fails(nullptr, kPage, rw, MAP_PRIVATE, -1, 0));
  EXPECT_EQ(ENOMEM, fails(nullptr, 1ull << 47, rw, anon, -1, 0));
  EXPECT_EQ(EINVAL, fails(reinterpret_cast<void*>(0x12345), kPage, rw, anon | MAP_FIXED, -1, 0));
  TempDir dir;
  WriteFile(dir / "f", "x");
  int fd = open((dir / "f").c_str(), O_RDONLY);
  EXPECT_EQ(EACCES, fails(nullptr, kPage, rw, MAP_SHARED, fd, 0));
  EXPECT_EQ(EINVAL, fails(nullptr, kPage, rw, MAP_PRIVATE, fd, 100));
  EXPECT_EQ(0, fails(nullptr, kPage, rw, MAP_PRIVATE, fd, 0));
  close(fd);
  fd = open((dir / "f").c_str(), O_WRONLY);
  EXPECT_EQ(EACCES, fails(nullptr, kPage, PROT_READ, MAP_PRIVATE, fd, 0));
  close(fd);
  fd = open("/", O_RDONLY);
  EXPECT_EQ(ENODEV, fails(nullptr, kPage, PROT_READ, MAP_PRIVATE, fd, 0));
  close(fd);
  int fds[2];
  pipe(fds);
  EXPECT_EQ(ENODEV, fails(nullptr, kPage, PROT_READ, MAP_PRIVATE, fds[0], 0));
  close(fds[0]);
  close(fds[1]);
}

TEST(Mmap, FixedReplacesAndNoreplaceRefuses) {
  char* p = Map(4 * kPage);
  memset(p, 1, 4 * kPage);
  char* q = static_cast<char*>(mmap(p + kPage, kPage, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  ASSERT_EQ(p + kPage, q);
  EXPECT_EQ(1, p[0]);
  EXPECT_EQ(0, p[kPage]);
  EXPECT_EQ(1, p[2 * kPage]);
  errno = 0;
  EXPECT_EQ(MAP_FAILED, mmap(p, kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | 0x100000, -1, 0));
  EXPECT_EQ(EEXIST, errno);
  munmap(p + kPage, kPage);
  EXPECT_EQ(p + kPage,
            mmap(p + kPage, kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | 0x100000, -1, 0));
  munmap(p, 4 * kPage);
}

TEST(Mmap, FileSharedAndPrivate) {
  TempDir dir;
  WriteFile(dir / "f", std::string(2 * kPage, 'a'));
  int fd = open((dir / "f").c_str(), O_RDWR);
  char* shared = Map(2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  char* priv = Map(2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  EXPECT_EQ('a', shared[0]);
  shared[0] = 'b';
  char c;
  EXPECT_EQ(1, pread(fd, &c, 1, 0));
  EXPECT_EQ('b', c);
  priv[1] = 'c';
  EXPECT_EQ(1, pread(fd, &c, 1, 1));
  EXPECT_EQ('a', c);
  EXPECT_EQ(1, pwrite(fd, "z", 1, kPage));
  EXPECT_EQ('z', shared[kPage]);
  EXPECT_EQ('z', priv[kPage]);
  EXPECT_OK(msync(shared, 2 * kPage, MS_SYNC));
  EXPECT_ERRNO(msync(shared + 1, kPage, MS_SYNC), EINVAL);
  ftruncate(fd, kPage);
  EXPECT_TRUE(Faults(shared + kPage, false));
  close(fd);
  shared[3] = 'q';  // the mapping outlives the descriptor
  munmap(shared, 2 * kPage);
  munmap(priv, 2 * kPage);
  EXPECT_EQ('q', ReadFile(dir / "f")[3]);
}

TEST(Mprotect, ChangesPartOfAMapping) {
  char* p = Map(8 * kPage);
  memset(p, 7, 8 * kPage);
  ASSERT_OK(mprotect(p + 2 * kPage, 2 * kPage, PROT_READ));
  EXPECT_FALSE(Faults(p + 1 * kPage, true));
  EXPECT_TRUE(Faults(p + 2 * kPage, true));
  EXPECT_FALSE(Faults(p + 2 * kPage, false));
  EXPECT_FALSE(Faults(p + 4 * kPage, true));
  ASSERT_OK(mprotect(p + 2 * kPage, kPage, PROT_NONE));
  EXPECT_TRUE(Faults(p + 2 * kPage, false));
  munmap(p + 6 * kPage, kPage);
  EXPECT_ERRNO(mprotect(p, 8 * kPage, PROT_READ), ENOMEM);
  EXPECT_TRUE(Faults(p, true));  // what came before the hole was changed
  EXPECT_ERRNO(mprotect(p + 1, kPage, PROT_READ), EINVAL);
  munmap(p, 8 * kPage);
}

TEST(Mprotect, CallsSeeProtection) {
  char* p = Map(kPage);
  int fds[2];
  pipe(fds);
  write(fds[1], "xyz", 3);
  mprotect(p, kPage, PROT_READ);
  EXPECT_ERRNO(read(fds[0], p, 1), EFAULT);
  mprotect(p, kPage, PROT_NONE);
  EXPECT_ERRNO(write(fds[1], p, 1), EFAULT);
  close(fds[0]);
  close(fds[1]);
  munmap(p, kPage);
}

TEST(Mprotect, CodeCanBeMadeAndRun) {
  char* p = Map(kPage);
  const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};  // mov $42,%eax; ret
  memcpy(p, code, sizeof code);
  ASSERT_OK(mprotect(p, kPage, PROT_READ | PROT_EXEC));
  EXPECT_EQ(42, reinterpret_cast<int (*)()>(p)());
  ASSERT_OK(mprotect(p, kPage, PROT_READ | PROT_WRITE));
  p[1] = 43;
  ASSERT_OK(mprotect(p, kPage, PROT_READ | PROT_EXEC));
  EXPECT_EQ(43, reinterpret_cast<int (*)()>(p)());
  munmap(p, kPage);
}

TEST(Mprotect, GeneratedSystemCallsWork) {
  char* p = Map(kPage, PROT_READ | PROT_WRITE | PROT_EXEC);
  const unsigned char code[] = {0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3};  // getpid
  memcpy(p, code, sizeof code);
  for (int i = 0; i < 10; i++) EXPECT_EQ(getpid(), reinterpret_cast<int (*)()>(p)());
  p[1] = 102;  // getuid: rewritten code must take effect
  for (int i = 0; i < 10; i++)
    EXPECT_EQ(static_cast<int>(getuid()), reinterpret_cast<int (*)()>(p)());
  EXPECT_EQ(102, p[1]);
  EXPECT_EQ(0x0f, static_cast<unsigned char>(p[5]));
  munmap(p, kPage);
}

// As realloc(3) does it: what has moved once grows where it is, and moves again as one.
TEST(Mremap, MovesGrowsAndMovesAgain) {
  constexpr size_t kSize = 1 << 16;
  for (int advice : {MADV_NORMAL, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP}) {
    char* p = static_cast<char*>(
        mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char* room =
        static_cast<char*>(mmap(nullptr, 1 << 24, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(p, MAP_FAILED);
    ASSERT_NE(room, MAP_FAILED);
    memset(p, 1, kSize);
    char* q = room + (1 << 20);
    ASSERT_EQ(q, mremap(p, kSize, kSize, MREMAP_MAYMOVE | MREMAP_FIXED, q));
    ASSERT_OK(munmap(q + kSize, 1 << 20));
    madvise(q, kSize, advice);
    ASSERT_EQ(q, mremap(q, kSize, 2 * kSize, 0)) << advice;
    EXPECT_EQ(0, q[kSize]);
    memset(q + kSize, 2, kSize);
    char* r = room + (1 << 23);
    ASSERT_EQ(r, mremap(q, 2 * kSize, 4 * kSize, MREMAP_MAYMOVE | MREMAP_FIXED, r)) << advice;
    EXPECT_EQ(1, r[0]);
    EXPECT_EQ(2, r[2 * kSize - 1]);
    EXPECT_EQ(0, r[2 * kSize]);
    munmap(room, 1 << 24);
  }
}

TEST(Mremap, GrowShrinkMove) {
  char* p = Map(4 * kPage);
  for (int i = 0; i < 4; i++) p[i * kPage] = static_cast<char>(i + 1);
  char* q = static_cast<char*>(mremap(p, 4 * kPage, 64 * kPage, MREMAP_MAYMOVE));
  ASSERT_NE(MAP_FAILED, q);
  for (int i = 0; i < 4; i++) EXPECT_EQ(i + 1, q[i * kPage]);
  q[63 * kPage] = 9;
  ASSERT_EQ(q, mremap(q, 64 * kPage, 2 * kPage, 0));
  EXPECT_TRUE(Faults(q + 3 * kPage, false));
  char* target = Map(8 * kPage);
  ASSERT_EQ(target, mremap(q, 2 * kPage, 2 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, target));
  EXPECT_EQ(2, target[kPage]);
  EXPECT_TRUE(Faults(q, false));
  errno = 0;
  EXPECT_EQ(MAP_FAILED, mremap(q, kPage, 2 * kPage, MREMAP_MAYMOVE));
  EXPECT_EQ(EFAULT, errno);
  EXPECT_EQ(MAP_FAILED, mremap(target, kPage, 0, 0));
  EXPECT_EQ(EINVAL, errno);
  munmap(target, 8 * kPage);
}

TEST(Madvise, DontneedZeroesAnonymous) {
  char* p = Map(4 * kPage);
  memset(p, 5, 4 * kPage);
  ASSERT_OK(madvise(p + kPage, kPage, MADV_DONTNEED));
  EXPECT_EQ(5, p[0]);
  EXPECT_EQ(0, p[kPage]);
  EXPECT_ERRNO(madvise(p, kPage, 9999), EINVAL);
  EXPECT_ERRNO(madvise(p + 1, kPage, MADV_DONTNEED), EINVAL);
  munmap(p, 4 * kPage);
  EXPECT_ERRNO(madvise(p, kPage, MADV_DONTNEED), ENOMEM);
}

TEST(Madvise, WipeAndDontForkOnFork) {
  char* p = Map(2 * kPage);
  p[0] = 1;
  p[kPage] = 1;
  ASSERT_OK(madvise(p, kPage, MADV_WIPEONFORK));
  ASSERT_OK(madvise(p + kPage, kPage, MADV_DONTFORK));
  EXPECT_EQ(0, ExitStatus([&] {
              if (p[0] != 0) return 1;
              return Faults(p + kPage, false) ? 0 : 2;
            }));
  munmap(p, 2 * kPage);
}

TEST(Brk, GrowsAndShrinks) {
  char* start = static_cast<char*>(sbrk(0));
  ASSERT_NE(reinterpret_cast<void*>(-1), sbrk(100 * kPage));
  memset(start, 1, 100 * kPage);
  EXPECT_EQ(0, brk(start));
  EXPECT_EQ(start, sbrk(0));
  // More than any machine has.
  EXPECT_ERRNO(reinterpret_cast<intptr_t>(sbrk(intptr_t{1} << 45)), ENOMEM);
  EXPECT_EQ(start, sbrk(0));
  sbrk(100 * kPage);
  EXPECT_EQ(0, start[50 * kPage]);
  brk(start);
}

TEST(Memory, FourGigabytesSparse) {
  const size_t length = 4ull << 30;
  char* p = Map(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  for (size_t i = 0; i < length; i += 64 << 20) p[i] = static_cast<char>(i >> 26);
  for (size_t i = 0; i < length; i += 64 << 20) ASSERT_EQ(static_cast<char>(i >> 26), p[i]);
  munmap(p, length);
}

TEST(Memory, ManyMappings) {
  std::vector<char*> maps;
  for (int i = 0; i < 2000; i++) {
    char* p = Map(kPage, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ);
    ASSERT_NE(MAP_FAILED, static_cast<void*>(p));
    maps.push_back(p);
  }
  for (char* p : maps) EXPECT_OK(munmap(p, kPage));
}

TEST(Mincore, ReportsResidency) {
  char* p = Map(4 * kPage);
  p[0] = 1;
  unsigned char vec[4] = {9, 9, 9, 9};
  ASSERT_OK(mincore(p, 4 * kPage, vec));
  EXPECT_EQ(1, vec[0] & 1);
  munmap(p, 4 * kPage);
  EXPECT_ERRNO(mincore(p, kPage, vec), ENOMEM);
}

TEST(Memfd, SealsAndSharing) {
  int fd = memfd_create("test", MFD_ALLOW_SEALING | MFD_CLOEXEC);
  ASSERT_OK(fd);
  ASSERT_OK(ftruncate(fd, 2 * kPage));
  char* a = Map(2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  char* b = Map(2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  a[kPage] = 7;
  EXPECT_EQ(7, b[kPage]);
  EXPECT_ERRNO(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
  munmap(a, 2 * kPage);
  munmap(b, 2 * kPage);
  EXPECT_OK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE));
  EXPECT_EQ(F_SEAL_SHRINK | F_SEAL_WRITE, fcntl(fd, F_GET_SEALS));
  EXPECT_ERRNO(ftruncate(fd, kPage), EPERM);
  EXPECT_ERRNO(write(fd, "x", 1), EPERM);
  EXPECT_EQ(MAP_FAILED, mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  close(fd);
}

TEST(Stack, GrowsToItsLimit) {
  EXPECT_EQ(0, ExitStatus([] {
              std::function<int(int)> recurse = [&](int n) -> int {
                volatile char frame[16384];
                frame[100] = static_cast<char>(n);
                return n == 0 ? frame[100] : recurse(n - 1) + frame[100] * 0;
              };
              return recurse(400);  // 6.5 MiB of 8
            }));
}

TEST(ProcessVm, ReadsAnotherProcess) {
  char* p = Map(kPage);
  strcpy(p, "secret");
  int fds[2];
  pipe(fds);
  pid_t pid = fork();
  if (pid == 0) {
    char c;
    strcpy(p, "child");
    write(fds[1], "r", 1);
    pause();
    _exit(c = 0);
  }
  char ready;
  read(fds[0], &ready, 1);
  char buffer[8] = {};
  struct {
    void* base;
    size_t length;
  } local{buffer, 6}, remote{p, 6};
  long n = syscall(SYS_process_vm_readv, pid, &local, 1, &remote, 1, 0);
  EXPECT_EQ(6, n);
  EXPECT_STREQ("child", buffer);
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
}
