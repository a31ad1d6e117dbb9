// Files that are on their way through sockets (SCM_RIGHTS): their limit, and the collection of
// sockets that only messages inside of them hold (Linux: net/unix/garbage.c).
#pragma once

#include <cstdint>
#include <vector>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

using FileList = std::vector<base::Ref<FileDescription>>;

// Counts `files` as in flight for user `uid`. ETOOMANYREFS beyond `limit` (RLIMIT_NOFILE) unless
// `privileged`.
base::Status AddInflight(const FileList& files, uid_t uid, uint64_t limit, bool privileged);
// They have been received, or are dropped.
void RemoveInflight(const FileList& files, uid_t uid);

// Drops references one after another, however deep sockets are nested in sockets: closing one may
// drop further ones, which then wait for their turn instead of being closed inside of it.
void DropFiles(FileList files);

// Looks for sockets in flight that nobody outside of the flight holds, and empties their queues.
// Called when a socket is closed while some are in flight.
void CollectUnreachableSockets();

}  // namespace sentry
