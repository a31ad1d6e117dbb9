// What the operations of the server share.
#pragma once

#include <unistd.h>

#include <atomic>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gofer/node_table.h"
#include "gofer/protocol.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"

namespace gofer {

struct MountRoot {
  base::Ref<FsNode> node;
  bool readonly;
  bool allow_connect;
};

// One connection's state. The operations may run on several threads at once.
struct Session {
  Session(int proc_fd, uint32_t max_handles)
      : proc_fd(proc_fd), max_handles(max_handles), nodes(max_handles) {}

  const int proc_fd;  // a directory: /proc/self/fd
  const uint32_t max_handles;
  const uid_t uid = geteuid();  // what new nodes belong to before they are given away
  std::vector<MountRoot> mounts;
  NodeTable nodes;
  std::atomic<bool> greeted{false};
  std::atomic<int> exit_code{0};
  std::atomic<bool> ending{false};  // kEnd was asked for

  // The directory `handle`, for changing it if `write`: EBADF, ENOTDIR, EROFS.
  base::Result<base::Ref<FsNode>> Dir(Handle handle, bool write) const;
  // Any node, for changing it if `write`: EBADF, EROFS.
  base::Result<base::Ref<FsNode>> Any(Handle handle, bool write) const;
  bool Readonly(const FsNode& node) const { return mounts[node.mount()].readonly; }

  // The child `name` of `dir` by an O_PATH descriptor, its attributes, and a handle for it.
  base::Result<Node> Step(const FsNode& dir, std::string_view name, base::Ref<FsNode>* out);
  // Opens the very inode of `node`, a regular file or directory, for data.
  base::Result<base::UniqueFd> Reopen(const FsNode& node, int flags) const;
};

// "N": the name of node's descriptor in /proc/self/fd, the gofer's working directory.
struct FdName {
  explicit FdName(int fd);
  char text[12];
};

// A NUL-terminated copy of a name that ValidName has passed.
struct NameBuffer {
  explicit NameBuffer(std::string_view name) {
    __builtin_memcpy(text, name.data(), name.size());
    text[name.size()] = 0;
  }
  char text[kMaxName + 1];
};

// What an operation answers with: the body and the descriptors are appended to.
struct ReplyBuilder {
  void Give(base::UniqueFd fd) const { fds->push_back(std::move(fd)); }

  std::string* body;
  std::vector<base::UniqueFd>* fds;
};

base::Result<Attr> StatFd(int fd);
base::Result<Attr> StatName(int dir, const char* name);

// The operations. `in` is the packet after its header; each consumes it entirely or says EPROTO.
base::Status DoHello(Session& s, Reader in, ReplyBuilder out);
base::Status DoAttach(Session& s, Reader in, ReplyBuilder out);
base::Status DoWalk(Session& s, Reader in, ReplyBuilder out);
base::Status DoStatAt(Session& s, Reader in, ReplyBuilder out);
base::Status DoGetAttr(Session& s, Reader in, ReplyBuilder out);
base::Status DoSetAttr(Session& s, Reader in, ReplyBuilder out);
base::Status DoOpen(Session& s, Reader in, ReplyBuilder out);
base::Status DoCreate(Session& s, Reader in, ReplyBuilder out);
base::Status DoMkdir(Session& s, Reader in, ReplyBuilder out);
base::Status DoMknod(Session& s, Reader in, ReplyBuilder out);
base::Status DoSymlink(Session& s, Reader in, ReplyBuilder out);
base::Status DoLink(Session& s, Reader in, ReplyBuilder out);
base::Status DoUnlink(Session& s, Reader in, ReplyBuilder out);
base::Status DoRename(Session& s, Reader in, ReplyBuilder out);
base::Status DoReadlink(Session& s, Reader in, ReplyBuilder out);
base::Status DoReadDir(Session& s, Reader in, ReplyBuilder out);
base::Status DoStatFs(Session& s, Reader in, ReplyBuilder out);
base::Status DoGetXattr(Session& s, Reader in, ReplyBuilder out);
base::Status DoSetXattr(Session& s, Reader in, ReplyBuilder out);
base::Status DoListXattr(Session& s, Reader in, ReplyBuilder out);
base::Status DoRemoveXattr(Session& s, Reader in, ReplyBuilder out);
base::Status DoFsync(Session& s, Reader in, ReplyBuilder out);
base::Status DoSyncFs(Session& s, Reader in, ReplyBuilder out);
base::Status DoOpenMany(Session& s, Reader in, ReplyBuilder out);
base::Status DoConnect(Session& s, Reader in, ReplyBuilder out);
base::Status DoTmpfile(Session& s, Reader in, ReplyBuilder out);
base::Status DoForget(Session& s, Reader in, ReplyBuilder out);
base::Status DoEnd(Session& s, Reader in, ReplyBuilder out);

}  // namespace gofer
