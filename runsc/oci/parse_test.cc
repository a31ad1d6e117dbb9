#include "runsc/oci/parse.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <nlohmann/json.hpp>

#include "runsc/oci/default_spec.h"
#include "runsc/oci/mount_options.h"

namespace runsc::oci {
namespace {

using Json = nlohmann::json;

Json GoodConfig() { return Json::parse(DefaultSpec(false, 0, 0)); }

TEST(ParseSpec, TakesTheDefaultConfiguration) {
  for (bool rootless : {false, true}) {
    auto spec = ParseSpec(DefaultSpec(rootless, 1000, 1001));
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_TRUE(spec->process->terminal);
    EXPECT_EQ(spec->process->args, std::vector<std::string>{"sh"});
    EXPECT_EQ(spec->process->cwd, "/");
    EXPECT_EQ(spec->process->capabilities.bounding,
              1ULL << 29 | 1ULL << 5 | 1ULL << 10);  // AUDIT_WRITE, KILL, NET_BIND_SERVICE
    ASSERT_EQ(spec->process->rlimits.size(), 1u);
    EXPECT_EQ(spec->process->rlimits[0].resource, RLIMIT_NOFILE);
    EXPECT_EQ(spec->root.path, "rootfs");
    EXPECT_TRUE(spec->root.readonly);
    EXPECT_EQ(spec->mounts.size(), rootless ? 6u : 7u);
    EXPECT_EQ(spec->linux_.uid_mappings.size(), rootless ? 1u : 0u);
  }
}

TEST(ParseSpec, ReadsEveryField) {
  Json c = GoodConfig();
  c["process"]["user"] = {{"uid", 1}, {"gid", 2}, {"umask", 18}, {"additionalGids", {3, 4}}};
  c["process"]["consoleSize"] = {{"height", 24}, {"width", 80}};
  c["process"]["oomScoreAdj"] = -5;
  c["process"]["rlimits"] = {{{"type", "RLIMIT_CORE"}, {"soft", 0}, {"hard", UINT64_MAX}}};
  c["annotations"] = {{"a", "b"}};
  c["hooks"] = {{"poststop", {{{"path", "/bin/x"}, {"args", {"x", "y"}}, {"timeout", 3}}}}};
  c["linux"]["cgroupsPath"] = "/a/b";
  c["linux"]["resources"] = {{"memory", {{"limit", 1 << 20}, {"swap", -1}}},
                             {"cpu", {{"shares", 512}, {"quota", 50000}, {"period", 100000}}},
                             {"pids", {{"limit", 7}}}};
  c["linux"]["devices"] = {
      {{"path", "/dev/fuse"}, {"type", "c"}, {"major", 10}, {"minor", 229}, {"fileMode", 438}}};
  c["linux"]["seccomp"] = {{"defaultAction", "SCMP_ACT_ALLOW"}};
  c["linux"]["sysctl"] = {{"net.ipv4.ip_forward", "1"}};
  auto spec = ParseSpec(c.dump());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->process->uid, 1u);
  EXPECT_EQ(spec->process->gid, 2u);
  EXPECT_EQ(spec->process->umask, 18u);
  EXPECT_EQ(spec->process->additional_gids, (std::vector<uint32_t>{3, 4}));
  EXPECT_EQ(spec->process->console_rows, 24);
  EXPECT_EQ(spec->process->console_cols, 80);
  EXPECT_EQ(spec->process->oom_score_adj, -5);
  EXPECT_EQ(spec->process->rlimits[0].hard, UINT64_MAX);
  EXPECT_EQ(spec->annotations.at("a"), "b");
  ASSERT_EQ(spec->hooks.poststop.size(), 1u);
  EXPECT_EQ(spec->hooks.poststop[0].timeout, 3);
  EXPECT_EQ(spec->linux_.cgroups_path, "/a/b");
  EXPECT_EQ(spec->linux_.resources.memory_limit, 1 << 20);
  EXPECT_EQ(spec->linux_.resources.memory_swap, -1);
  EXPECT_EQ(spec->linux_.resources.cpu_quota, 50000);
  EXPECT_EQ(spec->linux_.resources.pids_limit, 7);
  EXPECT_EQ(spec->linux_.devices[0].mode, 0666u);
  EXPECT_EQ(spec->linux_.sysctl[0].second, "1");
  EXPECT_EQ(spec->not_enforced, (std::vector<std::string>{}));
  ASSERT_TRUE(spec->linux_.seccomp);
  EXPECT_EQ(spec->linux_.seccomp->default_action, "SCMP_ACT_ALLOW");
}

TEST(Seccomp, CompilesAndRefuses) {
  Json c = GoodConfig();
  c["linux"]["seccomp"] = {
      {"defaultAction", "SCMP_ACT_ERRNO"},
      {"flags", {"SECCOMP_FILTER_FLAG_LOG"}},
      {"syscalls",
       {{{"names", {"read", "write", "nosuchcall"}}, {"action", "SCMP_ACT_ALLOW"}},
        {{"names", {"personality"}},
         {"action", "SCMP_ACT_ALLOW"},
         {"args", {{{"index", 0}, {"value", 8}, {"op", "SCMP_CMP_EQ"}}}}}}}};
  auto spec = ParseSpec(c.dump());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->linux_.seccomp->log);
  auto filter = CompileSeccomp(*spec->linux_.seccomp);
  ASSERT_TRUE(filter.ok()) << filter.status();
  EXPECT_GT(filter->size(), 10u);
  c["linux"]["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_WHATEVER";
  EXPECT_FALSE(ParseSpec(c.dump()).ok());
  c["linux"]["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_LOG";
  c["linux"]["seccomp"]["syscalls"][1]["args"][0]["op"] = "SCMP_CMP_ABOUT";
  EXPECT_FALSE(ParseSpec(c.dump()).ok());
}

TEST(ParseSpec, TreatsNullAsAbsent) {
  Json c = GoodConfig();
  c["hostname"] = nullptr;
  c["hooks"] = nullptr;
  c["linux"]["maskedPaths"] = nullptr;
  c["process"]["capabilities"] = nullptr;
  auto spec = ParseSpec(c.dump());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->process->capabilities.bounding, 0u);
}

struct BadCase {
  const char* patch;    // merged into the default configuration (null removes a field)
  const char* message;  // exactly
};

// As the message of an error names it.
const BadCase kBad[] = {
    {R"({"ociVersion":null})", "ociVersion: is missing"},
    {R"({"ociVersion":1})", "ociVersion: must be a string, is a number"},
    {R"({"ociVersion":"2.0.0"})",
     "ociVersion: unknown version \"2.0.0\", known are 1.0.0 and later 1.x"},
    {R"({"ociVersion":"one"})", "ociVersion: \"one\" is not a version"},
    {R"({"process":null})", "process: is missing"},
    {R"({"process":[]})", "process: must be an object, is an array"},
    {R"({"process":{"args":null}})", "process.args: is missing"},
    {R"({"process":{"args":[]}})", "process.args: must not be empty"},
    {R"({"process":{"args":[""]}})", "process.args: must not begin with an empty string"},
    {R"({"process":{"args":"sh"}})", "process.args: must be an array, is a string"},
    {R"({"process":{"args":["sh",7]}})", "process.args[1]: must be a string, is a number"},
    {R"({"process":{"args":["sh",null]}})", "process.args[1]: must not be null"},
    {R"({"process":{"args":["a\u0000b"]}})", "process.args[0]: must not contain a NUL"},
    {R"({"process":{"env":{"A":"b"}}})", "process.env: must be an array, is an object"},
    {R"({"process":{"cwd":null}})", "process.cwd: is missing"},
    {R"({"process":{"cwd":""}})", "process.cwd: must not be empty"},
    {R"({"process":{"cwd":"tmp"}})", "process.cwd: must be an absolute path, is \"tmp\""},
    {R"({"process":{"terminal":"yes"}})", "process.terminal: must be a boolean, is a string"},
    {R"({"process":{"user":{"uid":-1}}})", "process.user.uid: must be from 0 to 4294967295, is -1"},
    {R"({"process":{"user":{"uid":1.5}}})", "process.user.uid: must be an integer"},
    {R"({"process":{"user":{"gid":"0"}}})", "process.user.gid: must be a number, is a string"},
    {R"({"process":{"user":{"additionalGids":[4294967296]}}})",
     "process.user.additionalGids[0]: must be from 0 to 4294967295, is 4294967296"},
    {R"({"process":{"capabilities":{"bounding":["CAP_FLY"]}}})",
     "process.capabilities.bounding[0]: unknown capability \"CAP_FLY\""},
    {R"({"process":{"rlimits":[{"type":"RLIMIT_FOO","soft":1,"hard":1}]}})",
     "process.rlimits[0].type: unknown resource limit \"RLIMIT_FOO\""},
    {R"({"process":{"rlimits":[{"type":"RLIMIT_CPU","soft":2,"hard":1}]}})",
     "process.rlimits[0]: the soft limit is above the hard limit"},
    {R"({"process":{"rlimits":[{"type":"RLIMIT_CPU"},{"type":"RLIMIT_CPU"}]}})",
     "process.rlimits[1].type: \"RLIMIT_CPU\" occurs twice"},
    {R"({"process":{"oomScoreAdj":1001}})",
     "process.oomScoreAdj: must be from -1000 to 1000, is 1001"},
    {R"({"process":{"consoleSize":{"height":70000}}})",
     "process.consoleSize.height: must be from 0 to 65535, is 70000"},
    {R"({"root":null})", "root: is missing"},
    {R"({"root":"rootfs"})", "root: must be an object, is a string"},
    {R"({"root":{"path":null}})", "root.path: is missing"},
    {R"({"root":{"path":""}})", "root.path: must not be empty"},
    {R"({"root":{"readonly":1}})", "root.readonly: must be a boolean, is a number"},
    {R"({"hostname":["a"]})", "hostname: must be a string, is an array"},
    {R"({"mounts":{}})", "mounts: must be an array, is an object"},
    {R"({"mounts":[{"type":"proc"}]})", "mounts[0].destination: is missing"},
    {R"({"mounts":[{"destination":"/a","options":"ro"}]})",
     "mounts[0].options: must be an array, is a string"},
    {R"({"hooks":{"prestart":[{"args":["x"]}]}})", "hooks.prestart[0].path: is missing"},
    {R"({"hooks":{"poststop":[{"path":"x"}]}})",
     "hooks.poststop[0].path: must be an absolute path, is \"x\""},
    {R"({"annotations":{"a":1}})", "annotations.a: must be a string, is a number"},
    {R"({"linux":[]})", "linux: must be an object, is an array"},
    {R"({"linux":{"namespaces":[{"type":"moon"}]}})",
     "linux.namespaces[0].type: unknown namespace \"moon\""},
    {R"({"linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}})",
     "linux.namespaces[1].type: namespace \"pid\" occurs twice"},
    {R"({"linux":{"uidMappings":[{"containerID":0,"hostID":0,"size":0}]}})",
     "linux.uidMappings[0].size: must not be 0"},
    {R"({"linux":{"uidMappings":[{"containerID":1,"hostID":0,"size":4294967295}]}})",
     "linux.uidMappings[0]: the range of ids overflows"},
    {R"({"linux":{"maskedPaths":["proc"]}})",
     "linux.maskedPaths[0]: must be an absolute path, is \"proc\""},
    {R"({"linux":{"devices":[{"path":"/dev/x","type":"z"}]}})",
     "linux.devices[0].type: unknown device type \"z\""},
    {R"({"linux":{"resources":{"memory":{"limit":"1g"}}}})",
     "linux.resources.memory.limit: must be a number, is a string"},
    {R"({"linux":{"resources":{"unified":{"a/b":"1"}}}})",
     "linux.resources.unified.a/b: is not the name of a cgroup file"},
};

TEST(ParseSpec, NamesTheBadField) {
  for (const BadCase& bad : kBad) {
    Json c = GoodConfig();
    // merge_patch drops members that are null, as its RFC says.
    Json patch = Json::parse(bad.patch);
    c.merge_patch(patch);
    if (std::string(bad.patch).find("args\":[\"sh\",null") != std::string::npos) {
      c["process"]["args"] = {"sh", nullptr};
    }
    auto spec = ParseSpec(c.dump());
    ASSERT_FALSE(spec.ok()) << bad.patch;
    EXPECT_EQ(std::string(spec.status().message()), bad.message) << bad.patch;
  }
}

TEST(ParseSpec, SaysWhereTheJsonIsMalformed) {
  for (const char* text : {"", "{", "{\"a\":}", "[1,2", "nul", "{\"a\":\"\xff\"}", "{} x"}) {
    auto spec = ParseSpec(text);
    ASSERT_FALSE(spec.ok()) << text;
    std::string message(spec.status().message());
    EXPECT_EQ(message.rfind("malformed JSON at line ", 0), 0u) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  auto spec = ParseSpec("{\n  \"a\": tru\n}");
  EXPECT_EQ(std::string(spec.status().message()).rfind("malformed JSON at line 2", 0), 0u)
      << spec.status();
  EXPECT_EQ(ParseSpec("[]").status().message(), "the document: must be an object");
  EXPECT_EQ(ParseSpec(std::string(kMaxConfigBytes + 1, ' ')).status().message(),
            "the document is larger than 16 MiB");
}

TEST(ParseSpec, SurvivesDeepNesting) {
  std::string deep(100'000, '[');
  EXPECT_FALSE(ParseSpec(deep).ok());
  EXPECT_FALSE(ParseSpec(deep + std::string(100'000, ']')).ok());
}

TEST(ParseProcess, ReadsAProcess) {
  auto process = ParseProcess(R"({"args":["a"],"cwd":"/","user":{"uid":5}})");
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ(process->uid, 5u);
  EXPECT_EQ(ParseProcess(R"({"cwd":"/"})").status().message(), "args: is missing");
}

TEST(Capabilities, AreFoundByName) {
  EXPECT_EQ(CapabilityNumber("CAP_CHOWN"), 0);
  EXPECT_EQ(CapabilityNumber("sys_admin"), 21);
  EXPECT_EQ(CapabilityNumber("CAP_X"), -1);
  for (int i = 0; i < kCapabilityCount; ++i) EXPECT_EQ(CapabilityNumber(CapabilityName(i)), i);
}

TEST(MountOptions, AreSorted) {
  MountOptions o = ParseMountOptions(
      {"rbind", "ro", "nosuid", "rprivate", "size=64k", "mode=755", "suid", "relatime"});
  EXPECT_TRUE(o.bind);
  EXPECT_EQ(o.flags, uint64_t{MS_BIND | MS_REC | MS_RDONLY | MS_RELATIME});
  EXPECT_EQ(o.propagation, std::vector<uint64_t>{MS_PRIVATE | MS_REC});
  EXPECT_EQ(o.data, (std::vector<std::string>{"size=64k", "mode=755"}));
  EXPECT_FALSE(ParseMountOptions({"rw"}).bind);
}

}  // namespace
}  // namespace runsc::oci
