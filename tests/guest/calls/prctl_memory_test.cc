// prctl(PR_SET_MDWE) and prctl(PR_SET_IO_FLUSHER).
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include "guest_util.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif
#ifndef PR_MDWE_NO_INHERIT
#define PR_MDWE_NO_INHERIT 2
#endif

namespace {

constexpr size_t kPage = 4096;
constexpr int kRead = PROT_READ, kWrite = PROT_READ | PROT_WRITE, kExec = PROT_READ | PROT_EXEC;

int SetMdwe(unsigned long flags) { return prctl(PR_SET_MDWE, flags, 0L, 0L, 0L); }
int GetMdwe() { return prctl(PR_GET_MDWE, 0L, 0L, 0L, 0L); }

void* Map(int prot) { return mmap(nullptr, kPage, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
bool MapIsRefused(int prot) { return Map(prot) == MAP_FAILED && errno == EACCES; }
bool ProtectIsRefused(void* at, int prot) {
  return mprotect(at, kPage, prot) == -1 && errno == EACCES;
}

TEST(Mdwe, Arguments) {
  EXPECT_ERRNO(SetMdwe(4), EINVAL);
  EXPECT_ERRNO(SetMdwe(1UL << 32), EINVAL);
  EXPECT_ERRNO(SetMdwe(PR_MDWE_NO_INHERIT), EINVAL);
  EXPECT_ERRNO(prctl(PR_SET_MDWE, 1L, 1L, 0L, 0L), EINVAL);
  EXPECT_ERRNO(prctl(PR_SET_MDWE, 1L, 0L, 0L, 1L), EINVAL);
  EXPECT_ERRNO(prctl(PR_GET_MDWE, 1L, 0L, 0L, 0L), EINVAL);
  EXPECT_ERRNO(prctl(PR_GET_MDWE, 0L, 0L, 1L, 0L), EINVAL);
  EXPECT_EQ(0, GetMdwe());
  EXPECT_OK(SetMdwe(0));
}

TEST(Mdwe, StaysAsItIsSet) {
  EXPECT_EQ(0, ExitStatus([] {
              if (SetMdwe(PR_MDWE_REFUSE_EXEC_GAIN) != 0) return 1;
              if (SetMdwe(PR_MDWE_REFUSE_EXEC_GAIN) != 0) return 2;
              if (SetMdwe(0) != -1 || errno != EPERM) return 3;
              if (SetMdwe(PR_MDWE_REFUSE_EXEC_GAIN | PR_MDWE_NO_INHERIT) != -1) return 4;
              if (errno != EPERM) return 5;
              return GetMdwe() == PR_MDWE_REFUSE_EXEC_GAIN ? 0 : 6;
            }));
  EXPECT_EQ(0, GetMdwe());
}

TEST(Mdwe, NothingBecomesExecutable) {
  EXPECT_EQ(0, ExitStatus([] {
              void* data = Map(kWrite);
              void* text = Map(kExec);
              void* both = Map(kWrite | PROT_EXEC);
              if (SetMdwe(PR_MDWE_REFUSE_EXEC_GAIN) != 0) return 1;
              if (!ProtectIsRefused(data, kExec)) return 2;
              if (!ProtectIsRefused(data, kWrite | PROT_EXEC)) return 3;
              if (mprotect(data, kPage, kRead) != 0 || !ProtectIsRefused(data, kExec)) return 4;
              // What is executable stays so; it does not become writable with it.
              if (mprotect(text, kPage, kExec) != 0) return 5;
              if (!ProtectIsRefused(text, kWrite | PROT_EXEC)) return 6;
              if (!ProtectIsRefused(both, kWrite | PROT_EXEC)) return 7;
              if (mprotect(both, kPage, kExec) != 0) return 8;
              if (mprotect(text, kPage, kWrite) != 0 || !ProtectIsRefused(text, kExec)) return 9;
              if (!MapIsRefused(kWrite | PROT_EXEC)) return 10;
              if (Map(kExec) == MAP_FAILED || Map(kWrite) == MAP_FAILED) return 11;
              return Map(PROT_EXEC) != MAP_FAILED ? 0 : 12;
            }));
}

TEST(Mdwe, WhatCannotBeHadAtAllComesFirst) {
  EXPECT_EQ(0, ExitStatus([] {
              if (SetMdwe(PR_MDWE_REFUSE_EXEC_GAIN) != 0) return 1;
              void* at = mmap(nullptr, 0, kWrite | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
              if (at != MAP_FAILED || errno != EINVAL) return 2;
              // Not a mapping of the file that was there: it stands as it was.
              void* data = Map(kWrite);
              at = mmap(data, kPage, kWrite | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                        -1, 0);
              if (at != MAP_FAILED || errno != EACCES) return 3;
              *static_cast<volatile char*>(data) = 1;
              return 0;
            }));
}

TEST(Mdwe, IsInheritedUnlessTold) {
  EXPECT_EQ(0, ExitStatus([] {
              if (SetMdwe(PR_MDWE_REFUSE_EXEC_GAIN) != 0) return 1;
              return ExitStatus(
                  [] { return GetMdwe() == 1 && MapIsRefused(kWrite | PROT_EXEC) ? 0 : 1; });
            }));
  EXPECT_EQ(0, ExitStatus([] {
              if (SetMdwe(PR_MDWE_REFUSE_EXEC_GAIN | PR_MDWE_NO_INHERIT) != 0) return 1;
              if (GetMdwe() != 3 || !MapIsRefused(kWrite | PROT_EXEC)) return 2;
              return ExitStatus(
                  [] { return GetMdwe() == 0 && !MapIsRefused(kWrite | PROT_EXEC) ? 0 : 1; });
            }));
}

// Runs this program's case Mdwe.FlagsAtTheBeginning, which fails unless it has these flags.
int ExecWith(unsigned long set, const char* expected) {
  return ExitStatus([&] {
    if (SetMdwe(set) != 0) return 10;
    setenv("EXPECTED_MDWE", expected, 1);
    execl("/proc/self/exe", "test", "--gtest_filter=Mdwe.FlagsAtTheBeginning", "--gtest_brief=1",
          nullptr);
    return 11;
  });
}

TEST(Mdwe, FlagsAtTheBeginning) {
  const char* set = getenv("EXPECTED_MDWE");
  const int expected = set != nullptr ? atoi(set) : 0;
  EXPECT_EQ(expected, GetMdwe());
  EXPECT_EQ(expected != 0, MapIsRefused(kWrite | PROT_EXEC));
}

TEST(Mdwe, HoldsForANewProgram) {
  EXPECT_EQ(0, ExecWith(PR_MDWE_REFUSE_EXEC_GAIN, "1"));
  EXPECT_EQ(0, ExecWith(PR_MDWE_REFUSE_EXEC_GAIN | PR_MDWE_NO_INHERIT, "0"));
}

TEST(IoFlusher, IsKeptAndInherited) {
  if (prctl(PR_GET_IO_FLUSHER, 0L, 0L, 0L, 0L) == -1 && errno == EPERM) {
    GTEST_SKIP() << "needs CAP_SYS_RESOURCE";
  }
  EXPECT_EQ(0, prctl(PR_GET_IO_FLUSHER, 0L, 0L, 0L, 0L));
  EXPECT_ERRNO(prctl(PR_SET_IO_FLUSHER, 2L, 0L, 0L, 0L), EINVAL);
  EXPECT_ERRNO(prctl(PR_SET_IO_FLUSHER, 1L, 0L, 1L, 0L), EINVAL);
  EXPECT_ERRNO(prctl(PR_GET_IO_FLUSHER, 1L, 0L, 0L, 0L), EINVAL);
  EXPECT_EQ(0, ExitStatus([] {
              if (prctl(PR_SET_IO_FLUSHER, 1L, 0L, 0L, 0L) != 0) return 1;
              if (prctl(PR_GET_IO_FLUSHER, 0L, 0L, 0L, 0L) != 1) return 2;
              const int child =
                  ExitStatus([] { return prctl(PR_GET_IO_FLUSHER, 0L, 0L, 0L, 0L) == 1 ? 0 : 1; });
              if (child != 0) return 3;
              if (prctl(PR_SET_IO_FLUSHER, 0L, 0L, 0L, 0L) != 0) return 4;
              return prctl(PR_GET_IO_FLUSHER, 0L, 0L, 0L, 0L) == 0 ? 0 : 5;
            }));
}

}  // namespace
