#include "sentry/fiber/timer_heap.h"

#include <utility>

namespace fiber {

namespace {
// An address that is this thread's own. Callbacks do not park, so they stay on it.
const void* ThisThread() {
  static thread_local char id;
  return &id;
}
}  // namespace

void TimerHeap::Place(size_t i, TimerNode* node) {
  heap_[i] = node;
  node->index = i;
}

void TimerHeap::SiftUp(size_t i) {
  TimerNode* node = heap_[i];
  while (i > 0) {
    const size_t parent = (i - 1) / 2;
    if (heap_[parent]->deadline_ns <= node->deadline_ns) break;
    Place(i, heap_[parent]);
    i = parent;
  }
  Place(i, node);
}

void TimerHeap::SiftDown(size_t i) {
  TimerNode* node = heap_[i];
  while (true) {
    size_t child = 2 * i + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && heap_[child + 1]->deadline_ns < heap_[child]->deadline_ns) {
      ++child;
    }
    if (heap_[child]->deadline_ns >= node->deadline_ns) break;
    Place(i, heap_[child]);
    i = child;
  }
  Place(i, node);
}

void TimerHeap::Remove(TimerNode* node) {
  const size_t i = std::exchange(node->index, TimerNode::kNotQueued);
  TimerNode* last = heap_.back();
  heap_.pop_back();
  if (last == node) return;
  Place(i, last);
  SiftUp(i);
  SiftDown(last->index);
}

void TimerHeap::Publish() {
  next_.store(heap_.empty() ? std::numeric_limits<int64_t>::max() : heap_[0]->deadline_ns,
              std::memory_order_seq_cst);
}

bool TimerHeap::RunsElsewhere(TimerNode* node) const {
  for (const Running* r = running_; r != nullptr; r = r->next) {
    if (r->node == node) return r->thread != ThisThread();
  }
  return false;
}

bool TimerHeap::Arm(TimerNode* node, int64_t deadline_ns) {
  absl::MutexLock lock(&mu_);
  if (node->index != TimerNode::kNotQueued) Remove(node);
  node->deadline_ns = deadline_ns;
  heap_.push_back(node);
  SiftUp(heap_.size() - 1);
  Publish();
  return heap_[0] == node;
}

bool TimerHeap::Cancel(TimerNode* node) {
  absl::MutexLock lock(&mu_);
  bool queued = false;
  while (true) {
    if (node->index != TimerNode::kNotQueued) {
      queued = true;
      Remove(node);
      Publish();
    }
    if (!RunsElsewhere(node)) return queued;
    callback_done_.Wait(&mu_);  // the callback may arm it again
  }
}

size_t TimerHeap::Expire(int64_t now_ns) {
  if (next_.load(std::memory_order_relaxed) > now_ns) return 0;
  size_t count = 0;
  mu_.Lock();
  while (!heap_.empty() && heap_[0]->deadline_ns <= now_ns) {
    TimerNode* node = heap_[0];
    Remove(node);
    Publish();
    Running running{node, ThisThread(), running_};
    running_ = &running;
    mu_.Unlock();
    node->expire(node);  // may free the node
    ++count;
    mu_.Lock();
    Running** link = &running_;
    while (*link != &running) link = &(*link)->next;
    *link = running.next;
    callback_done_.SignalAll();
  }
  mu_.Unlock();
  return count;
}

}  // namespace fiber
