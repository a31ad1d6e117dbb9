// mq_open, mq_unlink, mq_timedsend, mq_timedreceive, mq_notify, mq_getsetattr.
#include <mqueue.h>

#include <functional>

#include "sentry/base/time.h"
#include "sentry/fs/mqueue/mqueue_fs.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/net/netlink/netlink_socket.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

using base::Error;
using base::Result;
using base::UserPtr;

namespace {

// An absolute time of CLOCK_REALTIME as a deadline. EFAULT, EINVAL.
Result<int64_t> Deadline(Task& t, uint64_t addr) {
  if (addr == 0) return fiber::kNoDeadline;
  timespec ts = TRY(UserPtr<timespec>(addr).CopyIn(t.memory()));
  std::optional<int64_t> at = base::NsFromTimespec(ts);
  if (!at) return Error(EINVAL);
  if (*at == base::kNever) return fiber::kNoDeadline;
  return base::SaturatingAdd(base::MonotonicNs(), *at - base::RealtimeNs());
}

struct OpenedQueue {
  base::Ref<FileDescription> file;
  MessageQueue& queue;
};

// EBADF for what is no queue, or not open for `may`.
Result<OpenedQueue> GetQueue(Task& t, int fd, int may) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  MessageQueue* queue = QueueOf(*file);
  if (queue == nullptr) return Error(EBADF);
  if ((may == kMayRead && !file->readable()) || (may == kMayWrite && !file->writable())) {
    return Error(EBADF);
  }
  return OpenedQueue{std::move(file), *queue};
}

// How libc's thread is told (SIGEV_THREAD): it waits on a netlink socket for the cookie that it
// gave, whose last byte says why it comes. EFAULT, EBADF, ENOTSOCK, EINVAL.
Result<std::function<void(bool)>> CookieDelivery(Task& t, sigval value, int fd) {
  constexpr std::byte kWokenUp{1}, kRemoved{2};  // NOTIFY_WOKENUP, NOTIFY_REMOVED
  std::vector<std::byte> cookie(32);             // NOTIFY_COOKIE_LEN
  TRY(t.memory().Read(reinterpret_cast<uint64_t>(value.sival_ptr), cookie));
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  if (file->inode() == nullptr || !S_ISSOCK(file->inode()->type())) return Error(ENOTSOCK);
  if (dynamic_cast<NetlinkSocket*>(file.get()) == nullptr) return Error(EINVAL);
  return std::function<void(bool)>([cookie, file](bool message_came) {
    std::vector<std::byte> message = cookie;
    message.back() = message_came ? kWokenUp : kRemoved;
    static_cast<NetlinkSocket&>(*file).Deliver(std::move(message));
  });
}

}  // namespace

Result<uint64_t> SysMqOpen(Task& t, const SyscallArgs& a) {
  const uint32_t flags = a.Uint(1);
  mq_attr attr{};
  if (a[3] != 0) attr = TRY(UserPtr<mq_attr>(a[3]).CopyIn(t.memory()));
  std::string name = TRY(t.CopyInPath(a[0]));
  base::Ref<FileDescription> file =
      TRY(OpenQueue(t, name, flags, a.Uint(2), a[3] != 0 ? &attr : nullptr));
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), /*cloexec=*/true)));
}

Result<uint64_t> SysMqUnlink(Task& t, const SyscallArgs& a) {
  std::string name = TRY(t.CopyInPath(a[0]));
  if (name.find('/') != name.npos) return Error(EACCES);
  WalkContext ctx = t.WalkFromCwd();
  ctx.root = ctx.start = MqueueState::Of(*t.ipc_namespace_ref())->root();
  TRY(t.kernel().vfs().Unlink(ctx, name));
  return 0;
}

Result<uint64_t> SysMqTimedsend(Task& t, const SyscallArgs& a) {
  int64_t deadline = TRY(Deadline(t, a[4]));
  const uint32_t priority = a.Uint(3);
  if (priority >= kMaxMqPriority) return Error(EINVAL);
  OpenedQueue opened = TRY(GetQueue(t, a.Int(0), kMayWrite));
  if (a[2] > static_cast<uint64_t>(opened.queue.message_size())) return Error(EMSGSIZE);
  MessageQueue::Message message{priority, std::vector<std::byte>(a[2])};
  TRY(t.memory().Read(a[1], message.data));
  TRY(opened.queue.Send(std::move(message), opened.file->nonblock(), deadline));
  return 0;
}

Result<uint64_t> SysMqTimedreceive(Task& t, const SyscallArgs& a) {
  int64_t deadline = TRY(Deadline(t, a[4]));
  OpenedQueue opened = TRY(GetQueue(t, a.Int(0), kMayRead));
  if (a[2] < static_cast<uint64_t>(opened.queue.message_size())) return Error(EMSGSIZE);
  MessageQueue::Message message = TRY(opened.queue.Receive(opened.file->nonblock(), deadline));
  if (a[3] != 0) TRY(UserPtr<uint32_t>(a[3]).CopyOut(t.memory(), message.priority));
  TRY(t.memory().Write(a[1], message.data));
  return message.data.size();
}

Result<uint64_t> SysMqNotify(Task& t, const SyscallArgs& a) {
  // struct sigevent as the kernel has it.
  struct SigEvent {
    sigval value;
    int32_t signo, notify, tid, pad[11];
  };
  static_assert(sizeof(SigEvent) == 64);
  MessageQueue::Notification n;
  n.owner = t.thread_group().pid();
  n.user_ns = t.creds().user_ns;
  if (a[1] == 0) {
    OpenedQueue opened = TRY(GetQueue(t, a.Int(0), 0));
    opened.queue.Unregister(n.owner);
    return 0;
  }
  SigEvent event = TRY(UserPtr<SigEvent>(a[1]).CopyIn(t.memory()));
  n.kind = event.notify;
  n.signo = event.signo;
  n.value = event.value;
  switch (event.notify) {
    case SIGEV_NONE:
      break;
    case SIGEV_SIGNAL:
      if (event.signo < 0 || event.signo > kNumSignals) return Error(EINVAL);
      break;
    case SIGEV_THREAD:
      n.deliver = TRY(CookieDelivery(t, event.value, event.signo));
      break;
    default:
      return Error(EINVAL);
  }
  OpenedQueue opened = TRY(GetQueue(t, a.Int(0), 0));
  TRY(opened.queue.Register(std::move(n)));
  return 0;
}

Result<uint64_t> SysMqGetsetattr(Task& t, const SyscallArgs& a) {
  constexpr int64_t kSettable = O_NONBLOCK;
  mq_attr wanted{};
  if (a[1] != 0) {
    wanted = TRY(UserPtr<mq_attr>(a[1]).CopyIn(t.memory()));
    if (wanted.mq_flags & ~kSettable) return Error(EINVAL);
  }
  OpenedQueue opened = TRY(GetQueue(t, a.Int(0), 0));
  mq_attr old{};
  old.mq_flags = opened.file->flags() & kSettable;
  old.mq_maxmsg = opened.queue.max_messages();
  old.mq_msgsize = opened.queue.message_size();
  old.mq_curmsgs = opened.queue.count();
  if (a[1] != 0) {
    const uint32_t others = opened.file->flags() & ~uint32_t{kSettable};
    TRY(opened.file->SetStatusFlags(others | static_cast<uint32_t>(wanted.mq_flags)));
  }
  if (a[2] != 0) TRY(UserPtr<mq_attr>(a[2]).CopyOut(t.memory(), old));
  return 0;
}

}  // namespace sentry
