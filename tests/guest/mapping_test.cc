// Address space corners: stacks that grow, what a fault says, mremap and madvise forms, limits,
// threads that map at once, memory policies, and what /proc/self/maps makes of it.
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include <sstream>
#include <vector>

#include "guest_util.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace {

constexpr size_t kPage = 4096;
constexpr int kRw = PROT_READ | PROT_WRITE;
constexpr int kAnon = MAP_PRIVATE | MAP_ANONYMOUS;

char* Map(size_t length, int prot = kRw, int flags = kAnon, int fd = -1, off_t offset = 0) {
  void* p = mmap(nullptr, length, prot, flags, fd, offset);
  EXPECT_NE(MAP_FAILED, p) << strerror(errno);
  return static_cast<char*>(p);
}

sigjmp_buf g_jump;
siginfo_t g_info;

// The signal that touching the byte raises, with its code and address in g_info; 0 if none.
int Touch(volatile char* p, bool write) {
  struct sigaction sa {
  }, old_segv, old_bus;
  sa.sa_flags = SA_SIGINFO;
  sa.sa_sigaction = [](int signo, siginfo_t* info, void*) {
    g_info = *info;
    siglongjmp(g_jump, signo);
  };
  sigaction(SIGSEGV, &sa, &old_segv);
  sigaction(SIGBUS, &sa, &old_bus);
  const int signo = sigsetjmp(g_jump, 1);
  if (signo == 0) {
    char c = *p;
    if (write) *p = c;
  }
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  return signo;
}

// Lines of /proc/self/maps in [lo, hi), as "offset-from-lo length perms".
std::string Maps(char* lo, size_t length) {
  std::istringstream in(ReadFile("/proc/self/maps"));
  std::string line, out;
  while (std::getline(in, line)) {
    unsigned long start, end;
    char perms[8];
    if (sscanf(line.c_str(), "%lx-%lx %4s", &start, &end, perms) != 3) continue;
    const auto base = reinterpret_cast<unsigned long>(lo);
    if (start < base || end > base + length) continue;
    out += std::to_string((start - base) / kPage) + "+" + std::to_string((end - start) / kPage) +
           perms + " ";
  }
  return out;
}

// Uses about `bytes` of stack.
int Recurse(size_t bytes) {
  volatile char frame[8192];
  frame[0] = 1;
  return bytes < sizeof frame ? frame[0] : Recurse(bytes - sizeof frame) + frame[0];
}

}  // namespace

TEST(StackGrowth, CallsMayFillWhatWasNeverTouched) {
  auto body1 = [] {
    volatile char buffer[6 << 20];
    int fd = open("/dev/zero", O_RDONLY);
    ssize_t n = read(fd, const_cast<char*>(buffer), sizeof buffer);
    return n == static_cast<ssize_t>(sizeof buffer) ? 0 : 1;
  };
  EXPECT_EQ(0, ExitStatus(body1));
}

TEST(StackGrowth, PastTheLimitIsSigsegv) {
  EXPECT_EQ(-SIGSEGV, ExitStatus([] { return Recurse(size_t{1} << 40) & 1; }));
  auto body2 = [] {
    static char alt[65536];
    stack_t ss{.ss_sp = alt, .ss_flags = 0, .ss_size = sizeof alt};
    sigaltstack(&ss, nullptr);
    struct sigaction sa {};
    sa.sa_flags = SA_ONSTACK | SA_SIGINFO;
    sa.sa_sigaction = [](int, siginfo_t* info, void*) {
      _exit(info->si_code == SEGV_MAPERR ? 42 : 43);
    };
    sigaction(SIGSEGV, &sa, nullptr);
    return Recurse(size_t{1} << 40) & 1;
  };
  EXPECT_EQ(42, ExitStatus(body2));
}

TEST(StackGrowth, FollowsARaisedLimit) {
  auto body3 = [] {
    rlimit limit;
    getrlimit(RLIMIT_STACK, &limit);
    if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < (32 << 20)) return 0;
    limit.rlim_cur = 32 << 20;
    if (setrlimit(RLIMIT_STACK, &limit) != 0) return 1;
    return Recurse(24 << 20) > 0 ? 0 : 2;
  };
  EXPECT_EQ(0, ExitStatus(body3));
}

TEST(StackGrowth, GrowsDownMapping) {
  char* area = Map(600 * kPage, PROT_NONE);
  munmap(area, 600 * kPage);
  char* top = area + 599 * kPage;
  ASSERT_EQ(top, mmap(top, kPage, kRw, kAnon | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
  EXPECT_EQ(0, Touch(top - 1, true));
  EXPECT_EQ(0, Touch(top - 5 * kPage, true));
  munmap(area, 600 * kPage);
}

TEST(Fault, TellsWhy) {
  char* p = Map(2 * kPage, PROT_READ);
  munmap(p + kPage, kPage);
  EXPECT_EQ(SIGSEGV, Touch(p, true));
  EXPECT_EQ(SEGV_ACCERR, g_info.si_code);
  EXPECT_EQ(p, g_info.si_addr);
  EXPECT_EQ(SIGSEGV, Touch(p + kPage + 7, false));
  EXPECT_EQ(SEGV_MAPERR, g_info.si_code);
  EXPECT_EQ(p + kPage + 7, g_info.si_addr);
  munmap(p, kPage);
}

TEST(Fault, PastTheEndOfAFileIsSigbus) {
  TempDir dir;
  WriteFile(dir / "f", std::string(kPage + 1, 'x'));
  int fd = open((dir / "f").c_str(), O_RDWR);
  char* p = Map(4 * kPage, kRw, MAP_SHARED, fd);
  EXPECT_EQ(0, Touch(p + 2 * kPage - 1, true));
  EXPECT_EQ(SIGBUS, Touch(p + 2 * kPage, false));
  EXPECT_EQ(BUS_ADRERR, g_info.si_code);
  ASSERT_OK(ftruncate(fd, 4 * kPage));
  EXPECT_EQ(0, Touch(p + 2 * kPage, true));
  ASSERT_OK(ftruncate(fd, 0));
  EXPECT_EQ(SIGBUS, Touch(p, false));
  munmap(p, 4 * kPage);
  close(fd);
}

TEST(Maps, MergeAndSplit) {
  char* p = Map(16 * kPage, PROT_NONE);
  munmap(p, 16 * kPage);
  ASSERT_EQ(p, mmap(p, 4 * kPage, kRw, kAnon | MAP_FIXED, -1, 0));
  ASSERT_EQ(p + 4 * kPage, mmap(p + 4 * kPage, 4 * kPage, kRw, kAnon | MAP_FIXED, -1, 0));
  mprotect(p + 2 * kPage, kPage, PROT_READ);
  munmap(p + 5 * kPage, kPage);
  EXPECT_EQ("0+2rw-p 2+1r--p 3+2rw-p 6+2rw-p ", Maps(p, 16 * kPage));
  mprotect(p + 2 * kPage, kPage, kRw);
  ASSERT_EQ(p + 5 * kPage, mmap(p + 5 * kPage, kPage, kRw, kAnon | MAP_FIXED, -1, 0));
  EXPECT_EQ("0+8rw-p ", Maps(p, 16 * kPage));
  ASSERT_OK(madvise(p, kPage, MADV_DONTFORK));
  EXPECT_EQ("0+1rw-p 1+7rw-p ", Maps(p, 16 * kPage));
  munmap(p, 8 * kPage);
  EXPECT_EQ("", Maps(p, 16 * kPage));
}

TEST(MmapFlags, PlaceAndPopulate) {
  char* low = Map(kPage, kRw, kAnon | MAP_32BIT);
  EXPECT_LT(reinterpret_cast<unsigned long>(low), 1ul << 32);
  EXPECT_EQ(MAP_FAILED, mmap(low, kPage, kRw, kAnon | MAP_FIXED_NOREPLACE, -1, 0));
  EXPECT_EQ(EEXIST, errno);
  munmap(low, kPage);
  char* p = Map(64 * kPage, kRw, kAnon | MAP_POPULATE);
  p[63 * kPage] = 1;
  munmap(p, 64 * kPage);
  EXPECT_EQ(MAP_FAILED,
            mmap(nullptr, kPage, kRw, kAnon | MAP_HUGETLB | (16 << MAP_HUGE_SHIFT), -1, 0));
  EXPECT_EQ(EINVAL, errno);
  EXPECT_EQ(MAP_FAILED, mmap(nullptr, kPage, kRw, MAP_ANONYMOUS | MAP_SHARED_VALIDATE, -1, 0));
  EXPECT_EQ(EINVAL, errno);
}

TEST(MremapForms, DuplicateAndDontUnmap) {
  char* s = Map(2 * kPage, kRw, MAP_SHARED | MAP_ANONYMOUS);
  s[kPage] = 5;
  char* d = static_cast<char*>(mremap(s, 0, 2 * kPage, MREMAP_MAYMOVE));
  ASSERT_NE(MAP_FAILED, static_cast<void*>(d));
  EXPECT_EQ(5, d[kPage]);
  d[0] = 6;
  EXPECT_EQ(6, s[0]);
  munmap(s, 2 * kPage);
  munmap(d, 2 * kPage);
  char* p = Map(2 * kPage);
  p[0] = 1;
  char* q =
      static_cast<char*>(mremap(p, 2 * kPage, 2 * kPage, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
  ASSERT_NE(MAP_FAILED, static_cast<void*>(q));
  EXPECT_EQ(1, q[0]);
  EXPECT_EQ(0, p[0]);
  EXPECT_EQ(MAP_FAILED, mremap(p, 0, kPage, MREMAP_MAYMOVE));
  EXPECT_EQ(EINVAL, errno);
  munmap(p, 2 * kPage);
  munmap(q, 2 * kPage);
}

TEST(MadviseForms, RemoveFreeAndHints) {
  char* s = Map(2 * kPage, kRw, MAP_SHARED | MAP_ANONYMOUS);
  memset(s, 1, 2 * kPage);
  ASSERT_OK(madvise(s, kPage, MADV_REMOVE));
  EXPECT_EQ(0, s[0]);
  EXPECT_EQ(1, s[kPage]);
  EXPECT_ERRNO(madvise(s, kPage, MADV_FREE), EINVAL);
  EXPECT_ERRNO(madvise(s, kPage, MADV_WIPEONFORK), EINVAL);
  munmap(s, 2 * kPage);
  char* p = Map(4 * kPage);
  for (int advice : {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_FREE,
                     MADV_DONTDUMP, MADV_DODUMP}) {
    EXPECT_OK(madvise(p, 4 * kPage, advice)) << advice;
  }
  EXPECT_ERRNO(madvise(p, kPage, MADV_REMOVE), EINVAL);
  munmap(p + kPage, kPage);
  memset(p, 1, kPage);
  p[2 * kPage] = 1;
  EXPECT_ERRNO(madvise(p, 4 * kPage, MADV_DONTNEED), ENOMEM);  // and yet done
  EXPECT_EQ(0, p[0]);
  EXPECT_EQ(0, p[2 * kPage]);
  munmap(p, 4 * kPage);
}

TEST(Limits, AddressSpaceAndData) {
  auto body4 = [] {
    rlimit limit{256 << 20, 256 << 20};
    if (setrlimit(RLIMIT_AS, &limit)) return 1;
    if (mmap(nullptr, 512 << 20, kRw, kAnon, -1, 0) != MAP_FAILED || errno != ENOMEM) return 2;
    if (mmap(nullptr, 64 << 20, kRw, kAnon, -1, 0) == MAP_FAILED) return 3;
    return 0;
  };
  EXPECT_EQ(0, ExitStatus(body4));
  auto body5 = [] {
    rlimit limit{64 << 20, 64 << 20};
    if (setrlimit(RLIMIT_DATA, &limit)) return 1;
    if (sbrk(128 << 20) != reinterpret_cast<void*>(-1) || errno != ENOMEM) return 2;
    if (mmap(nullptr, 128 << 20, kRw, kAnon, -1, 0) != MAP_FAILED || errno != ENOMEM) return 3;
    return mmap(nullptr, 128 << 20, PROT_READ, kAnon, -1, 0) == MAP_FAILED ? 4 : 0;
  };
  EXPECT_EQ(0, ExitStatus(body5));
}

TEST(Limits, LockedMemory) {
  auto body6 = [] {
    char* p = Map(8 * kPage);
    rlimit limit{4 * kPage, 4 * kPage};
    if (setrlimit(RLIMIT_MEMLOCK, &limit)) return 1;
    if (setresuid(12345, 12345, 12345)) return 2;
    if (mlock(p, 8 * kPage) != -1 || errno != ENOMEM) return 3;
    if (mlock(p, 4 * kPage)) return 4;
    if (munlock(p, 8 * kPage)) return 5;
    if (mlock(p, 9999 * kPage) != -1 || errno != ENOMEM) return 6;
    if (munlockall()) return 7;
    return 0;
  };
  EXPECT_EQ(0, ExitStatus(body6));
  EXPECT_ERRNO(mlockall(0), EINVAL);
  EXPECT_ERRNO(mlockall(MCL_ONFAULT), EINVAL);
}

TEST(Pkeys, AsTheProcessorHasThem) {
  char* p = Map(kPage);
  EXPECT_OK(syscall(SYS_pkey_mprotect, p, kPage, kRw, -1));
  EXPECT_ERRNO(syscall(SYS_pkey_mprotect, p, kPage, kRw, 15), EINVAL);
  EXPECT_ERRNO(syscall(SYS_pkey_alloc, 1, 0), EINVAL);
  EXPECT_ERRNO(syscall(SYS_pkey_free, 15), EINVAL);
  munmap(p, kPage);
}

TEST(Numa, OneNode) {
  unsigned long mask = 1;
  int mode = -1;
  EXPECT_OK(syscall(SYS_get_mempolicy, &mode, nullptr, 0, nullptr, 0));
  EXPECT_EQ(MPOL_DEFAULT, mode);
  mask = 0;
  EXPECT_OK(syscall(SYS_get_mempolicy, nullptr, &mask, 1024, nullptr, MPOL_F_MEMS_ALLOWED));
  EXPECT_EQ(1u, mask & 1);
  mask = 1;
  EXPECT_OK(syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 64));
  EXPECT_OK(syscall(SYS_get_mempolicy, &mode, &mask, 1024, nullptr, 0));
  EXPECT_EQ(MPOL_BIND, mode);
  EXPECT_ERRNO(syscall(SYS_set_mempolicy, MPOL_DEFAULT, &mask, 64), EINVAL);
  EXPECT_ERRNO(syscall(SYS_set_mempolicy, 77, nullptr, 0), EINVAL);
  EXPECT_OK(syscall(SYS_set_mempolicy, MPOL_DEFAULT, nullptr, 0));
  char* p = Map(kPage);
  EXPECT_OK(syscall(SYS_mbind, p, kPage, MPOL_BIND, &mask, 64, 0));
  EXPECT_ERRNO(syscall(SYS_mbind, p + 1, kPage, MPOL_BIND, &mask, 64, 0), EINVAL);
  munmap(p, kPage);
  EXPECT_ERRNO(syscall(SYS_mbind, p, kPage, MPOL_BIND, &mask, 64, 0), EFAULT);
}

TEST(Threads, MapAtOnce) {
  auto body = [](void* arg) -> void* {
    unsigned seed = static_cast<unsigned>(reinterpret_cast<uintptr_t>(arg));
    for (int i = 0; i < 300; i++) {
      size_t n = (1 + rand_r(&seed) % 16) * kPage;
      char* p = static_cast<char*>(mmap(nullptr, n, kRw, kAnon, -1, 0));
      if (p == MAP_FAILED) return arg;
      memset(p, i, n);
      if (i % 3 == 0 && (mprotect(p, kPage, PROT_READ) || p[0] != static_cast<char>(i))) return arg;
      if (i % 3 == 1) {
        p = static_cast<char*>(mremap(p, n, 2 * n, MREMAP_MAYMOVE));
        if (p == MAP_FAILED || p[n - 1] != static_cast<char>(i)) return arg;
        n *= 2;
      }
      if (munmap(p, n)) return arg;
    }
    return nullptr;
  };
  std::vector<pthread_t> threads(6);
  for (size_t i = 0; i < threads.size(); i++) {
    ASSERT_EQ(0, pthread_create(&threads[i], nullptr, body, reinterpret_cast<void*>(i + 1)));
  }
  for (pthread_t thread : threads) {
    void* failed = nullptr;
    pthread_join(thread, &failed);
    EXPECT_EQ(nullptr, failed);
  }
}

TEST(Fork, MemoryIsCopiedAndSharedMappingsAreNot) {
  char* mine = Map(64 * kPage);
  char* shared = Map(kPage, kRw, MAP_SHARED | MAP_ANONYMOUS);
  memset(mine, 1, 64 * kPage);
  auto body7 = [=] {
    for (int i = 0; i < 64; i++) {
      if (mine[i * kPage] != 1) return 1;
      mine[i * kPage] = 2;
    }
    shared[0] = 9;
    char* p = static_cast<char*>(mmap(nullptr, kPage, kRw, kAnon, -1, 0));
    return p == MAP_FAILED ? 2 : munmap(mine, 64 * kPage);
  };
  EXPECT_EQ(0, ExitStatus(body7));
  EXPECT_EQ(1, mine[63 * kPage]);
  EXPECT_EQ(9, shared[0]);
  munmap(mine, 64 * kPage);
  munmap(shared, kPage);
}
