// AF_UNIX sockets as files.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "sentry/net/socket.h"
#include "sentry/net/unix/endpoint.h"
#include "sentry/net/unix/unix_sockets.h"
#include "sentry/vfs/lanes/lane_ends.h"

namespace sentry {

class UnixSocket : public Socket, public LaneEnds {
 public:
  UnixSocket(Vfs& vfs, base::Ref<UnixEndpoint> endpoint, uint32_t flags)
      : Socket(vfs, AF_UNIX, endpoint->type(), 0, flags),
        vfs_(vfs),
        endpoint_(std::move(endpoint)) {
    Enter();
    if (endpoint_->stream()) MayHaveLanes(/*early=*/false);
  }
  static UnixSocket* From(FileDescription& file) { return dynamic_cast<UnixSocket*>(&file); }
  const base::Ref<UnixEndpoint>& endpoint() const { return endpoint_; }

  base::Status Bind(Task& t, const SockAddr& address) override;
  base::Status Connect(Task& t, const SockAddr& address, bool nonblock) override;
  base::Status Listen(int backlog) override { return endpoint_->Listen(backlog, CurrentCreds()); }
  base::Result<base::Ref<FileDescription>> Accept(uint32_t flags, bool nonblock) override;
  base::Status Shutdown(int how) override { return endpoint_->Shutdown(how); }
  base::Result<SockAddr> LocalAddress() override;
  base::Result<SockAddr> PeerAddress() override;
  base::Result<size_t> Send(IoSource& src, SendArgs args) override;
  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args) override;

  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override { return endpoint_->Readiness(); }
  uint32_t ReadinessFor(uint32_t wish) override { return endpoint_->Readiness(wish); }
  void WatchEdges(uint32_t wish = platform::kWish) override { endpoint_->WatchEdges(wish); }
  LaneNames EnterLanes(LaneArena& arena) override { return endpoint_->EnterLanes(arena); }
  bool HasOpenLanes() override { return endpoint_->HasOpenLanes(); }
  uint64_t LaneCame() override { return endpoint_->BytesCome(); }
  fiber::WaitQueue* wait_queue() override { return &endpoint_->wait_queue(); }

 protected:
  int TakeError() override { return endpoint_->TakeError(); }
  bool listening() const override { return endpoint_->state() == UnixEndpoint::State::kListening; }
  int send_buffer() const override { return endpoint_->send_buffer(); }
  void set_send_buffer(int bytes) override { endpoint_->set_send_buffer(bytes); }
  Patience LanePatience() const override {
    return PatienceBy(nonblock(), has_receive_limit(), has_send_limit());
  }
  void SetLanePatience(const Patience& p) override { endpoint_->SetPatience(p.reader, p.writer); }
  void OnAsyncOn() override { endpoint_->LeaveLanes(); }
  bool has_peek_offset() const override { return true; }
  Queued queued() override;
  std::optional<SenderCreds> peer_creds() const override { return endpoint_->peer_creds(); }

 private:
  ~UnixSocket() override {
    Leave();
    endpoint_->Release();
  }
  // Who stands behind an address: ECONNREFUSED, ENOENT, EACCES and others.
  base::Result<base::Ref<UnixEndpoint>> Find(Task& t, const SockAddr& address);
  // Into the list of its namespace's sockets, and out of it.
  void Enter();
  void Leave();
  // SO_PASSCRED gives a nameless sender a name.
  void AutoBind(Task& t);

  Vfs& vfs_;
  const base::Ref<UnixEndpoint> endpoint_;
  base::Ref<UnixSockets> sockets_;  // null: of no task
};

base::Result<base::Ref<FileDescription>> NewUnixSocket(Vfs& vfs, int type, int protocol,
                                                       uint32_t flags);
base::Result<std::pair<base::Ref<FileDescription>, base::Ref<FileDescription>>> NewUnixPair(
    Vfs& vfs, int type, int protocol, uint32_t flags);

}  // namespace sentry
