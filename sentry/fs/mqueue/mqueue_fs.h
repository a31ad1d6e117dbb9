// The filesystem of POSIX message queues.
#pragma once

#include <string>
#include <string_view>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fs/mqueue/queue.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/types.h"

namespace sentry {

class Kernel;
class Vfs;

// /proc/sys/fs/mqueue, of an IPC namespace.
struct MqueueLimits : base::RefCounted {
  std::atomic<int> queues_max{256}, msg_max{10}, msgsize_max{8192}, msg_default{10},
      msgsize_default{8192};
  std::atomic<int> queues{0};
};
inline constexpr int kHardMsgMax = 65536, kHardMsgSizeMax = 16 << 20;

// What an IPC namespace has of them.
class MqueueState : public base::RefCounted {
 public:
  static base::Ref<MqueueState> Of(IpcNamespace& ns);
  MqueueLimits& limits() { return *limits_; }
  // The place of the queues for mq_open and mq_unlink, wherever it is mounted or not.
  Path root() const;
  const base::Ref<Inode>& root_inode() const { return root_; }

  MqueueState();

 private:
  ~MqueueState() override = default;
  const base::Ref<MqueueLimits> limits_;
  base::Ref<Inode> root_;
  base::Ref<Mount> mount_;
};

// mq_open(2) by the current task. `attr` null: the defaults. `name` as the call gets it, without
// the slash that libc takes away. EACCES, EEXIST, EINVAL, EMFILE, ENAMETOOLONG, ENOENT, ENOSPC.
base::Result<base::Ref<FileDescription>> OpenQueue(Task& t, std::string_view name, uint32_t flags,
                                                   mode_t mode, const mq_attr* attr);
// Null if `file` is not a message queue.
MessageQueue* QueueOf(FileDescription& file);

// The type "mqueue": each mount shows the queues of the caller's IPC namespace.
void RegisterMqueue(Vfs& vfs);

}  // namespace sentry
