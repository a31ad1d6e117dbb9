#include "runsc/cgroup/stats.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace runsc {
namespace {

// A directory with files as a cgroup has them.
class CgroupStatsTest : public ::testing::Test {
 protected:
  CgroupStatsTest() {
    char name[] = "/tmp/runsc-stats-XXXXXX";
    dir_ = mkdtemp(name);
  }
  ~CgroupStatsTest() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& file, const std::string& text) {
    std::ofstream(dir_ + "/" + file) << text;
  }
  CgroupDirs Dirs(bool v2) const {
    return {.v2 = v2, .memory = dir_, .cpu = dir_, .cpuacct = dir_, .pids = dir_};
  }
  std::string dir_;
};

TEST_F(CgroupStatsTest, V1) {
  Write("memory.limit_in_bytes", "67108864\n");
  Write("memory.usage_in_bytes", "5000\n");
  Write("memory.max_usage_in_bytes", "6000\n");
  Write("memory.failcnt", "7\n");
  Write("memory.stat", "cache 100\nrss 200\n");
  Write("cpuacct.usage", "123456789\n");
  Write("cpuacct.usage_percpu", "100 200 \n");
  Write("cpuacct.stat", "user 3\nsystem 4\n");
  Write("cpu.stat", "nr_periods 5\nnr_throttled 6\nthrottled_time 700\n");
  Write("pids.current", "8\n");
  Write("pids.max", "max\n");
  CgroupStats s = ReadCgroupStats(Dirs(false));
  EXPECT_EQ(s.memory.limit, 67108864u);
  EXPECT_EQ(s.memory.usage, 5000u);
  EXPECT_EQ(s.memory.max, 6000u);
  EXPECT_EQ(s.memory.failures, 7u);
  EXPECT_EQ(s.cache, 100u);
  EXPECT_EQ(s.memory_raw["rss"], 200u);
  EXPECT_EQ(s.cpu_total, 123456789u);
  EXPECT_EQ(s.cpu_each, (std::vector<uint64_t>{100, 200}));
  EXPECT_EQ(s.cpu_user, 3 * 1'000'000'000u / sysconf(_SC_CLK_TCK));
  EXPECT_EQ(s.throttled_periods, 6u);
  EXPECT_EQ(s.throttled_time, 700u);
  EXPECT_EQ(s.pids, 8u);
  EXPECT_EQ(s.pids_limit, 0u);
}

TEST_F(CgroupStatsTest, V2) {
  Write("memory.max", "max\n");
  Write("memory.current", "5000\n");
  Write("memory.peak", "6000\n");
  Write("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n");
  Write("memory.swap.current", "50\n");
  Write("memory.swap.max", "max\n");
  Write("memory.stat", "anon 1\nfile 4096\n");
  Write("cpu.stat",
        "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 1\nnr_throttled 2\n"
        "throttled_usec 3\n");
  Write("pids.current", "8\n");
  Write("pids.max", "100\n");
  CgroupStats s = ReadCgroupStats(Dirs(true));
  EXPECT_EQ(s.memory.limit, UINT64_MAX);
  EXPECT_EQ(s.memory.failures, 9u);
  EXPECT_EQ(s.swap.usage, 5050u);
  EXPECT_EQ(s.cache, 4096u);
  EXPECT_EQ(s.cpu_total, 10000u);
  EXPECT_EQ(s.throttled_time, 3000u);
  EXPECT_EQ(s.pids_limit, 100u);
}

TEST_F(CgroupStatsTest, MissingFilesAreZeros) {
  CgroupStats s = ReadCgroupStats(Dirs(false));
  EXPECT_EQ(s.memory.limit, 0u);
  EXPECT_EQ(s.cpu_total, 0u);
  EXPECT_TRUE(s.memory_raw.empty());
}

TEST_F(CgroupStatsTest, V2TellsOfKilledProcesses) {
  Write("memory.events", "oom 1\noom_kill 1\n");
  auto watch = OomWatch::Begin(Dirs(true));
  ASSERT_TRUE(watch.ok()) << watch.status();
  EXPECT_EQ(watch->Take(), 0u);
  Write("memory.events", "oom 3\noom_kill 3\n");
  EXPECT_EQ(watch->Take(), 2u);
  EXPECT_EQ(watch->Take(), 0u);
}

}  // namespace
}  // namespace runsc
