#include "sentry/kernel/ipc/msg.h"

#include <fmt/format.h>
#include <linux/capability.h>

#include <algorithm>
#include <cstring>

#include "sentry/kernel/task.h"

#ifndef MSG_COPY
#define MSG_COPY 040000
#endif

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

uint64_t BytesOf(const IpcMessage& message) { return message.data.size() + 96; }

bool Matches(const IpcMessage& message, const MsgWanted& wanted) {
  if (wanted.type == 0) return true;
  if (wanted.flags & MSG_EXCEPT) return message.type != wanted.type;
  return message.type == wanted.type;
}

}  // namespace

MsgQueue::~MsgQueue() {
  for (const IpcMessage& m : messages_) UnchargeIpcMemory(BytesOf(m));
}

int MsgQueue::TrySend(IpcMessage& message, const base::Ref<Pid>& pid) {
  if (removed_) return EIDRM;
  // As many messages as bytes, so that empty ones are bounded too.
  if (bytes_ + message.data.size() > max_bytes_ || messages_.size() + 1 > max_bytes_) return kWaits;
  if (!ChargeIpcMemory(BytesOf(message))) return ENOMEM;
  bytes_ += message.data.size();
  messages_.push_back(std::move(message));
  send_time_ = IpcNow();
  sender_ = pid;
  receivers_.WakeAll(EPOLLIN);
  return 0;
}

Result<uint64_t> MsgQueue::Send(IpcMessage message, bool nowait, const base::Ref<Pid>& pid,
                                const Check& may) {
  int outcome = kWaits;
  Status allowed;
  auto attempt = [&] {
    allowed = may();
    if (!allowed.ok()) return true;
    absl::MutexLock l(&mutex_);
    outcome = TrySend(message, pid);
    return outcome != kWaits;
  };
  if (!attempt()) {
    if (nowait) return Error(EAGAIN);
    fiber::WaitUntil(senders_, EPOLLOUT, attempt, {.interruptible = true});
  }
  TRY(allowed);
  if (outcome == kWaits) return Error(base::kERESTARTNOHAND);
  if (outcome != 0) return Error(outcome);
  return uint64_t{0};
}

std::list<IpcMessage>::iterator MsgQueue::FindLocked(const MsgWanted& wanted) {
  if (wanted.flags & MSG_COPY) {  // by place
    if (wanted.type < 0 || static_cast<uint64_t>(wanted.type) >= messages_.size()) {
      return messages_.end();
    }
    return std::next(messages_.begin(), wanted.type);
  }
  if (wanted.type < 0) {
    // The first of the lowest type that is not above.
    const int64_t most = wanted.type == INT64_MIN ? INT64_MAX : -wanted.type;
    auto best = messages_.end();
    for (auto it = messages_.begin(); it != messages_.end(); ++it) {
      if (it->type <= most && (best == messages_.end() || it->type < best->type)) best = it;
    }
    return best;
  }
  return std::find_if(messages_.begin(), messages_.end(),
                      [&](const IpcMessage& m) { return Matches(m, wanted); });
}

int MsgQueue::TryReceive(const MsgWanted& wanted, const base::Ref<Pid>& pid, IpcMessage* message) {
  if (removed_) return EIDRM;
  auto it = FindLocked(wanted);
  if (it == messages_.end()) return kWaits;
  if (wanted.size < it->data.size() && !(wanted.flags & MSG_NOERROR)) return E2BIG;
  if (wanted.flags & MSG_COPY) {
    if (wanted.size < it->data.size()) return EINVAL;
    *message = *it;
    return 0;
  }
  UnchargeIpcMemory(BytesOf(*it));
  bytes_ -= it->data.size();
  *message = std::move(*it);
  messages_.erase(it);
  receive_time_ = IpcNow();
  receiver_ = pid;
  senders_.WakeAll(EPOLLOUT);
  return 0;
}

Result<IpcMessage> MsgQueue::Receive(const MsgWanted& wanted, const base::Ref<Pid>& pid,
                                     const Check& may) {
  int outcome = kWaits;
  Status allowed;
  IpcMessage message;
  auto attempt = [&] {
    allowed = may();
    if (!allowed.ok()) return true;
    absl::MutexLock l(&mutex_);
    outcome = TryReceive(wanted, pid, &message);
    return outcome != kWaits;
  };
  if (!attempt()) {
    if (wanted.flags & IPC_NOWAIT) return Error(ENOMSG);
    fiber::WaitUntil(receivers_, EPOLLIN, attempt, {.interruptible = true});
  }
  TRY(allowed);
  if (outcome == kWaits) return Error(base::kERESTARTNOHAND);
  if (outcome != 0) return Error(outcome);
  return message;
}

void MsgQueue::Remove() {
  absl::MutexLock l(&mutex_);
  removed_ = true;
  senders_.WakeAll(EPOLLOUT);
  receivers_.WakeAll(EPOLLIN);
}

void MsgQueue::SetMaxBytes(uint64_t bytes) {
  absl::MutexLock l(&mutex_);
  max_bytes_ = bytes;
  change_time_ = IpcNow();
  senders_.WakeAll(EPOLLOUT);
}

msqid_ds MsgQueue::Show() const {
  absl::MutexLock l(&mutex_);
  msqid_ds ds{};
  ds.msg_stime = send_time_;
  ds.msg_rtime = receive_time_;
  ds.msg_ctime = change_time_;
  ds.__msg_cbytes = bytes_;
  ds.msg_qnum = messages_.size();
  ds.msg_qbytes = max_bytes_;
  ds.msg_lspid = ShownPid(sender_);
  ds.msg_lrpid = ShownPid(receiver_);
  return ds;
}

void MsgQueue::Count(uint64_t* messages, uint64_t* bytes) const {
  absl::MutexLock l(&mutex_);
  *messages += messages_.size();
  *bytes += bytes_;
}

// --- the calls ---

Result<uint64_t> GetMsg(const IpcCaller& caller, key_t key, int flags) {
  IpcState& state = *caller.state;
  absl::MutexLock l(&state.mutex);
  return GetIpcObject(
      caller, state.msg, key, flags, [](const MsgQueue&) { return base::Ok(); },
      [&]() -> Result<uint64_t> {
        state.mutex.AssertHeld();
        auto queue = base::MakeRef<MsgQueue>(caller.NewPerm(key, flags),
                                             static_cast<uint64_t>(state.limits.msg_queue_bytes));
        TRY(state.msg.Add(queue, state.limits.msg_queues));
        return static_cast<uint64_t>(queue->perm.id);
      });
}

Result<base::Ref<MsgQueue>> FindMsg(const IpcCaller& caller, int id) {
  absl::MutexLock l(&caller.state->mutex);
  return caller.state->msg.Find(id);
}

namespace {
msqid_ds Show(const MsgQueue& queue, const UserNamespace& ns) {
  msqid_ds ds = queue.Show();
  UserIpcPerm perm = ShowIpcPerm(queue.perm, ns);
  static_assert(sizeof(perm) == sizeof(ds.msg_perm));
  memcpy(&ds.msg_perm, &perm, sizeof(perm));
  return ds;
}
}  // namespace

Result<IpcStatResult<msqid_ds>> StatMsg(const IpcCaller& caller, int id, IpcStat how) {
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<MsgQueue> found = TRY(FindForStat(caller, caller.state->msg, id, how));
  return IpcStatResult<msqid_ds>{how == IpcStat::kById ? 0 : static_cast<uint64_t>(found->perm.id),
                                 Show(*found, *caller.creds.user_ns)};
}

Status SetMsg(const IpcCaller& caller, int id, const msqid_ds& wanted) {
  UserIpcPerm perm;
  memcpy(&perm, &wanted.msg_perm, sizeof(perm));
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<MsgQueue> queue = TRY(caller.state->msg.Find(id));
  TRY(caller.MayChange(queue->perm));
  if (wanted.msg_qbytes > static_cast<uint64_t>(caller.state->limits.msg_queue_bytes) &&
      !caller.creds.HasCapIn(CAP_SYS_RESOURCE, *caller.creds.user_ns)) {
    return Error(EPERM);
  }
  TRY(SetIpcPerm(perm, *caller.creds.user_ns, &queue->perm));
  queue->SetMaxBytes(wanted.msg_qbytes);
  return base::Ok();
}

Status RemoveMsg(const IpcCaller& caller, int id) {
  base::Ref<MsgQueue> queue;
  absl::MutexLock l(&caller.state->mutex);
  queue = TRY(caller.state->msg.Find(id));
  TRY(caller.MayChange(queue->perm));
  caller.state->msg.Remove(*queue);
  queue->Remove();
  return base::Ok();
}

int MsgInfo(const IpcCaller& caller, bool usage, msginfo* info) {
  const IpcLimits& limits = caller.state->limits;
  *info = {};
  info->msgmni = limits.msg_queues;
  info->msgmax = limits.msg_max;
  info->msgmnb = limits.msg_queue_bytes;
  info->msgssz = 16;
  info->msgseg = 0xffff;
  info->msgmap = limits.msg_queue_bytes;
  info->msgpool = limits.msg_queues * (limits.msg_queue_bytes / 1024);
  info->msgtql = limits.msg_queue_bytes;
  absl::MutexLock l(&caller.state->mutex);
  if (usage) {
    uint64_t messages = 0, bytes = 0;
    for (const auto& [index, queue] : caller.state->msg.objects()) queue->Count(&messages, &bytes);
    info->msgpool = caller.state->msg.count();
    info->msgmap = static_cast<int>(messages);
    info->msgtql = static_cast<int>(bytes);
  }
  return caller.state->msg.max_index();
}

std::string MsgListing(IpcNamespace& ns) {
  std::string s =
      "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      "
      "stime      rtime      ctime\n";
  base::Ref<IpcState> state = IpcState::Of(ns);
  Task* reader = Task::Current();
  if (reader == nullptr) return s;
  absl::MutexLock l(&state->mutex);
  for (const auto& [index, queue] : state->msg.objects()) {
    msqid_ds ds = queue->Show();
    UserIpcPerm perm = ShowIpcPerm(queue->perm, reader->user_ns());
    s += fmt::format(
        "{:10} {:10}  {:4o}  {:10} {:10} {:5} {:5} {:5} {:5} {:5} {:5} {:10} {:10} {:10}\n",
        perm.key, queue->perm.id, perm.mode, ds.__msg_cbytes, ds.msg_qnum, ds.msg_lspid,
        ds.msg_lrpid, perm.uid, perm.gid, perm.cuid, perm.cgid, ds.msg_stime, ds.msg_rtime,
        ds.msg_ctime);
  }
  return s;
}

}  // namespace sentry
