#include "runsc/container/state.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

namespace runsc {
namespace {

class StateTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/runsc-state-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    dir_ = name;
    store_ = std::make_unique<Store>(dir_ + "/deep/root");
  }
  void TearDown() override {
    std::string command = "rm -rf " + dir_;
    ASSERT_EQ(system(command.c_str()), 0);
  }
  ContainerState Example(const std::string& id) {
    ContainerState s;
    s.id = id;
    s.oci_version = "1.0.2";
    s.bundle = "/b \xc3\xbc";
    s.rootfs = "/b/rootfs";
    s.created = "2026-01-01T00:00:00Z";
    s.annotations = {{"k", "v"}};
    s.status = ContainerStatus::kCreated;
    s.creator = s.sandbox = ProcessId::Of(getpid());
    s.cgroup_dirs = {"/x", "/x/y"};
    return s;
  }
  std::string dir_;
  std::unique_ptr<Store> store_;
};

TEST_F(StateTest, IsStoredAndFound) {
  {
    auto lock = store_->Lock("a", /*create=*/true);
    ASSERT_TRUE(lock.ok()) << lock.status();
    ASSERT_TRUE(store_->MakeDir("a").ok());
    EXPECT_TRUE(absl::IsAlreadyExists(store_->MakeDir("a")));
    ASSERT_TRUE(store_->Save(Example("a")).ok());
  }
  auto s = store_->Load("a");
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_EQ(s->bundle, "/b \xc3\xbc");
  EXPECT_EQ(s->annotations.at("k"), "v");
  EXPECT_EQ(s->cgroup_dirs, (std::vector<std::string>{"/x", "/x/y"}));
  EXPECT_EQ(s->CurrentStatus(), ContainerStatus::kCreated);
  EXPECT_EQ(*store_->List(), std::vector<std::string>{"a"});
  ASSERT_TRUE(store_->RemoveDir("a").ok());
  EXPECT_TRUE(store_->List()->empty());
}

TEST_F(StateTest, TellsWhatIsWrongWithADirectory) {
  EXPECT_EQ(store_->Load("a").status().message(), "container a does not exist");
  EXPECT_EQ(store_->Lock("a", false).status().message(), "container a does not exist");
  ASSERT_TRUE(store_->Lock("a", true).ok());
  ASSERT_TRUE(store_->MakeDir("a").ok());
  auto message = [&] { return std::string(store_->Load("a").status().message()); };
  EXPECT_NE(message().find("container a is incomplete: open "), std::string::npos) << message();
  for (const char* text : {"", "{", "[]", "{\"id\":\"a\"}"}) {
    ASSERT_TRUE(WriteFileAtomically(store_->Dir("a") + "/state.json", text, 0600).ok());
    EXPECT_NE(message().find("container a is incomplete: "), std::string::npos) << message();
    EXPECT_NE(message().find("state.json"), std::string::npos) << message();
  }
  ContainerState other = Example("b");
  ASSERT_TRUE(store_->MakeDir("b").ok());
  ASSERT_TRUE(store_->Save(other).ok());
  ASSERT_EQ(rename((store_->Dir("b") + "/state.json").c_str(),
                   (store_->Dir("a") + "/state.json").c_str()),
            0);
  EXPECT_NE(message().find("lacks a field"), std::string::npos) << message();
}

TEST_F(StateTest, AContainerWhoseProcessEndedIsStopped) {
  pid_t pid = fork();
  if (pid == 0) pause();
  ContainerState s = Example("a");
  s.sandbox = ProcessId::Of(pid);
  EXPECT_NE(s.sandbox.start_time, 0u);
  EXPECT_EQ(s.CurrentStatus(), ContainerStatus::kCreated);
  ProcessId other = s.sandbox;
  other.start_time += 1;  // the pid was reused
  EXPECT_FALSE(other.Alive());
  kill(pid, SIGKILL);
  siginfo_t info;
  waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
  EXPECT_EQ(s.CurrentStatus(), ContainerStatus::kStopped);  // a zombie
  waitpid(pid, nullptr, 0);
  EXPECT_EQ(s.CurrentStatus(), ContainerStatus::kStopped);
  s.status = ContainerStatus::kCreating;  // counts by its creator, which lives
  EXPECT_EQ(s.CurrentStatus(), ContainerStatus::kCreating);
}

TEST_F(StateTest, TheLockExcludesOthers) {
  auto lock = store_->Lock("a", true);
  ASSERT_TRUE(lock.ok());
  ASSERT_TRUE(store_->MakeDir("a").ok());
  std::atomic<bool> taken = false;
  std::thread other([&] {
    auto second = store_->Lock("a", false);
    EXPECT_TRUE(second.ok());
    taken = true;
  });
  usleep(50'000);
  EXPECT_FALSE(taken);
  lock->Remove();
  other.join();
  EXPECT_TRUE(taken);
}

TEST_F(StateTest, ReadsTheExitStatus) {
  ASSERT_TRUE(store_->Lock("a", true).ok());
  ASSERT_TRUE(store_->MakeDir("a").ok());
  EXPECT_FALSE(store_->ExitStatus("a").has_value());
  ASSERT_TRUE(WriteFileAtomically(store_->Dir("a") + "/exit", "", 0600).ok());
  EXPECT_FALSE(store_->ExitStatus("a").has_value());
  ASSERT_TRUE(WriteFileAtomically(store_->Dir("a") + "/exit", "1792", 0600).ok());
  EXPECT_EQ(store_->ExitStatus("a"), 1792);
}

TEST(CheckId, IsAsRuncs) {
  for (const char* good : {"a", "A-b_c.d+9", "..."}) EXPECT_TRUE(CheckId(good).ok()) << good;
  for (const char* bad : {"", "a/b", ".", "..", "a b", "\xc3\xbc", "a\n"}) {
    EXPECT_FALSE(CheckId(bad).ok()) << bad;
  }
  EXPECT_FALSE(CheckId(std::string(1025, 'a')).ok());
}

}  // namespace
}  // namespace runsc
