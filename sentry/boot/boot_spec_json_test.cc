#include "sentry/boot/boot_spec_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sentry {
namespace {

BootSpec Example() {
  BootSpec s;
  s.container.container_id = "id";
  s.container.hostname = "h";
  s.container.share.pid = "pod";
  s.container.process.args = {"/bin/x", "\xff\x80 \xc3\xbc", ""};
  s.container.process.env = {"A=\x01"};
  s.container.process.cwd = "/";
  s.container.process.uid = UINT32_MAX;
  s.container.process.caps.bounding = UINT64_MAX;
  s.container.process.rlimits = {{7, 1, UINT64_MAX}};
  s.container.process.oom_score_adj = -1000;
  MountSpec m;
  m.destination = "/m";
  m.gofer_mount = 3;
  m.propagation = {1 << 18};
  s.container.mounts = {m, MountSpec{.destination = "/p", .type = "proc"}};
  s.container.devices = {DeviceSpec{.path = "/dev/x", .type = 'b', .major = 1, .minor = 2}};
  s.container.sysctls = {{"a", "b"}};
  s.container.network_sysctls = {{"c", "d"}};
  s.container.cpu_limit = 0.5;
  s.spin_ns = 1000;
  s.lanes = false;
  s.platform = "ptrace";
  s.allow_no_seccomp = true;
  return s;
}

TEST(BootSpecJson, SurvivesTheTrip) {
  std::string why;
  BootSpec s = Example();
  std::string text = EncodeBootSpec(s);
  auto back = DecodeBootSpec(text, &why);
  ASSERT_TRUE(back.ok()) << why;
  EXPECT_EQ(back->container.share.pid, "pod");
  EXPECT_EQ(back->container.process.args, s.container.process.args);
  EXPECT_EQ(back->container.process.uid, UINT32_MAX);
  EXPECT_EQ(back->container.process.caps.bounding, UINT64_MAX);
  EXPECT_EQ(back->container.process.rlimits[0].hard, UINT64_MAX);
  EXPECT_EQ(back->container.mounts[0].gofer_mount, 3);
  EXPECT_EQ(back->container.mounts[1].gofer_mount, -1);
  EXPECT_EQ(back->container.devices[0].type, 'b');
  EXPECT_EQ(back->container.cpu_limit, 0.5);
  EXPECT_EQ(back->platform, "ptrace");
  EXPECT_TRUE(back->allow_no_seccomp);
  EXPECT_EQ(EncodeBootSpec(*back), text);
}

std::string WhyNot(std::string text, const std::string& from, const std::string& to) {
  size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  std::string why;
  EXPECT_FALSE(DecodeBootSpec(text, &why).ok()) << to;
  return why;
}

TEST(BootSpecJson, NamesWhatIsWrong) {
  std::string text = EncodeBootSpec(Example());
  EXPECT_EQ(WhyNot(text, "\"hostname\":\"h\"", "\"hostname\":1"),
            "container.hostname is not a string");
  EXPECT_EQ(WhyNot(text, "\"hostname\":\"h\",", ""), "container.hostname is missing");
  EXPECT_EQ(WhyNot(text, "\"hostname\":\"h\"", "\"hostname\":\"a\\u0000\""),
            "container.hostname contains a NUL");
  EXPECT_EQ(WhyNot(text, "\"hostname\":\"h\"", "\"hostname\":\"\\u0100\""),
            "container.hostname is badly encoded");
  EXPECT_EQ(WhyNot(text, "\"uid\":4294967295", "\"uid\":4294967296"),
            "container.process.uid is too large");
  EXPECT_EQ(WhyNot(text, "\"uid\":4294967295", "\"uid\":-1"), "container.process.uid is too small");
  EXPECT_EQ(WhyNot(text, "\"goferMount\":3", "\"goferMount\":true"),
            "container.mounts[0].goferMount is not an integer");
  EXPECT_EQ(WhyNot(text, "{", "["), "the specification is not JSON");
  std::string why;
  EXPECT_FALSE(DecodeBootSpec("[]", &why).ok());
  EXPECT_FALSE(DecodeProcessSpec(nlohmann::json::object(), &why).ok());
  EXPECT_EQ(why, "args is missing");
}

TEST(Bytes, AreKept) {
  std::string all;
  for (int i = 0; i < 256; ++i) all.push_back(static_cast<char>(i));
  std::string back;
  ASSERT_TRUE(Utf8ToBytes(BytesToUtf8(all), &back));
  EXPECT_EQ(back, all);
  for (const char* bad : {"\x80", "\xc2", "\xc4\x80", "\xe2\x82\xac", "\xc2x"}) {
    EXPECT_FALSE(Utf8ToBytes(bad, &back)) << bad;
  }
}

}  // namespace
}  // namespace sentry
