// msgget, msgsnd, msgrcv, msgctl.
#include "sentry/kernel/ipc/msg.h"

#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/ipc/control.h"

#ifndef MSG_COPY
#define MSG_COPY 040000
#endif
#ifndef MSG_STAT_ANY
#define MSG_STAT_ANY 13
#endif

namespace sentry {

using base::Error;
using base::Result;
using base::UserPtr;

namespace {

constexpr uint64_t kTypeSize = sizeof(int64_t);  // of msgbuf's mtype, before the text

// May the caller still use the queue? Asked again after each wait.
MsgQueue::Check MayUse(const IpcCaller& caller, MsgQueue& queue, uint32_t mode) {
  return [&caller, &queue, mode]() -> base::Status {
    absl::MutexLock l(&caller.state->mutex);
    return caller.MayAccess(queue.perm, mode);
  };
}

}  // namespace

Result<uint64_t> SysMsgget(Task& t, const SyscallArgs& a) {
  return GetMsg(CallerOf(t), a.Int(0), a.Int(1));
}

Result<uint64_t> SysMsgsnd(Task& t, const SyscallArgs& a) {
  const int id = a.Int(0), flags = a.Int(3);
  const uint64_t size = a[2];
  const IpcCaller caller = CallerOf(t);
  IpcMessage message;
  message.type = TRY(UserPtr<int64_t>(a[1]).CopyIn(t.memory()));
  if (size > static_cast<uint64_t>(caller.state->limits.msg_max.load()) || id < 0) {
    return Error(EINVAL);
  }
  if (message.type < 1) return Error(EINVAL);
  message.data.resize(size);
  TRY(t.memory().Read(a[1] + kTypeSize, message.data));
  base::Ref<MsgQueue> queue = TRY(FindMsg(caller, id));
  return queue->Send(std::move(message), (flags & IPC_NOWAIT) != 0, caller.pid,
                     MayUse(caller, *queue, 0222));
}

Result<uint64_t> SysMsgrcv(Task& t, const SyscallArgs& a) {
  const int id = a.Int(0);
  const MsgWanted wanted{a.Long(3), a[2], a.Int(4)};
  if (id < 0 || a.Long(2) < 0) return Error(EINVAL);
  if ((wanted.flags & MSG_COPY) && ((wanted.flags & MSG_EXCEPT) || !(wanted.flags & IPC_NOWAIT))) {
    return Error(EINVAL);
  }
  const IpcCaller caller = CallerOf(t);
  base::Ref<MsgQueue> queue = TRY(FindMsg(caller, id));
  IpcMessage message = TRY(queue->Receive(wanted, caller.pid, MayUse(caller, *queue, 0444)));
  // A bad address loses the message, as in Linux.
  TRY(UserPtr<int64_t>(a[1]).CopyOut(t.memory(), message.type));
  std::span<const std::byte> text(message.data);
  text = text.first(std::min<size_t>(text.size(), wanted.size));
  TRY(t.memory().Write(a[1] + kTypeSize, text));
  return text.size();
}

Result<uint64_t> SysMsgctl(Task& t, const SyscallArgs& a) {
  const int id = a.Int(0), command = a.Int(1);
  if (id < 0 || command < 0) return Error(EINVAL);
  const IpcCaller caller = CallerOf(t);
  switch (command) {
    case IPC_INFO:
    case MSG_INFO:
      return TellInfo<msginfo>(
          t, a[2], [&](msginfo* info) { return MsgInfo(caller, command == MSG_INFO, info); });
    case MSG_STAT:
    case MSG_STAT_ANY:
    case IPC_STAT:
      return TellStat<msqid_ds>(t, command, MSG_STAT, a[2],
                                [&](IpcStat how) { return StatMsg(caller, id, how); });
    case IPC_SET: {
      msqid_ds ds = TRY(UserPtr<msqid_ds>(a[2]).CopyIn(t.memory()));
      TRY(SetMsg(caller, id, ds));
      return 0;
    }
    case IPC_RMID:
      TRY(RemoveMsg(caller, id));
      return 0;
    default:
      return Error(EINVAL);
  }
}

}  // namespace sentry
