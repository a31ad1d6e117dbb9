// Signals of files that have become ready (Linux: fs/fcntl.c, send_sigio and send_sigurg).
#pragma once

#include <sys/types.h>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Task;

// What is due for descriptor `fd`: the owner's signal, with `band` (POLL_IN, ...) as its code, or a
// plain SIGIO if none was chosen or there is no room in the queue. Any thread; takes the locks of
// signals, so the caller holds none that comes after them.
void SendSigio(const FileDescription::AsyncOwner& owner, int fd, int band);
// SIGURG of a socket whose peer has sent something urgent.
void SendSigurg(const FileDescription::AsyncOwner& owner);

// F_SETOWN and its kin. `type`: F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP; `id`: in t's PID namespace,
// 0 for nobody. ESRCH.
base::Status SetAsyncOwner(Task& t, FileDescription& file, int type, int id);
// As F_SETOWN takes it: negative for a process group. EINVAL, ESRCH.
base::Status SetAsyncOwner(Task& t, FileDescription& file, int who);
// `pid` becomes the owner if the file has none (Linux: __f_setown without force).
void SetAsyncOwnerIfNone(Task& t, FileDescription& file, int type, base::Ref<Pid> pid);
// The owner's number in t's PID namespace; 0 if there is none, or it is gone.
int AsyncOwnerId(Task& t, const FileDescription::AsyncOwner& owner);
// F_GETOWN.
int AsyncOwnerWho(Task& t, const FileDescription& file);

}  // namespace sentry
