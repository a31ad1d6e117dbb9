// System V IPC of a namespace: limits, identifiers, permissions.
#pragma once

#include <sys/ipc.h>
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/namespaces.h"

namespace sentry {

// Who made and owns an object (Linux: kern_ipc_perm). Ids are kernel ids.
struct IpcPerm {
  key_t key = IPC_PRIVATE;
  int id = 0;
  uid_t uid = 0, cuid = 0;
  gid_t gid = 0, cgid = 0;
  uint32_t mode = 0;  // nine bits, and SHM_DEST and SHM_LOCKED
  int seq = 0;
};

// struct ipc64_perm.
struct UserIpcPerm {
  int32_t key;
  uint32_t uid, gid, cuid, cgid;
  uint32_t mode;
  uint16_t seq, pad;
  uint32_t pad2;
  uint64_t unused[2];
};
static_assert(sizeof(UserIpcPerm) == 48);

class IpcState;

// EACCES unless `perm` grants what the bits of `mode` (S_IRUGO, S_IWUGO) ask (Linux: ipcperms).
base::Status CheckIpcAccess(const Credentials& creds, const UserNamespace& ns, const IpcPerm& perm,
                            uint32_t mode);
// EPERM unless the caller owns or made it, or has CAP_SYS_ADMIN (IPC_SET, IPC_RMID).
base::Status CheckIpcOwner(const Credentials& creds, const UserNamespace& ns, const IpcPerm& perm);
// As the caller sees it.
UserIpcPerm ShowIpcPerm(const IpcPerm& perm, const UserNamespace& ns);
// IPC_SET: owner and mode. EINVAL for ids without a mapping.
base::Status SetIpcPerm(const UserIpcPerm& wanted, const UserNamespace& ns, IpcPerm* perm);

// Bytes of the sentry's heap that semaphores and messages of the whole sandbox take.
bool ChargeIpcMemory(uint64_t bytes);
void UnchargeIpcMemory(uint64_t bytes);

// Objects of one kind. Guarded by IpcState::mutex. T has a `perm`.
template <typename T>
class IpcTable {
 public:
  static constexpr int kIndexBits = 15;
  static constexpr int kMaxCount = 1 << kIndexBits;  // IPCMNI

  // Enters a new object under its key, and gives it its id. ENOSPC.
  base::Status Add(base::Ref<T> object, int limit) {
    if (static_cast<int>(objects_.size()) >= std::min(limit, kMaxCount)) return base::Error(ENOSPC);
    int cycle = std::min(std::max(static_cast<int>(objects_.size()) * 3 / 2, kMinCycle), kMaxCount);
    int index = last_index_ + 1;
    while (index >= cycle || objects_.contains(index)) index = index >= cycle ? 0 : index + 1;
    if (index <= last_index_) seq_ = (seq_ + 1) & 0xffff;
    last_index_ = index;
    IpcPerm& perm = object->perm;
    perm.seq = seq_;
    perm.id = seq_ << kIndexBits | index;
    if (perm.key != IPC_PRIVATE) keys_[perm.key] = index;
    objects_[index] = std::move(object);
    return base::Ok();
  }
  T* FindKey(key_t key) const {
    auto it = keys_.find(key);
    return it == keys_.end() ? nullptr : objects_.at(it->second).get();
  }
  // EINVAL.
  base::Result<base::Ref<T>> Find(int id) const {
    auto it = id < 0 ? objects_.end() : objects_.find(id & (kMaxCount - 1));
    if (it == objects_.end() || it->second->perm.id != id) return base::Error(EINVAL);
    return it->second;
  }
  // By place in the table, for SHM_STAT and the like. EINVAL.
  base::Result<base::Ref<T>> FindIndex(int index) const {
    auto it = index < 0 ? objects_.end() : objects_.find(index & (kMaxCount - 1));
    if (it == objects_.end()) return base::Error(EINVAL);
    return it->second;
  }
  // It can no longer be found by its key.
  void ForgetKey(T& object) {
    if (object.perm.key != IPC_PRIVATE) keys_.erase(object.perm.key);
    object.perm.key = IPC_PRIVATE;
  }
  void Remove(T& object) {
    ForgetKey(object);
    objects_.erase(object.perm.id & (kMaxCount - 1));
  }
  int count() const { return static_cast<int>(objects_.size()); }
  // 0 if there is none.
  int max_index() const { return objects_.empty() ? 0 : objects_.rbegin()->first; }
  const std::map<int, base::Ref<T>>& objects() const { return objects_; }

 private:
  static constexpr int kMinCycle = 64;
  std::map<int, base::Ref<T>> objects_;  // by index
  absl::flat_hash_map<key_t, int> keys_;
  int last_index_ = -1, seq_ = 0;
};

class ShmSegment;
class SemSet;
class MsgQueue;

// /proc/sys/kernel: shm*, sem, msg*.
struct IpcLimits {
  std::atomic<uint64_t> shm_max{~uint64_t{0} - (1u << 24)}, shm_all{~uint64_t{0} - (1u << 24)};
  std::atomic<int> shm_count{4096};
  std::atomic<int> shm_rmid_forced{0};
  std::atomic<int> sem_per_set{32000}, sem_total{1024000000}, sem_ops{500}, sem_sets{32000};
  std::atomic<int> msg_max{8192}, msg_queue_bytes{16384}, msg_queues{32000};
};

// What an IPC namespace has. Thread-safe.
class IpcState : public base::RefCounted {
 public:
  static base::Ref<IpcState> Of(IpcNamespace& ns);

  IpcLimits limits;
  absl::Mutex mutex;
  IpcTable<ShmSegment> shm ABSL_GUARDED_BY(mutex);
  uint64_t shm_pages ABSL_GUARDED_BY(mutex) = 0;
  IpcTable<SemSet> sem ABSL_GUARDED_BY(mutex);
  int64_t sem_count ABSL_GUARDED_BY(mutex) = 0;
  IpcTable<MsgQueue> msg ABSL_GUARDED_BY(mutex);

 private:
  ~IpcState() override;
};

// Who makes a call, and where.
struct IpcCaller {
  const Credentials& creds;
  base::Ref<IpcNamespace> ns;
  base::Ref<IpcState> state;
  base::Ref<Pid> pid;  // of the process

  const UserNamespace& user_ns() const { return *ns->user_ns(); }
  base::Status MayAccess(const IpcPerm& perm, uint32_t mode) const {
    return CheckIpcAccess(creds, user_ns(), perm, mode);
  }
  base::Status MayChange(const IpcPerm& perm) const {
    return CheckIpcOwner(creds, user_ns(), perm);
  }
  // Of a new object.
  IpcPerm NewPerm(key_t key, int flags) const;
};
class Task;
IpcCaller CallerOf(Task& t);

// shmget, semget and msgget (Linux: ipcget). `check(object)`: what the caller's size asks of one
// that exists; `make()`: a new one, entered by the caller's Add.
template <typename T, typename Check, typename Make>
base::Result<uint64_t> GetIpcObject(const IpcCaller& caller, const IpcTable<T>& table, key_t key,
                                    int flags, Check&& check, Make&& make) {
  T* found = key == IPC_PRIVATE ? nullptr : table.FindKey(key);
  if (found == nullptr) {
    if (key != IPC_PRIVATE && !(flags & IPC_CREAT)) return base::Error(ENOENT);
    return make();
  }
  if ((flags & IPC_CREAT) && (flags & IPC_EXCL)) return base::Error(EEXIST);
  TRY(check(*found));
  TRY(caller.MayAccess(found->perm, static_cast<uint32_t>(flags)));
  return static_cast<uint64_t>(found->perm.id);
}

// How IPC_STAT and its sisters name an object: by its id, or by its place in the table, with or
// without asking for the right to read it (SHM_STAT, SHM_STAT_ANY).
enum class IpcStat { kById, kByIndex, kAny };

// The object, if the caller may look at it. EINVAL, EACCES.
template <typename T>
base::Result<base::Ref<T>> FindForStat(const IpcCaller& caller, const IpcTable<T>& table, int id,
                                       IpcStat how) {
  constexpr uint32_t kRead = 0444;
  base::Ref<T> object = TRY(how == IpcStat::kById ? table.Find(id) : table.FindIndex(id));
  if (how != IpcStat::kAny) TRY(caller.MayAccess(object->perm, kRead));
  return object;
}

// What such a call returns, and what it copies out.
template <typename Ds>
struct IpcStatResult {
  uint64_t value;  // 0, or the id if it was asked for by place
  Ds ds;
};

// Number of `pid` for the reader of a file or a struct; 0 if none.
int ShownPid(const base::Ref<Pid>& pid);
int64_t IpcNow();  // CLOCK_REALTIME, seconds

// /proc/sysvipc/{shm,sem,msg} as the current task sees them.
std::string ShmListing(IpcNamespace& ns);
std::string SemListing(IpcNamespace& ns);
std::string MsgListing(IpcNamespace& ns);

}  // namespace sentry
