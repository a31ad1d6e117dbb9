#include "runsc/cgroup/cgroup.h"

#include <gtest/gtest.h>

namespace runsc {
namespace {

TEST(CgroupLayout, ReadsAHybridMachine) {
  CgroupLayout l = ParseCgroupLayout(
      "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
      "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n"
      "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
      "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
      "4:memory:/own\n1:cpu,cpuacct:/\n0::/unified-own\n");
  EXPECT_EQ(l.v1["cpu"], "/sys/fs/cgroup/cpu,cpuacct");
  EXPECT_EQ(l.v1["cpuacct"], "/sys/fs/cgroup/cpu,cpuacct");
  EXPECT_EQ(l.v1["memory"], "/sys/fs/cgroup/memory");
  EXPECT_EQ(l.v1_own["memory"], "/own");
  EXPECT_EQ(l.v1_own["cpuacct"], "/");
  EXPECT_EQ(l.v2, "/sys/fs/cgroup/unified");
  EXPECT_EQ(l.v2_own, "/unified-own");
}

TEST(CgroupLayout, ReadsAUnifiedMachine) {
  CgroupLayout l = ParseCgroupLayout(
      "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n", "0::/user.slice\n");
  EXPECT_TRUE(l.v1.empty());
  EXPECT_EQ(l.v2, "/sys/fs/cgroup");
}

TEST(CgroupLayout, SkipsGarbage) {
  CgroupLayout l = ParseCgroupLayout("x\n\n1 2 3 4 5 6 -\n- cgroup\n", "zz\n:::\n");
  EXPECT_TRUE(l.v1.empty());
  EXPECT_TRUE(l.v2.empty());
}

TEST(CgroupDir, JoinsAbsoluteAndRelativePaths) {
  EXPECT_EQ(*CgroupDir("/m", "/own", "/a/b"), "/m/a/b");
  EXPECT_EQ(*CgroupDir("/m", "/own", "a"), "/m/own/a");
  EXPECT_EQ(*CgroupDir("/m", "/", "a//./b/"), "/m/a/b");
  EXPECT_FALSE(CgroupDir("/m", "/own", "/a/../../b").ok());
}

TEST(CgroupPath, UnderstandsSystemdNames) {
  EXPECT_EQ(*CgroupPath("", "id", false), "id");
  EXPECT_EQ(*CgroupPath("/a", "id", false), "/a");
  EXPECT_EQ(*CgroupPath("system.slice:docker:1f", "id", true), "/system.slice/docker-1f.scope");
  EXPECT_EQ(*CgroupPath("a-b-c.slice:p:n", "id", true), "/a.slice/a-b.slice/a-b-c.slice/p-n.scope");
  EXPECT_EQ(*CgroupPath("-.slice:p:n", "id", true), "/p-n.scope");
  EXPECT_EQ(*CgroupPath(":p:n", "id", true), "/system.slice/p-n.scope");
  for (const char* bad : {"a:b", "x:y:z", "a/b.slice:p:n", "a--b.slice:p:n", "a.slice:p:"}) {
    EXPECT_FALSE(CgroupPath(bad, "id", true).ok()) << bad;
  }
}

std::string Joined(const oci::Resources& r, bool v2) {
  std::string out;
  for (const CgroupWrite& w : CgroupWrites(r, v2)) out += w.file + "=" + w.value + ";";
  return out;
}

TEST(CgroupWrites, AreThoseOfEachVersion) {
  oci::Resources r;
  EXPECT_TRUE(r.empty());
  EXPECT_EQ(Joined(r, false), "");
  r.memory_limit = 100;
  r.memory_swap = 150;
  r.cpu_shares = 1024;
  r.cpu_quota = 50000;
  r.cpu_period = 100000;
  r.pids_limit = 9;
  EXPECT_FALSE(r.empty());
  EXPECT_EQ(Joined(r, false),
            "memory.limit_in_bytes=100;memory.memsw.limit_in_bytes=150;cpu.shares=1024;"
            "cpu.cfs_period_us=100000;cpu.cfs_quota_us=50000;pids.max=210;");
  EXPECT_EQ(Joined(r, true),
            "memory.max=100;memory.swap.max=50;cpu.weight=39;cpu.max=50000 100000;pids.max=210;");
  oci::Resources none;
  none.memory_limit = -1;
  none.pids_limit = -1;
  EXPECT_EQ(Joined(none, false), "memory.limit_in_bytes=-1;pids.max=max;");
  EXPECT_EQ(Joined(none, true), "memory.max=max;pids.max=max;");
}

TEST(Cgroups, DoesNothingUnasked) {
  auto cgroups = Cgroups::Plan(oci::Linux{}, "id", false);
  ASSERT_TRUE(cgroups.ok());
  EXPECT_TRUE(cgroups->Missing().empty());
  EXPECT_TRUE(cgroups->Make().ok());
  EXPECT_TRUE(cgroups->Add(1).ok());
}

}  // namespace
}  // namespace runsc
