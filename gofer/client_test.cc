// Both parsers against malformed and hostile messages.
#include <random>

#include "gofer/test_support.h"

namespace gofer {
namespace {

class HostileTest : public GoferFixture {};
INSTANTIATE_TEST_SUITE_P(All, HostileTest, testing::Values(false), ModeName);

std::string Finish(Request request, uint64_t id) {
  RequestHeader header = {static_cast<uint32_t>(request.packet.size()), request.op, 0, id};
  memcpy(request.packet.data(), &header, sizeof(header));
  return request.packet;
}

std::vector<std::string> ValidPackets(Handle root, Handle file) {
  SetAttrRequest change = {};
  change.handle = file;
  change.mask = kSetMode | kSetSize;
  change.mode = 0644;
  std::vector<Request> requests;
  requests.push_back(MakeHello());
  requests.push_back(MakeAttach(0));
  requests.push_back(MakeWalk(root, {"a", "b", "file"}, kWalkOpen, O_RDWR));
  requests.push_back(MakeStatAt(root, "file"));
  for (Op op : {Op::kGetAttr, Op::kReadlink, Op::kStatFs}) requests.push_back(MakeOn(op, file));
  requests.push_back(MakeSetAttr(change));
  requests.push_back(MakeOpen(file, O_RDWR));
  requests.push_back(MakeOpenMany({file, root, file, 7}));
  for (Op op : {Op::kCreate, Op::kMkdir, Op::kMknod}) {
    requests.push_back(
        MakeMake(op, root, "made", op == Op::kMknod ? S_IFIFO | 0600 : 0600, 0, 0, 0));
  }
  requests.push_back(MakeMake(Op::kTmpfile, root, "", 0600, 0, 0, O_RDWR));
  requests.push_back(MakeSymlink(root, "link", "target", 0, 0));
  requests.push_back(MakeLink(file, root, "linked"));
  requests.push_back(MakeUnlink(root, "made", false));
  requests.push_back(MakeRename(root, "linked", root, "renamed", 0));
  requests.push_back(MakeReadDir(root, 0, 4096, kReadDirAttrs));
  requests.push_back(MakeReadDir(root, 0, 4096, kReadDirNodes));
  requests.push_back(MakeGetXattr(file, "user.a", 100));
  requests.push_back(MakeSetXattr(file, "user.a", "value", 0));
  requests.push_back(MakeListXattr(file, 100));
  requests.push_back(MakeRemoveXattr(file, "user.a"));
  requests.push_back(MakeConnect(file, SOCK_STREAM));
  requests.push_back(MakeForget({1, 2, 3}));
  std::vector<std::string> packets;
  for (Request& r : requests) packets.push_back(Finish(std::move(r), packets.size() + 1));
  return packets;
}

void Mutate(std::mt19937& random, std::string* packet) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (size_t edits = 1 + below(4); edits > 0; --edits) {
    switch (below(6)) {
      case 0:
        if (!packet->empty()) (*packet)[below(packet->size())] = static_cast<char>(random());
        break;
      case 1:
        packet->resize(below(packet->size() + 1));
        break;
      case 2:
        packet->append(below(40), static_cast<char>(random()));
        break;
      case 3:
        if (packet->size() >= 4) {
          const uint32_t values[] = {0, 1, 255, 256, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff};
          memcpy(packet->data() + below(packet->size() - 3), &values[below(8)], 4);
        }
        break;
      case 4:
        if (!packet->empty()) packet->erase(below(packet->size()), 1 + below(8));
        break;
      case 5:
        if (!packet->empty()) (*packet)[below(packet->size())] ^= static_cast<char>(1u << below(8));
        break;
    }
  }
  // Mostly with a right length, so that the mutation gets beyond the first check.
  if (packet->size() >= sizeof(RequestHeader) && below(8) != 0) {
    const auto length = static_cast<uint32_t>(packet->size());
    memcpy(packet->data(), &length, sizeof(length));
  }
}

TEST_P(HostileTest, MutatedRequests) {
  Launch();
  const std::vector<std::string> valid = ValidPackets(root_, At({"file"}));
  std::mt19937 random(1);
  for (int i = 0; i < 60'000; ++i) {
    std::string packet = valid[random() % valid.size()];
    Mutate(random, &packet);
    std::vector<base::UniqueFd> fds;
    const std::string reply = server_->HandlePacket(packet, &fds);
    if (reply.empty()) continue;
    ASSERT_LE(reply.size(), kMaxMessage);
    ReplyHeader header;
    ASSERT_GE(reply.size(), sizeof(header));
    memcpy(&header, reply.data(), sizeof(header));
    ASSERT_EQ(header.length, reply.size());
    ASSERT_EQ(header.fds, fds.size());
  }
  EXPECT_EQ(ReadFile(dir_ + "/outside/secret"), "secret");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_ + "/outside"), {}), 1);
}

TEST_P(HostileTest, MutatedReplies) {
  Launch();
  const std::vector<std::string> requests = ValidPackets(root_, At({"file"}));
  std::vector<std::string> bodies = {""};
  for (const std::string& packet : requests) {
    std::vector<base::UniqueFd> fds;
    const std::string reply = server_->HandlePacket(packet, &fds);
    if (reply.size() > sizeof(ReplyHeader)) bodies.push_back(reply.substr(sizeof(ReplyHeader)));
  }
  std::mt19937 random(2);
  for (int i = 0; i < 60'000; ++i) {
    std::string body = bodies[random() % bodies.size()];
    Mutate(random, &body);
    const auto make = [&] {
      Reply reply;
      reply.error = 0;
      reply.body = body;
      if (random() % 4 == 0) reply.fds.emplace_back(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
      return reply;
    };
    (void)ParseHello(make()).ok();
    (void)ParseAttach(make()).ok();
    (void)ParseWalk(make(), 3, kWalkOpen).ok();
    (void)ParseOpenMany(make(), 3).ok();
    (void)ParseNode(make(), true).ok();
    (void)ParseAttr(make()).ok();
    (void)ParseFd(make()).ok();
    (void)ParseLink(make()).ok();
    auto dir = ParseDir(make());
    if (dir.ok()) {
      for (const Entry& e : dir->entries) ASSERT_TRUE(ValidName(e.name));
    }
    (void)ParseStatFs(make()).ok();
    (void)ParseXattr(make(), 100).ok();
    (void)ParseEmpty(make()).ok();
  }
}

// A peer that is not a gofer: each of these breaks the connection, and what waited gets EIO.
TEST(HostilePeer, BrokenRepliesBreakTheClient) {
  for (int kind = 0; kind < 6; ++kind) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    base::UniqueFd peer(pair[1]);
    int broken = 0, error = 0;
    Client client(base::UniqueFd(pair[0]), [&] { ++broken; });
    client.Submit(MakeHello(), [&](Reply reply) { error = reply.error; });
    ReplyHeader h = {sizeof(h), Op::kHello, 0, 1, 0, 0};
    if (kind == 0) h.length = 5;
    if (kind == 1) h.id = 2;
    if (kind == 2) h.op = Op::kOpen;
    if (kind == 3) h.fds = 1;
    if (kind == 4) h.error = 100000;
    if (kind == 5) {
      peer.reset();
    } else {
      ASSERT_EQ(send(peer.get(), &h, sizeof(h), 0), ssize_t{sizeof(h)});
    }
    EXPECT_FALSE(client.Receive());
    EXPECT_EQ(broken, 1) << kind;
    EXPECT_EQ(error, EIO) << kind;
    int late = 0;
    client.Submit(MakeHello(), [&](Reply reply) { late = reply.error; });
    EXPECT_EQ(late, EIO);
  }
}

TEST(HostilePeer, UnexpectedDescriptorsAreClosed) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  base::UniqueFd peer(pair[1]);
  const auto count = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  Client client(base::UniqueFd(pair[0]), [] {});
  client.Submit(MakeHello(), [](Reply) {});
  const auto before = count();
  ReplyHeader h = {sizeof(h), Op::kHello, 1, 1, 0, 0};
  iovec iov = {&h, sizeof(h)};
  alignas(cmsghdr) char control[CMSG_SPACE(3 * sizeof(int))] = {};
  msghdr msg = {};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof(control);
  cmsghdr* c = CMSG_FIRSTHDR(&msg);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(3 * sizeof(int));
  const int fds[3] = {0, 0, 0};
  memcpy(CMSG_DATA(c), fds, sizeof(fds));
  ASSERT_GT(sendmsg(peer.get(), &msg, 0), 0);
  EXPECT_FALSE(client.Receive());
  EXPECT_EQ(count(), before);
}

}  // namespace
}  // namespace gofer
