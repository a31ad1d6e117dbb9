#include "platform/systrap/shared_text.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/time/time.h"
#include "sentry/base/host_io.h"

namespace platform {
namespace {

constexpr uint64_t kMaxTextBytes = 16 << 20;   // of one copy
constexpr uint64_t kMaxTotalBytes = 64 << 20;  // of all
constexpr size_t kMaxTexts = 256;
constexpr int64_t kSettledNs = 2'000'000'000;
constexpr size_t kMaxEnds = 1024;  // sites that one file's traps may tell of
// A copy is not made at once, since a program that has begun to make calls goes on to make more of
// them; and each further copy of the same text waits longer.
constexpr int64_t kFirstPauseNs = 3'000'000;
constexpr int64_t kMaxPauseNs = 1'000'000'000;

int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

uint64_t PageUp(uint64_t v) { return (v + kPageSize - 1) & ~(kPageSize - 1); }

bool ReadAll(int fd, uint64_t offset, std::vector<unsigned char>* bytes) {
  size_t done = 0;
  while (done < bytes->size()) {
    ssize_t n = base::HostReadAt(fd, bytes->data() + done, bytes->size() - done,
                                 static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    if (n == 0) break;  // the rest of the last page
    done += static_cast<size_t>(n);
  }
  return true;
}

// Whether the file tells by its tables how to unwind the stack from the restorer at offset `start`,
// as glibc's does (musl's does not). Without such an entry, unwinders know a signal's frame by the
// very bytes of the restorer, which are to stay then. Looked for is the entry itself, at any place:
// the distance from there to the byte before the restorer, since an unwinder takes one from the
// address that it looks up, and how many bytes it is about.
// Source: LSB Core, "DWARF Extensions"; glibc, sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c.
bool HasUnwindInfo(int fd, uint64_t size, uint64_t start) {
  constexpr uint64_t kMostBytes = 8 << 20, kStep = 64 << 10;
  constexpr uint32_t kRestorerBytes = 10;
  struct Entry {
    uint32_t distance, bytes;
  };
  for (uint64_t at = 0; at < std::min(size, kMostBytes); at += kStep) {
    std::vector<unsigned char> bytes(kStep + sizeof(uint32_t));
    if (!ReadAll(fd, at, &bytes)) return false;
    for (uint64_t i = 0; i < kStep; i += sizeof(uint32_t)) {
      Entry entry;
      memcpy(&entry, bytes.data() + i, sizeof(entry));
      if (entry.bytes == kRestorerBytes &&
          entry.distance == static_cast<uint32_t>(start - 1 - (at + i))) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

// ---- SharedText ---------------------------------------------------------------------------------

SharedText::SharedText(TextCache* cache, const FileIdentity& identity, base::Ref<base::HostFd> file,
                       uint64_t begin, uint64_t end)
    : cache_(cache),
      identity_(identity),
      file_(std::move(file)),
      begin_(begin),
      end_(end),
      pause_ns_(kFirstPauseNs) {}

SharedText::~SharedText() {
  absl::MutexLock lock(&mu_);
  cache_->ReturnIndexes(sites_);
}

void SharedText::NoteTrap(uint64_t end) {
  {
    absl::MutexLock lock(&mu_);
    if (dead_ || ends_.size() >= kMaxEnds || !ends_.emplace(end, false).second) return;
    if (std::exchange(queued_, true)) return;
  }
  cache_->Queue(this);
}

std::optional<SiteShape> SharedText::SiteAt(uint64_t end) {
  absl::MutexLock lock(&mu_);
  for (const TextSite& site : sites_) {
    if (site.end == end) return site.shape;
  }
  return std::nullopt;
}

base::Ref<TextCopy> SharedText::copy() {
  absl::MutexLock lock(&mu_);
  return copy_;
}

// ---- TextCache ----------------------------------------------------------------------------------

TextCache::TextCache() {
  absl::MutexLock lock(&index_mu_);
  for (uint32_t i = kMaxSites; i-- > kFirstSharedCompareSite;) free_compare_.push_back(i);
  for (uint32_t i = kFirstCompareSite; i-- > kFirstSharedSite;) free_mov_.push_back(i);
}

TextCache::~TextCache() {
  std::thread thread;
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
    work_.Signal();
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

base::Ref<SharedText> TextCache::Find(const FileIdentity& identity,
                                      const base::Ref<base::HostFd>& file, uint64_t begin,
                                      uint64_t end) {
  // A file changed so lately could change again without its times showing it.
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  int64_t age = now.tv_sec * 1'000'000'000ll + now.tv_nsec;
  age -= std::max(identity.mtime_ns, identity.ctime_ns);
  if (age < kSettledNs) return nullptr;
  // Behind the file's last page an access raises SIGBUS, which a copy would not.
  if (end - begin > kMaxTextBytes || end > PageUp(identity.size)) return nullptr;
  std::pair key(identity.dev, identity.ino);
  base::Ref<SharedText> old;  // outlives the lock
  absl::MutexLock lock(&mu_);
  auto found = texts_.find(key);
  if (found != texts_.end()) {
    SharedText& text = *found->second;
    bool same = text.identity_ == identity;
    if (same && text.Covers(begin, end)) {
      text.last_use_ = ++uses_;
      return found->second;
    }
    // Another part of the same file: the first one mapped is the one that is shared.
    if (same) return nullptr;
    old = std::move(found->second);
    texts_.erase(found);
  }
  if (texts_.size() >= kMaxTexts) {
    auto oldest = std::min_element(texts_.begin(), texts_.end(), [](const auto& a, const auto& b) {
      return a.second->last_use_ < b.second->last_use_;
    });
    old = std::move(oldest->second);
    texts_.erase(oldest);
  }
  auto text = base::MakeRef<SharedText>(this, identity, file, begin, end);
  text->last_use_ = ++uses_;
  texts_[key] = text;
  return text;
}

void TextCache::Forget(uint64_t dev) {
  std::vector<base::Ref<SharedText>> old;  // outlives the lock
  absl::MutexLock lock(&mu_);
  for (auto it = texts_.begin(); it != texts_.end();) {
    if (it->first.first != dev) {
      ++it;
      continue;
    }
    old.push_back(std::move(it->second));
    texts_.erase(it++);
  }
}

void TextCache::Queue(SharedText* text) {
  absl::MutexLock lock(&mu_);
  if (stop_) return;
  queue_.push_back(base::Ref<SharedText>(text));
  if (!thread_.joinable()) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    thread_ = std::thread([this] { Run(); });
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }
  work_.Signal();
}

void TextCache::WaitUntilBuilt() {
  absl::MutexLock lock(&mu_);
  hurry_ = true;
  work_.Signal();
  while (building_ || !queue_.empty()) done_.Wait(&mu_);
  hurry_ = false;
}

void TextCache::Run() {
  pthread_setname_np(pthread_self(), "text-copier");
  absl::MutexLock lock(&mu_);
  while (!stop_) {
    if (queue_.empty()) {
      done_.SignalAll();
      work_.Wait(&mu_);
      continue;
    }
    int64_t now = NowNs();
    for (auto& text : queue_) {
      if (text->next_build_ns_ == 0) text->next_build_ns_ = now + text->pause_ns_;
    }
    auto next = std::min_element(queue_.begin(), queue_.end(), [](const auto& a, const auto& b) {
      return a->next_build_ns_ < b->next_build_ns_;
    });
    if ((*next)->next_build_ns_ > now && !hurry_) {
      work_.WaitWithTimeout(&mu_, absl::Nanoseconds((*next)->next_build_ns_ - now));
      continue;
    }
    base::Ref<SharedText> text = std::move(*next);
    queue_.erase(next);
    building_ = true;
    mu_.Unlock();
    Build(*text);
    text.reset();
    mu_.Lock();
    building_ = false;
  }
}

// Reads the text, looks at the sites that have trapped since the last time, and makes a copy with
// all that can be patched.
void TextCache::Build(SharedText& text) {
  std::vector<uint64_t> ends;
  std::vector<TextSite> sites;
  {
    absl::MutexLock lock(&text.mu_);
    text.queued_ = false;
    for (auto& [end, seen] : text.ends_) {
      if (!std::exchange(seen, true)) ends.push_back(end);
    }
    sites = text.sites_;
  }
  text.next_build_ns_ = 0;
  text.pause_ns_ = std::min(text.pause_ns_ * 2, kMaxPauseNs);

  auto version = [&](SharedText::Version* v) {
    struct stat st;
    if (base::HostStat(text.file_->get(), &st) != 0) return false;
    constexpr int64_t kSecond = 1'000'000'000;
    *v = {static_cast<uint64_t>(st.st_size), st.st_mtim.tv_sec * kSecond + st.st_mtim.tv_nsec,
          st.st_ctim.tv_sec * kSecond + st.st_ctim.tv_nsec};
    return true;
  };
  SharedText::Version before, after;
  std::vector<unsigned char> bytes(text.end_ - text.begin_);
  bool same = version(&before) && ReadAll(text.file_->get(), text.begin_, &bytes) &&
              version(&after) && before == after && (!text.read_once_ || text.version_ == before);
  text.read_once_ = true;
  text.version_ = before;
  if (!same) {
    absl::MutexLock lock(&text.mu_);
    text.dead_ = true;
    text.copy_.reset();
    return;
  }

  std::vector<size_t> places;
  for (uint64_t end : ends) places.push_back(end - text.begin_);
  std::vector<std::optional<SiteShape>> shapes = SiteFinder(bytes).Find(places);
  std::vector<TextSite> fresh;
  for (size_t i = 0; i < shapes.size(); i++) {
    if (!shapes[i]) continue;
    // Within one page, so that no mapping can hold a part of it.
    uint64_t start = ends[i] - shapes[i]->back;
    uint64_t last = ends[i] + (shapes[i]->form == kSiteMov ? 0 : kCompareBytes) - 1;
    if (start / kPageSize != last / kPageSize) continue;
    if (IsRestorer(*shapes[i]) && !HasUnwindInfo(text.file_->get(), before.size, start)) continue;
    std::optional<uint32_t> index = TakeIndex(shapes[i]->form);
    if (index) fresh.push_back({ends[i], *shapes[i], *index});
  }
  if (fresh.empty()) return;
  sites.insert(sites.end(), fresh.begin(), fresh.end());
  base::Ref<TextCopy> copy = MakeCopy(std::move(bytes), text, sites);
  absl::MutexLock lock(&text.mu_);
  text.sites_ = std::move(sites);
  if (copy) text.copy_ = std::move(copy);
}

// Drops the copies that were not used for longest. Processes may still hold theirs.
bool TextCache::MakeRoom(uint64_t bytes) {
  std::vector<base::Ref<TextCopy>> dropped;
  absl::MutexLock lock(&mu_);
  while (total_bytes_.load() + bytes > kMaxTotalBytes) {
    SharedText* oldest = nullptr;
    for (auto& [key, text] : texts_) {
      if (oldest && text->last_use_ >= oldest->last_use_) continue;
      absl::MutexLock text_lock(&text->mu_);
      if (text->copy_) oldest = text.get();
    }
    if (!oldest) return false;
    absl::MutexLock text_lock(&oldest->mu_);
    oldest->copy_.reset();
  }
  return true;
}

base::Ref<TextCopy> TextCache::MakeCopy(std::vector<unsigned char> bytes, const SharedText& text,
                                        const std::vector<TextSite>& sites) {
  if (!MakeRoom(bytes.size())) return nullptr;
  for (const TextSite& site : sites) {
    uint64_t jump = JumpBytes(site.shape, site.index);
    memcpy(bytes.data() + (site.end - site.shape.back - text.begin_), &jump, site.shape.count);
  }
  int fd = memfd_create("runsc-text", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return nullptr;
  auto file = base::MakeRef<base::HostFd>(fd);
  size_t done = 0;
  while (done < bytes.size()) {
    ssize_t n =
        base::HostWriteAt(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return nullptr;
    done += static_cast<size_t>(n);
  }
  // A stub gets this descriptor: what others run must not be its to write.
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0) {
    return nullptr;
  }
  auto copy = base::MakeRef<TextCopy>(std::move(file), bytes.size(), &total_bytes_);
  copy->sites = sites;
  return copy;
}

std::optional<uint32_t> TextCache::TakeIndex(SiteForm form) {
  absl::MutexLock lock(&index_mu_);
  std::vector<uint32_t>& free = form == kSiteMov ? free_mov_ : free_compare_;
  if (free.empty()) return std::nullopt;
  uint32_t index = free.back();
  free.pop_back();
  return index;
}

void TextCache::ReturnIndexes(const std::vector<TextSite>& sites) {
  absl::MutexLock lock(&index_mu_);
  for (const TextSite& s : sites) {
    (s.shape.form == kSiteMov ? free_mov_ : free_compare_).push_back(s.index);
  }
}

}  // namespace platform
