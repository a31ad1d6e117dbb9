// io_setup, io_destroy, io_submit, io_cancel, io_getevents, io_pgetevents.
#include "sentry/fs/aio/aio.h"

#include <sys/mman.h>
#include <sys/uio.h>

#include "sentry/base/time.h"
#include "sentry/fs/eventfd/eventfd.h"
#include "sentry/syscalls/file_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

constexpr uint64_t kPage = 4096;
constexpr uint32_t kKey = 0;  // KIOCB_KEY
constexpr uint32_t kMaxEvents = 0x10000000 / sizeof(io_event);
constexpr int kReadFlags = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT;
constexpr int kWriteFlags = kReadFlags | RWF_APPEND;

base::Ref<AioContexts> ContextsOf(Task& t) {
  base::Ref<base::RefCounted> part = t.aio->GetOrMake(
      []() -> base::Ref<base::RefCounted> { return base::MakeRef<AioContexts>(); });
  return base::Ref<AioContexts>(static_cast<AioContexts*>(part.get()));
}

// One operation, decoded.
struct Operation {
  iocb cb;
  base::Ref<FileDescription> file, notify;
  io_event event;
};

// What a finished read or write tells: nothing that asks for a restart.
int64_t Outcome(const Result<uint64_t>& result) {
  if (result.ok()) return static_cast<int64_t>(*result);
  const int code = result.error().code();
  switch (code) {
    case base::kERESTARTSYS:
    case base::kERESTARTNOINTR:
    case base::kERESTARTNOHAND:
    case base::kERESTART_RESTARTBLOCK:
      return -EINTR;
    default:
      return -code;
  }
}

Result<UserIovec> ImportBuffer(Task& t, const iocb& cb, bool vector) {
  if (vector) return ImportIovec(t.memory(), cb.aio_buf, cb.aio_nbytes);
  return ImportRange(cb.aio_buf, cb.aio_nbytes);
}

Result<uint64_t> Read(Task& t, FileDescription& file, UserIovec iovec, uint64_t offset, int flags) {
  // The guest's memory itself, since the call's own view of it ends with the call.
  UserIoDest dst(t.mm().address_space(), std::move(iovec));
  const bool nonblock = file.nonblock() || (flags & RWF_NOWAIT) != 0;
  Result<size_t> n = file.PRead(dst, offset, nonblock);
  if (!n.ok() && n.error().code() == ESPIPE) n = file.Read(dst, nonblock);
  if (!n.ok()) return n.error();
  return uint64_t{*n};
}

Result<uint64_t> Write(Task& t, FileDescription& file, UserIovec iovec, uint64_t offset,
                       int flags) {
  UserIoSource src(t.mm().address_space(), std::move(iovec));
  auto write = [&](bool at_offset) {
    return WriteFileChecked(t, file, src,
                            {.at_offset = at_offset,
                             .offset = offset,
                             .append = (flags & RWF_APPEND) != 0,
                             .nonblock = (flags & RWF_NOWAIT) != 0,
                             .sync = (flags & RWF_SYNC) != 0,
                             .data_sync = (flags & RWF_DSYNC) != 0});
  };
  auto n = write(true);
  if (!n.ok() && n.error().code() == ESPIPE) n = write(false);
  if (!n.ok()) return n.error();
  return uint64_t{*n};
}

// Carries a read or a write out; what is wrong with the request itself is an error of io_submit.
Result<int64_t> Transfer(Task& t, const Operation& op, bool writes, bool vector) {
  const int flags = static_cast<int>(op.cb.aio_rw_flags);
  if (flags & ~(writes ? kWriteFlags : kReadFlags)) return Error(EOPNOTSUPP);
  if (writes ? !op.file->writable() : !op.file->readable()) return Error(EBADF);
  UserIovec iovec = TRY(ImportBuffer(t, op.cb, vector));
  if (op.cb.aio_offset < 0) return Error(EINVAL);
  const auto offset = static_cast<uint64_t>(op.cb.aio_offset);
  return Outcome(writes ? Write(t, *op.file, std::move(iovec), offset, flags)
                        : Read(t, *op.file, std::move(iovec), offset, flags));
}

Result<int64_t> Sync(const Operation& op) {
  const iocb& cb = op.cb;
  if (cb.aio_buf != 0 || cb.aio_offset != 0 || cb.aio_nbytes != 0 || cb.aio_rw_flags != 0) {
    return Error(EINVAL);
  }
  Status done = op.file->Sync(cb.aio_lio_opcode == IOCB_CMD_FDSYNC);
  return done.ok() ? int64_t{0} : int64_t{-done.error().code()};
}

Status StartPoll(AioContext& context, const Operation& op) {
  const iocb& cb = op.cb;
  if (cb.aio_buf > UINT16_MAX || cb.aio_offset != 0 || cb.aio_nbytes != 0 || cb.aio_rw_flags != 0) {
    return Error(EINVAL);
  }
  return context.StartPoll(op.file, static_cast<uint32_t>(cb.aio_buf), op.event, op.notify);
}

// With a place of the context taken: true if the operation has ended already, `*result` telling
// how.
Result<bool> Start(Task& t, AioContext& context, uint64_t addr, Operation& op, int64_t* result) {
  op.file = TRY(GetOpenFile(t, static_cast<int>(op.cb.aio_fildes)));
  if (op.cb.aio_flags & IOCB_FLAG_RESFD) {
    op.notify = TRY(GetOpenFile(t, static_cast<int>(op.cb.aio_resfd)));
    if (dynamic_cast<EventFile*>(op.notify.get()) == nullptr) return Error(EINVAL);
  }
  TRY(UserPtr<uint32_t>(addr + offsetof(iocb, aio_key)).CopyOut(t.memory(), kKey));
  switch (op.cb.aio_lio_opcode) {
    case IOCB_CMD_PREAD:
    case IOCB_CMD_PREADV:
      *result = TRY(Transfer(t, op, false, op.cb.aio_lio_opcode == IOCB_CMD_PREADV));
      return true;
    case IOCB_CMD_PWRITE:
    case IOCB_CMD_PWRITEV:
      *result = TRY(Transfer(t, op, true, op.cb.aio_lio_opcode == IOCB_CMD_PWRITEV));
      return true;
    case IOCB_CMD_FSYNC:
    case IOCB_CMD_FDSYNC:
      *result = TRY(Sync(op));
      return true;
    case IOCB_CMD_POLL:
      TRY(StartPoll(context, op));
      return false;
    default:
      return Error(EINVAL);
  }
}

Status SubmitOne(Task& t, AioContext& context, uint64_t addr) {
  Operation op;
  op.cb = TRY(UserPtr<iocb>(addr).CopyIn(t.memory()));
  if (op.cb.aio_reserved2 != 0 || static_cast<int64_t>(op.cb.aio_nbytes) < 0) {
    return Error(EINVAL);
  }
  op.event = {op.cb.aio_data, addr, 0, 0};
  TRY(context.Reserve());
  int64_t outcome = 0;
  Result<bool> ended = Start(t, context, addr, op, &outcome);
  if (!ended.ok()) {
    context.Unreserve();
    return ended.error();
  }
  op.event.res = outcome;
  if (*ended) context.Complete(op.event, op.notify.get());
  return base::Ok();
}

Result<uint64_t> GetEvents(Task& t, const SyscallArgs& a, int interrupted) {
  int64_t deadline = fiber::kNoDeadline;
  if (a[4] != 0) {
    timespec ts = TRY(UserPtr<timespec>(a[4]).CopyIn(t.memory()));
    deadline = base::DeadlineAfter(base::NsFromTimespec(ts).value_or(0));
  }
  base::Ref<AioContext> context = TRY(ContextsOf(t)->Find(a[0]));
  const int64_t least = a.Long(1), most = a.Long(2);
  if (least < 0 || least > most) return Error(EINVAL);
  std::vector<io_event> events =
      context->Collect(static_cast<size_t>(least), static_cast<size_t>(most), deadline);
  if (events.empty()) {
    if (least > 0 && t.SignalPending()) return Error(interrupted);
    return 0;
  }
  TRY(t.memory().Write(a[3], std::as_bytes(std::span(events))));
  return events.size();
}

}  // namespace

Result<uint64_t> SysIoSetup(Task& t, const SyscallArgs& a) {
  const uint32_t events = a.Uint(0);
  const uint64_t old = TRY(UserPtr<uint64_t>(a[1]).CopyIn(t.memory()));
  if (old != 0 || events == 0 || events > kMaxEvents) return Error(EINVAL);
  base::Ref<AioContext> context = TRY(AioContext::New(events));
  const uint64_t id = TRY(t.mm().Mmap(
      t, {.length = kPage, .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE | MAP_ANONYMOUS}));
  Status written = t.mm().address_space().Write(a[1], std::as_bytes(std::span(&id, 1)));
  if (!written.ok()) {
    (void)t.mm().Munmap(t, id, kPage).ok();
    return Error(EFAULT);
  }
  ContextsOf(t)->Add(id, std::move(context));
  return 0;
}

Result<uint64_t> SysIoDestroy(Task& t, const SyscallArgs& a) {
  base::Ref<AioContext> context = TRY(ContextsOf(t)->Remove(a[0]));
  context->Destroy(/*wait=*/true);
  (void)t.mm().Munmap(t, a[0], kPage).ok();  // it may be gone already
  return 0;
}

Result<uint64_t> SysIoSubmit(Task& t, const SyscallArgs& a) {
  int64_t count = a.Long(1);
  if (count < 0) return Error(EINVAL);
  base::Ref<AioContext> context = TRY(ContextsOf(t)->Find(a[0]));
  count = std::min<int64_t>(count, context->events());
  for (int64_t i = 0; i < count; ++i) {
    Status submitted;
    auto addr = (UserPtr<uint64_t>(a[2]) + static_cast<uint64_t>(i)).CopyIn(t.memory());
    submitted = addr.ok() ? SubmitOne(t, *context, *addr) : Status(addr.error());
    if (submitted.ok()) continue;
    if (i > 0) return static_cast<uint64_t>(i);
    return submitted.error();
  }
  return static_cast<uint64_t>(count);
}

Result<uint64_t> SysIoCancel(Task& t, const SyscallArgs& a) {
  const uint32_t key = TRY(UserPtr<uint32_t>(a[1] + offsetof(iocb, aio_key)).CopyIn(t.memory()));
  if (key != kKey) return Error(EINVAL);
  base::Ref<AioContext> context = TRY(ContextsOf(t)->Find(a[0]));
  TRY(context->CancelPoll(a[1]));
  return Error(EINPROGRESS);  // its end comes as an event
}

Result<uint64_t> SysIoGetevents(Task& t, const SyscallArgs& a) { return GetEvents(t, a, EINTR); }

Result<uint64_t> SysIoPgetevents(Task& t, const SyscallArgs& a) {
  struct SigMask {
    uint64_t set, size;
  };
  if (a[5] != 0) {
    SigMask mask = TRY(UserPtr<SigMask>(a[5]).CopyIn(t.memory()));
    if (mask.set != 0) {
      if (mask.size != sizeof(SigSet)) return Error(EINVAL);
      t.SetTemporaryMask(TRY(UserPtr<SigSet>(mask.set).CopyIn(t.memory())));
    }
  }
  return GetEvents(t, a, base::kERESTARTNOHAND);
}

}  // namespace sentry
