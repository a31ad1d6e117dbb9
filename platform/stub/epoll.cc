// epoll(7) on files that have lanes (platform/lane_epoll.h).
#include "platform/lane_epoll.h"

#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr uint32_t kAdd = 1, kDelete = 2, kModify = 3;  // EPOLL_CTL_*
constexpr uint32_t kAlways = 0x8 | 0x10;                // EPOLLERR, EPOLLHUP
constexpr uint64_t kMaxEvents = 64;                     // handed out at once
constexpr int64_t kNsPerMs = 1'000'000;

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
  const LaneFd& lanes = Header()->lane_fds[fd];
  const uint64_t name = WatchedLane(Load(&lanes.in), Load(&lanes.out));
  // The watch is of a file that had the descriptor before.
  if (op != kAdd && w.name != name) return false;
  if (op != kDelete && ((event.events & ~kLaneWatchBits) != 0 || !LookAtFd(fd, name).known)) {
    return false;
  }
  // What is ready already is an edge, and so is room: the sentry alone tells of those.
  if (op != kDelete && (event.events & kLaneEdge) != 0) return false;
  if (!NoteChange(e, fd)) return false;
  // One that was removed and is added again has changed, no more.
  if (op == kAdd && (w.heard == 0 || w.name != name)) {
    w.heard = 0;
    Store(&e->unheard, 1u);
  }
  Store(&w.events, op == kDelete ? 0 : event.events | kAlways);
  SetWatchState(e, fd, op == kDelete ? kWatchNone : kWatchLane);
  w.data = event.data;
  w.name = name;
  return true;
}

enum Found { kFoundNothing, kFoundEvent, kFoundUnknown };

// What there is to tell of a watch. What is told once is stored at `guest` at once, and counts as
// told.
Found LookAt(LaneEpoll* e, uint32_t fd, Event* event, uint64_t guest) {
  LaneWatch& w = e->watches[fd];
  const LaneState state = LookAtFd(fd, w.name);
  if (!state.known) return kFoundUnknown;
  const uint32_t ready = state.ready & w.events;
  if (ready == 0) return kFoundNothing;
  const bool news = (w.events & kLaneIn) != 0 && w.seen != state.came;
  if ((w.events & kLaneEdge) != 0 && !news) return kFoundNothing;
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
int LookAtAll(LaneEpoll* e, Event* events, uint64_t guest, uint64_t max) {
  if (Load(&e->sentry_ready) != 0) return -1;
  const uint32_t next = Load(&e->next), start = next < kLaneEpollFds ? next : 0;
  uint64_t count = 0;
  // Those from where the last look has stopped, then those before.
  const uint32_t from[] = {start, 0}, to[] = {kLaneEpollFds, start};
  for (int part = 0; part < 2; part++) {
    for (uint32_t fd = from[part]; (fd = NextServedWatch(e, fd, to[part])) < to[part]; fd++) {
      if (count == max) {
        Store(&e->next, fd);
        return static_cast<int>(count);
      }
      const Found found = LookAt(e, fd, &events[count], guest + count * sizeof(Event));
      if (found == kFoundEvent) count++;
      if (found != kFoundUnknown) continue;
      // What has been taken is handed out before the sentry is asked.
      Store(&e->next, fd);
      return count == 0 ? -1 : static_cast<int>(count);
    }
  }
  return static_cast<int>(count);
}

// The word that waits sleep on; null: they are the sentry's.
uint32_t* WordOf(const LaneEpoll* e) {
  const uint32_t sleeper = Load(&e->sleeper_plus_one);
  return sleeper == 0 || sleeper > kLaneSleepers ? nullptr : &StubWaker().sleepers[sleeper - 1];
}

// A call of epoll_wait(2).
struct Wait {
  LaneEpoll* e;
  uint64_t fd, guest, max;
  Event events[kMaxEvents];
};

// How many events there are; -1: only the sentry can tell.
int Look(Slot* s, Wait* w) {
  if (!LockLane(&w->e->lock, s->lane_owner)) return -1;
  const int n = Serves(w->e, w->fd) ? LookAtAll(w->e, w->events, w->guest, w->max) : -1;
  UnlockLane(&w->e->lock);
  return n;
}

// Has those who bring what is waited for touch the word, from which on it is to be looked for once
// more. False: the sentry does not know of all watches.
bool ArmAll(Slot* s, LaneEpoll* e, const uint32_t* word) {
  if (!LockLane(&e->lock, s->lane_owner)) return false;
  const auto wish = kFirstSleeper + static_cast<LaneWish>(word - StubWaker().sleepers);
  const bool known = Load(&e->unheard) == 0;
  for (uint32_t fd = 0; known && (fd = NextServedWatch(e, fd, kLaneEpollFds)) < kLaneEpollFds;
       fd++) {
    // An edge for a writer who finds no room is told by the sentry, to whom he has turned.
    const uint32_t events = e->watches[fd].events;
    ArmFd(fd, (events & kLaneIn) != 0, (events & kLaneOut) != 0 && (events & kLaneEdge) == 0, wish);
  }
  UnlockLane(&e->lock);
  return known;
}

// Nothing is ready. As Look, but if there was an interrupt the call goes on with the sentry too.
int LookAndWait(Slot* s, Wait* w, int64_t timeout_ns, int64_t* remaining_ns) {
  uint32_t* word = WordOf(w->e);
  *remaining_ns = timeout_ns;
  if (word == nullptr) return -1;
  return WaitForTouch(
      s, word, timeout_ns, remaining_ns,
      [&] { return WordOf(w->e) == word && ArmAll(s, w->e, word); }, [&] { return Look(s, w); });
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
  if (!done) return false;
  const StubWaker waker;
  if (uint32_t* word = WordOf(e)) WakeLaneWaiters(waker, word);
  s->rax = 0;
  return true;
}

bool StreamEpollWait(Slot* s) {
  if (s->lane_owner == 0) return false;
  Wait w;
  w.e = Find(s->rdi);
  w.fd = s->rdi;
  w.guest = s->rsi;
  const int32_t max = static_cast<int32_t>(s->rdx);
  if (w.e == nullptr || max <= 0 || w.guest >= kRegionBase) return false;
  w.max = static_cast<uint64_t>(max) < kMaxEvents ? static_cast<uint64_t>(max) : kMaxEvents;
  const int64_t ms = static_cast<int32_t>(s->r10);
  int n = Look(s, &w);
  if (n == 0 && ms != 0) {
    BeginLaneWait(s, w.fd);
    int64_t remaining_ns;
    n = LookAndWait(s, &w, ms < 0 ? -1 : ms * kNsPerMs, &remaining_ns);
    if (n < 0) return LeaveLaneWait(s, remaining_ns);
    Store(&s->lane_wait, 0u);
  }
  if (n < 0 || StubCopy(reinterpret_cast<void*>(w.guest), w.events,
                        static_cast<uint64_t>(n) * sizeof(Event)) != 0) {
    return false;
  }
  s->rax = static_cast<uint64_t>(n);
  return true;
}

bool StreamEpollPwait(Slot* s) { return s->r8 == 0 && StreamEpollWait(s); }

}  // namespace platform::stub
