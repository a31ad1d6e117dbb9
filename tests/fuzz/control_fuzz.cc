// What arrives at the two ends of the control socket: any bytes as a message, and any JSON in a
// message of each operation to a server whose sandbox has nothing in it.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "sentry/boot/sandbox.h"
#include "sentry/control/client.h"
#include "sentry/control/protocol.h"
#include "sentry/control/server.h"

namespace sentry {
namespace {

class EmptyContainer : public Container {
 public:
  base::Status Start(std::string* why) override {
    *why = "container is running already";
    return base::Error(EINVAL);
  }
  base::Result<int32_t> Exec(const ProcessSpec& /*process*/, ProcessFds /*fds*/,
                             std::string* /*why*/) override {
    return 5;
  }
  base::Status Wait(int32_t pid, std::function<void(int)> done) override {
    if (pid != 5) return base::Error(ESRCH);
    done(0);
    return base::Ok();
  }
  base::Status Signal(int32_t /*pid*/, int /*signo*/) override { return base::Ok(); }
  base::Status SignalAll(int /*signo*/) override { return base::Ok(); }
  std::vector<ProcessInfo> Processes() override { return {ProcessInfo{.command = "\xff"}}; }
  base::Status SetWindowSize(int32_t /*pid*/, uint16_t /*rows*/, uint16_t /*cols*/) override {
    return base::Error(ENOTTY);
  }
  void SetLimits(int64_t /*pids*/, int64_t /*memory*/) override {}
  void SetFrozen(bool /*frozen*/) override {}
  void End(int /*exit_code*/) override {}
};

class EmptySandbox : public Sandbox {
 public:
  std::shared_ptr<Container> first() override { return first_; }
  base::Result<std::shared_ptr<Container>> Join(const ContainerSpec& /*spec*/, ContainerFds /*fds*/,
                                                std::string* /*why*/) override {
    return std::shared_ptr<Container>(std::make_shared<EmptyContainer>());
  }
  std::string SyscallTimes() override { return "{}"; }
  void Destroy() override {}

 private:
  const std::shared_ptr<Container> first_ = std::make_shared<EmptyContainer>();
};

// A server in a thread, reached through an abstract socket.
class Server {
 public:
  Server() {
    base::UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    address_.sun_family = AF_UNIX;
    // Autobind: the kernel chooses the name.
    length_ = sizeof(sa_family_t);
    if (bind(listener.get(), Address(), length_) != 0 || listen(listener.get(), 8) != 0) abort();
    length_ = sizeof(address_);
    if (getsockname(listener.get(), Address(), &length_) != 0) abort();
    server_ = std::make_unique<ControlServer>(&sandbox_, [](const ucred&) { return true; });
    server_->set_on_join([](ControlServer::Joined) { return base::Ok(); });
    auto loop = ControlServer::MakeLoopFds();
    if (!loop.ok() || !server_->Init(*std::move(loop)).ok()) abort();
    auto served = server_->Serve(sandbox_.first(), std::move(listener), 0);
    if (!served.ok()) abort();
    server_->SetInitStatus(*served, 7);
    std::thread([this] { server_->Run(); }).detach();
  }

  // One request with `fds` descriptors; every request is answered, or ends the connection.
  void Ask(ControlOp op, const std::string& payload, int fds) {
    base::UniqueFd peer(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (connect(peer.get(), Address(), length_) != 0) abort();
    ControlMessage message;
    message.op = op;
    message.id = 1;
    message.payload = payload;
    if (!SendControl(peer.get(), message, std::vector<int>(static_cast<size_t>(fds), 0), 0).ok()) {
      return;
    }
    pollfd p{peer.get(), POLLIN, 0};
    if (poll(&p, 1, 20'000) != 1) abort();
    auto reply = RecvControl(peer.get(), 0);
    if (!reply.ok() && reply.error().code() != EPIPE) abort();
  }

 private:
  sockaddr* Address() { return reinterpret_cast<sockaddr*>(&address_); }
  EmptySandbox sandbox_;
  sockaddr_un address_{};
  socklen_t length_ = 0;
  std::unique_ptr<ControlServer> server_;
};

// Bytes on the wire to RecvControl.
void FuzzMessage(const std::string& bytes) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) abort();
  base::UniqueFd a(pair[0]), b(pair[1]);
  if (send(a.get(), bytes.data(), bytes.size(), MSG_DONTWAIT) < 0) return;
  auto message = RecvControl(b.get(), MSG_DONTWAIT);
  if (message.ok() && message->payload.size() > kMaxControlPayload) abort();
}

// A reply of a hostile sentry to the client.
void FuzzReply(const std::string& payload, int error) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) abort();
  ControlClient client{base::UniqueFd(pair[0])};
  base::UniqueFd sentry(pair[1]);
  for (uint32_t id = 1; id <= 3; ++id) {
    ControlMessage reply;
    reply.id = id;
    reply.error = error;
    reply.payload = payload;
    if (!SendControl(sentry.get(), reply, {}, MSG_DONTWAIT).ok()) return;
  }
  (void)client.Processes().ok();
  std::string why;
  (void)client.Start(&why).ok();
  if (client.BeginWait(0).ok()) (void)client.FinishWait().ok();
}

}  // namespace
}  // namespace sentry

// The first byte chooses what the rest is.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto* server = new sentry::Server;
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      sentry::FuzzMessage(bytes);
      break;
    case 1:
      sentry::FuzzReply(bytes, data[0] / 4 % 2);
      break;
    default:
      server->Ask(static_cast<sentry::ControlOp>(data[0] / 4 % 8), bytes, data[0] / 32);
      break;
  }
  return 0;
}
