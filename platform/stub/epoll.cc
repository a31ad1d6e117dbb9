// epoll(7) on files that have lanes (platform/lane_epoll.h).
#include "platform/lane_epoll.h"

#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr uint32_t kAdd = 1, kDelete = 2, kModify = 3;  // EPOLL_CTL_*
constexpr uint32_t kAlways = 0x8 | 0x10;                // EPOLLERR, EPOLLHUP
constexpr uint64_t kMaxEvents = 64;                     // handed out at once

struct Event {  // struct epoll_event
  uint32_t events;
  uint64_t data;
} __attribute__((packed));

LaneEpoll* Find(uint64_t fd) {
  for (LaneEpoll& e : Header()->lane_epolls) {
    if (Load(&e.fd_plus_one) == fd + 1) return &e;
  }
  return nullptr;
}

bool Serves(const LaneEpoll* e, uint64_t fd) {
  return Load(&e->fd_plus_one) == fd + 1 && Load(&e->busy) == 0;
}

// The lane of this name; null: it is that of a direction which the descriptor does not have.
const StreamLane* LaneAt(uint64_t name) {
  if (LaneIndex(name) >= kLanes) return nullptr;
  return reinterpret_cast<const StreamLane*>(kLaneBase + LaneIndex(name) * kLaneStride);
}

LaneState StateOf(uint32_t fd) {
  const LaneFd& lanes = Header()->lane_fds[fd];
  const uint64_t in = Load(&lanes.in), out = Load(&lanes.out);
  LaneState state{in != 0 && out != 0, 0, 0};
  if (!state.known) return state;
  LookAtLaneIn(LaneAt(in), LaneGeneration(in), &state);
  LookAtLaneOut(LaneAt(out), LaneGeneration(out), &state);
  return state;
}

// The sentry is to learn of what has become of the watch. False: too much is noted already.
bool NoteChange(LaneEpoll* e, uint32_t fd) {
  LaneWatch& w = e->watches[fd];
  if (w.changed) return true;
  if (e->change_count >= kLaneEpollFds) return false;
  e->changes[e->change_count] = static_cast<uint16_t>(fd);
  Store(&e->change_count, e->change_count + 1);
  w.changed = 1;
  return true;
}

bool Control(LaneEpoll* e, uint32_t op, uint32_t fd, const Event& event) {
  LaneWatch& w = e->watches[fd];
  if (w.state != (op == kAdd ? kWatchNone : kWatchLane)) return false;
  if (op != kDelete && ((event.events & ~kLaneWatchBits) != 0 || !StateOf(fd).known)) return false;
  // What is ready already is an edge, and so is room: the sentry alone tells of those.
  if (op != kDelete && (event.events & kLaneEdge) != 0) return false;
  if (!NoteChange(e, fd)) return false;
  w.state = op == kDelete ? kWatchNone : kWatchLane;
  w.events = event.events | kAlways;
  w.data = event.data;
  if (fd >= e->end) e->end = fd + 1;
  return true;
}

enum Found { kFoundNothing, kFoundEvent, kFoundUnknown };

// What there is to tell of a watch. What is told once is stored at `guest` at once, and counts as
// told.
Found LookAt(LaneEpoll* e, uint32_t fd, Event* event, uint64_t guest) {
  LaneWatch& w = e->watches[fd];
  const LaneState state = StateOf(fd);
  if (!state.known) return kFoundUnknown;
  const uint32_t ready = state.ready & w.events;
  if (ready == 0) return kFoundNothing;
  if ((w.events & kLaneEdge) != 0 && w.seen == state.came) return kFoundNothing;
  *event = {ready, w.data};
  if ((w.events & (kLaneEdge | kLaneOneShot)) == 0) return kFoundEvent;
  if (StubCopy(reinterpret_cast<void*>(guest), event, sizeof(*event)) != 0) return kFoundUnknown;
  if ((w.events & kLaneOneShot) != 0) {
    if (!NoteChange(e, fd)) return kFoundUnknown;
    w.events &= kLaneEdge | kLaneOneShot;
  }
  w.seen = state.came;
  return kFoundEvent;
}

// Fills `events`, which is to go to `guest`, with up to `max` of what is ready. -1: only the sentry
// can tell.
int Look(LaneEpoll* e, Event* events, uint64_t guest, uint64_t max) {
  if (Load(&e->sentry_ready) != 0) return -1;
  const uint32_t end = e->end <= kLaneEpollFds ? e->end : 0;
  uint32_t fd = e->next < end ? e->next : 0;
  uint64_t count = 0;
  for (uint32_t i = 0; i < end && count < max; i++, fd = fd + 1 < end ? fd + 1 : 0) {
    if (e->watches[fd].state != kWatchLane) continue;
    const Found found = LookAt(e, fd, &events[count], guest + count * sizeof(Event));
    if (found == kFoundEvent) count++;
    // What has been taken is handed out before the sentry is asked.
    if (found == kFoundUnknown && count == 0) return -1;
    if (found == kFoundUnknown) break;
  }
  e->next = fd;
  return static_cast<int>(count);
}

}  // namespace

bool StreamEpollCtl(Slot* s) {
  if (s->lane_owner == 0 || s->rdx >= kLaneEpollFds) return false;
  LaneEpoll* e = Find(s->rdi);
  if (e == nullptr) return false;
  const uint32_t op = static_cast<uint32_t>(s->rsi), fd = static_cast<uint32_t>(s->rdx);
  Event event{};
  if (op != kAdd && op != kModify && op != kDelete) return false;
  if (op != kDelete &&
      StubCopy(&event, reinterpret_cast<const void*>(s->r10), sizeof(event)) != 0) {
    return false;
  }
  if (!TryLockLane(&e->lock, s->lane_owner)) return false;
  const bool done = Serves(e, s->rdi) && Control(e, op, fd, event);
  UnlockLane(&e->lock);
  if (done) s->rax = 0;
  return done;
}

bool StreamEpollWait(Slot* s) {
  if (s->lane_owner == 0) return false;
  LaneEpoll* e = Find(s->rdi);
  const int32_t max = static_cast<int32_t>(s->rdx);
  if (e == nullptr || max <= 0 || s->rsi >= kRegionBase) return false;
  Event events[kMaxEvents];
  const uint64_t most =
      static_cast<uint64_t>(max) < kMaxEvents ? static_cast<uint64_t>(max) : kMaxEvents;
  if (!TryLockLane(&e->lock, s->lane_owner)) return false;
  const int n = Serves(e, s->rdi) ? Look(e, events, s->rsi, most) : -1;
  UnlockLane(&e->lock);
  // Waiting is the sentry's.
  if (n < 0 || (n == 0 && s->r10 != 0)) return false;
  if (StubCopy(reinterpret_cast<void*>(s->rsi), events, static_cast<uint64_t>(n) * sizeof(Event)) !=
      0) {
    return false;
  }
  s->rax = static_cast<uint64_t>(n);
  return true;
}

bool StreamEpollPwait(Slot* s) { return s->r8 == 0 && StreamEpollWait(s); }

}  // namespace platform::stub
