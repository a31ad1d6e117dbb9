// TCP sockets as files.
#pragma once

#include "sentry/net/inet/tcp.h"
#include "sentry/vfs/lanes/lane_ends.h"
#include "sentry/vfs/lanes/lane_partner.h"

namespace sentry {

class TcpSocket : public InetSocket, public LaneEnds, public LanePartner {
 public:
  TcpSocket(Vfs& vfs, base::Ref<TcpEndpoint> endpoint, uint32_t flags)
      : InetSocket(vfs, *endpoint, SOCK_STREAM, IPPROTO_TCP, flags),
        endpoint_(std::move(endpoint)) {
    MayHaveLanes(/*early=*/true);
  }

  base::Status Bind(Task& t, const SockAddr& address) override;
  base::Status Connect(Task& t, const SockAddr& address, bool nonblock) override;
  base::Status Listen(int backlog) override { return endpoint_->Listen(backlog); }
  base::Result<base::Ref<FileDescription>> Accept(uint32_t flags, bool nonblock) override;
  base::Status Shutdown(int how) override { return endpoint_->Shutdown(how); }
  base::Result<SockAddr> PeerAddress() override;
  base::Result<SockAddr> AcceptedAddress() override;
  base::Result<size_t> Send(IoSource& src, SendArgs args) override;
  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args) override;
  base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name) override;
  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override { return endpoint_->Readiness(); }
  void WatchEdges(uint32_t wish = platform::kWish) override { endpoint_->WatchEdges(wish); }
  uint64_t LaneCame() override { return endpoint_->BytesCome(); }
  LaneNames EnterLanes(LaneArena& arena) override { return endpoint_->EnterLanes(arena); }
  uint32_t ReadinessFor(uint32_t wish) override { return endpoint_->Readiness(wish); }
  bool HasOpenLanes() override { return endpoint_->HasOpenLanes(); }
  bool IsInLanesOf(const LaneArena& arena) override { return endpoint_->IsInLanesOf(arena); }
  bool MeetsEqual(uint64_t creds) override { return endpoint_->MeetsEqual(creds); }

 protected:
  int TakeError() override { return endpoint_->TakeError(); }
  bool listening() const override { return endpoint_->listening(); }
  void OnOptionChange() override { endpoint_->UpdateLimits(); }
  Patience LanePatience() const override {
    return PatienceBy(nonblock(), has_receive_limit(), has_send_limit());
  }
  void SetLanePatience(const Patience& p) override { endpoint_->SetPatience(p.reader, p.writer); }
  void OnAsyncOn() override { endpoint_->LeaveLanes(); }
  bool has_peek_offset() const override { return true; }
  Queued queued() override;

 private:
  ~TcpSocket() override {
    endpoint_->SetDescription(nullptr);
    endpoint_->Release();
  }
  base::Result<std::vector<std::byte>> GetTcpOption(int name);
  base::Status SetTcpOption(int name, std::span<const std::byte> value);
  base::Status CheckFastOpen(int name) const;  // EINVAL: not any more

  const base::Ref<TcpEndpoint> endpoint_;
};

}  // namespace sentry
