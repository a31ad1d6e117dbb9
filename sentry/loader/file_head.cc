#include "sentry/loader/file_head.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/time.h"
#include "sentry/loader/elf_file.h"
#include "sentry/vfs/inode.h"

namespace sentry::loader {

namespace {

constexpr size_t kHeadBytes = 4096;
constexpr size_t kMaxHeads = 64;
// A file changed so lately could change again without its times showing it.
constexpr int64_t kSettledNs = 2 * base::kNsPerSec;

struct Version {
  uint64_t size = 0, writes = 0;
  int64_t mtime_ns = 0, ctime_ns = 0;
  friend bool operator==(const Version&, const Version&) = default;
};
using Head = std::shared_ptr<const std::vector<std::byte>>;

int64_t Ns(const timespec& t) { return t.tv_sec * base::kNsPerSec + t.tv_nsec; }

class Heads {
 public:
  static Heads& Get() {
    static Heads* heads = new Heads;
    return *heads;
  }
  Head Find(std::pair<uint64_t, uint64_t> key, const Version& version) {
    absl::MutexLock lock(&mu_);
    auto found = heads_.find(key);
    if (found == heads_.end() || !(found->second.version == version)) return nullptr;
    found->second.used = ++uses_;
    return found->second.head;
  }
  void Add(std::pair<uint64_t, uint64_t> key, const Version& version, Head head) {
    absl::MutexLock lock(&mu_);
    if (heads_.size() >= kMaxHeads && !heads_.contains(key)) {
      heads_.erase(std::min_element(heads_.begin(), heads_.end(), [](const auto& a, const auto& b) {
        return a.second.used < b.second.used;
      }));
    }
    heads_[key] = Entry{version, std::move(head), ++uses_};
  }

 private:
  struct Entry {
    Version version;
    Head head;
    uint64_t used = 0;
  };
  absl::Mutex mu_;
  // By device and inode.
  absl::flat_hash_map<std::pair<uint64_t, uint64_t>, Entry> heads_ ABSL_GUARDED_BY(mu_);
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

HeadReader::HeadReader(FileDescription& file) : file_(file) {
  Inode* inode = file.inode();
  if (inode == nullptr || inode->has_writers()) return;
  const uint64_t writes = inode->write_opens();
  auto attr = file.GetAttr();
  if (!attr.ok()) return;
  const Version version{attr->size, writes, Ns(attr->mtime), Ns(attr->ctime)};
  const std::pair<uint64_t, uint64_t> key(attr->dev, attr->ino);
  head_ = Heads::Get().Find(key, version);
  if (head_) return;
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (Ns(now) - std::max(version.mtime_ns, version.ctime_ns) < kSettledNs) return;
  std::vector<std::byte> bytes(kHeadBytes);
  auto n = loader::ReadSome(file, 0, bytes);
  if (!n.ok()) return;
  bytes.resize(*n);
  head_ = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  Heads::Get().Add(key, version, head_);
}

base::Result<size_t> HeadReader::ReadSome(uint64_t offset, std::span<std::byte> buffer) const {
  // A head shorter than it may be is the whole file.
  const bool whole = head_ && head_->size() < kHeadBytes;
  const bool inside = head_ && offset <= head_->size() && buffer.size() <= head_->size() - offset;
  if (!inside && !(whole && offset <= head_->size())) {
    return loader::ReadSome(file_, offset, buffer);
  }
  const size_t n = std::min<size_t>(buffer.size(), head_->size() - offset);
  memcpy(buffer.data(), head_->data() + offset, n);
  return n;
}

base::Status HeadReader::ReadAll(uint64_t offset, std::span<std::byte> buffer) const {
  const size_t n = TRY(ReadSome(offset, buffer));
  return n == buffer.size() ? base::Ok() : base::Status(base::Error(EIO));
}

}  // namespace sentry::loader
