// mseal: memory that stays as it is.
#include "guest_util.h"

namespace {

constexpr int kMseal = 462;
constexpr size_t kPage = 4096;

long Mseal(void* addr, size_t length, unsigned long flags = 0) {
  return syscall(kMseal, addr, length, flags);
}
bool HasMseal() { return Mseal(nullptr, 0) == 0 || errno != ENOSYS; }

long Map(void* addr, size_t length, int flags) {
  return syscall(SYS_mmap, addr, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}
long Remap(void* from, size_t length, size_t new_length, int flags, void* to = nullptr) {
  return syscall(SYS_mremap, from, length, new_length, flags, to);
}

// Four pages; the second and third are sealed.
class MsealTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasMseal()) GTEST_SKIP() << "the host has no mseal";
    // What is sealed stays to the end, so each test has memory of its own.
    base_ = static_cast<char*>(mmap(nullptr, 6 * kPage, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) +
            kPage;
    ASSERT_OK(munmap(base_ - kPage, kPage));
    ASSERT_OK(munmap(base_ + 4 * kPage, kPage));
    memset(base_, 7, 4 * kPage);
    sealed_ = base_ + kPage;
    ASSERT_OK(Mseal(sealed_, 2 * kPage));
  }
  char *base_ = nullptr, *sealed_ = nullptr;
};

TEST_F(MsealTest, Arguments) {
  EXPECT_ERRNO(Mseal(base_, kPage, 1), EINVAL);
  EXPECT_ERRNO(Mseal(base_ + 1, kPage), EINVAL);
  EXPECT_ERRNO(Mseal(base_, ~size_t{0}), EINVAL);
  EXPECT_ERRNO(Mseal(base_, ~size_t{0} - 2 * kPage), EINVAL);
  EXPECT_ERRNO(Mseal(base_ - kPage, kPage), ENOMEM);
  EXPECT_ERRNO(Mseal(base_, 5 * kPage), ENOMEM);
  EXPECT_ERRNO(Mseal(base_ - kPage, 2 * kPage), ENOMEM);
  EXPECT_OK(Mseal(base_ - kPage, 0));
  EXPECT_OK(Mseal(sealed_, kPage));              // once more
  EXPECT_OK(mprotect(base_, kPage, PROT_READ));  // none of those has sealed it
}

TEST_F(MsealTest, CannotBeUnmapped) {
  EXPECT_ERRNO(munmap(sealed_, kPage), EPERM);
  EXPECT_ERRNO(munmap(base_, 4 * kPage), EPERM);
  EXPECT_EQ(7, base_[0]);  // nothing of it went
  EXPECT_ERRNO(Map(base_, 2 * kPage, MAP_FIXED), EPERM);
  EXPECT_EQ(7, base_[0]);
  EXPECT_OK(munmap(base_, kPage));
  EXPECT_OK(munmap(base_ + 3 * kPage, kPage));
  EXPECT_EQ(7, sealed_[0]);
}

TEST_F(MsealTest, CannotBeMoved) {
  EXPECT_ERRNO(Remap(sealed_, 2 * kPage, kPage, 0), EPERM);
  EXPECT_ERRNO(Remap(sealed_, 2 * kPage, 8 * kPage, MREMAP_MAYMOVE), EPERM);
  void* other = mmap(nullptr, kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_ERRNO(Remap(other, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, sealed_), EPERM);
  EXPECT_ERRNO(Remap(sealed_, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, other), EPERM);
  // What a mapping that moves leaves behind would go.
  char* before = sealed_ - kPage;
  EXPECT_ERRNO(Remap(before, 2 * kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, other), EPERM);
  EXPECT_OK(munmap(other, kPage));
}

TEST_F(MsealTest, KeepsItsProtection) {
  EXPECT_ERRNO(mprotect(sealed_, kPage, PROT_READ), EPERM);
  EXPECT_ERRNO(mprotect(sealed_, kPage, PROT_READ | PROT_WRITE), EPERM);
  sealed_[0] = 8;
  // What stands before it is changed.
  EXPECT_ERRNO(mprotect(base_, 2 * kPage, PROT_READ), EPERM);
  EXPECT_EQ(0, ExitStatus([&] {
              signal(SIGSEGV, [](int) { _exit(0); });
              *const_cast<volatile char*>(base_) = 1;
              return 1;
            }));
}

TEST_F(MsealTest, WhatCannotBeWrittenCannotBeDiscarded) {
  EXPECT_OK(madvise(sealed_, kPage, MADV_DONTNEED));  // it could be written all the same
  EXPECT_EQ(0, sealed_[0]);
  char* page = static_cast<char*>(
      mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  page[0] = 3;
  ASSERT_OK(mprotect(page, kPage, PROT_READ));
  ASSERT_OK(Mseal(page, kPage));
  EXPECT_ERRNO(madvise(page, kPage, MADV_DONTNEED), EPERM);
  EXPECT_ERRNO(madvise(page, kPage, MADV_FREE), EPERM);
  EXPECT_ERRNO(madvise(page, kPage, MADV_DONTFORK), EPERM);
  EXPECT_ERRNO(madvise(page, kPage, MADV_WIPEONFORK), EPERM);
  EXPECT_OK(madvise(page, kPage, MADV_DONTDUMP));
  EXPECT_OK(madvise(page, kPage, MADV_RANDOM));
  EXPECT_EQ(3, page[0]);
}

TEST_F(MsealTest, ForksKeepIt) {
  EXPECT_EQ(0, ExitStatus([&] { return munmap(sealed_, kPage) == -1 && errno == EPERM ? 0 : 1; }));
}

}  // namespace
