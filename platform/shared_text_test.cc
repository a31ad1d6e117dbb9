// Text with patched sites that later processes get, and what may be patched.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "platform/systrap/decode.h"
#include "platform/systrap/platform.h"
#include "platform/systrap/text_sites.h"
#include "platform/test_guest.h"
#include "platform/test_platform.h"

namespace platform {
namespace {

using test::Guest;
using test::RunGuest;

constexpr uint64_t kMovSite = 5;       // of guest_counter
constexpr uint64_t kCompareSite = 11;  // of guest_compare

class SharedTextTest : public test::PlatformTest {
 protected:
  void SetEntry(Guest& g, const char* entry, uint64_t calls) {
    g.SetEntry(entry);
    g.main.context->regs().rdi = calls;
    g.main.context->regs().r14 = 140;
  }
  uint64_t RunToExit(Guest& g, uint64_t answer) {
    uint64_t calls = 0;
    for (;;) {
      const Trap& trap = RunGuest(*platform_, g.main);
      if (trap.kind != TrapKind::kSyscall) {
        ADD_FAILURE() << "trap " << static_cast<int>(trap.kind) << " signal " << trap.signo;
        return calls;
      }
      if (g.main.context->regs().orig_rax == 60) return calls;
      calls++;
      g.main.context->regs().rax = answer;
    }
  }
  // Runs both forms once in a process of its own, and waits for the copy.
  void Learn(const order::Mmap& code) {
    Guest g;
    ASSERT_TRUE(g.LoadFile(*platform_, code));
    for (const char* entry : {guest_counter, guest_compare}) {
      SetEntry(g, entry, 1);
      RunToExit(g, 0);
    }
    static_cast<SystrapPlatform&>(*platform_).texts().WaitUntilBuilt();
  }
  bool Patched(Guest& g, const char* symbol, uint64_t offset, uint64_t base = test::kCode) {
    unsigned char bytes[3] = {};
    uint64_t addr = test::GuestAddr(symbol) - test::kCode + base + offset;
    EXPECT_TRUE(g.space->Read(addr, std::as_writable_bytes(std::span(bytes))).ok());
    return bytes[0] == 0xff && bytes[1] == 0x24 && bytes[2] == 0x25;
  }
  void Do(Guest& g, Order order) {
    g.main.context->QueueOrder(std::move(order));
    ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  }
};

TEST_F(SharedTextTest, LaterProcessesComePatched) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  Guest g;
  ASSERT_TRUE(g.LoadFile(*platform_, code));
  EXPECT_TRUE(Patched(g, guest_counter, kMovSite));
  EXPECT_TRUE(Patched(g, guest_compare, kCompareSite));
  for (const char* entry : {guest_counter, guest_compare}) {
    SetEntry(g, entry, 500);
    EXPECT_EQ(RunToExit(g, 3), 500u);
    EXPECT_EQ(g.main.context->regs().r12, 1500u);
  }
}

// cs jmp *..., with REX.W, in the place of the mov.
TEST_F(SharedTextTest, RestorersArePatchedIfTheFileTellsHowToUnwind) {
  order::Mmap code = test::CodeFile();
  for (const char* entry : {guest_restorer, guest_bare_restorer}) {
    Guest g;
    ASSERT_TRUE(g.LoadFile(*platform_, code));
    g.SetEntry(entry);
    EXPECT_EQ(RunToExit(g, 0), 1u);
  }
  static_cast<SystrapPlatform&>(*platform_).texts().WaitUntilBuilt();
  Guest g;
  ASSERT_TRUE(g.LoadFile(*platform_, code));
  EXPECT_TRUE(Patched(g, guest_restorer, 2));
  EXPECT_FALSE(Patched(g, guest_bare_restorer, 2));
  for (const char* entry : {guest_restorer, guest_bare_restorer}) {
    g.SetEntry(entry);
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
    EXPECT_EQ(g.main.context->regs().orig_rax, 15u);
    EXPECT_EQ(g.main.context->regs().rip, test::GuestAddr(entry) + 9);
    EXPECT_EQ(RunToExit(g, 0), 0u);
  }
}

TEST_F(SharedTextTest, AnotherFileDoesNot) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  for (auto change : {+[](FileIdentity& i) { i.mtime_ns++; }, +[](FileIdentity& i) { i.writes++; },
                      +[](FileIdentity& i) { i.ino += 1000; }}) {
    order::Mmap other = code;
    change(other.identity);
    Guest g;
    ASSERT_TRUE(g.LoadFile(*platform_, other));
    EXPECT_FALSE(Patched(g, guest_counter, kMovSite));
  }
}

TEST_F(SharedTextTest, WritableTextGetsItsBytesBack) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  Guest g;
  ASSERT_TRUE(g.LoadFile(*platform_, code));
  Do(g, order::Mprotect{test::kCode, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC});
  std::vector<std::byte> want = test::GuestCode(), now(want.size());
  ASSERT_TRUE(g.space->Read(test::kCode, now).ok());
  EXPECT_EQ(want, now);
  for (const char* entry : {guest_counter, guest_compare}) {
    SetEntry(g, entry, 50);
    EXPECT_EQ(RunToExit(g, 2), 50u);
    EXPECT_EQ(g.main.context->regs().r12, 100u);
  }
}

TEST_F(SharedTextTest, MovedTextGetsItsBytesBack) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  Guest g;
  ASSERT_TRUE(g.LoadFile(*platform_, code));
  constexpr uint64_t kNew = 0x10'0000'0000;
  Do(g, order::Mremap{test::kCode, 0x1000, kNew, 0x1000});
  EXPECT_FALSE(Patched(g, guest_counter, kMovSite, kNew));
}

TEST_F(SharedTextTest, DiscardedPagesComeBackPatched) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  Guest g;
  ASSERT_TRUE(g.LoadFile(*platform_, code));
  Do(g, order::Madvise{test::kCode, 0x1000, MADV_DONTNEED});
  EXPECT_TRUE(Patched(g, guest_compare, kCompareSite));
  SetEntry(g, guest_compare, 50);
  EXPECT_EQ(RunToExit(g, static_cast<uint64_t>(-1)), 50u);
  EXPECT_EQ(g.main.context->regs().r15, 50u);
}

TEST_F(SharedTextTest, ASecondMappingElsewhereIsPlain) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  Guest g;
  ASSERT_TRUE(g.LoadFile(*platform_, code));
  constexpr uint64_t kNew = 0x10'0000'0000;
  order::Mmap again = code;
  again.addr = kNew;
  Do(g, again);
  EXPECT_TRUE(Patched(g, guest_counter, kMovSite));
  EXPECT_FALSE(Patched(g, guest_counter, kMovSite, kNew));
  SetEntry(g, guest_counter, 20);
  g.main.context->regs().rip += kNew - test::kCode;
  EXPECT_EQ(RunToExit(g, 1), 20u);
}

TEST_F(SharedTextTest, ForkedChildKeepsIt) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  Guest g, child;
  ASSERT_TRUE(g.LoadFile(*platform_, code));
  child.space = std::move(*g.space->PrepareFork());
  Do(g, order::Fork{child.space.get()});
  child.main.context = child.space->TakeMainContext();
  child.main.context->set_listener(&child.main);
  for (const char* entry : {guest_counter, guest_compare}) {
    SetEntry(child, entry, 100);
    EXPECT_EQ(RunToExit(child, 1), 100u);
    EXPECT_EQ(child.main.context->regs().r12, 100u);
  }
}

TEST_F(SharedTextTest, StubsCannotWriteTheCopy) {
  order::Mmap code = test::CodeFile();
  Learn(code);
  FileIdentity id = code.identity;
  base::Ref<SharedText> text =
      static_cast<SystrapPlatform&>(*platform_).texts().Find(id, code.file, 0, 0x1000);
  ASSERT_TRUE(text && text->copy());
  int fd = text->copy()->file->get();
  EXPECT_EQ(mmap(nullptr, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_LT(pwrite(fd, "x", 1, 0), 0);
  EXPECT_NE(ftruncate(fd, 0), 0);
}

// ---- What may be patched ------------------------------------------------------------------------

std::vector<unsigned char> Nops(size_t n) { return std::vector<unsigned char>(n, 0x90); }

struct Text {
  std::vector<unsigned char> bytes = Nops(512);
  size_t end = 0;
  void Put(size_t at, std::initializer_list<unsigned char> code) {
    std::copy(code.begin(), code.end(), bytes.begin() + static_cast<ptrdiff_t>(at));
  }
  bool MayPatch() { return SiteFinder(bytes).Find(std::span(&end, 1))[0].has_value(); }
};

Text MovSite() {
  Text t;
  t.Put(300, {0xb8, 39, 0, 0, 0, 0x0f, 0x05});
  t.end = 307;
  return t;
}
Text CompareSite() {
  Text t;
  t.Put(300, {0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73, 0x01, 0xc3});
  t.end = 302;
  return t;
}

TEST(SiteFinder, FindsBothForms) {
  EXPECT_TRUE(MovSite().MayPatch());
  EXPECT_TRUE(CompareSite().MayPatch());
}

TEST(SiteFinder, NearJumps) {
  for (size_t from : {200u, 290u, 350u, 400u}) {
    for (int target : {298, 300, 301, 302, 305, 307, 308}) {
      Text t = CompareSite();
      int distance = target - static_cast<int>(from + 2);
      if (distance < -128 || distance > 127) continue;
      t.Put(from, {0xeb, static_cast<unsigned char>(distance)});
      EXPECT_EQ(t.MayPatch(), target <= 300 || target >= 308) << from << " to " << target;
    }
  }
}

TEST(SiteFinder, FarJumps) {
  for (int target : {300, 301, 302, 307, 308}) {
    Text t = CompareSite();
    int distance = target - 25;
    t.Put(20, {0xe9, static_cast<unsigned char>(distance),
               static_cast<unsigned char>(distance >> 8), 0, 0});
    EXPECT_EQ(t.MayPatch(), target == 300 || target == 308) << target;
  }
}

TEST(SiteFinder, TheSyscallItselfMayBeJumpedTo) {
  for (int target : {300, 303, 305, 307}) {
    Text t = MovSite();
    t.Put(280, {0xeb, static_cast<unsigned char>(target - 282)});
    EXPECT_EQ(t.MayPatch(), target != 303) << target;
  }
}

TEST(SiteFinder, AnImmediateIsNoMov) {
  Text t;
  t.Put(298, {0xc7, 0x40, 0xb8, 39, 0, 0, 0, 0x0f, 0x05});  // movl $39,-0x48(%rax)
  t.end = 307;
  EXPECT_FALSE(t.MayPatch());
}

TEST(SiteFinder, DataBeforeTheSite) {
  Text t = MovSite();
  for (size_t i = 0; i < 300; i++) t.bytes[i] = 0x06;  // no instruction
  EXPECT_FALSE(t.MayPatch());
}

TEST(SiteFinder, EdgesOfTheText) {
  Text t = CompareSite();
  for (size_t end : {0u, 1u, 2u, 7u, 60u, 507u, 511u, 512u, 600u}) {
    t.end = end;
    EXPECT_FALSE(t.MayPatch()) << end;
  }
}

TEST(Decode, CutOff) {
  const unsigned char mov[] = {0x66, 0x48, 0x81, 0x84, 0x24, 1, 2, 3, 4, 5, 6};
  ASSERT_TRUE(Decode(mov));
  EXPECT_EQ(Decode(mov)->length, sizeof(mov));
  for (size_t n = 0; n < sizeof(mov); n++) EXPECT_FALSE(Decode(std::span(mov, n))) << n;
}

}  // namespace
}  // namespace platform
