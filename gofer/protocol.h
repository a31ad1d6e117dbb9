// The messages between the sentry (client) and the gofer (server).
//
// A connection is one SOCK_SEQPACKET socket pair. Each message is one packet: a header, one fixed
// structure by operation, then trailing bytes (names, targets, values) whose lengths the structure
// declares and which fill the packet exactly. Every request gets exactly one reply with its id, in
// any order; many may be in flight. All numbers are little-endian, as on every host we run on.
// A reply may carry one descriptor (SCM_RIGHTS), that of kOpenMany more; a request never does.
//
// Both sides treat the other as hostile: a message is copied out of the socket once and every
// length, count, name and flag is checked before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace gofer {

inline constexpr uint32_t kVersion = 1;
// The largest packet: an extended attribute of XATTR_SIZE_MAX bytes, its name and headers.
inline constexpr size_t kMaxMessage = 72 * 1024;
inline constexpr size_t kMaxName = 255;     // NAME_MAX
inline constexpr size_t kMaxLink = 4095;    // PATH_MAX without the NUL
inline constexpr size_t kMaxXattr = 65536;  // XATTR_SIZE_MAX, XATTR_LIST_MAX
inline constexpr size_t kMaxXattrName = 255;
inline constexpr uint32_t kMaxWalk = 64;      // components of one walk
inline constexpr uint32_t kMaxForget = 1024;  // handles of one Forget
inline constexpr uint32_t kMaxOpenMany = 32;  // files of one OpenMany

enum class Op : uint16_t {
  kHello = 1,
  kAttach,
  kWalk,
  kStatAt,
  kGetAttr,
  kSetAttr,
  kOpen,
  kCreate,
  kMkdir,
  kMknod,
  kSymlink,
  kLink,
  kUnlink,
  kRename,
  kReadlink,
  kReadDir,
  kStatFs,
  kGetXattr,
  kSetXattr,
  kListXattr,
  kRemoveXattr,
  kFsync,
  kConnect,
  kForget,
  kSyncFs,
  kTmpfile,
  kOpenMany,
  kEnd,
  kMax = kEnd,
};

struct RequestHeader {
  uint32_t length;  // of the whole packet
  Op op;
  uint16_t reserved;  // 0
  uint64_t id;        // chosen by the client, repeated in the reply
};

struct ReplyHeader {
  uint32_t length;  // of the whole packet
  Op op;            // of the request
  uint16_t fds;     // descriptors with this packet: 0 or 1; kOpenMany: up to kMaxOpenMany
  uint64_t id;
  uint32_t error;  // 0 or a Linux errno; with an error the packet ends here
  uint32_t reserved;
};

// A node of a mount, held open by the server until it is forgotten. Never 0.
using Handle = uint64_t;

struct Time {
  int64_t sec;
  uint32_t nsec;
  uint32_t reserved;
};

// What statx(2) says. Ids are those of the gofer's user namespace, which is the container's.
struct Attr {
  uint32_t mode;  // with the type
  uint32_t nlink;
  uint32_t uid;
  uint32_t gid;
  uint64_t size;
  uint64_t blocks;  // of 512 bytes
  uint64_t ino;
  uint32_t dev_major;
  uint32_t dev_minor;
  uint32_t rdev_major;
  uint32_t rdev_minor;
  uint32_t blksize;
  uint32_t has_btime;  // 0 or 1
  Time atime;
  Time mtime;
  Time ctime;
  Time btime;
};

struct Node {
  Handle handle;
  Attr attr;
};

// Requests and replies, by operation. A reply that is not named is empty.

// kHello: must be the first request. EPROTO if the versions differ.
struct HelloRequest {
  uint32_t version;
  uint32_t reserved;
};
struct HelloReply {
  uint32_t version;
  uint32_t mounts;
  uint32_t max_handles;  // ENFILE beyond
  uint32_t reserved;
};

// kAttach: the root of a mount. The root is a directory, or a regular file for a file bind mount.
struct AttachRequest {
  uint32_t mount;
  uint32_t reserved;
};
struct AttachReply {
  Node root;
  uint32_t mount_flags;  // MountFlag
  uint32_t reserved;
};
enum MountFlag : uint32_t { kMountReadonly = 1, kMountConnect = 2 };

// kWalk: steps from `handle` through `count` names, none of them "." or "..". `blob` is a sequence
// of {uint16_t length, bytes}. Stops at the first name that is missing, or at a symbolic link or
// other non-directory that is not the last. With kWalkOpen the last node, if all were reached and
// it is a regular file, is opened with `open_flags`; the descriptor comes with the reply.
struct WalkRequest {
  Handle handle;
  uint32_t flags;
  uint32_t open_flags;  // as in kOpen
  uint32_t count;
  uint32_t blob;
};
enum WalkFlag : uint32_t { kWalkOpen = 1 };
// Followed by `reached` Nodes and the target of the last one, if that is a symbolic link.
struct WalkReply {
  uint32_t reached;
  uint32_t stop;        // 0 if all were reached, else why not: ENOENT, ENOTDIR, ELOOP, EACCES...
  uint32_t open_error;  // with kWalkOpen: 0 if a descriptor comes, else why not
  uint32_t link;
};

// kStatAt: the attributes of a name, without a handle. For revalidation.
struct StatAtRequest {
  Handle parent;
  uint32_t name;
  uint32_t reserved;
};
// kGetAttr, kStatAt, kSetAttr reply with this.
struct AttrReply {
  Attr attr;
};
// kGetAttr, kReadlink, kStatFs, kFsync and kSyncFs (of directories and regular files).
struct HandleRequest {
  Handle handle;
};

// kSetAttr: what `mask` names, in the order mode after owner, as chown clears set-id bits.
struct SetAttrRequest {
  Handle handle;
  uint32_t mask;
  uint32_t mode;
  uint32_t uid;
  uint32_t gid;
  uint64_t size;
  Time atime;
  Time mtime;
};
enum SetAttrMask : uint32_t {
  kSetMode = 1,
  kSetUid = 2,
  kSetGid = 4,
  kSetSize = 8,
  kSetAtime = 16,
  kSetMtime = 32,
  kSetAtimeNow = 64,
  kSetMtimeNow = 128,
  kSetAll = 255,
};

// kOpen: opens a regular file (anything else: EISDIR, ENXIO, ELOOP); one descriptor comes back.
struct OpenRequest {
  Handle handle;
  uint32_t flags;  // O_RDONLY, O_WRONLY or O_RDWR, with or without O_TRUNC; else EINVAL
  uint32_t reserved;
};

// kOpenMany: followed by `count` handles of regular files, which are opened for reading.
struct OpenManyRequest {
  uint32_t count;  // 1 to kMaxOpenMany
  uint32_t reserved;
};
// Bit i of `opened`: the i-th file's descriptor comes with the reply, in the order of the handles.
struct OpenManyReply {
  uint32_t opened;
  uint32_t reserved;
};
static_assert(kMaxOpenMany <= 32);

// kCreate (regular file; EEXIST if there), kMkdir, kMknod (FIFO, socket, regular file; devices
// EPERM). The new node belongs to uid and gid, or to the group of a set-group-id parent as in
// Linux's inode_init_owner(). Reply: Node; for kCreate also the open descriptor.
// kTmpfile: a regular file without a name in `parent` (O_TMPFILE), which kLink may name; no name,
// as kCreate otherwise.
struct MakeRequest {
  Handle parent;
  uint32_t mode;  // permissions; for kMknod with the type
  uint32_t uid;
  uint32_t gid;
  uint32_t flags;  // kCreate: as in kOpen without O_TRUNC; else 0
  uint32_t name;
  uint32_t reserved;
};

// kSymlink: name, then target. Reply: Node.
struct SymlinkRequest {
  Handle parent;
  uint32_t uid;
  uint32_t gid;
  uint32_t name;
  uint32_t target;
};

// kLink: a further name for `handle` (not a directory). Reply: AttrReply.
struct LinkRequest {
  Handle handle;
  Handle parent;
  uint32_t name;
  uint32_t reserved;
};

struct UnlinkRequest {
  Handle parent;
  uint32_t directory;  // 1: rmdir
  uint32_t name;
};

// kRename: old name, then new name. `flags`: 0, RENAME_NOREPLACE or RENAME_EXCHANGE.
struct RenameRequest {
  Handle old_parent;
  Handle new_parent;
  uint32_t flags;
  uint32_t old_name;
  uint32_t new_name;
  uint32_t reserved;
};

// kReadlink, kGetXattr, kListXattr reply with this and the bytes.
struct BlobReply {
  uint32_t size;
  uint32_t reserved;
};

// kReadDir: the entries from `cursor` (0 or one that the server gave) on, without "." and "..".
struct ReadDirRequest {
  Handle handle;
  uint64_t cursor;
  uint32_t max_bytes;  // of entries in the reply; at least one entry is returned
  uint32_t flags;
};
// kReadDirNodes: each entry with its node, as if it had been walked to; wins over kReadDirAttrs.
enum ReadDirFlag : uint32_t { kReadDirAttrs = 1, kReadDirNodes = 2, kReadDirAll = 3 };
struct ReadDirReply {
  uint32_t count;
  uint32_t eof;  // 1: nothing after these
  uint64_t next;
};
// Followed by an Attr or a Node by `with`, then the name.
struct DirEntry {
  uint64_t ino;
  uint64_t next;  // cursor after this entry
  uint16_t name;
  uint8_t type;  // DT_*
  uint8_t with;  // DirEntryWith
  uint32_t reserved;
};

enum DirEntryWith : uint8_t { kWithNothing = 0, kWithAttr = 1, kWithNode = 2 };

struct StatFsReply {
  uint64_t type;
  uint64_t bsize;
  uint64_t blocks;
  uint64_t bfree;
  uint64_t bavail;
  uint64_t files;
  uint64_t ffree;
  uint64_t namelen;
  uint64_t frsize;
  uint64_t flags;
};

// Extended attributes. "user.*" may be read and changed, "security.capability" read; others are
// EOPNOTSUPP. `size` bounds the value or list (0: the reply holds no bytes and `size` in BlobReply
// is what there would be); ERANGE if it is too small.
struct GetXattrRequest {
  Handle handle;
  uint32_t size;
  uint32_t name;
};
struct SetXattrRequest {  // name, then value
  Handle handle;
  uint32_t flags;  // 0, XATTR_CREATE or XATTR_REPLACE
  uint32_t name;
  uint32_t value;
  uint32_t reserved;
};
struct ListXattrRequest {
  Handle handle;
  uint32_t size;
  uint32_t reserved;
};
struct RemoveXattrRequest {
  Handle handle;
  uint32_t name;
  uint32_t reserved;
};

// kConnect: a socket of `type` connected to the host's socket node; the descriptor comes back.
// EACCES unless the mount allows it.
struct ConnectRequest {
  Handle handle;
  uint32_t type;  // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
  uint32_t reserved;
};

// kForget: followed by `count` handles. Unknown ones are ignored.
struct ForgetRequest {
  uint32_t count;
  uint32_t reserved;
};

// kEnd: the gofer ends once it has replied, with this exit status.
struct EndRequest {
  uint32_t exit_code;  // 0 to 255
  uint32_t reserved;
};

// True for a name that may be looked up in a directory: 1 to 255 bytes, neither "." nor "..",
// without '/' and NUL.
bool ValidName(std::string_view name);

// Reads fixed structures and byte ranges off the front of a received packet. Each call returns
// false, and nothing else is done, if the bytes are not there.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
    requires(std::is_trivially_copyable_v<T>)
  [[nodiscard]] bool Read(T* out) {
    if (bytes_.size() < sizeof(T)) return false;
    __builtin_memcpy(out, bytes_.data(), sizeof(T));
    bytes_.remove_prefix(sizeof(T));
    return true;
  }
  [[nodiscard]] bool Bytes(size_t n, std::string_view* out) {
    if (bytes_.size() < n) return false;
    *out = bytes_.substr(0, n);
    bytes_.remove_prefix(n);
    return true;
  }
  bool empty() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

template <typename T>
  requires(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>)
void Append(std::string* out, const T& value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

}  // namespace gofer
