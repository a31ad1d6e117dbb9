// The sentry's end of the connection to the gofer: requests in, replies out by callback. Knows
// nothing of fibers; sentry/fs/gofer makes it block them.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "gofer/protocol.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"

namespace gofer {

// What came back: an errno, or the body after the header and perhaps descriptors. Nothing in it
// has been checked but the header; the Parse functions below do the rest.
struct Reply {
  int error = EIO;
  std::string body;
  std::vector<base::UniqueFd> fds;  // at most one, but for kOpenMany
};

// A request packet whose id is still to be filled in by Submit.
struct Request {
  Op op;
  std::string packet;
};

// Thread-safe.
class Client {
 public:
  using Callback = absl::AnyInvocable<void(Reply)>;

  // `connection`: a SOCK_SEQPACKET socket. `on_broken` is called once, from whatever thread finds
  // it, when the gofer has gone or broken the protocol.
  Client(base::UniqueFd connection, absl::AnyInvocable<void()> on_broken);
  // No request may be in flight.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Sends without ever blocking (packets queue when the socket is full). `callback` runs exactly
  // once, from the thread that calls Receive, or from this one with EIO if the connection is
  // broken; it must not block. It may call Submit.
  void Submit(Request request, Callback callback);

  // Readable when Receive has work. Poll for it with POLLIN.
  int fd() const { return connection_.get(); }
  // Takes what has arrived, runs callbacks, and sends what was queued. Never blocks; several
  // threads may call it at once. False once the connection is broken.
  bool Receive();
  bool broken() const { return broken_.load(std::memory_order_acquire); }

 private:
  bool ReceiveOne(bool* again);
  void Break();
  // Sends from the queue until the socket is full. False if the peer is gone.
  bool FlushLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  struct Pending {
    Op op;
    Callback callback;
  };

  const base::UniqueFd connection_;
  std::atomic<bool> broken_{false};
  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::flat_hash_map<uint64_t, Pending> pending_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mutex_);
  absl::AnyInvocable<void()> on_broken_ ABSL_GUARDED_BY(mutex_);
};

// Makers of requests. The caller has checked names and lengths (ValidName, kMax*).
Request MakeHello();
Request MakeAttach(uint32_t mount);
Request MakeWalk(Handle handle, const std::vector<std::string_view>& names, uint32_t flags,
                 uint32_t open_flags);
Request MakeStatAt(Handle parent, std::string_view name);
// kGetAttr, kReadlink, kStatFs, kFsync, kSyncFs.
Request MakeOn(Op op, Handle handle);
Request MakeSetAttr(const SetAttrRequest& change);
Request MakeOpen(Handle handle, uint32_t flags);
// 1 to kMaxOpenMany handles.
Request MakeOpenMany(const std::vector<Handle>& handles);
// kCreate, kMkdir, kMknod.
Request MakeMake(Op op, Handle parent, std::string_view name, uint32_t mode, uint32_t uid,
                 uint32_t gid, uint32_t flags);
Request MakeSymlink(Handle parent, std::string_view name, std::string_view target, uint32_t uid,
                    uint32_t gid);
Request MakeLink(Handle handle, Handle parent, std::string_view name);
Request MakeUnlink(Handle parent, std::string_view name, bool directory);
Request MakeRename(Handle old_parent, std::string_view old_name, Handle new_parent,
                   std::string_view new_name, uint32_t flags);
Request MakeReadDir(Handle handle, uint64_t cursor, uint32_t max_bytes, uint32_t flags);
Request MakeGetXattr(Handle handle, std::string_view name, uint32_t size);
Request MakeSetXattr(Handle handle, std::string_view name, std::string_view value, uint32_t flags);
Request MakeListXattr(Handle handle, uint32_t size);
Request MakeRemoveXattr(Handle handle, std::string_view name);
Request MakeConnect(Handle handle, uint32_t type);
// 0 to 255.
Request MakeEnd(uint32_t exit_code);
Request MakeForget(const std::vector<Handle>& handles);

// Checkers of replies. Each takes the reply's error if it has one, and EIO if the reply is not one
// that an honest gofer sends.
struct WalkResult {
  std::vector<Node> nodes;
  int stop = 0;        // why it stopped before the end, or 0
  int open_error = 0;  // with kWalkOpen and no descriptor: why not (0: not a regular file)
  std::string link;    // target of the last node, if that is a symbolic link
  base::UniqueFd fd;   // with kWalkOpen
};
struct NodeResult {
  Node node;
  base::UniqueFd fd;
};
struct Entry {
  uint64_t ino = 0;
  uint64_t next = 0;
  uint8_t type = 0;
  DirEntryWith with = kWithNothing;
  Node node = {};  // with kWithAttr: its attributes alone
  std::string name;
};
struct DirResult {
  std::vector<Entry> entries;
  bool eof = false;
  uint64_t next = 0;
};
struct XattrResult {
  uint32_t size = 0;
  std::string bytes;  // empty if the size alone was asked for
};
base::Result<HelloReply> ParseHello(const Reply& reply);
base::Result<AttachReply> ParseAttach(const Reply& reply);
base::Result<WalkResult> ParseWalk(Reply reply, size_t names, uint32_t flags);
base::Result<NodeResult> ParseNode(Reply reply, bool want_fd);
base::Result<Attr> ParseAttr(const Reply& reply);
base::Result<base::UniqueFd> ParseFd(Reply reply);
// One for each of the `count` handles; invalid where the file could not be opened.
base::Result<std::vector<base::UniqueFd>> ParseOpenMany(Reply reply, size_t count);
base::Result<std::string> ParseLink(const Reply& reply);
base::Result<DirResult> ParseDir(const Reply& reply);
base::Result<StatFsReply> ParseStatFs(const Reply& reply);
base::Result<XattrResult> ParseXattr(const Reply& reply, uint32_t size);
base::Status ParseEmpty(const Reply& reply);

}  // namespace gofer
