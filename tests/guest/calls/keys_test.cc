// Keys and keyrings: add_key, request_key, keyctl, /proc/keys.
#include <linux/keyctl.h>
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

using Serial = long;

constexpr int kThread = KEY_SPEC_THREAD_KEYRING, kProcess = KEY_SPEC_PROCESS_KEYRING;
constexpr int kSession = KEY_SPEC_SESSION_KEYRING, kUser = KEY_SPEC_USER_KEYRING;
constexpr int kUserSession = KEY_SPEC_USER_SESSION_KEYRING;
// KEY_POS_*, KEY_USR_*.
constexpr unsigned kPosAll = 0x3f000000, kUsrAll = 0x3f0000, kPosView = 0x01000000;
constexpr unsigned kPosSearch = 0x08000000, kPosSetattr = 0x20000000;

Serial Add(const char* type, const char* name, const std::string& payload, long ring) {
  return syscall(SYS_add_key, type, name, payload.data(), payload.size(), ring);
}
Serial AddRing(const char* name, long ring) {
  return syscall(SYS_add_key, "keyring", name, nullptr, 0, ring);
}
template <typename... Args>
long Ctl(int operation, Args... args) {
  return syscall(SYS_keyctl, operation, args...);
}
std::string Describe(Serial key) {
  char text[300] = {};
  long n = Ctl(KEYCTL_DESCRIBE, key, text, sizeof text);
  if (n < 0) return "error " + std::to_string(errno);
  EXPECT_EQ(n, static_cast<long>(strlen(text)) + 1);
  return text;
}
std::string Read(Serial key) {
  char bytes[300];
  long n = Ctl(KEYCTL_READ, key, bytes, sizeof bytes);
  return n < 0 ? "error " + std::to_string(errno) : std::string(bytes, static_cast<size_t>(n));
}
std::vector<int32_t> LinksOf(Serial ring) {
  std::vector<int32_t> links(100);
  long n = Ctl(KEYCTL_READ, ring, links.data(), links.size() * 4);
  links.resize(n < 0 ? 0 : static_cast<size_t>(n) / 4);
  return links;
}
bool Has(Serial ring, Serial key) {
  std::vector<int32_t> links = LinksOf(ring);
  return std::find(links.begin(), links.end(), key) != links.end();
}

// A file of /proc that the container has something mounted on.
std::string ReadUnmasked(const char* name) {
  TempDir dir;
  EXPECT_OK(unshare(CLONE_NEWNS));
  EXPECT_OK(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr));
  EXPECT_OK(mount("proc", dir.path().c_str(), "proc", 0, nullptr));
  const std::string text = ReadFile(dir / name);
  EXPECT_OK(umount2(dir.path().c_str(), MNT_DETACH));
  return text;
}

// Each test is in a session of its own, in a process of its own.
void InSession(const std::function<void()>& body) {
  EXPECT_EQ(0, ExitStatus([&] {
              if (Ctl(KEYCTL_JOIN_SESSION_KEYRING, nullptr) <= 0) return 99;
              body();
              return testing::Test::HasFailure() ? 1 : 0;
            }));
}

}  // namespace

TEST(Keys, AddDescribeReadUpdate) {
  InSession([] {
    Serial key = Add("user", "a:key", "secret", kSession);
    ASSERT_OK(key);
    EXPECT_EQ(
        "user;" + std::to_string(getuid()) + ";" + std::to_string(getgid()) + ";3f010000;a:key",
        Describe(key));
    EXPECT_EQ("secret", Read(key));
    EXPECT_EQ(key, Add("user", "a:key", "other", kSession));
    EXPECT_EQ("other", Read(key));
    EXPECT_EQ(0, Ctl(KEYCTL_UPDATE, key, "third", 5));
    EXPECT_EQ("third", Read(key));
    EXPECT_NE(key, Add("user", "b:key", "x", kSession));
    // What does not fit is not copied.
    char few[3] = "zz";
    EXPECT_EQ(5, Ctl(KEYCTL_READ, key, few, 2));
    EXPECT_STREQ("zz", few);
    EXPECT_EQ(5, Ctl(KEYCTL_READ, key, nullptr, 0));
    EXPECT_EQ(static_cast<long>(Describe(key).size()) + 1, Ctl(KEYCTL_DESCRIBE, key, few, 2));
    EXPECT_ERRNO(Ctl(KEYCTL_READ, key, BadAddress(), 100), EFAULT);
  });
}

TEST(Keys, BadArguments) {
  InSession([] {
    EXPECT_ERRNO(Add("nosuchtype", "n", "x", kSession), ENODEV);
    EXPECT_ERRNO(Add("", "n", "x", kSession), EINVAL);
    EXPECT_ERRNO(Add(".hidden", "n", "x", kSession), EPERM);
    EXPECT_ERRNO(Add(std::string(40, 'a').c_str(), "n", "x", kSession), EINVAL);
    EXPECT_ERRNO(Add("user", "", "x", kSession), EINVAL);
    EXPECT_ERRNO(Add("user", "n", "", kSession), EINVAL);
    EXPECT_ERRNO(Add("user", std::string(5000, 'a').c_str(), "x", kSession), EINVAL);
    EXPECT_ERRNO(Add("user", "n", std::string(32768, 'a'), kSession), EINVAL);
    EXPECT_ERRNO(syscall(SYS_add_key, "user", "n", "x", 1 << 20, kSession), EINVAL);
    EXPECT_ERRNO(syscall(SYS_add_key, BadAddress(), "n", "x", 1, kSession), EFAULT);
    EXPECT_ERRNO(syscall(SYS_add_key, "user", BadAddress(), "x", 1, kSession), EFAULT);
    EXPECT_ERRNO(syscall(SYS_add_key, "user", "n", BadAddress(), 1, kSession), EFAULT);
    EXPECT_ERRNO(Add("user", "n", "x", 0), EINVAL);
    EXPECT_ERRNO(Add("user", "n", "x", KEY_SPEC_GROUP_KEYRING), EINVAL);
    EXPECT_ERRNO(Add("user", "n", "x", -100), EINVAL);
    EXPECT_ERRNO(Add("user", "n", "x", KEY_SPEC_REQKEY_AUTH_KEY), ENOKEY);
    EXPECT_ERRNO(Add("keyring", "n", "x", kSession), EINVAL);
    EXPECT_ERRNO(AddRing(".n", kSession), EPERM);
    Serial key = Add("user", "n", "x", kSession);
    ASSERT_OK(key);
    EXPECT_ERRNO(Add("user", "m", "x", key), ENOTDIR);
    EXPECT_ERRNO(Ctl(1000), EOPNOTSUPP);
    EXPECT_ERRNO(Ctl(KEYCTL_CLEAR, key), ENOTDIR);
    EXPECT_ERRNO(Ctl(KEYCTL_SETPERM, key, ~0u), EINVAL);
    EXPECT_ERRNO(Ctl(KEYCTL_UNLINK, key, AddRing("empty", kSession)), ENOENT);
    EXPECT_ERRNO(Ctl(KEYCTL_INSTANTIATE, key, "x", 1, kSession), EPERM);
    EXPECT_ERRNO(Ctl(KEYCTL_NEGATE, key, 10, kSession), EPERM);
    EXPECT_ERRNO(Ctl(KEYCTL_ASSUME_AUTHORITY, -1), EINVAL);
    EXPECT_EQ(0, Ctl(KEYCTL_ASSUME_AUTHORITY, 0));
    EXPECT_ERRNO(Ctl(KEYCTL_MOVE, key, kSession, kUser, 8), EINVAL);
    EXPECT_ERRNO(Ctl(KEYCTL_UPDATE, kSession, "x", 1), EOPNOTSUPP);
    EXPECT_ERRNO(Ctl(KEYCTL_UPDATE, key, "x", 5000), EINVAL);
  });
}

TEST(Keys, Logon) {
  InSession([] {
    EXPECT_ERRNO(Add("logon", "noservice", "x", kSession), EINVAL);
    EXPECT_ERRNO(Add("logon", ":noservice", "x", kSession), EINVAL);
    Serial key = Add("logon", "fscrypt:abc", "secret", kSession);
    ASSERT_OK(key);
    EXPECT_ERRNO(Ctl(KEYCTL_READ, key, nullptr, 0), EOPNOTSUPP);
    EXPECT_EQ(key, Ctl(KEYCTL_SEARCH, kSession, "logon", "fscrypt:abc", 0));
  });
}

TEST(Keys, OwnKeyrings) {
  InSession([] {
    EXPECT_ERRNO(Ctl(KEYCTL_GET_KEYRING_ID, kThread, 0), ENOKEY);
    EXPECT_ERRNO(Ctl(KEYCTL_GET_KEYRING_ID, kProcess, 0), ENOKEY);
    Serial thread = Ctl(KEYCTL_GET_KEYRING_ID, kThread, 1);
    Serial process = Ctl(KEYCTL_GET_KEYRING_ID, kProcess, 1);
    Serial session = Ctl(KEYCTL_GET_KEYRING_ID, kSession, 0);
    ASSERT_OK(thread);
    EXPECT_EQ(thread, Ctl(KEYCTL_GET_KEYRING_ID, kThread, 0));
    const std::string ids = "keyring;" + std::to_string(getuid()) + ";" + std::to_string(getgid());
    EXPECT_EQ(ids + ";3f010000;_tid", Describe(thread));
    EXPECT_EQ(ids + ";3f010000;_pid", Describe(process));
    EXPECT_EQ(ids + ";3f030000;_ses", Describe(session));
    const std::string uid = std::to_string(getuid());
    EXPECT_EQ("keyring;" + uid + ";65534;1f3f0000;_uid." + uid, Describe(kUser));
    EXPECT_EQ("keyring;" + uid + ";65534;1f3f0000;_uid_ses." + uid, Describe(kUserSession));
    EXPECT_TRUE(Has(kUserSession, Ctl(KEYCTL_GET_KEYRING_ID, kUser, 0)));
    // A thread has the process's, and one of its own if its maker has.
    std::thread([&] {
      EXPECT_EQ(process, Ctl(KEYCTL_GET_KEYRING_ID, kProcess, 0));
      EXPECT_EQ(session, Ctl(KEYCTL_GET_KEYRING_ID, kSession, 0));
      Serial mine = Ctl(KEYCTL_GET_KEYRING_ID, kThread, 0);
      EXPECT_GT(mine, 0);
      EXPECT_NE(thread, mine);
    }).join();
    EXPECT_EQ(0, ExitStatus([&] {
                EXPECT_ERRNO(Ctl(KEYCTL_GET_KEYRING_ID, kProcess, 0), ENOKEY);
                EXPECT_EQ(session, Ctl(KEYCTL_GET_KEYRING_ID, kSession, 0));
                return testing::Test::HasFailure() ? 1 : 0;
              }));
  });
}

TEST(Keys, SearchAndRequest) {
  InSession([] {
    Serial outer = AddRing("outer", kSession), inner = AddRing("inner", outer);
    Serial key = Add("user", "deep", "x", inner);
    ASSERT_OK(key);
    EXPECT_EQ(key, Ctl(KEYCTL_SEARCH, kSession, "user", "deep", 0));
    EXPECT_EQ(key, Ctl(KEYCTL_SEARCH, outer, "user", "deep", 0));
    EXPECT_EQ(key, syscall(SYS_request_key, "user", "deep", nullptr, 0));
    EXPECT_EQ(inner, Ctl(KEYCTL_SEARCH, kSession, "keyring", "inner", 0));
    EXPECT_ERRNO(Ctl(KEYCTL_SEARCH, kSession, "user", "none", 0), ENOKEY);
    EXPECT_ERRNO(Ctl(KEYCTL_SEARCH, kSession, "nosuchtype", "deep", 0), ENOKEY);
    EXPECT_ERRNO(Ctl(KEYCTL_SEARCH, key, "user", "deep", 0), ENOTDIR);
    EXPECT_ERRNO(syscall(SYS_request_key, "user", "none", nullptr, 0), ENOKEY);
    EXPECT_ERRNO(syscall(SYS_request_key, "nosuchtype", "deep", nullptr, 0), ENOKEY);
    // Both link what they find, if asked to.
    EXPECT_EQ(key, syscall(SYS_request_key, "user", "deep", nullptr, outer));
    EXPECT_TRUE(Has(outer, key));
    EXPECT_EQ(key, Ctl(KEYCTL_SEARCH, kSession, "user", "deep", kProcess));
    EXPECT_TRUE(Has(kProcess, key));
  });
}

TEST(Keys, LinkUnlinkClearMove) {
  InSession([] {
    Serial one = AddRing("one", kSession), two = AddRing("two", kSession);
    Serial key = Add("user", "k", "x", one);
    ASSERT_OK(key);
    EXPECT_EQ(0, Ctl(KEYCTL_LINK, key, two));
    EXPECT_EQ(0, Ctl(KEYCTL_LINK, key, two));
    EXPECT_EQ(1u, LinksOf(two).size());
    EXPECT_EQ(0, Ctl(KEYCTL_UNLINK, key, one));
    EXPECT_ERRNO(Ctl(KEYCTL_UNLINK, key, one), ENOENT);
    EXPECT_EQ("x", Read(key));
    EXPECT_EQ(0, Ctl(KEYCTL_MOVE, key, two, one, 0));
    EXPECT_TRUE(Has(one, key));
    EXPECT_FALSE(Has(two, key));
    EXPECT_ERRNO(Ctl(KEYCTL_MOVE, key, two, one, 0), ENOENT);
    // A key of the same name makes way.
    Serial twin = Add("user", "k", "y", two);
    EXPECT_NE(key, twin);
    EXPECT_ERRNO(Ctl(KEYCTL_MOVE, twin, two, one, KEYCTL_MOVE_EXCL), EEXIST);
    EXPECT_EQ(0, Ctl(KEYCTL_LINK, twin, one));
    EXPECT_EQ(std::vector<int32_t>{static_cast<int32_t>(twin)}, LinksOf(one));
    // No keyring is below itself.
    EXPECT_ERRNO(Ctl(KEYCTL_LINK, one, one), EDEADLK);
    EXPECT_EQ(0, Ctl(KEYCTL_LINK, two, one));
    EXPECT_ERRNO(Ctl(KEYCTL_LINK, one, two), EDEADLK);
    EXPECT_EQ(0, Ctl(KEYCTL_CLEAR, one));
    EXPECT_TRUE(LinksOf(one).empty());
    EXPECT_ERRNO(Ctl(KEYCTL_LINK, one, twin), ENOTDIR);
  });
}

TEST(Keys, RevokeInvalidateTimeout) {
  InSession([] {
    Serial key = Add("user", "k", "x", kSession);
    EXPECT_EQ(0, Ctl(KEYCTL_REVOKE, key));
    EXPECT_ERRNO(Ctl(KEYCTL_READ, key, nullptr, 0), EKEYREVOKED);
    EXPECT_EQ("error " + std::to_string(EKEYREVOKED), Describe(key));
    EXPECT_ERRNO(Ctl(KEYCTL_SEARCH, kSession, "user", "k", 0), EKEYREVOKED);
    EXPECT_ERRNO(Ctl(KEYCTL_UPDATE, key, "x", 1), EKEYREVOKED);
    // Another one takes its place.
    Serial next = Add("user", "k", "y", kSession);
    EXPECT_NE(key, next);
    EXPECT_EQ(next, Ctl(KEYCTL_SEARCH, kSession, "user", "k", 0));
    EXPECT_EQ(0, Ctl(KEYCTL_INVALIDATE, next));
    EXPECT_EQ(-1, Ctl(KEYCTL_READ, next, nullptr, 0));
    Serial brief = Add("user", "brief", "z", kSession);
    EXPECT_EQ(0, Ctl(KEYCTL_SET_TIMEOUT, brief, 1));
    for (int i = 0; i < 500 && Ctl(KEYCTL_READ, brief, nullptr, 0) >= 0; i++) SleepMs(10);
    EXPECT_ERRNO(Ctl(KEYCTL_READ, brief, nullptr, 0), EKEYEXPIRED);
    EXPECT_ERRNO(Ctl(KEYCTL_SEARCH, kSession, "user", "brief", 0), EKEYEXPIRED);
    EXPECT_ERRNO(syscall(SYS_request_key, "user", "brief", nullptr, 0), ENOKEY);
    // What is written to it lives again.
    EXPECT_EQ(brief, Add("user", "brief", "w", kSession));
    EXPECT_EQ("w", Read(brief));
    Serial later = Add("user", "later", "z", kSession);
    EXPECT_EQ(0, Ctl(KEYCTL_SET_TIMEOUT, later, 1000));
    EXPECT_EQ(0, Ctl(KEYCTL_SET_TIMEOUT, later, 0));
    EXPECT_EQ("z", Read(later));
  });
}

TEST(Keys, PermissionsAndOwners) {
  InSession([] {
    Serial key = Add("user", "k", "x", kSession);
    EXPECT_EQ(0, Ctl(KEYCTL_SETPERM, key, kPosView | kPosSetattr));
    // It cannot be searched for, so nobody possesses it.
    EXPECT_ERRNO(Ctl(KEYCTL_READ, key, nullptr, 0), EACCES);
    EXPECT_ERRNO(Ctl(KEYCTL_SETPERM, key, kPosAll), EACCES);
    key = Add("user", "k2", "x", kSession);
    EXPECT_EQ(0, Ctl(KEYCTL_SETPERM, key, kPosView | kPosSearch | kPosSetattr));
    EXPECT_EQ("x", Read(key));
    EXPECT_ERRNO(Ctl(KEYCTL_UPDATE, key, "y", 1), EACCES);
    EXPECT_ERRNO(Ctl(KEYCTL_LINK, key, kProcess), EACCES);
    EXPECT_EQ(0, Ctl(KEYCTL_SETPERM, key, kPosAll | kUsrAll));
    EXPECT_EQ(0, Ctl(KEYCTL_CHOWN, key, -1, -1));
    if (getuid() != 0) return;
    EXPECT_EQ(0, Ctl(KEYCTL_CHOWN, key, 1234, 4321));
    EXPECT_EQ("user;1234;4321;3f3f0000;k2", Describe(key));
    Serial other = Add("user", "k3", "x", kUser);
    EXPECT_EQ(0, ExitStatus([&] {
                if (setresgid(4321, 4321, 4321) != 0 || setresuid(1234, 1234, 1234) != 0) return 9;
                if (Ctl(KEYCTL_JOIN_SESSION_KEYRING, nullptr) <= 0) return 8;
                // As the user that it belongs to.
                EXPECT_EQ("x", Read(key));
                EXPECT_ERRNO(Ctl(KEYCTL_CHOWN, key, 0, -1), EACCES);
                EXPECT_ERRNO(Ctl(KEYCTL_READ, other, nullptr, 0), EACCES);
                EXPECT_ERRNO(Ctl(KEYCTL_DESCRIBE, other, nullptr, 0), EACCES);
                EXPECT_ERRNO(Ctl(KEYCTL_REVOKE, other), EACCES);
                EXPECT_ERRNO(Ctl(KEYCTL_GET_PERSISTENT, 0, kSession), EPERM);
                return testing::Test::HasFailure() ? 1 : 0;
              }));
    EXPECT_EQ(0, Ctl(KEYCTL_UNLINK, other, kUser));
  });
}

TEST(Keys, Quota) {
  if (getuid() != 0) GTEST_SKIP() << "another user's quota is looked at";
  EXPECT_EQ(0, ExitStatus([] {
              if (setresgid(4322, 4322, 4322) != 0 || setresuid(4322, 4322, 4322) != 0) return 9;
              if (Ctl(KEYCTL_JOIN_SESSION_KEYRING, nullptr) <= 0) return 8;
              int made = 0;
              while (made < 300 && Add("user", std::to_string(made).c_str(), "x", kSession) > 0) {
                made++;
              }
              EXPECT_EQ(EDQUOT, errno);
              EXPECT_GT(made, 150);
              EXPECT_LT(made, 201);
              EXPECT_EQ(0, Ctl(KEYCTL_CLEAR, kSession));
              // Linux gives the room back a little later.
              Serial big = -1;
              for (int i = 0; i < 500 && big < 0; i++, SleepMs(10)) {
                big = Add("user", "big", std::string(15000, 'b'), kSession);
              }
              EXPECT_GT(big, 0);
              EXPECT_ERRNO(Add("user", "more", std::string(15000, 'b'), kSession), EDQUOT);
              EXPECT_ERRNO(Add("user", "big", std::string(30000, 'b'), kSession), EDQUOT);
              EXPECT_EQ(15000, Ctl(KEYCTL_READ, big, nullptr, 0));
              return testing::Test::HasFailure() ? 1 : 0;
            }));
}

TEST(Keys, Sessions) {
  InSession([] {
    Serial before = Ctl(KEYCTL_GET_KEYRING_ID, kSession, 0);
    const std::string name = "test-" + std::to_string(getpid());
    Serial named = Ctl(KEYCTL_JOIN_SESSION_KEYRING, name.c_str());
    ASSERT_OK(named);
    EXPECT_NE(before, named);
    EXPECT_EQ(named, Ctl(KEYCTL_GET_KEYRING_ID, kSession, 0));
    EXPECT_NE(std::string::npos, Describe(named).find(";3f130000;" + name)) << Describe(named);
    // Another session of that name, since this one must not be searched for.
    EXPECT_EQ(0, ExitStatus([&] {
                Serial mine = Ctl(KEYCTL_JOIN_SESSION_KEYRING, nullptr);
                EXPECT_NE(named, Ctl(KEYCTL_JOIN_SESSION_KEYRING, name.c_str()));
                EXPECT_NE(mine, Ctl(KEYCTL_GET_KEYRING_ID, kSession, 0));
                return testing::Test::HasFailure() ? 1 : 0;
              }));
    EXPECT_EQ(0, Ctl(KEYCTL_SETPERM, named, kPosAll | kUsrAll));
    EXPECT_EQ(0, ExitStatus([&] {
                Ctl(KEYCTL_JOIN_SESSION_KEYRING, nullptr);
                EXPECT_EQ(named, Ctl(KEYCTL_JOIN_SESSION_KEYRING, name.c_str()));
                return testing::Test::HasFailure() ? 1 : 0;
              }));
    EXPECT_ERRNO(Ctl(KEYCTL_JOIN_SESSION_KEYRING, ".dot"), EPERM);
    EXPECT_EQ(0, Ctl(KEYCTL_SET_REQKEY_KEYRING, -1));
    EXPECT_EQ(0, Ctl(KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_SESSION_KEYRING));
    EXPECT_EQ(KEY_REQKEY_DEFL_SESSION_KEYRING, Ctl(KEYCTL_SET_REQKEY_KEYRING, -1));
    EXPECT_ERRNO(Ctl(KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_GROUP_KEYRING), EINVAL);
    EXPECT_ERRNO(Ctl(KEYCTL_SET_REQKEY_KEYRING, 100), EINVAL);
  });
}

TEST(Keys, Restrict) {
  InSession([] {
    Serial ring = AddRing("ring", kSession), key = Add("user", "k", "x", kSession);
    EXPECT_ERRNO(Ctl(KEYCTL_RESTRICT_KEYRING, ring, nullptr, "x"), EINVAL);
    EXPECT_ERRNO(Ctl(KEYCTL_RESTRICT_KEYRING, key, nullptr, nullptr), ENOTDIR);
    EXPECT_EQ(0, Ctl(KEYCTL_RESTRICT_KEYRING, ring, nullptr, nullptr));
    EXPECT_ERRNO(Ctl(KEYCTL_LINK, key, ring), EPERM);
    EXPECT_ERRNO(Add("user", "n", "x", ring), EPERM);
    EXPECT_ERRNO(Ctl(KEYCTL_RESTRICT_KEYRING, ring, nullptr, nullptr), EEXIST);
  });
}

// A chain of keyrings as long as may be ends without harm.
TEST(Keys, LongChain) {
  InSession([] {
    Serial at = kSession;
    for (int i = 0; i < 150; i++) {
      Serial next = AddRing(("link" + std::to_string(i)).c_str(), kThread);
      ASSERT_OK(next);
      ASSERT_OK(Ctl(KEYCTL_LINK, next, at));
      at = next;
    }
    EXPECT_OK(Add("user", "end", "x", at));
    EXPECT_OK(Ctl(KEYCTL_SEARCH, kThread, "user", "end", 0));
    EXPECT_ERRNO(Ctl(KEYCTL_SEARCH, kSession, "user", "end", 0), ENOKEY);
    EXPECT_EQ(0, Ctl(KEYCTL_CLEAR, kThread));
    EXPECT_ERRNO(Ctl(KEYCTL_READ, at, nullptr, 0), EACCES);
    EXPECT_EQ(0, Ctl(KEYCTL_CLEAR, kSession));
  });
}

TEST(Keys, Proc) {
  InSession([] {
    Serial key = Add("user", "shown:key", "12345", kSession);
    Serial ring = AddRing("shown-ring", kSession);
    char want[200];
    const std::string keys = InSandbox() ? ReadUnmasked("keys") : ReadFile("/proc/keys");
    snprintf(want, sizeof want,
             "%08lx I--Q---     1 perm 3f010000 %5u %5u user      shown:key: 5\n", key, getuid(),
             getgid());
    EXPECT_NE(std::string::npos, keys.find(want)) << want << keys;
    snprintf(want, sizeof want,
             "%08lx I--Q---     1 perm 3f010000 %5u %5u keyring   shown-ring: empty\n", ring,
             getuid(), getgid());
    EXPECT_NE(std::string::npos, keys.find(want)) << want << keys;
    snprintf(want, sizeof want, "%5u: ", getuid());
    EXPECT_NE(std::string::npos, ReadFile("/proc/key-users").find(want));
    EXPECT_EQ("200\n", ReadFile("/proc/sys/kernel/keys/maxkeys"));
  });
}

TEST(Keys, Capabilities) {
  unsigned char c[4] = {9, 9, 9, 9};
  EXPECT_EQ(2, Ctl(KEYCTL_CAPABILITIES, c, 1));
  EXPECT_EQ(9, c[1]);
  EXPECT_EQ(2, Ctl(KEYCTL_CAPABILITIES, c, 4));
  EXPECT_EQ(KEYCTL_CAPS0_CAPABILITIES | KEYCTL_CAPS0_INVALIDATE | KEYCTL_CAPS0_MOVE,
            c[0] & (KEYCTL_CAPS0_CAPABILITIES | KEYCTL_CAPS0_INVALIDATE | KEYCTL_CAPS0_MOVE));
  EXPECT_EQ(0, c[2] | c[3]);
}
