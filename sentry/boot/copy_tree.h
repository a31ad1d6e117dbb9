// Copying what lies below one directory into another, for tmpfs mounts that begin with what the
// image has at their place ("tmpcopyup").
#pragma once

#include "sentry/base/result.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

// Copies the entries of the directory `ctx.start` into the empty directory `to`: files,
// directories, symbolic links, FIFOs and device nodes, with owner, mode and times. Mounts below are
// copied as what they show; sockets are left out. `to` may be in no namespace yet. Runs on a fiber;
// reads and writes with `ctx.creds`. On error part of it may be there.
base::Status CopyTree(Vfs& vfs, const WalkContext& ctx, const Path& to);

}  // namespace sentry
