// Patched text that processes share: what traps have shown of the text of one file, and copies of
// it with the sites patched, which processes that map the file later get in its place.
//
// A copy never changes once it is made: when more sites are known, another is made, for those that
// map the file from then on. So nobody runs in text that changes, and no thread has to be stopped.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "platform/mailbox.h"
#include "platform/platform.h"
#include "platform/systrap/text_sites.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"

namespace platform {

class TextCache;

struct TextSite {
  uint64_t end;  // offset in the file of the call's end
  SiteShape shape;
  uint32_t index;  // in the jump table, which is the same in every process
};

// Immutable.
struct TextCopy : base::RefCounted {
  TextCopy(base::Ref<base::HostFd> f, uint64_t bytes, std::atomic<uint64_t>* total)
      : file(std::move(f)), size(bytes), total_bytes(total) {
    total_bytes->fetch_add(size);
  }
  ~TextCopy() override { total_bytes->fetch_sub(size); }
  const base::Ref<base::HostFd> file;  // sealed: nobody can write it
  const uint64_t size;
  std::vector<TextSite> sites;
  std::atomic<uint64_t>* const total_bytes;
};

// The text of one file: bytes [begin, end) of it. Thread-safe.
class SharedText : public base::RefCounted {
 public:
  SharedText(TextCache* cache, const FileIdentity& identity, base::Ref<base::HostFd> file,
             uint64_t begin, uint64_t end);
  ~SharedText() override;

  const FileIdentity& identity() const { return identity_; }
  const base::Ref<base::HostFd>& file() const { return file_; }
  bool Covers(uint64_t begin, uint64_t end) const { return begin_ <= begin && end <= end_; }
  uint64_t begin() const { return begin_; }

  // A call that ends at offset `end` of the file has trapped.
  void NoteTrap(uint64_t end);
  // The site with that end, if it may be patched.
  std::optional<SiteShape> SiteAt(uint64_t end);
  // The newest copy; null while there is none.
  base::Ref<TextCopy> copy();

 private:
  friend class TextCache;
  // What the host says of the file's content.
  struct Version {
    uint64_t size = 0;
    int64_t mtime_ns = 0, ctime_ns = 0;
    friend bool operator==(const Version&, const Version&) = default;
  };

  TextCache* const cache_;
  const FileIdentity identity_;
  const base::Ref<base::HostFd> file_;
  const uint64_t begin_, end_;

  // Of the builder alone.
  bool read_once_ = false;
  Version version_;
  int64_t next_build_ns_ = 0;
  int64_t pause_ns_;

  absl::Mutex mu_;
  absl::flat_hash_map<uint64_t, bool> ends_ ABSL_GUARDED_BY(mu_);  // value: looked at
  std::vector<TextSite> sites_ ABSL_GUARDED_BY(mu_);
  base::Ref<TextCopy> copy_ ABSL_GUARDED_BY(mu_);
  bool queued_ ABSL_GUARDED_BY(mu_) = false;
  bool dead_ ABSL_GUARDED_BY(mu_) = false;  // the file has changed under us
  uint64_t last_use_ = 0;                   // guarded by the cache's lock
};

// All texts of a sandbox, bounded in number and bytes. Thread-safe. Lock order: mu_ before a
// text's.
class TextCache {
 public:
  TextCache();
  ~TextCache();
  // The text of `file` at [begin, end), known from before or new. Null if it has none worth
  // sharing.
  base::Ref<SharedText> Find(const FileIdentity& identity, const base::Ref<base::HostFd>& file,
                             uint64_t begin, uint64_t end);
  // Drops all texts of files on this device.
  void Forget(uint64_t dev);
  // Waits until all that was noted before is in a copy or refused. For tests.
  void WaitUntilBuilt();

 private:
  friend class SharedText;
  void Queue(SharedText* text);
  void Run();
  void Build(SharedText& text);
  bool MakeRoom(uint64_t bytes);
  base::Ref<TextCopy> MakeCopy(std::vector<unsigned char> bytes, const SharedText& text,
                               const std::vector<TextSite>& sites);
  std::optional<uint32_t> TakeIndex(SiteForm form);
  void ReturnIndexes(const std::vector<TextSite>& sites);

  // Before the texts: each gives back here what it took, at the latest in the cache's destructor.
  std::atomic<uint64_t> total_bytes_{0};  // of all copies, also of those that only processes hold
  absl::Mutex index_mu_;                  // leaf
  std::vector<uint32_t> free_mov_ ABSL_GUARDED_BY(index_mu_);
  std::vector<uint32_t> free_compare_ ABSL_GUARDED_BY(index_mu_);

  absl::Mutex mu_;
  absl::CondVar work_, done_;
  absl::flat_hash_map<std::pair<uint64_t, uint64_t>, base::Ref<SharedText>> texts_
      ABSL_GUARDED_BY(mu_);  // by device and inode
  std::vector<base::Ref<SharedText>> queue_ ABSL_GUARDED_BY(mu_);
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
  bool building_ ABSL_GUARDED_BY(mu_) = false;
  bool hurry_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mu_);  // started when there is something to build
};

}  // namespace platform
