// System V message queues (Linux: ipc/msg.c).
#pragma once

#include <sys/msg.h>

#include <cstddef>
#include <list>
#include <vector>

#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/ipc/ipc.h"

namespace sentry {

struct IpcMessage {
  int64_t type = 0;
  std::vector<std::byte> data;
};

// Which message msgrcv(2) wants.
struct MsgWanted {
  int64_t type = 0;
  size_t size = 0;
  int flags = 0;  // IPC_NOWAIT, MSG_NOERROR, MSG_EXCEPT, MSG_COPY
};

// A queue. Thread-safe.
class MsgQueue : public base::RefCounted {
 public:
  MsgQueue(IpcPerm perm, uint64_t max_bytes) : perm(perm), max_bytes_(max_bytes) {}

  IpcPerm perm;  // guarded by IpcState::mutex

  // The caller's right to send or receive is checked each time before it waits, by `may`.
  using Check = std::function<base::Status()>;
  // EAGAIN, EIDRM, ENOMEM, ERESTARTNOHAND.
  base::Result<uint64_t> Send(IpcMessage message, bool nowait, const base::Ref<Pid>& pid,
                              const Check& may);
  // ENOMSG, E2BIG, EIDRM, ERESTARTNOHAND.
  base::Result<IpcMessage> Receive(const MsgWanted& wanted, const base::Ref<Pid>& pid,
                                   const Check& may);
  // IPC_RMID.
  void Remove();
  void SetMaxBytes(uint64_t bytes);
  // All but the permissions.
  msqid_ds Show() const;
  void Count(uint64_t* messages, uint64_t* bytes) const;

 private:
  ~MsgQueue() override;
  std::list<IpcMessage>::iterator FindLocked(const MsgWanted& wanted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // kWaits, 0 or an errno.
  int TrySend(IpcMessage& message, const base::Ref<Pid>& pid) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int TryReceive(const MsgWanted& wanted, const base::Ref<Pid>& pid, IpcMessage* message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static constexpr int kWaits = -1;

  mutable absl::Mutex mutex_;
  std::list<IpcMessage> messages_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t max_bytes_ ABSL_GUARDED_BY(mutex_);
  bool removed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t send_time_ ABSL_GUARDED_BY(mutex_) = 0, receive_time_ ABSL_GUARDED_BY(mutex_) = 0,
                     change_time_ ABSL_GUARDED_BY(mutex_) = IpcNow();
  base::Ref<Pid> sender_ ABSL_GUARDED_BY(mutex_), receiver_ ABSL_GUARDED_BY(mutex_);
  fiber::WaitQueue senders_, receivers_;
};

// msgget(2).
base::Result<uint64_t> GetMsg(const IpcCaller& caller, key_t key, int flags);
base::Result<base::Ref<MsgQueue>> FindMsg(const IpcCaller& caller, int id);
base::Result<IpcStatResult<msqid_ds>> StatMsg(const IpcCaller& caller, int id, IpcStat how);
// IPC_SET. EPERM for more bytes than msgmnb without CAP_SYS_RESOURCE.
base::Status SetMsg(const IpcCaller& caller, int id, const msqid_ds& wanted);
base::Status RemoveMsg(const IpcCaller& caller, int id);
// IPC_INFO, and with `usage` MSG_INFO: the highest place in use.
int MsgInfo(const IpcCaller& caller, bool usage, msginfo* info);

}  // namespace sentry
