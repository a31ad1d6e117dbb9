#include "sentry/net/inet/port_table.h"

#include <time.h>

#include <algorithm>

#include "absl/hash/hash.h"
#include "sentry/base/random.h"

namespace sentry {
namespace {

using base::Error;
using base::Status;

// Of one's own machine an address may be taken again after a second (tcp_tw_reuse 2).
constexpr int64_t kReuseNs = 1'000'000'000;

int64_t NowNs() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000 + ts.tv_nsec;
}

// A connection's remains in TIME_WAIT.
class Remains : public PortUser {};

bool TakesV4(const PortUser& u) { return u.local.ip.v4() || (u.local.ip.IsAny() && !u.v6only); }

// Could one packet be for both (inet_rcv_saddr_equal)?
bool Overlap(const PortUser& a, const PortUser& b) {
  if (a.local.ip == b.local.ip) return true;
  if (a.local.ip.v4() == b.local.ip.v4()) return a.local.ip.IsAny() || b.local.ip.IsAny();
  const PortUser& v6 = a.local.ip.v4() ? b : a;
  return v6.local.ip.IsAny() && !v6.v6only;
}

}  // namespace

// inet_csk_bind_conflict() and udp_lib_lport_inuse().
bool PortTable::Conflicts(const PortUser& user, uint16_t port) {
  auto it = buckets_.find(port);
  if (it == buckets_.end()) return false;
  for (const PortUser* other : it->second.users) {
    if (other == &user || !Overlap(user, *other)) continue;
    bool other_listens = !datagrams_ && other->receiver;
    if (user.reuse_address && other->reuse_address && !other_listens) continue;
    if (user.reuse_port && other->reuse_port &&
        (user.uid == other->uid || waits_.contains(other))) {
      continue;
    }
    return true;
  }
  return false;
}

void PortTable::Enter(PortUser& user) {
  Bucket& bucket = buckets_[user.local.port];
  bucket.users.insert(&user);
  if (user.chosen) ++bucket.chosen;
  user.bound_ = true;
  user.order_ = next_order_++;
  if (datagrams_) user.receiver = true;
  if (user.receiver) bucket.receivers.push_back(&user);
}

void PortTable::Leave(PortUser& user) {
  if (!user.bound_) return;
  auto it = buckets_.find(user.local.port);
  Bucket& bucket = it->second;
  bucket.users.erase(&user);
  if (user.chosen) --bucket.chosen;
  if (user.receiver) std::erase(bucket.receivers, &user);
  if (bucket.users.empty()) buckets_.erase(it);
  user.bound_ = false;
  if (datagrams_) user.receiver = false;
}

void PortTable::EndWait(const PortUser* user) {
  auto it = waits_.find(user);
  if (it == waits_.end()) return;
  DropTuple(*it->second.user);
  Leave(*it->second.user);
  waits_.erase(it);
}

void PortTable::Expire() {
  if (wait_order_.empty()) return;
  int64_t now = NowNs();
  while (!wait_order_.empty()) {
    auto [begin, user] = wait_order_.front();
    auto it = waits_.find(user);
    bool mine = it != waits_.end() && it->second.begin_ns == begin;
    bool full = waits_.size() > kMaxTimeWaits || wait_order_.size() > 4 * kMaxTimeWaits;
    if (mine && now - begin < kTimeWaitNs && !full) break;
    wait_order_.pop_front();
    if (mine) EndWait(user);
  }
}

Status PortTable::Bind(PortUser& user, Range range) {
  absl::MutexLock lock(&mutex_);
  Expire();
  if (user.local.port != 0) {
    if (Conflicts(user, user.local.port)) return Error(EADDRINUSE);
    Enter(user);
    return base::Ok();
  }
  uint32_t count = range.high - range.low + 1u;
  uint64_t start = base::RandomBelow(count);
  // A port that nobody uses; for a user with SO_REUSEADDR, in the end one that can be shared.
  for (bool share : {false, true}) {
    if (share && !user.reuse_address && !user.reuse_port) break;
    for (uint32_t i = 0; i < count; ++i) {
      auto port = static_cast<uint16_t>(range.low + (start + i) % count);
      if (share ? Conflicts(user, port) : buckets_.contains(port)) continue;
      user.local.port = port;
      Enter(user);
      return base::Ok();
    }
  }
  return Error(EADDRINUSE);
}

Status PortTable::Listen(PortUser& user) {
  absl::MutexLock lock(&mutex_);
  if (user.receiver) return base::Ok();
  if (Conflicts(user, user.local.port)) return Error(EADDRINUSE);
  user.receiver = true;
  buckets_[user.local.port].receivers.push_back(&user);
  return base::Ok();
}

void PortTable::Unlisten(PortUser& user) {
  absl::MutexLock lock(&mutex_);
  if (!user.receiver) return;
  std::erase(buckets_[user.local.port].receivers, &user);
  user.receiver = false;
}

bool PortTable::TakeTuple(PortUser& user) {
  auto [it, fresh] = tuples_.try_emplace({user.local, user.remote}, &user);
  if (!fresh) {
    auto wait = waits_.find(it->second);
    if (wait == waits_.end() || NowNs() - wait->second.begin_ns < kReuseNs) return false;
    EndWait(it->second);
    tuples_[{user.local, user.remote}] = &user;
  }
  user.has_tuple_ = true;
  return true;
}

void PortTable::DropTuple(PortUser& user) {
  if (!std::exchange(user.has_tuple_, false)) return;
  auto it = tuples_.find({user.local, user.remote});
  if (it != tuples_.end() && it->second == &user) tuples_.erase(it);
}

Status PortTable::Connect(PortUser& user, const IpAddress& source, const InetAddress& remote,
                          Range range) {
  absl::MutexLock lock(&mutex_);
  Expire();
  InetAddress old_remote = std::exchange(user.remote, remote);
  IpAddress old_local = std::exchange(user.local.ip, source);
  if (user.bound_) {
    if (TakeTuple(user)) return base::Ok();
    user.remote = old_remote;
    user.local.ip = old_local;
    return Error(EADDRNOTAVAIL);
  }
  uint32_t count = range.high - range.low + 1u;
  uint64_t start = base::RandomBelow(count);
  for (uint32_t i = 0; i < count; ++i) {
    user.local.port = static_cast<uint16_t>(range.low + (start + i) % count);
    auto bucket = buckets_.find(user.local.port);
    // A port is shared by connections to different places, never with one that bind(2) chose.
    if (bucket != buckets_.end() && bucket->second.chosen > 0) continue;
    if (!TakeTuple(user)) continue;
    Enter(user);
    return base::Ok();
  }
  user.local.port = 0;
  user.remote = old_remote;
  user.local.ip = old_local;
  return Error(EADDRNOTAVAIL);
}

void PortTable::SetRemote(PortUser& user, const IpAddress& ip, const InetAddress& remote) {
  absl::MutexLock lock(&mutex_);
  user.local.ip = ip;
  user.remote = remote;
}

void PortTable::SetReuse(PortUser& user, bool address, bool port) {
  absl::MutexLock lock(&mutex_);
  user.reuse_address = address;
  user.reuse_port = port;
}

void PortTable::Disconnect(PortUser& user, const IpAddress& ip) {
  absl::MutexLock lock(&mutex_);
  DropTuple(user);
  user.remote = InetAddress();
  user.local.ip = ip;
  if (user.chosen) return;
  Leave(user);
  user.local.port = 0;
}

void PortTable::AddAccepted(PortUser& user) {
  absl::MutexLock lock(&mutex_);
  auto it = tuples_.find({user.local, user.remote});
  if (it != tuples_.end()) {
    if (waits_.contains(it->second)) {
      EndWait(it->second);
    } else {
      it->second->has_tuple_ = false;
    }
  }
  tuples_[{user.local, user.remote}] = &user;
  user.has_tuple_ = true;
  user.chosen = true;
  Enter(user);
}

void PortTable::Release(PortUser& user, bool time_wait) {
  absl::MutexLock lock(&mutex_);
  bool had_tuple = user.has_tuple_;
  DropTuple(user);
  bool bound = user.bound_;
  Leave(user);
  if (!time_wait || !had_tuple || !bound) return;
  Expire();
  auto remains = base::MakeRef<Remains>();
  remains->local = user.local;
  remains->remote = user.remote;
  remains->v6only = user.v6only;
  remains->reuse_address = user.reuse_address;
  remains->reuse_port = user.reuse_port;
  remains->uid = user.uid;
  remains->chosen = user.chosen;
  PortUser* key = remains.get();
  Enter(*key);
  key->has_tuple_ = true;
  tuples_[{key->local, key->remote}] = key;
  int64_t now = NowNs();
  waits_[key] = {std::move(remains), now};
  wait_order_.emplace_back(now, key);
}

// compute_score() of net/ipv4/udp.c and inet_hashtables.c. -1: not for it.
int PortTable::Score(const PortUser& user, const InetAddress& to, const InetAddress& from) const {
  if (to.ip.v4() ? !TakesV4(user) : user.local.ip.v4()) return -1;
  int score = user.local.ip.v4() ? 2 : 1;
  if (!user.local.ip.IsAny()) {
    if (user.local.ip != to.ip) return -1;
    score += 4;
  }
  if (datagrams_ && user.remote.port != 0) {
    if (!(user.remote == from)) return -1;
    score += 8;
  }
  return score;
}

base::Ref<PortUser> PortTable::Find(const InetAddress& to, const InetAddress& from) {
  absl::MutexLock lock(&mutex_);
  auto it = buckets_.find(to.port);
  if (it == buckets_.end()) return nullptr;
  int best = 0;
  std::vector<PortUser*> equal;
  for (PortUser* user : it->second.receivers) {
    int score = Score(*user, to, from);
    if (score < best || score < 0) continue;
    if (score > best) equal.clear();
    best = score;
    equal.push_back(user);
  }
  if (equal.empty()) return nullptr;
  PortUser* chosen = equal.back();  // the latest
  if (equal.size() > 1 && chosen->reuse_port) {
    std::erase_if(equal, [](PortUser* u) { return !u->reuse_port; });
    chosen = equal[absl::HashOf(to, from) % equal.size()];
  }
  if (!chosen->TryIncRef()) return nullptr;
  return base::Ref<PortUser>::Adopt(chosen);
}

std::vector<base::Ref<PortUser>> PortTable::FindAll(const InetAddress& to,
                                                    const InetAddress& from) {
  absl::MutexLock lock(&mutex_);
  std::vector<base::Ref<PortUser>> found;
  auto it = buckets_.find(to.port);
  if (it == buckets_.end()) return found;
  for (PortUser* user : it->second.receivers) {
    if (Score(*user, to, from) < 0 || !user->TryIncRef()) continue;
    found.push_back(base::Ref<PortUser>::Adopt(user));
  }
  return found;
}

std::vector<base::Ref<PortUser>> PortTable::Users() {
  absl::MutexLock lock(&mutex_);
  std::vector<base::Ref<PortUser>> found;
  for (auto& [port, bucket] : buckets_) {
    for (PortUser* user : bucket.users) {
      if (waits_.contains(user) || !user->TryIncRef()) continue;
      found.push_back(base::Ref<PortUser>::Adopt(user));
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a->order_ < b->order_; });
  return found;
}

std::vector<PortTable::TimeWait> PortTable::TimeWaits() {
  absl::MutexLock lock(&mutex_);
  Expire();
  int64_t now = NowNs();
  std::vector<TimeWait> found;
  for (auto& [begin, user] : wait_order_) {
    auto it = waits_.find(user);
    if (it == waits_.end() || it->second.begin_ns != begin) continue;
    found.push_back({user->local, user->remote, kTimeWaitNs - (now - begin)});
  }
  return found;
}

}  // namespace sentry
