#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "sentry/base/checked.h"
#include "sentry/base/counter.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/id_allocator.h"
#include "sentry/base/log.h"
#include "sentry/base/memory_file.h"
#include "sentry/base/random.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/base/time.h"
#include "sentry/base/user_memory.h"

namespace base {
namespace {

Counter g_test_counter("base.test", "of this test");

TEST(Checked, Overflow) {
  EXPECT_EQ(CheckedAdd(uint64_t{1}, 2), 3u);
  EXPECT_FALSE(CheckedAdd(UINT64_MAX, 1));
  EXPECT_FALSE(CheckedMul(uint32_t{1} << 16, uint32_t{1} << 16));
  EXPECT_FALSE(CheckedSub(0u, 1u));
  EXPECT_EQ(SaturatingAdd(INT64_MAX, 5), INT64_MAX);
  EXPECT_EQ(SaturatingAdd(INT64_MIN, -5), INT64_MIN);
  EXPECT_EQ(SaturatingMul(INT64_MAX, -2), INT64_MIN);
  EXPECT_FALSE(CheckedCast<int32_t>(uint64_t{1} << 31));
  EXPECT_EQ(CheckedCast<uint8_t>(255), 255);
}

TEST(Checked, Pages) {
  EXPECT_EQ(PageRoundUp(0), 0u);
  EXPECT_EQ(PageRoundUp(1), 4096u);
  EXPECT_EQ(PageRoundUp(UINT64_MAX - 4095), UINT64_MAX - 4095);
  EXPECT_FALSE(PageRoundUp(UINT64_MAX - 4094));
  EXPECT_EQ(PageRoundDown(8191), 4096u);
}

TEST(Time, Timespec) {
  EXPECT_FALSE(NsFromTimespec(-1, 0));
  EXPECT_FALSE(NsFromTimespec(0, 1'000'000'000));
  EXPECT_EQ(NsFromTimespec(INT64_MAX, 0), kNever);
  EXPECT_EQ(NsFromTimespec(1, 5), 1'000'000'005);
  const timespec ts = TimespecFromNs(-1);
  EXPECT_EQ(ts.tv_sec, -1);
  EXPECT_EQ(ts.tv_nsec, 999'999'999);
  EXPECT_EQ(DeadlineAfter(kNever), kNever);
}

TEST(Bitmap, FirstClearAndSet) {
  Bitmap b;
  EXPECT_EQ(b.FirstClear(), 0u);
  EXPECT_EQ(b.FirstClear(1000), 1000u);
  EXPECT_FALSE(b.FirstSet());
  for (size_t i = 0; i < 130; ++i) b.Set(i);
  EXPECT_EQ(b.FirstClear(), 130u);
  b.Clear(64);
  EXPECT_EQ(b.FirstClear(), 64u);
  EXPECT_EQ(b.FirstClear(65), 130u);
  EXPECT_EQ(b.FirstSet(64), 65u);
  EXPECT_EQ(b.count(), 129u);
}

TEST(IdAllocator, LowestAndCyclic) {
  IdAllocator ids(1, 5);
  EXPECT_EQ(ids.AllocateCyclic(3), 1u);
  EXPECT_EQ(ids.AllocateCyclic(3), 2u);
  ids.Free(1);
  EXPECT_EQ(ids.AllocateCyclic(3), 3u);
  EXPECT_EQ(ids.AllocateCyclic(3), 4u);
  EXPECT_EQ(ids.AllocateCyclic(3), 5u);
  ids.Free(4);
  EXPECT_EQ(ids.AllocateCyclic(3), 4u);
  EXPECT_FALSE(ids.AllocateCyclic(3));
  EXPECT_EQ(ids.AllocateLowest(), 1u);
  EXPECT_FALSE(ids.AllocateLowest());
  EXPECT_FALSE(ids.Reserve(3));
  ids.Free(3);
  EXPECT_TRUE(ids.Reserve(3));
  EXPECT_FALSE(ids.Reserve(6));
}

// Memory of one page before an inaccessible one.
class FakeMemory : public UserMemory {
 public:
  explicit FakeMemory(size_t size) : bytes(size, '\0') {}
  static constexpr uint64_t kBase = 0x10000;
  Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) override {
    ++reads;
    if (addr < kBase || addr >= kBase + bytes.size()) return Error(EFAULT);
    const size_t n = std::min<size_t>(dst.size(), kBase + bytes.size() - addr);
    memcpy(dst.data(), bytes.data() + (addr - kBase), n);
    return n;
  }
  Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) override {
    if (addr < kBase || addr >= kBase + bytes.size()) return Error(EFAULT);
    const size_t n = std::min<size_t>(src.size(), kBase + bytes.size() - addr);
    memcpy(bytes.data() + (addr - kBase), src.data(), n);
    return n;
  }
  std::string bytes;
  int reads = 0;
};

TEST(UserMemory, ReadString) {
  FakeMemory m(8192);
  strcpy(m.bytes.data() + 4090, "hello");
  EXPECT_EQ(*m.ReadString(m.kBase + 4090, 4096), "hello");
  // Ends exactly at the limit, and one short of it.
  EXPECT_EQ(*m.ReadString(m.kBase + 4090, 6), "hello");
  EXPECT_EQ(m.ReadString(m.kBase + 4090, 5).error().code(), ENAMETOOLONG);
  // The terminator is the last accessible byte.
  strcpy(m.bytes.data() + 8186, "world");
  m.reads = 0;
  EXPECT_EQ(*m.ReadString(m.kBase + 8186, 4096), "world");
  EXPECT_EQ(m.reads, 1);
  // No terminator before the inaccessible page.
  m.bytes.back() = 'x';
  EXPECT_EQ(m.ReadString(m.kBase + 8186, 4096).error().code(), EFAULT);
  // Long ones take several pieces.
  std::fill(m.bytes.begin(), m.bytes.end() - 1, 'a');
  m.bytes.back() = '\0';
  EXPECT_EQ(m.ReadString(m.kBase, 8192)->size(), 8191u);
  EXPECT_EQ(m.ReadString(UINT64_MAX - 1, 10).error().code(), EFAULT);
}

TEST(UserMemory, UserPtr) {
  FakeMemory m(4096);
  UserPtr<uint32_t> p(m.kBase + 4092);
  EXPECT_TRUE(p.CopyOut(m, 77).ok());
  EXPECT_EQ(*p.CopyIn(m), 77u);
  EXPECT_EQ(UserPtr<uint32_t>(m.kBase + 4094).CopyIn(m).error().code(), EFAULT);
}

Result<int> Half(int v) {
  if (v % 2 != 0) return Error(EINVAL);
  return v / 2;
}
Result<std::string> Quarter(int v) { return std::to_string(TRY(Half(TRY(Half(v))))); }

TEST(Result, Try) {
  EXPECT_EQ(*Quarter(8), "2");
  EXPECT_EQ(Quarter(6).error().code(), EINVAL);
}

TEST(Ref, Counts) {
  struct Object : RefCounted {
    explicit Object(bool* gone) : gone(gone) {}
    ~Object() override { *gone = true; }
    bool* gone;
  };
  bool gone = false;
  {
    Ref<Object> a = MakeRef<Object>(&gone);
    Ref<Object> b = a;
    EXPECT_EQ(a->ref_count(), 2u);
    Ref<RefCounted> c = std::move(b);
    a.reset();
    EXPECT_FALSE(gone);
  }
  EXPECT_TRUE(gone);
}

TEST(Random, Distinct) {
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(Random64());
  EXPECT_EQ(seen.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_LT(RandomBelow(7), 7u);
}

TEST(Counter, Registered) {
  g_test_counter.Add(3);
  bool found = false;
  for (const Counter* c = Counter::First(); c != nullptr; c = c->next()) {
    if (std::string(c->name()) == "base.test") found = c->value() == 3;
  }
  EXPECT_TRUE(found);
}

TEST(MemoryFile, ReadOnlyDescription) {
  char path[] = "/tmp/memory-file-test-XXXXXX";
  ASSERT_NE(mkdtemp(path), nullptr);
  for (bool directory : {false, true}) {
    if (directory) SetMemoryDirectory(UniqueFd(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC)));
    auto file = MemoryFile::New();
    ASSERT_TRUE(file.ok());
    ASSERT_EQ(ftruncate((*file)->fd()->get(), 4096), 0);
    ASSERT_EQ(pwrite((*file)->fd()->get(), "abc", 3, 0), 3);
    auto read_only = (*file)->ReadOnly();
    ASSERT_TRUE(read_only.ok());
    const int fd = (*read_only)->get();
    char buffer[3];
    EXPECT_EQ(pread(fd, buffer, 3, 0), 3);
    EXPECT_EQ(memcmp(buffer, "abc", 3), 0);
    EXPECT_EQ(pwrite(fd, "x", 1, 0), -1);
    EXPECT_EQ(mmap(nullptr, 4096, PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    EXPECT_EQ(*(*file)->ReadOnly(), *read_only);
    auto other = MemoryFile::New();
    ASSERT_TRUE(other.ok());
  }
  SetMemoryDirectory(UniqueFd());
  EXPECT_EQ(rmdir(path), 0);  // no name is left in it
}

std::string LogOutput(LogFormat format, void (*fn)()) {
  UniqueFd fd(memfd_create("log", MFD_CLOEXEC));
  InitLog({.fd = fd.get(), .level = LogLevel::kInfo, .format = format});
  fn();
  InitLog({});
  std::string out(16384, '\0');
  out.resize(pread(fd.get(), out.data(), out.size(), 0));
  return out;
}

TEST(Log, TextAndJson) {
  const auto fn = [] {
    LOG_INFO("a \"%s\"\n", "b\xff");
    LOG_DEBUG("not shown");
    for (int i = 0; i < 3; ++i) LOG_ONCE(LogLevel::kError, "once %d", i);
  };
  const std::string text = LogOutput(LogFormat::kText, fn);
  EXPECT_NE(text.find("level=info msg=\"a \\\"b\\ufffd\\\"\\n\"\n"), std::string::npos) << text;
  EXPECT_NE(text.find("once 0"), std::string::npos);
  EXPECT_EQ(text.find("once 1"), std::string::npos);
  EXPECT_EQ(text.find("not shown"), std::string::npos);
  const std::string json = LogOutput(LogFormat::kJson, fn);
  EXPECT_EQ(json.find("{\"level\":\"info\",\"msg\":\"a \\\"b\\ufffd\\\"\\n\",\"time\":\"20"), 0u)
      << json;
}

TEST(Log, LongMessagesAreCut) {
  const std::string out = LogOutput(LogFormat::kJson, [] {
    const std::string s(5000, '"');
    LOG_ERROR("%s", s.c_str());
    LogLine(LogLevel::kError, s);
  });
  EXPECT_GT(out.size(), 10000u);
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 2);
}

}  // namespace
}  // namespace base
