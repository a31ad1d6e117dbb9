// The parsers of both ends of the gofer's connection. The first byte chooses: even, the rest is a
// request packet for a server over an empty temporary directory; odd, a reply's body.
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "gofer/client.h"
#include "gofer/server.h"

namespace {

gofer::Server& TheServer() {
  static gofer::Server* server = [] {
    char name[] = "/tmp/gofer_fuzz_XXXXXX";
    if (mkdtemp(name) == nullptr) abort();
    const int proc = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (proc < 0 || fchdir(proc) != 0) abort();
    gofer::Server::Options options;
    options.mounts.resize(1);
    options.mounts[0].fd.reset(open(name, O_PATH | O_CLOEXEC));
    options.proc_fd = proc;
    options.max_handles = 500;
    auto* made = new gofer::Server(std::move(options));
    // A handle to work with: slot 0, generation 1.
    for (gofer::Request request : {gofer::MakeHello(), gofer::MakeAttach(0)}) {
      gofer::RequestHeader header = {static_cast<uint32_t>(request.packet.size()), request.op, 0,
                                     1};
      memcpy(request.packet.data(), &header, sizeof(header));
      std::vector<base::UniqueFd> fds;
      made->HandlePacket(request.packet, &fds);
    }
    return made;
  }();
  return *server;
}

void FuzzReply(std::string_view body) {
  const auto make = [&] {
    gofer::Reply reply;
    reply.error = 0;
    reply.body = body;
    return reply;
  };
  (void)gofer::ParseHello(make()).ok();
  (void)gofer::ParseAttach(make()).ok();
  (void)gofer::ParseWalk(make(), 3, gofer::kWalkOpen).ok();
  (void)gofer::ParseNode(make(), false).ok();
  (void)gofer::ParseAttr(make()).ok();
  (void)gofer::ParseFd(make()).ok();
  (void)gofer::ParseOpenMany(make(), 3).ok();
  (void)gofer::ParseLink(make()).ok();
  (void)gofer::ParseStatFs(make()).ok();
  (void)gofer::ParseXattr(make(), 64).ok();
  (void)gofer::ParseEmpty(make()).ok();
  auto dir = gofer::ParseDir(make());
  if (!dir.ok()) return;
  for (const gofer::Entry& entry : dir->entries) {
    if (!gofer::ValidName(entry.name)) abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if ((data[0] & 1) != 0) {
    FuzzReply(bytes);
    return 0;
  }
  // The right length, so that inputs get beyond the first check.
  if (bytes.size() >= sizeof(gofer::RequestHeader)) {
    const auto length = static_cast<uint32_t>(bytes.size());
    memcpy(bytes.data(), &length, sizeof(length));
  }
  std::vector<base::UniqueFd> fds;
  const std::string reply = TheServer().HandlePacket(bytes, &fds);
  if (reply.size() > gofer::kMaxMessage) abort();
  return 0;
}
