// What TCP does not send yet, since more is to come: TCP_CORK and MSG_MORE.
#include "sentry/kernel/kernel.h"
#include "sentry/net/inet/tcp.h"

namespace sentry {
namespace {

// tcp_check_probe_timer(): the least time of a retransmission.
constexpr int64_t kPushNs = 200'000'000;
constexpr int64_t kBusyNs = 1'000'000;  // somebody writes at this moment

}  // namespace

void TcpStream::Give(size_t n, size_t held, bool cork) {
  const bool held_before = bytes.held() > 0;
  bytes.Produced(n, held);
  bytes.KeepTurn(held > 0 || cork);
  if (held == 0) {
    if (held_before) push_timer->Disarm();
  } else if (!held_before || n > 0) {
    ArmPush(kPushNs);
  }
}

void TcpStream::ArmPush(int64_t after_ns) {
  if (push_timer == nullptr) push_timer = std::make_unique<fiber::Timer>();
  push_timer->Arm(Kernel::Get().MonotonicNs() + after_ns,
                  [this, kept = base::Ref<TcpConnection>(connection)] { OnPushTimer(); });
}

void TcpStream::OnPushTimer() {
  TcpConnection::Side& mine = connection->sides[static_cast<size_t>(side)];
  if (mine.gone.load()) return;
  if (!write_mutex.TryLock()) return ArmPush(kBusyNs);
  const size_t held = bytes.held();
  if (held > 0) {
    ByteStream::WriterTurn turn(bytes);  // the kept one
    Give(held, 0, mine.end->tcp_options().cork.load() != 0);
  }
  write_mutex.Unlock();
  if (held > 0) mine.end->SentSome(*connection, side, /*urgent=*/false);
}

void TcpEndpoint::SetCork(bool on) {
  tcp_options_.cork = on ? 1 : 0;
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return;
  TcpStream& out = c->sides[static_cast<size_t>(side)].out;
  size_t held;
  {
    fiber::MutexLock lock(&out.write_mutex);
    ByteStream::WriterTurn turn(out.bytes);
    held = out.bytes.held();
    if (on) {
      out.bytes.KeepTurn(true);
      return;
    }
    out.Give(held, 0, /*cork=*/false);
  }
  if (held > 0) SentSome(*c, side, /*urgent=*/false);
}

void TcpEndpoint::PushHeld() {
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return;
  TcpStream& out = c->sides[static_cast<size_t>(side)].out;
  if (out.bytes.held() == 0) return;
  size_t held;
  {
    fiber::MutexLock lock(&out.write_mutex);
    ByteStream::WriterTurn turn(out.bytes);
    held = out.bytes.held();
    out.Give(held, 0, tcp_options_.cork.load() != 0);
  }
  if (held > 0) SentSome(*c, side, /*urgent=*/false);
}

bool TcpEndpoint::EndsByReset() {
  if (options().linger_seconds.load() == 0) return true;
  int side;
  Conn c = connection(&side);
  return c != nullptr && in(*c, side)->bytes.Used() > 0;
}

}  // namespace sentry
