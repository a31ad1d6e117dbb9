// AF_UNIX: the state behind a socket's description (Linux: struct unix_sock, net/unix/af_unix.c).
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/lanes/arena.h"
#include "sentry/net/socket.h"
#include "sentry/net/unix/inflight.h"
#include "sentry/vfs/byte_stream.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/types.h"

namespace sentry {

class AbstractNames;

// One message of a queue; of a stream, a run of bytes with the same sender and files.
struct UnixRecord {
  size_t length = 0;    // bytes in the ring that are left of it
  size_t gone = 0;      // bytes in the ring before them, which have been received out of band
  bool mark = false;    // one byte that was sent with MSG_OOB; joined to nothing
  bool urgent = false;  // it can be received so (Linux: unix_sock.oob_skb)
  SenderCreds creds;
  FileList files;  // in flight
  uid_t files_uid = 0;
  base::Ref<class UnixEndpoint> from;  // its send buffer is charged
  size_t charge = 0;
};

// One end. Lives while its description, a connection, a queue or a name refers to it. Thread-safe.
// What it receives is in a ring in a memory file; what belongs to the bytes (sender, files,
// boundaries) is kept beside it, but for a stream in a lane (sentry/lanes), which has nothing of
// that.
class UnixEndpoint final : public base::RefCounted, public LaneUser {
 public:
  enum class State { kUnconnected, kListening, kConnected };
  static constexpr size_t kMaxQueuedMessages = 10;  // net.unix.max_dgram_qlen
  static constexpr int kSomaxconn = 4096;

  explicit UnixEndpoint(int type) : type_(type) {}
  // Two ends connected with one another.
  static void ConnectPair(UnixEndpoint& a, UnixEndpoint& b);

  int type() const { return type_; }
  bool stream() const { return type_ == SOCK_STREAM; }
  bool datagram() const { return type_ == SOCK_DGRAM; }

  // --- names ---
  // Empty: none. Else the bytes after the family: a path without NUL, or NUL and an abstract name.
  std::string name() const;
  // Binds to a place that has been made for it, or to an abstract name (empty: one is chosen).
  // EINVAL if it is bound already, EADDRINUSE.
  base::Status BindPath(const std::string& path, const Path& place);
  base::Status BindAbstract(AbstractNames& names, std::string name);

  // --- connections ---
  base::Status Listen(int backlog, const SenderCreds& creds);
  // Of a stream or seqpacket to a listener: a new end of the other side is queued there. `wait`:
  // until `deadline_ns` for room in its backlog, else EAGAIN. ECONNREFUSED, EPROTOTYPE, EISCONN.
  base::Status ConnectTo(UnixEndpoint& listener, const SenderCreds& creds, bool nonblock,
                         int64_t deadline_ns);
  // Of datagrams; null: to nobody. EPERM if the other one is connected to a third.
  base::Status SetPeer(base::Ref<UnixEndpoint> peer);
  // The next end that a listener has waiting. EINVAL, EAGAIN, EINTR forms.
  base::Result<base::Ref<UnixEndpoint>> Accept(bool nonblock, int64_t deadline_ns);
  base::Ref<UnixEndpoint> peer() const;
  State state() const;
  base::Status Shutdown(int how);
  // EPIPE once nothing is to be sent any more.
  base::Status CheckSendShut();
  // The description was closed.
  void Release();

  // --- data; see Socket::Send and Receive ---
  base::Result<size_t> SendStream(IoSource& src, SendArgs& args, int64_t deadline_ns);
  base::Result<size_t> SendMessage(UnixEndpoint& to, IoSource& src, SendArgs& args,
                                   int64_t deadline_ns);
  // in_line: SO_OOBINLINE.
  base::Result<size_t> ReceiveStream(IoDest& dst, RecvArgs* args, int64_t deadline_ns,
                                     bool in_line);
  // MSG_OOB: the urgent byte of a stream. EINVAL: there is none, or it is in line.
  base::Result<size_t> ReceiveUrgent(IoDest& dst, RecvArgs* args, bool in_line);
  base::Result<size_t> ReceiveMessage(IoDest& dst, RecvArgs* args, int64_t deadline_ns);

  // `wish` as in FileDescription::ReadinessFor.
  uint32_t Readiness(platform::LaneWish wish = platform::kWish);
  fiber::WaitQueue& wait_queue() { return queue_; }
  // SIOCINQ, SIOCOUTQ.
  base::Result<size_t> BytesReadable() const;
  size_t BytesUnread() const;
  // SIOCATMARK: the next byte is the urgent one, or was.
  bool AtMark() const;
  // Whose owner gets SIGURG, and whose inode is told; null once it is about to go.
  void SetDescription(FileDescription* file);
  uint64_t ino() const { return ino_.load(std::memory_order_relaxed); }
  // For lists of sockets.
  struct Row {
    int type = 0, state = 0;  // SOCK_*, TCP_*
    int shutdown = 0, send_buffer = 0;
    uint64_t ino = 0, place_ino = 0;  // place: of its path; 0: none
    dev_t place_dev = 0;
    uid_t uid = 0;
    std::string name;
    bool has_peer = false;
    uint64_t peer_ino = 0;
    size_t unread = 0, sent = 0;    // bytes; of a listener those who wait, and its backlog
    std::vector<uint32_t> waiting;  // inodes of those who wait
  };
  Row Describe();

  // --- lanes ---
  // FileDescription::EnterLanes: of a connected stream whose ends ask for nobody's credentials.
  FileDescription::LaneNames EnterLanes(LaneArena& arena);
  bool HasOpenLanes() const;
  void WatchEdges(platform::LaneWish wish) {
    if (plain_.load()) bytes_.WantData(wish);
  }
  uint64_t BytesCome() const { return bytes_.written(); }
  // Only the sentry moves bytes, and knows whose they are from now on.
  void LeaveLanes();
  // What who finds nothing to read, or no room, does in its lanes.
  void SetPatience(platform::LanePatience reader, platform::LanePatience writer);
  void LaneWritten() override;
  void LaneRead() override;

  // --- options ---
  int TakeError();
  std::optional<SenderCreds> peer_creds() const;
  int send_buffer() const { return send_buffer_.load(std::memory_order_relaxed); }
  void set_send_buffer(int bytes);

  // For the collection of unreachable sockets: the files in its queue and in those of ends that
  // wait to be accepted; and the same files taken out.
  void VisitFiles(const std::function<void(FileDescription*)>& f);
  void TakeFiles(std::vector<std::pair<FileList, uid_t>>* out);

 private:
  static constexpr int kReceiveShut = 1, kSendShut = 2, kBothShut = 3;

  ~UnixEndpoint() override;
  bool Writable() const { return charged_.load() * 4 <= static_cast<size_t>(send_buffer_.load()); }
  // The same of a stream to `to`; if not, others than the sentry are to tell when it is.
  bool WritableTo(UnixEndpoint& to, platform::LaneWish wish);
  // Something has come; if not, others than the sentry are to tell when it does.
  bool HasBytes(platform::LaneWish wish);
  // Both ends may have lanes.
  bool MayHaveLanes();
  void CloseLanes();
  // Of the bytes that it receives. The name of their lane, or 0.
  uint64_t EnterLane(LaneArena& arena);
  bool MakePlain(LaneArena& arena) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  void MakeRecords(UnixEndpoint& from) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  // All but the last `keep` bytes.
  base::Result<size_t> FillPlain(IoSource& src, size_t keep)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  // From `skip` bytes after the first on.
  base::Result<size_t> TakePlain(IoDest& dst, size_t skip, bool peek)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  // A step of SendStream: sends what fits now; 0: nothing does.
  base::Result<size_t> SendSome(UnixEndpoint& to, IoSource& src, SendArgs& args)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(to.io_mutex_);
  // Enters a record for `length` bytes that have been filled in; joins it to the last of a stream
  // unless it is `urgent`.
  void Append(UnixEndpoint& from, size_t length, SendArgs& args, bool urgent = false)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  void SendSigurg();
  // How far a receive of a stream has come.
  struct Reading {
    bool peek, in_line;
    size_t total = 0;    // received
    size_t index = 0;    // of the record that comes next
    size_t skip = 0;     // bytes of the ring before it
    size_t from = 0;     // where it begins (SO_PEEK_OFF)
    size_t offset = 0;   // of that, what is after `skip`
    FileList dropped{};  // with bytes that nobody gets
  };
  // At the record that has the byte after `from` ones: fills in `r`. False: there is none.
  struct Glance;
  bool LookFrom(size_t from, Glance* glance, Reading* r) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  static void PassPeeked(size_t length, Reading* r);
  base::Result<size_t> ReadStream(IoDest& dst, RecvArgs* args, int64_t deadline_ns, Reading* r)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  // Goes past what is not received in line (Linux: manage_oob()). False: the receive ends here.
  bool PassUrgent(Reading* r) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  bool PassUrgent(Reading* r, std::vector<UnixRecord>* passed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  void PassRecord(Reading* r, std::vector<UnixRecord>* passed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_, mutex_);
  // There is a record that a receive might look at; r: of a stream.
  bool HasRecord(const Reading* r) const;
  // Takes `n` bytes of the first record; `whole`: the record goes with all its bytes.
  void Consume(size_t n, bool whole) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  void Uncharge(size_t n);
  // Why nothing can be sent to `to` any more, or Ok.
  base::Status CheckSend(UnixEndpoint& to);
  base::Status WaitForData(int64_t deadline_ns, bool nonblock, bool* end,
                           const Reading* r = nullptr) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  bool HasRoomFor(UnixEndpoint& to, size_t n);
  // The first record of the queue, from `index` on; false if there is none.
  struct Glance {
    size_t length;
    SenderCreds creds;
    bool has_files;
    base::Ref<UnixEndpoint> from;
  };
  bool Look(size_t index, Glance* glance) const;
  // Moves the files of record `index` to `args`, or copies them for MSG_PEEK.
  void TakeFilesOf(size_t index, bool peek, RecvArgs* args);
  bool QueueFull() const;
  void WakeSenders();
  void PeerGone(bool reset);

  const int type_;
  // Held while bytes move through the ring; before mutex_. A sender takes the receiver's alone.
  fiber::Mutex io_mutex_;
  ByteStream bytes_{platform::kLaneUnix};  // moved under io_mutex_
  // Its bytes are in a lane, and have no records. Written under io_mutex_.
  std::atomic<bool> plain_{false};
  std::atomic<bool> without_lanes_{false};  // LeaveLanes
  // State. Of two ends, the lower address first.
  mutable absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kUnconnected;
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;    // its description is closed
  bool embryo_ ABSL_GUARDED_BY(mutex_) = false;  // waits to be accepted
  int shutdown_ ABSL_GUARDED_BY(mutex_) = 0;
  int error_ ABSL_GUARDED_BY(mutex_) = 0;
  base::Ref<UnixEndpoint> peer_ ABSL_GUARDED_BY(mutex_);
  std::deque<UnixRecord> records_ ABSL_GUARDED_BY(mutex_);
  bool has_urgent_ ABSL_GUARDED_BY(mutex_) = false;                      // one of them is
  std::deque<base::Ref<UnixEndpoint>> waiting_ ABSL_GUARDED_BY(mutex_);  // to be accepted
  // Datagram senders that found the queue full and poll for room.
  std::vector<base::Ref<UnixEndpoint>> full_pollers_ ABSL_GUARDED_BY(mutex_);
  int backlog_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<SenderCreds> creds_ ABSL_GUARDED_BY(mutex_);  // of a listener's owner
  std::optional<SenderCreds> peer_creds_ ABSL_GUARDED_BY(mutex_);
  std::string name_ ABSL_GUARDED_BY(mutex_);
  Path place_ ABSL_GUARDED_BY(mutex_);
  base::Ref<AbstractNames> names_ ABSL_GUARDED_BY(mutex_);
  std::atomic<size_t> queued_{0};   // bytes in its ring
  std::atomic<size_t> charged_{0};  // bytes it sent that nobody has read
  std::atomic<int> send_buffer_{212992};
  absl::Mutex description_mutex_;  // before the description's owner
  FileDescription* description_ ABSL_GUARDED_BY(description_mutex_) = nullptr;
  std::atomic<uint64_t> ino_{0};  // of its description
  std::atomic<uid_t> uid_{0};
  fiber::WaitQueue queue_;
  fiber::WaitQueue room_queue_;  // of a receiver: woken when its queue or backlog shrinks
};

// The abstract names of a network namespace.
class AbstractNames : public base::RefCounted {
 public:
  // Of the current task's network namespace.
  static base::Ref<AbstractNames> Current(Task& t);
  base::Ref<UnixEndpoint> Find(const std::string& name, int type);
  // EADDRINUSE.
  base::Status Add(const std::string& name, UnixEndpoint& endpoint);
  void Remove(const std::string& name, const UnixEndpoint& endpoint);

 private:
  absl::Mutex mutex_;
  std::map<std::pair<int, std::string>, UnixEndpoint*> names_ ABSL_GUARDED_BY(mutex_);
};

// What hangs at the inode of a bound socket: whoever connects finds the endpoint through it.
class BoundSocket : public Inode::Special {
 public:
  explicit BoundSocket(UnixEndpoint* endpoint) : endpoint_(endpoint) {}
  // Null if it is closed.
  base::Ref<UnixEndpoint> endpoint() const;
  void Clear();

 private:
  mutable absl::Mutex mutex_;
  UnixEndpoint* endpoint_ ABSL_GUARDED_BY(mutex_);  // cleared by its Release
};

}  // namespace sentry
