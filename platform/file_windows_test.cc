// Reads of files that stubs make through mappings of their own.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "platform/mailbox.h"
#include "platform/mapped/file_windows.h"
#include "platform/platform.h"
#include "platform/test_guest.h"
#include "platform/test_platform.h"

namespace platform {
namespace {

using test::Guest;
using test::RunGuest;

std::byte ByteAt(uint64_t offset) { return static_cast<std::byte>(offset * 2654435761u >> 13); }

std::vector<std::byte> Bytes(uint64_t offset, size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; i++) bytes[i] = ByteAt(offset + i);
  return bytes;
}

base::Ref<base::FileSource> NewFile(size_t size) {
  const int fd = memfd_create("file", MFD_CLOEXEC);
  const std::vector<std::byte> bytes = Bytes(0, size);
  if (write(fd, bytes.data(), size) != static_cast<ssize_t>(size)) abort();
  return base::MakeRef<base::FileSource>(base::MakeRef<base::HostFd>(fd));
}

class FileWindowsTest : public test::PlatformTest {
 protected:
  static constexpr size_t kBig = 128 * 1024;  // pays at once
  static constexpr uint64_t kBuffer = 0x2000000;

  void SetUp() override {
    starts_pool_ = false;
    test::PlatformTest::SetUp();
    if (HasFatalFailure()) return;
    ASSERT_TRUE(guest_.Load(*platform_));
    context().QueueOrder(test::Anonymous(kBuffer, 4 * kFileWindowSize, PROT_READ | PROT_WRITE));
    ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind,
              TrapKind::kOrdersDone);
    guest_.SetEntry(guest_counter);
    context().regs().rdi = 1'000'000;
    ASSERT_EQ(Call(), TrapKind::kSyscall);
  }
  Context& context() { return *guest_.main.context; }
  TrapKind Call() { return RunGuest(*platform_, guest_.main).kind; }
  std::vector<std::byte> Memory(uint64_t addr, size_t size) {
    std::vector<std::byte> bytes(size);
    EXPECT_TRUE(guest_.space->Read(addr, bytes).ok());
    return bytes;
  }
  // Reads by a window, through the stub.
  void ReadBack(const base::Ref<base::FileSource>& file, uint64_t offset, size_t size) {
    ASSERT_EQ(context().WriteFromFile(kBuffer, file, offset, size), size);
    ASSERT_EQ(Call(), TrapKind::kSyscall);
    EXPECT_EQ(Memory(kBuffer, size), Bytes(offset, size));
  }
  static size_t Windows(AddressSpace& space) {
    size_t count = 0;
    for (uint32_t i = 0; i < kFileWindows; i++) {
      std::byte byte;
      count += space.Read(kFileWindowBase + i * kFileWindowSize, std::span(&byte, 1)).ok();
    }
    return count;
  }

  Guest guest_;
};

TEST_F(FileWindowsTest, ReadsThroughAWindow) {
  auto file = NewFile(1 << 20);
  ReadBack(file, 0, kBig);
  ReadBack(file, 12345, 99);
  ReadBack(file, (1 << 20) - 1, 1);
  EXPECT_EQ(Windows(*guest_.space), 1u);
}

TEST_F(FileWindowsTest, SmallReadsMakeOneWhenTheyAreMany) {
  auto file = NewFile(1 << 20);
  int without = 0;
  while (context().WriteFromFile(kBuffer, file, 4096, 1024) == 0) ASSERT_LT(++without, 10);
  EXPECT_GT(without, 1);
  ASSERT_EQ(Call(), TrapKind::kSyscall);
  EXPECT_EQ(Memory(kBuffer, 1024), Bytes(4096, 1024));
}

TEST_F(FileWindowsTest, AReadAcrossTwoWindows) {
  auto file = NewFile(kFileWindowSize + kBig);
  ReadBack(file, kFileWindowSize - kBig, 2 * kBig);
  EXPECT_EQ(Windows(*guest_.space), 2u);
}

TEST_F(FileWindowsTest, SeesWritesAndOrder) {
  auto file = NewFile(kBig);
  ReadBack(file, 0, kBig);
  ASSERT_EQ(pwrite(file->file()->get(), "new", 3, 10), 3);
  ASSERT_EQ(context().WriteFromFile(kBuffer, file, 0, 100), 100u);
  // A later write of the call wins over what the copy brings.
  ASSERT_TRUE(context().Write(kBuffer + 50, std::as_bytes(std::span("late"))).ok());
  ASSERT_EQ(Call(), TrapKind::kSyscall);
  EXPECT_EQ(memcmp(Memory(kBuffer + 10, 3).data(), "new", 3), 0);
  EXPECT_EQ(memcmp(Memory(kBuffer + 50, 5).data(), "late", 5), 0);
}

TEST_F(FileWindowsTest, MoreFilesThanWindows) {
  for (uint32_t i = 0; i < 2 * kFileWindows; i++) {
    auto file = NewFile(kBig + i);
    ReadBack(file, i, kBig);
  }
  EXPECT_EQ(Windows(*guest_.space), kFileWindows);
}

TEST_F(FileWindowsTest, AFileCutShortMeanwhileReadsAsZeros) {
  auto file = NewFile(kBig);
  ReadBack(file, 0, kBig);
  ASSERT_EQ(context().WriteFromFile(kBuffer, file, 0, kBig), kBig);
  ASSERT_EQ(ftruncate(file->file()->get(), 10), 0);
  ASSERT_EQ(Call(), TrapKind::kOrderFailed);
  EXPECT_EQ(guest_.main.context->trap().error, EIO);
  EXPECT_EQ(guest_.main.context->trap().order_index, SIZE_MAX);
  ASSERT_TRUE(context().FlushWrites().ok());
  std::vector<std::byte> expected = Bytes(0, 10);
  expected.resize(kBig);
  EXPECT_EQ(Memory(kBuffer, kBig), expected);
  EXPECT_EQ(Call(), TrapKind::kSyscall);
  EXPECT_EQ(Windows(*guest_.space), 0u);  // not used again, so it has gone
}

TEST_F(FileWindowsTest, ABadDestinationIsTheCallersFault) {
  auto file = NewFile(kBig);
  ReadBack(file, 0, kBig);
  ASSERT_EQ(context().WriteFromFile(0x7000000, file, 0, kBig), kBig);
  ASSERT_EQ(Call(), TrapKind::kOrderFailed);
  EXPECT_EQ(guest_.main.context->trap().error, EFAULT);
  ASSERT_EQ(Call(), TrapKind::kSyscall);
  ReadBack(file, 0, 100);
}

TEST_F(FileWindowsTest, WritesCanBeForced) {
  auto file = NewFile(kBig);
  ASSERT_EQ(context().WriteFromFile(kBuffer, file, 0, kBig), kBig);
  ASSERT_TRUE(context().FlushWrites().ok());
  EXPECT_EQ(Memory(kBuffer, kBig), Bytes(0, kBig));
  ReadBack(file, 1, kBig - 1);
}

TEST_F(FileWindowsTest, RetiredFilesAreUnmapped) {
  auto one = NewFile(kBig), other = NewFile(kBig);
  ReadBack(one, 0, kBig);
  ReadBack(other, 0, kBig);
  EXPECT_EQ(Windows(*guest_.space), 2u);
  one->Retire();
  ASSERT_EQ(Call(), TrapKind::kSyscall);
  EXPECT_EQ(Windows(*guest_.space), 1u);
  EXPECT_EQ(context().WriteFromFile(kBuffer, one, 0, kBig), 0u);
  ReadBack(other, 0, kBig);
}

TEST_F(FileWindowsTest, AllGoWhenTheProcessMaySeeLess) {
  auto file = NewFile(kBig);
  ReadBack(file, 0, kBig);
  const std::span<std::byte> begin = guest_.space->FileBeginAt(kFileBegins - 1);
  ASSERT_EQ(begin.size(), kFileBeginSize);
  EXPECT_TRUE(guest_.space->FileBeginAt(kFileBegins).empty());
  begin.back() = std::byte{7};
  guest_.space->DropFileWindows();
  EXPECT_EQ(begin.back(), std::byte{0});
  ASSERT_EQ(Call(), TrapKind::kSyscall);
  EXPECT_EQ(Windows(*guest_.space), 0u);
  ReadBack(file, 0, kBig);
}

TEST_F(FileWindowsTest, AChildHasNone) {
  auto file = NewFile(kBig);
  ReadBack(file, 0, kBig);
  auto prepared = guest_.space->PrepareFork();
  ASSERT_TRUE(prepared.ok());
  std::unique_ptr<AddressSpace> child = std::move(*prepared);
  context().QueueOrder(order::Fork{child.get()});
  ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  test::Thread thread;
  thread.context = child->TakeMainContext();
  thread.context->set_listener(&thread);
  ASSERT_EQ(RunGuest(*platform_, thread).kind, TrapKind::kSyscall);
  EXPECT_EQ(Windows(*child), 0u);
  EXPECT_EQ(Windows(*guest_.space), 1u);
}

TEST(FileWindowTableTest, PinnedWindowsStay) {
  FileWindows windows;
  std::vector<base::Ref<base::FileSource>> files;
  for (uint32_t i = 0; i <= kFileWindows; i++) files.push_back(NewFile(1));
  for (uint32_t i = 0; i < kFileWindows; i++) {
    auto place = windows.Pin(files[i], 0, 1 << 20);
    ASSERT_TRUE(place && place->map);
    EXPECT_FALSE(windows.Pin(files[i], 0, 1 << 20));  // not mapped so far
    windows.Mapped(place->window);
    EXPECT_FALSE(windows.Pin(files[i], 0, 1)->map);
  }
  EXPECT_FALSE(windows.Pin(files[kFileWindows], 0, 1 << 20));
  windows.Unpin(7);
  EXPECT_FALSE(windows.Pin(files[kFileWindows], 0, 1 << 20));  // it was pinned twice
  windows.Unpin(7);
  EXPECT_EQ(windows.Pin(files[kFileWindows], 0, 1 << 20)->window, 7u);
  EXPECT_FALSE(windows.WantsUnmap());
  files[3]->Retire();
  EXPECT_TRUE(windows.WantsUnmap());
  EXPECT_TRUE(windows.TakeUnmaps().empty());  // in use
  EXPECT_FALSE(windows.WantsUnmap());
  windows.Unpin(3);
  windows.Unpin(3);
  EXPECT_TRUE(windows.WantsUnmap());
  EXPECT_EQ(windows.TakeUnmaps(), std::vector<uint32_t>{3});
  EXPECT_FALSE(windows.WantsUnmap());
}

}  // namespace
}  // namespace platform
