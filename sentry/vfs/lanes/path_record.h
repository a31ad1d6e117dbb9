// What the outcome of a walk depends on, for who keeps it (path_outcome.h).
#pragma once

#include "absl/container/inlined_vector.h"
#include "sentry/base/ref.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/inode.h"

namespace sentry {

struct PathRecord {
  // In the order in which the walk came by them.
  absl::InlinedVector<base::Ref<Dentry>, 16> names;
  // A directory in which a name was not found, and that the cache keeps nothing about: its
  // attributes change when it gets one.
  base::Ref<Inode> absent_in;
  // Nothing else can change the outcome, but mounts and permissions of directories.
  bool fixed = true;

  // The walk has asked whether it may search `dir`.
  void Searched(Inode& dir) {
    if (!dir.fs().keeps_names()) fixed = false;
    dir.NotePermUsed();
  }
  // It has looked a name up in `dir`.
  void Found(Inode& dir, const base::Ref<Dentry>& child) {
    if (child) {
      names.push_back(child);
    } else if (absent_in) {
      fixed = false;
    } else {
      absent_in = base::Ref<Inode>(&dir);
    }
  }
  void Reset() { *this = PathRecord(); }
};

}  // namespace sentry
