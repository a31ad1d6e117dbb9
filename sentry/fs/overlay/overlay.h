// overlay: a writable layer in memory over a tree that stays as it is (Linux: fs/overlayfs).
#pragma once

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/vfs/inode.h"

namespace sentry {

// Root inode of a new overlay over the directory `lower`, which nobody else changes. `upper` bounds
// the layer in memory; what it leaves open is half of the host's memory.
base::Result<base::Ref<Inode>> NewOverlay(base::Ref<Inode> lower, const TmpfsOptions& upper = {});

}  // namespace sentry
