#include "sentry/fs/gofer/connection.h"

#include <poll.h>
#include <sys/epoll.h>

#include <atomic>

#include "sentry/base/counter.h"
#include "sentry/fiber/fiber.h"

namespace sentry {
namespace {

base::Counter g_requests("gofer.requests", "requests sent to the gofer");

// Handles are given back in batches of this many.
constexpr size_t kForgetBatch = 64;

// One request in flight, on the stack of who waits.
struct Call {
  base::Ref<fiber::Fiber> fiber;  // null: a thread, which polls
  gofer::Reply reply;
  std::atomic<bool> done{false};
};

}  // namespace

GoferConnection::GoferConnection(base::UniqueFd socket, std::function<void()> on_broken)
    : client_(std::move(socket), [on_broken = std::move(on_broken)] {
        if (on_broken) on_broken();
      }) {}

GoferConnection::~GoferConnection() { watch_.Stop(); }

base::Result<base::Ref<GoferConnection>> GoferConnection::Connect(base::UniqueFd socket,
                                                                  std::function<void()> on_broken) {
  auto connection = base::MakeRef<GoferConnection>(std::move(socket), std::move(on_broken));
  gofer::Client* client = &connection->client_;
  TRY(connection->watch_.Start(client->fd(), EPOLLIN, fiber::FdWatch::Mode::kEdge,
                               [client](uint32_t) { client->Receive(); }));
  connection->hello_ = TRY(gofer::ParseHello(connection->Call(gofer::MakeHello())));
  return connection;
}

gofer::Reply GoferConnection::Call(gofer::Request request) {
  g_requests.Add();
  struct Call call;
  call.fiber = base::Ref<fiber::Fiber>(fiber::Current());
  client_.Submit(std::move(request), [&call](gofer::Reply reply) {
    // Once `done` is seen, `call` may be gone.
    const base::Ref<fiber::Fiber> fiber = call.fiber;
    call.reply = std::move(reply);
    call.done.store(true, std::memory_order_release);
    if (fiber) fiber->Unpark();
  });
  while (!call.done.load(std::memory_order_acquire)) {
    if (call.fiber) {
      fiber::Park();
    } else {
      // The watch may take the reply first, hence the limit.
      pollfd p = {client_.fd(), POLLIN, 0};
      poll(&p, 1, 1);
      client_.Receive();
    }
  }
  return std::move(call.reply);
}

void GoferConnection::Forget(gofer::Handle handle) {
  std::vector<gofer::Handle> batch;
  {
    absl::MutexLock l(&mutex_);
    forgotten_.push_back(handle);
    if (forgotten_.size() < kForgetBatch) return;
    batch.swap(forgotten_);
  }
  client_.Submit(gofer::MakeForget(batch), [](gofer::Reply) {});
}

}  // namespace sentry
