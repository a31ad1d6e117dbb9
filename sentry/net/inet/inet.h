// Makes sockets of AF_INET and AF_INET6.
#pragma once

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Task;
class Vfs;

// socket(2) of AF_INET or AF_INET6. ESOCKTNOSUPPORT, EPROTONOSUPPORT, EPERM, EACCES.
base::Result<base::Ref<FileDescription>> NewInetSocket(Task& t, Vfs& vfs, int domain, int type,
                                                       int protocol, uint32_t flags);

}  // namespace sentry
