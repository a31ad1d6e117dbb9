#include "sentry/fs/aio/aio.h"

#include <algorithm>
#include <utility>

#include "sentry/fs/eventfd/eventfd.h"

namespace sentry {

using base::Error;
using base::Status;

std::atomic<uint64_t> g_aio_max{65536}, g_aio_count{0};

namespace {

// Each has a fiber with its stack.
constexpr int kMaxPolls = 4096;
std::atomic<int> polls{0};

void Signal(FileDescription* notify) {
  if (notify == nullptr) return;
  const uint64_t one = 1;
  BufferSource source(std::as_bytes(std::span(&one, 1)));
  (void)notify->Write(source, /*nonblock=*/true).ok();  // a counter that is full stays so
}

}  // namespace

struct AioContext::Poll : base::RefCounted {
  base::Ref<FileDescription> file, notify;
  uint32_t mask = 0;
  io_event event{};
  std::atomic<bool> cancelled{false};
  base::Ref<fiber::Fiber> fiber;  // guarded by mutex_
};

base::Result<base::Ref<AioContext>> AioContext::New(uint32_t events) {
  if (g_aio_count.fetch_add(events) + events > g_aio_max) {
    g_aio_count.fetch_sub(events);
    return Error(EAGAIN);
  }
  return base::MakeRef<AioContext>(events);
}

AioContext::AioContext(uint32_t events) : events_(events) {}

AioContext::~AioContext() { g_aio_count.fetch_sub(events_); }

Status AioContext::Reserve() {
  absl::MutexLock l(&mutex_);
  if (dead_) return Error(EINVAL);
  if (taken_ >= events_) return Error(EAGAIN);
  ++taken_;
  return base::Ok();
}

void AioContext::Unreserve() {
  absl::MutexLock l(&mutex_);
  --taken_;
}

void AioContext::Complete(const io_event& event, FileDescription* notify) {
  {
    absl::MutexLock l(&mutex_);
    done_.push_back(event);
    queue_.WakeAll(EPOLLIN);
  }
  Signal(notify);
}

Status AioContext::StartPoll(base::Ref<FileDescription> file, uint32_t mask, io_event event,
                             base::Ref<FileDescription> notify) {
  if (polls.fetch_add(1) >= kMaxPolls) {
    polls.fetch_sub(1);
    return Error(EAGAIN);
  }
  auto poll = base::MakeRef<Poll>();
  poll->file = std::move(file);
  poll->notify = std::move(notify);
  poll->mask = mask | EPOLLERR | EPOLLHUP;
  poll->event = event;
  absl::MutexLock l(&mutex_);
  if (dead_) {
    polls.fetch_sub(1);
    return Error(EINVAL);
  }
  polls_.push_back(poll);
  base::Ref<AioContext> self(this);
  poll->fiber = fiber::Spawn("aio", [self, poll] { self->RunPoll(poll); });
  return base::Ok();
}

void AioContext::RunPoll(const base::Ref<Poll>& poll) {
  uint32_t ready = 0;
  auto done = [&] {
    ready = poll->file->Readiness() & poll->mask;
    return ready != 0 || poll->cancelled.load(std::memory_order_acquire);
  };
  if (fiber::WaitQueue* queue = poll->file->wait_queue()) {
    fiber::WaitUntil(*queue, poll->mask, done);
  } else {
    done();
  }
  poll->event.res = ready;
  // The file is let go before anybody can know of the end.
  base::Ref<FileDescription> file = std::move(poll->file);
  file.reset();
  {
    absl::MutexLock l(&mutex_);
    poll->fiber.reset();
    std::erase(polls_, poll);
    done_.push_back(poll->event);
    queue_.WakeAll(EPOLLIN);
  }
  polls.fetch_sub(1);
  Signal(poll->notify.get());
}

Status AioContext::CancelPoll(uint64_t object) {
  absl::MutexLock l(&mutex_);
  for (const base::Ref<Poll>& poll : polls_) {
    if (poll->event.obj != object) continue;
    poll->cancelled.store(true, std::memory_order_release);
    poll->fiber->Unpark();
    return base::Ok();
  }
  return Error(EINVAL);
}

std::vector<io_event> AioContext::Collect(size_t least, size_t most, int64_t deadline_ns) {
  std::vector<io_event> events;
  auto take = [&] {
    absl::MutexLock l(&mutex_);
    while (events.size() < most && !done_.empty()) {
      events.push_back(done_.front());
      done_.pop_front();
      --taken_;
    }
    return events.size() >= least || dead_;
  };
  fiber::WaitUntil(queue_, EPOLLIN, take, {.interruptible = true, .deadline_ns = deadline_ns});
  return events;
}

void AioContext::Destroy(bool wait) {
  {
    absl::MutexLock l(&mutex_);
    dead_ = true;
    for (const base::Ref<Poll>& poll : polls_) {
      poll->cancelled.store(true, std::memory_order_release);
      poll->fiber->Unpark();
    }
    queue_.WakeAll(EPOLLIN);
  }
  if (!wait) return;
  fiber::WaitUntil(queue_, EPOLLIN, [&] {
    absl::MutexLock l(&mutex_);
    return polls_.empty();
  });
}

void AioContexts::Add(uint64_t id, base::Ref<AioContext> context) {
  absl::MutexLock l(&mutex_);
  contexts_[id] = std::move(context);
}

base::Result<base::Ref<AioContext>> AioContexts::Find(uint64_t id) {
  absl::MutexLock l(&mutex_);
  auto it = contexts_.find(id);
  if (it == contexts_.end()) return Error(EINVAL);
  return it->second;
}

base::Result<base::Ref<AioContext>> AioContexts::Remove(uint64_t id) {
  absl::MutexLock l(&mutex_);
  auto it = contexts_.find(id);
  if (it == contexts_.end()) return Error(EINVAL);
  base::Ref<AioContext> context = std::move(it->second);
  contexts_.erase(it);
  return context;
}

AioContexts::~AioContexts() {
  absl::MutexLock l(&mutex_);
  for (auto& [id, context] : contexts_) context->Destroy(false);
}

}  // namespace sentry
