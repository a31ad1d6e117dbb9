// Namespaces as files.
#pragma once

#include <cstdint>
#include <string_view>

#include "sentry/base/ref.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/types.h"

namespace sentry {

class Task;
class Vfs;

// A namespace of one kind.
struct NamespaceRef {
  int type = 0;                        // CLONE_NEW*
  base::Ref<base::RefCounted> object;  // by type: UtsNamespace, MountNamespace, ...
  uint64_t id = 0;
};

// The kinds that a task has, as /proc/PID/ns names them.
struct NamespaceKind {
  const char* name;
  int type;
};
inline constexpr int kNamespaceKinds = 7;
extern const NamespaceKind kNamespaceKind[kNamespaceKinds];

// That of `task`; no object if it has exited. `for_children`: of CLONE_NEWPID, that of what it
// makes.
NamespaceRef NamespaceOf(Task& task, int type, bool for_children = false);
// A descriptor of `t`'s for it, closed by exec.
base::Result<uint64_t> OpenNamespace(Task& t, NamespaceRef ns);
// A place of it, to be opened.
Path NamespacePath(Vfs& vfs, const NamespaceRef& ns);
// What an open one stands for; null for other files.
const NamespaceRef* NamespaceOfFile(const FileDescription& file);
// What an inode of this filesystem stands for; null for others.
const NamespaceRef* NamespaceOfInode(const Inode& inode);

}  // namespace sentry
