// PID, UTS, IPC, network and cgroup namespaces; Pid.
#pragma once

#include <atomic>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"

namespace sentry {

class PidNamespace;
class ProcessGroup;
class Session;
class Task;
class ThreadGroup;

// Any namespace: its owner and its inode number in nsfs (/proc/PID/ns/*).
class Namespace : public base::RefCounted {
 public:
  const base::Ref<UserNamespace>& user_ns() const { return user_ns_; }
  uint64_t id() const { return id_; }

 protected:
  explicit Namespace(base::Ref<UserNamespace> user_ns)
      : user_ns_(std::move(user_ns)), id_(NextNamespaceId()) {}

 private:
  const base::Ref<UserNamespace> user_ns_;
  const uint64_t id_;
};

class UtsNamespace : public Namespace {
 public:
  UtsNamespace(base::Ref<UserNamespace> user_ns, std::string hostname, std::string domainname)
      : Namespace(std::move(user_ns)),
        hostname_(std::move(hostname)),
        domainname_(std::move(domainname)) {}
  base::Ref<UtsNamespace> Copy(base::Ref<UserNamespace> user_ns) const;
  std::string hostname() const;
  std::string domainname() const;
  void SetHostname(std::string name);
  void SetDomainname(std::string name);

 private:
  mutable absl::Mutex mutex_;
  std::string hostname_ ABSL_GUARDED_BY(mutex_), domainname_ ABSL_GUARDED_BY(mutex_);
};

// System V IPC keeps its objects here as an opaque part owned by its code.
class IpcNamespace : public Namespace {
 public:
  explicit IpcNamespace(base::Ref<UserNamespace> user_ns) : Namespace(std::move(user_ns)) {}
  // What `key` (an address of the user's choice) has stored here; made by `make` the first time.
  base::Ref<base::RefCounted> GetOrMake(const void* key, base::Ref<base::RefCounted> (*make)());

 private:
  absl::Mutex mutex_;
  std::map<const void*, base::Ref<base::RefCounted>> parts_ ABSL_GUARDED_BY(mutex_);
};

// The network stack of a namespace is a part owned by its code, like IpcNamespace's.
class NetNamespace : public IpcNamespace {
 public:
  using IpcNamespace::IpcNamespace;
};

class CgroupNamespace : public Namespace {
 public:
  explicit CgroupNamespace(base::Ref<UserNamespace> user_ns) : Namespace(std::move(user_ns)) {}
};

// A process identifier with its numbers in its namespace and all above (Linux: struct pid). A
// number is not used again while the Pid lives (held by a task, group, session or pidfd).
class Pid : public base::RefCounted {
 public:
  // Number in `ns`; 0 if it is not visible there.
  int NumberIn(const PidNamespace& ns) const;
  // Number in the namespace that it was made in.
  int number() const { return numbers_.back(); }
  const base::Ref<PidNamespace>& ns() const { return ns_; }

  // What it identifies now; guarded by Kernel::task_mutex().
  Task* task = nullptr;
  ThreadGroup* group = nullptr;  // as thread group id
  ProcessGroup* pgrp = nullptr;  // as process group id
  Session* session = nullptr;
  // Woken when the thread group ended (pidfds poll it).
  fiber::WaitQueue exit_queue;

 private:
  friend class PidNamespace;
  Pid(base::Ref<PidNamespace> ns, std::vector<int> numbers)
      : ns_(std::move(ns)), numbers_(std::move(numbers)) {}
  ~Pid() override;
  const base::Ref<PidNamespace> ns_;
  const std::vector<int> numbers_;  // by level, root namespace first
};

class PidNamespace : public Namespace {
 public:
  // `parent` null: the root namespace.
  PidNamespace(base::Ref<PidNamespace> parent, base::Ref<UserNamespace> user_ns);
  const base::Ref<PidNamespace>& parent() const { return parent_; }
  int level() const { return level_; }
  bool IsAncestorOf(const PidNamespace& other) const;  // or the same

  // A new Pid in this namespace and those above. EAGAIN if there is no free number, ENOMEM if this
  // namespace's init has died. `wanted`: numbers from clone3's set_tid, innermost first (EEXIST).
  base::Result<base::Ref<Pid>> Allocate(std::vector<int> wanted = {});
  // Null if `number` is not in use.
  base::Ref<Pid> Find(int number) const;
  // All numbers in use, in order.
  std::vector<int> Numbers() const;
  int last_pid() const;
  void SetLastPid(int pid);
  // Refuses further Allocate: its init has died.
  void Close();

  // Its init; guarded by Kernel::task_mutex(). Null before it is made and after it died.
  ThreadGroup* init = nullptr;
  // reboot(2) inside of it, or 0.
  std::atomic<int> reboot{0};

 private:
  friend class Pid;
  ~PidNamespace() override = default;
  base::Result<int> TakeNumber(int wanted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  const base::Ref<PidNamespace> parent_;
  const int level_;
  mutable absl::Mutex mutex_;
  std::map<int, Pid*> pids_ ABSL_GUARDED_BY(mutex_);
  int last_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// The namespaces that a process begins in, but for its mounts and users (Linux: struct nsproxy).
struct NamespaceSet {
  base::Ref<PidNamespace> pid;
  base::Ref<UtsNamespace> uts;
  base::Ref<IpcNamespace> ipc;
  base::Ref<NetNamespace> net;
  base::Ref<CgroupNamespace> cgroup;
};

// unshare and clone with CLONE_NEWUSER: `creds` get a new user namespace with all capabilities in
// it (Linux: create_user_ns). EPERM if their ids have no mapping, ENOSPC beyond 32 levels.
base::Status EnterNewUserNamespace(Credentials& creds);
// What who has come into a user namespace may do there: all (Linux: set_cred_user_ns).
void GrantAllCapabilities(Credentials& creds);

}  // namespace sentry
