#include "sentry/kernel/seccomp/listener.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "sentry/base/random.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

#ifndef SECCOMP_ADDFD_FLAG_SEND
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

namespace sentry {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

namespace {

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM, kOut = EPOLLOUT | EPOLLWRNORM;
constexpr uint64_t kSyncWakeUp = 1;  // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
constexpr size_t kPage = 4096;

// The command without the size of its argument, which may grow (EA_IOCTL).
constexpr uint32_t WithoutSize(uint32_t cmd) {
  return cmd & ~(static_cast<uint32_t>(_IOC_SIZEMASK) << _IOC_SIZESHIFT);
}

}  // namespace

// --- the task that calls ---

SeccompListener::Call* SeccompListener::Find(uint64_t id) {
  for (Call* call : calls_) {
    if (call->id == id) return call;
  }
  return nullptr;
}

// seccomp_do_user_notification().
Result<SeccompListener::Answer> SeccompListener::Ask(Task& t, const seccomp_data& data) {
  Call call;
  call.task = &t;
  call.data = data;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return Error(ENOSYS);
    if (next_id_ == 0) next_id_ = base::Random64() | 1;
    call.id = next_id_++;
    calls_.push_back(&call);
  }
  queue_.Wake(kIn);
  auto in_state = [&](State state) {
    absl::MutexLock lock(&mutex_);
    return call.state == state;
  };
  bool answered = false;
  while (true) {
    auto done = [&] { return in_state(State::kAnswered) || t.FatalPending(); };
    const bool killable = killable_ && in_state(State::kTaken);
    auto reason = fiber::WaitUntil(call.queue, EPOLLIN, done, {.interruptible = !killable});
    answered = in_state(State::kAnswered);
    if (answered || t.FatalPending() || reason == fiber::WakeReason::kWoken) break;
    // Taken just before the signal came: it is for the supervisor to end.
    if (!killable && killable_ && in_state(State::kTaken)) continue;
    break;
  }
  absl::MutexLock lock(&mutex_);
  calls_.remove(&call);
  if (call.state != State::kAnswered) return Error(base::kERESTARTSYS);
  return call.answer;
}

void SeccompListener::OnFilterGone() {
  {
    absl::MutexLock lock(&mutex_);
    orphaned_ = true;
  }
  queue_.WakeAll(EPOLLHUP | kIn);
}

bool SeccompListener::HasNew() {
  absl::MutexLock lock(&mutex_);
  return orphaned_ || std::any_of(calls_.begin(), calls_.end(),
                                  [](const Call* call) { return call->state == State::kNew; });
}

void SeccompListener::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  for (Call* call : calls_) {
    if (call->state == State::kAnswered) continue;
    call->state = State::kAnswered;
    call->answer = {.error = -ENOSYS};
    call->queue.WakeAll(EPOLLIN);
  }
}

// --- the supervisor ---

class SeccompFile : public FileDescription {
 public:
  SeccompFile(Path path, base::Ref<SeccompListener> listener)
      : FileDescription(std::move(path), O_RDWR), listener_(std::move(listener)) {}

  Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override;
  fiber::WaitQueue* wait_queue() override { return &listener_->queue_; }
  std::string Describe() const override { return "anon_inode:seccomp notify"; }

 private:
  using Call = SeccompListener::Call;
  using State = SeccompListener::State;
  ~SeccompFile() override { listener_->Close(); }
  Result<uint64_t> Receive(Task& t, const IoctlArgs& args);
  Result<uint64_t> Send(const IoctlArgs& args);
  Result<uint64_t> IsValid(const IoctlArgs& args);
  Result<uint64_t> AddFd(Task& t, const IoctlArgs& args, size_t size);

  const base::Ref<SeccompListener> listener_;
};

Result<uint64_t> SeccompFile::Ioctl(const IoctlArgs& args) {
  Task* t = Task::Current();
  if (t == nullptr) return Error(ENOTTY);
  switch (args.cmd) {
    case SECCOMP_IOCTL_NOTIF_RECV:
      return Receive(*t, args);
    case SECCOMP_IOCTL_NOTIF_SEND:
      return Send(args);
    case SECCOMP_IOCTL_NOTIF_ID_VALID:
    case SECCOMP_IOR(2, __u64):  // its number until the direction was corrected
      return IsValid(args);
    case SECCOMP_IOCTL_NOTIF_SET_FLAGS:
      return (args.arg & ~kSyncWakeUp) == 0 ? Result<uint64_t>(uint64_t{0}) : Error(EINVAL);
    default:
      break;
  }
  if (WithoutSize(args.cmd) == WithoutSize(SECCOMP_IOCTL_NOTIF_ADDFD)) {
    return AddFd(*t, args, _IOC_SIZE(args.cmd));
  }
  return Error(EINVAL);
}

uint32_t SeccompFile::Readiness() {
  uint32_t mask = 0;
  absl::MutexLock lock(&listener_->mutex_);
  for (const Call* call : listener_->calls_) {
    if (call->state == State::kNew) mask |= kIn;
    if (call->state == State::kTaken) mask |= kOut;
  }
  return listener_->orphaned_ ? mask | EPOLLHUP : mask;
}

// seccomp_notify_recv().
Result<uint64_t> SeccompFile::Receive(Task& t, const IoctlArgs& args) {
  const auto given = TRY(UserPtr<seccomp_notif>(args.arg).CopyIn(args.memory));
  const seccomp_notif zero{};
  if (memcmp(&given, &zero, sizeof(zero)) != 0) return Error(EINVAL);
  auto reason = fiber::WaitUntil(
      listener_->queue_, EPOLLIN, [this] { return listener_->HasNew(); }, {.interruptible = true},
      /*exclusive=*/true);
  if (reason != fiber::WakeReason::kWoken) return Error(base::kERESTARTSYS);
  seccomp_notif out{};
  {
    absl::MutexLock lock(&listener_->mutex_);
    auto it = std::find_if(listener_->calls_.begin(), listener_->calls_.end(),
                           [](const Call* call) { return call->state == State::kNew; });
    if (it == listener_->calls_.end()) return Error(ENOENT);
    (*it)->state = State::kTaken;
    out.id = (*it)->id;
    out.pid = static_cast<uint32_t>((*it)->task->TidIn(t.pid_namespace()));
    out.data = (*it)->data;
  }
  listener_->queue_.Wake(kOut);
  Status copied = UserPtr<seccomp_notif>(args.arg).CopyOut(args.memory, out);
  if (copied.ok()) return uint64_t{0};
  absl::MutexLock lock(&listener_->mutex_);
  if (Call* call = listener_->Find(out.id)) call->state = State::kNew;
  return Error(EFAULT);
}

// seccomp_notify_send().
Result<uint64_t> SeccompFile::Send(const IoctlArgs& args) {
  const auto answer = TRY(UserPtr<seccomp_notif_resp>(args.arg).CopyIn(args.memory));
  if ((answer.flags & ~uint32_t{SECCOMP_USER_NOTIF_FLAG_CONTINUE}) != 0) return Error(EINVAL);
  const bool goes_on = (answer.flags & SECCOMP_USER_NOTIF_FLAG_CONTINUE) != 0;
  if (goes_on && (answer.error != 0 || answer.val != 0)) return Error(EINVAL);
  absl::MutexLock lock(&listener_->mutex_);
  Call* call = listener_->Find(answer.id);
  if (call == nullptr) return Error(ENOENT);
  if (call->state != State::kTaken) return Error(EINPROGRESS);
  call->state = State::kAnswered;
  call->answer = {answer.val, answer.error, goes_on};
  call->queue.WakeAll(EPOLLIN);
  return uint64_t{0};
}

Result<uint64_t> SeccompFile::IsValid(const IoctlArgs& args) {
  const uint64_t id = TRY(UserPtr<uint64_t>(args.arg).CopyIn(args.memory));
  absl::MutexLock lock(&listener_->mutex_);
  const Call* call = listener_->Find(id);
  return call != nullptr && call->state == State::kTaken ? Result<uint64_t>(uint64_t{0})
                                                         : Error(ENOENT);
}

// seccomp_notify_addfd(). The descriptor is installed for the task that waits.
Result<uint64_t> SeccompFile::AddFd(Task& t, const IoctlArgs& args, size_t size) {
  seccomp_notif_addfd request{};
  if (size < sizeof(request) || size >= kPage) return Error(EINVAL);
  std::vector<std::byte> bytes(size);
  TRY(args.memory.Read(args.arg, bytes));
  memcpy(&request, bytes.data(), sizeof(request));
  const bool more = std::any_of(bytes.begin() + sizeof(request), bytes.end(),
                                [](std::byte b) { return b != std::byte{0}; });
  if (more) return Error(E2BIG);
  if ((request.newfd_flags & ~uint32_t{O_CLOEXEC}) != 0) return Error(EINVAL);
  constexpr uint32_t kKnown = SECCOMP_ADDFD_FLAG_SETFD | SECCOMP_ADDFD_FLAG_SEND;
  if ((request.flags & ~kKnown) != 0) return Error(EINVAL);
  const bool at = (request.flags & SECCOMP_ADDFD_FLAG_SETFD) != 0;
  if (request.newfd != 0 && !at) return Error(EINVAL);
  base::Ref<FileDescription> file = t.fd_table().Get(static_cast<int>(request.srcfd));
  if (file == nullptr) return Error(EBADF);
  base::Ref<FdTable> table;
  uint64_t limit = 0;
  {
    absl::MutexLock lock(&listener_->mutex_);
    Call* call = listener_->Find(request.id);
    if (call == nullptr) return Error(ENOENT);
    if (call->state != State::kTaken) return Error(EINPROGRESS);
    table = call->task->fd_table_ref();
    limit = call->task->Rlimit(RLIMIT_NOFILE);
  }
  if (table == nullptr) return Error(ESRCH);
  const bool cloexec = (request.newfd_flags & O_CLOEXEC) != 0;
  int fd = static_cast<int>(request.newfd);
  if (at) {
    TRY(table->InstallAt(fd, std::move(file), cloexec, limit));
  } else {
    fd = TRY(table->Install(std::move(file), cloexec, 0, limit));
  }
  if ((request.flags & SECCOMP_ADDFD_FLAG_SEND) != 0) {
    absl::MutexLock lock(&listener_->mutex_);
    Call* call = listener_->Find(request.id);
    if (call == nullptr || call->state != State::kTaken) return Error(ESRCH);
    call->state = State::kAnswered;
    call->answer = {.value = fd};
    call->queue.WakeAll(EPOLLIN);
  }
  return static_cast<uint64_t>(fd);
}

base::Ref<FileDescription> NewSeccompFile(Task& t, base::Ref<SeccompListener> listener) {
  return base::MakeRef<SeccompFile>(t.kernel().AnonPath("seccomp notify"), std::move(listener));
}

}  // namespace sentry
