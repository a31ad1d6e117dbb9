// Files of /proc/net: raw, icmp and their forms for IPv6, arp, netstat, sockstat.
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <sys/mount.h>

#include <map>
#include <optional>
#include <sstream>
#include <vector>

#include "inet_util.h"

namespace {

using Words = std::vector<std::string>;

Words Split(const std::string& text) {
  std::istringstream in(text);
  Words words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::vector<std::string> Lines(const char* file) {
  std::istringstream in(ReadFile(std::string("/proc/self/net/") + file));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

uint64_t InodeOf(int fd) {
  struct stat st {};
  EXPECT_OK(fstat(fd, &st));
  return st.st_ino;
}

// The line of a socket in a file whose tenth word is the inode.
std::optional<std::string> LineOf(const char* file, int fd) {
  for (const std::string& line : Lines(file)) {
    const Words words = Split(line);
    if (words.size() > 9 && words[9] == std::to_string(InodeOf(fd))) return line;
  }
  return std::nullopt;
}

bool BringUpLoopback() {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ifreq request{};
  strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP;
  const bool up = ioctl(fd, SIOCSIFFLAGS, &request) == 0;
  close(fd);
  return up;
}

constexpr char kHead[] =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout "
    "inode ref pointer drops";
constexpr char kHead6[] =
    "  sl  local_address                         remote_address                        st tx_queue "
    "rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops";

TEST(ProcNet, RawSockets) {
  ASSERT_FALSE(Lines("raw").empty());
  EXPECT_EQ(kHead, Lines("raw")[0]);
  const int fd = socket(AF_INET, SOCK_RAW, 200);
  if (fd < 0 && errno == EPERM) GTEST_SKIP() << "needs CAP_NET_RAW";
  ASSERT_OK(fd);
  std::optional<std::string> line = LineOf("raw", fd);
  ASSERT_TRUE(line);
  Words words = Split(*line);
  EXPECT_EQ("00000000:00C8", words[1]);
  EXPECT_EQ("00000000:0000", words[2]);
  EXPECT_EQ("07", words[3]);
  EXPECT_EQ("00000000:00000000", words[4]);
  EXPECT_EQ(std::to_string(geteuid()), words[7]);
  ASSERT_EQ(0, Loopback(AF_INET).Bind(fd));
  ASSERT_EQ(0, Loopback(AF_INET).Connect(fd));
  line = LineOf("raw", fd);
  ASSERT_TRUE(line);
  words = Split(*line);
  EXPECT_EQ("0100007F:00C8", words[1]);
  EXPECT_EQ("0100007F:0000", words[2]);
  EXPECT_EQ("01", words[3]);
  EXPECT_FALSE(LineOf("raw6", fd));
  close(fd);
}

TEST(ProcNet, RawSocketsOfIpv6) {
  ASSERT_FALSE(Lines("raw6").empty());
  EXPECT_EQ(kHead6, Lines("raw6")[0]);
  const int fd = socket(AF_INET6, SOCK_RAW, 201);
  if (fd < 0 && errno == EPERM) GTEST_SKIP() << "needs CAP_NET_RAW";
  ASSERT_OK(fd);
  ASSERT_EQ(0, Loopback(AF_INET6).Bind(fd));
  const std::optional<std::string> line = LineOf("raw6", fd);
  ASSERT_TRUE(line);
  const Words words = Split(*line);
  EXPECT_EQ("00000000000000000000000001000000:00C9", words[1]);
  EXPECT_EQ("07", words[3]);
  EXPECT_FALSE(LineOf("raw", fd));
  const uint64_t gone = InodeOf(fd);
  close(fd);
  for (const std::string& other : Lines("raw6")) {
    EXPECT_EQ(std::string::npos, other.find(" " + std::to_string(gone) + " ")) << other;
  }
}

TEST(ProcNet, EchoSockets) {
  std::string head = kHead;
  head.resize(127, ' ');
  ASSERT_FALSE(Lines("icmp").empty());
  EXPECT_EQ(head, Lines("icmp")[0]);
  ASSERT_FALSE(Lines("icmp6").empty());
  EXPECT_EQ(kHead6, Lines("icmp6")[0]);
  // Who may have them is said for each network.
  EXPECT_EQ(0, ExitStatus([] {
              if (unshare(CLONE_NEWNET | CLONE_NEWNS) != 0) return errno == EPERM ? 0 : 1;
              // Containers have it read-only, as a mount of its own.
              mount(nullptr, "/proc/sys", nullptr, MS_REMOUNT | MS_BIND, nullptr);
              if (!BringUpLoopback()) return 2;
              WriteFile("/proc/sys/net/ipv4/ping_group_range", "0 0");
              const int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
              if (fd < 0 || LineOf("icmp", fd)) return 3;  // it has no identifier yet
              if (Loopback(AF_INET, 0x1234).Bind(fd) != 0) return 4;
              const std::optional<std::string> line = LineOf("icmp", fd);
              if (!line || line->size() != 127) return 5;
              if (Split(*line)[1] != "0100007F:1234" || Split(*line)[3] != "07") return 6;
              if (Loopback(AF_INET).Connect(fd) != 0) return 7;
              if (Split(*LineOf("icmp", fd))[2] != "0100007F:0000") return 8;
              return LineOf("icmp6", fd) ? 9 : 0;
            }));
}

TEST(ProcNet, Neighbours) {
  const std::vector<std::string> lines = Lines("arp");
  ASSERT_FALSE(lines.empty());
  EXPECT_EQ("IP address       HW type     Flags       HW address            Mask     Device",
            lines[0]);
}

// Names and values of a file that has them in two lines each.
std::map<std::string, uint64_t> Pairs(const char* file) {
  std::map<std::string, uint64_t> out;
  const std::vector<std::string> lines = Lines(file);
  EXPECT_EQ(0u, lines.size() % 2);
  for (size_t i = 0; i + 1 < lines.size(); i += 2) {
    const Words names = Split(lines[i]), values = Split(lines[i + 1]);
    EXPECT_EQ(names.size(), values.size());
    EXPECT_EQ(names[0], values[0]);
    for (size_t n = 1; n < std::min(names.size(), values.size()); ++n) {
      out[names[0] + names[n]] = strtoull(values[n].c_str(), nullptr, 10);
    }
  }
  return out;
}

TEST(ProcNet, Netstat) {
  const auto before = Pairs("netstat");
  for (const char* name : {"TcpExt:ListenOverflows", "TcpExt:ListenDrops", "TcpExt:TCPTimeouts",
                           "IpExt:InOctets", "IpExt:OutOctets"}) {
    EXPECT_TRUE(before.contains(name)) << name;
  }
  const int fd = socket(AF_INET, SOCK_DGRAM, 0), to = socket(AF_INET, SOCK_DGRAM, 0);
  ASSERT_EQ(0, Loopback(AF_INET).Bind(to));
  ASSERT_EQ(0, NameOf(to).Connect(fd));
  EXPECT_EQ(1000, send(fd, std::string(1000, 'x').data(), 1000, 0));
  const auto after = Pairs("netstat");
  EXPECT_GE(after.at("IpExt:InOctets"), before.at("IpExt:InOctets") + 1000);
  EXPECT_GE(after.at("IpExt:OutOctets"), before.at("IpExt:OutOctets") + 1000);
  close(fd);
  close(to);
}

// The number behind "inuse" of the line that begins with `kind`.
int InUse(const char* file, const std::string& kind) {
  for (const std::string& line : Lines(file)) {
    const Words words = Split(line);
    if (words.size() >= 3 && words[0] == kind && words[1] == "inuse") return stoi(words[2]);
  }
  ADD_FAILURE() << kind;
  return -1;
}

TEST(ProcNet, SocketsInUse) {
  // In a network of its own nobody else makes any; where that is not to be had, nothing is counted.
  EXPECT_EQ(0, ExitStatus([] {
              if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return 0;
              if (!BringUpLoopback()) return 1;
              int fd[5];
              for (int i = 0; i < 5; ++i) {
                fd[i] = socket(i < 3 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
                if (Loopback(i < 3 ? AF_INET6 : AF_INET).Bind(fd[i]) != 0) return 2;
              }
              if (InUse("sockstat6", "UDP6:") != 3 || InUse("sockstat", "UDP:") != 2) return 3;
              if (InUse("sockstat6", "TCP6:") != 0 || InUse("sockstat6", "RAW6:") != 0) return 4;
              if (socket(AF_INET6, SOCK_RAW, 200) < 0) return 5;
              if (InUse("sockstat6", "RAW6:") != 1 || InUse("sockstat", "RAW:") != 0) return 6;
              return 0;
            }));
}

}  // namespace
