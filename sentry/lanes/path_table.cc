#include "sentry/lanes/path_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "sentry/base/kernel_memory.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using platform::kPathEntries;
using platform::kPathPlaces;
using platform::kPathWays;
using platform::PathBucket;
using platform::PathEntry;
using platform::PathQuery;

constexpr size_t kMaxTables = 8;
constexpr size_t kFilters = 16 * 1024;  // a power of two
// What a table counts for in the sentry's memory at first, and with each run of entries: they, and
// what leads to them.
constexpr size_t kFirstCharge = 192 * 1024;
constexpr uint32_t kRun = 64;
constexpr size_t kRunCharge = kRun * (sizeof(PathEntry) + 64);
// What could not be published is not tried again so many times; what has changed often, a few
// times.
constexpr uint8_t kSkipVain = 255, kSkipMost = 32;
constexpr uint8_t kFreeTries = 4;

struct Tables {
  // Shared to change words and while a table is used by its number, exclusive to enter and remove
  // tables and to give words out.
  absl::Mutex mutex;
  std::array<PathTable*, kMaxTables> tables ABSL_GUARDED_BY(mutex) = {};
  uint32_t next_word ABSL_GUARDED_BY(mutex) = 1;
  std::vector<uint32_t> free_words ABSL_GUARDED_BY(mutex);

  absl::Mutex domains_mutex ABSL_ACQUIRED_BEFORE(mutex);
  absl::flat_hash_map<std::string, base::Ref<PathTable>> domains ABSL_GUARDED_BY(domains_mutex);
};

Tables& TheTables() {
  static Tables* tables = new Tables;
  return *tables;
}

std::atomic<uint64_t> g_places{1};

void Add(uint64_t* word) { __atomic_fetch_add(word, uint64_t{1}, __ATOMIC_SEQ_CST); }

}  // namespace

uint32_t PathWord::Use(PathTable& table) {
  if (index_.load(std::memory_order_acquire) == 0) {
    Tables& all = TheTables();
    absl::MutexLock lock(&all.mutex);
    if (index_.load(std::memory_order_relaxed) == 0) {
      uint32_t index = 0;
      if (!all.free_words.empty()) {
        index = all.free_words.back();
        all.free_words.pop_back();
      } else if (all.next_word < platform::kPathWords) {
        index = all.next_word++;
      }
      index_.store(index, std::memory_order_release);
    }
  }
  const uint32_t index = index_.load(std::memory_order_acquire);
  if (index != 0) tables_.fetch_or(1u << table.number_, std::memory_order_seq_cst);
  return index;
}

void PathWord::Change() {
  const uint32_t tables = tables_.exchange(0, std::memory_order_seq_cst);
  if ((tables & kWatched) != 0) TellWatchers();
  if ((tables & ~kWatched) == 0) return;
  Tables& all = TheTables();
  absl::ReaderMutexLock lock(&all.mutex);
  const uint32_t index = index_.load(std::memory_order_relaxed);
  for (size_t i = 0; i < kMaxTables; i++) {
    if ((tables >> i & 1) != 0 && all.tables[i] != nullptr)
      Add(&all.tables[i]->memory_->words[index]);
  }
}

void PathWord::Release() {
  if (tables_.load(std::memory_order_relaxed) != 0) Change();
  Tables& all = TheTables();
  absl::MutexLock lock(&all.mutex);
  all.free_words.push_back(index_.load(std::memory_order_relaxed));
}

void AllPathsChanged() {
  Tables& all = TheTables();
  absl::ReaderMutexLock lock(&all.mutex);
  for (PathTable* table : all.tables) {
    if (table != nullptr) Add(&table->memory_->epoch);
  }
  AllWatchedChanged();
}

PathTable::PathTable(base::Ref<base::HostFd> file, platform::PathTable* memory, int root_mount,
                     base::Ref<base::RefCounted> owner, uint32_t number)
    : file_(std::move(file)),
      memory_(memory),
      root_mount_(root_mount),
      owner_(std::move(owner)),
      number_(number),
      named_(kPathEntries),
      filter_(kFilters) {}

PathTable::~PathTable() {
  {
    Tables& all = TheTables();
    absl::MutexLock lock(&all.mutex);
    if (all.tables[number_] == this) all.tables[number_] = nullptr;
  }
  munmap(memory_, platform::kPathTableSize);
  base::KernelMemory::Uncharge(charge_);
}

Result<base::Ref<PathTable>> PathTable::New(int root_mount, base::Ref<base::RefCounted> owner) {
  if (base::KernelMemory::Tight()) return Error(ENOMEM);
  const int fd = memfd_create("paths", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return base::LastError();
  auto file = base::MakeRef<base::HostFd>(fd);
  if (ftruncate(fd, platform::kPathTableSize) != 0) return base::LastError();
  void* memory = mmap(nullptr, platform::kPathTableSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return base::LastError();
  // From here on nobody can map it writable; this mapping stays as it is.
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) !=
      0) {
    const auto error = base::LastError();
    munmap(memory, platform::kPathTableSize);
    return error;
  }
  Tables& all = TheTables();
  base::Ref<PathTable> table;
  {
    absl::MutexLock lock(&all.mutex);
    const auto free = std::find(all.tables.begin(), all.tables.end(), nullptr);
    if (free != all.tables.end()) {
      table = base::MakeRef<PathTable>(std::move(file), static_cast<platform::PathTable*>(memory),
                                       root_mount, std::move(owner),
                                       static_cast<uint32_t>(free - all.tables.begin()));
      *free = table.get();
    }
  }
  if (!table) {
    munmap(memory, platform::kPathTableSize);
    return Error(ENOSPC);
  }
  base::KernelMemory::Charge(kFirstCharge);
  absl::MutexLock lock(&table->mutex_);
  table->charge_ = kFirstCharge;
  return table;
}

Result<base::Ref<PathTable>> PathTable::OfDomain(const std::string& name, int root_mount,
                                                 base::Ref<base::RefCounted> owner) {
  Tables& all = TheTables();
  std::vector<base::Ref<PathTable>> gone;  // after the lock
  absl::MutexLock lock(&all.domains_mutex);
  const auto it = all.domains.find(name);
  if (it != all.domains.end()) return it->second;
  if (all.domains.size() >= kMaxTables) {
    for (auto& [_, table] : all.domains) {
      if (table->ref_count() == 1) gone.push_back(table);
    }
    absl::erase_if(all.domains, [&](const auto& entry) {
      return std::find(gone.begin(), gone.end(), entry.second) != gone.end();
    });
    gone.clear();
    if (all.domains.size() >= kMaxTables) return Error(ENOSPC);
  }
  base::Ref<PathTable> table = TRY(New(root_mount, std::move(owner)));
  all.domains[name] = table;
  return table;
}

uint64_t PathTable::NewPlace(uint64_t directory) {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < kPathPlaces; i++) {
    if (places_[i]) continue;
    places_[i] = true;
    const uint64_t name = g_places.fetch_add(1, std::memory_order_relaxed) * kPathPlaces + i;
    __atomic_store_n(&memory_->places[i].directory, directory, __ATOMIC_SEQ_CST);
    __atomic_store_n(&memory_->places[i].name, name, __ATOMIC_SEQ_CST);
    return name;
  }
  return 0;
}

void PathTable::SetPlace(uint64_t name, uint64_t directory) {
  __atomic_store_n(&memory_->places[name % kPathPlaces].directory, directory, __ATOMIC_SEQ_CST);
}

void PathTable::FreePlace(uint64_t name) {
  __atomic_store_n(&memory_->places[name % kPathPlaces].name, uint64_t{0}, __ATOMIC_SEQ_CST);
  absl::MutexLock lock(&mutex_);
  places_[name % kPathPlaces] = false;
}

PathTable::Filter* PathTable::FilterOf(uint64_t hash) { return &filter_[(hash >> 16) % kFilters]; }

bool PathTable::Asked(uint64_t hash) {
  const uint16_t tag = static_cast<uint16_t>(hash) | 1;
  absl::MutexLock lock(&mutex_);
  Filter* f = FilterOf(hash);
  if (f->tag != tag) {
    *f = {tag, 0, 0};
    return false;
  }
  if (f->skip == 0) return true;
  f->skip--;
  return false;
}

void PathTable::Tried(uint64_t hash, bool published) {
  absl::MutexLock lock(&mutex_);
  Filter* f = FilterOf(hash);
  if (f->tries < kFreeTries + 8) f->tries++;
  if (!published) {
    f->skip = kSkipVain;
  } else if (f->tries > kFreeTries) {
    f->skip = static_cast<uint8_t>(std::min<uint32_t>(1u << (f->tries - kFreeTries), kSkipMost));
  }
}

uint32_t PathTable::TakeEntry(PathBucket* bucket) {
  if (used_ < kPathEntries && (used_ % kRun != 0 || !base::KernelMemory::Tight())) {
    if (used_ % kRun == 0) {
      base::KernelMemory::Charge(kRunCharge);
      charge_ += kRunCharge;
    }
    return used_++;
  }
  if (used_ == 0) return kPathEntries;
  // That of a full bucket goes first, else the oldest of all.
  uint64_t* way = &bucket->way[oldest_ % kPathWays];
  if (static_cast<uint32_t>(*way) == 0 ||
      std::any_of(std::begin(bucket->way), std::end(bucket->way),
                  [](uint64_t w) { return static_cast<uint32_t>(w) == 0; })) {
    oldest_ = (oldest_ + 1) % used_;
    if (named_[oldest_] != nullptr)
      __atomic_store_n(named_[oldest_], uint64_t{0}, __ATOMIC_SEQ_CST);
    return oldest_;
  }
  const uint32_t index = static_cast<uint32_t>(*way) - 1;
  __atomic_store_n(way, uint64_t{0}, __ATOMIC_SEQ_CST);
  return index;
}

void PathTable::Publish(const PathQuery& query, const PathEntry& entry, const std::string& link) {
  absl::MutexLock lock(&mutex_);
  PathBucket* bucket = &memory_->buckets[query.hash % platform::kPathBuckets];
  const PathEntry* known = platform::FindPathEntry(memory_, query);
  uint32_t index = kPathEntries;
  uint64_t* way = nullptr;
  if (known != nullptr) {
    index = static_cast<uint32_t>(known - memory_->entries);
  } else {
    index = TakeEntry(bucket);
    if (index == kPathEntries) return;
    for (uint64_t& w : bucket->way) {
      if (static_cast<uint32_t>(w) == 0) way = &w;
    }
    if (way == nullptr) {
      // A full bucket, and the entry is new: it takes the place of one of the others.
      way = &bucket->way[index % kPathWays];
      named_[static_cast<uint32_t>(*way) - 1] = nullptr;
      __atomic_store_n(way, uint64_t{0}, __ATOMIC_SEQ_CST);
    }
  }
  PathEntry* e = &memory_->entries[index];
  const uint32_t sequence = e->sequence;
  __atomic_store_n(&e->sequence, sequence + 1, __ATOMIC_SEQ_CST);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  PathEntry fresh = entry;
  fresh.sequence = sequence + 1;
  fresh.hash = query.hash;
  fresh.directory = query.directory;
  fresh.path_length = static_cast<uint8_t>(query.length);
  fresh.link_length = static_cast<uint8_t>(link.size());
  memset(fresh.text, 0, sizeof(fresh.text));
  memcpy(fresh.text, query.text, query.length);
  memcpy(reinterpret_cast<char*>(fresh.text) + platform::PathLinkAt(query.length), link.data(),
         link.size());
  memcpy(e, &fresh, sizeof(fresh));
  std::atomic_thread_fence(std::memory_order_seq_cst);
  __atomic_store_n(&e->sequence, sequence + 2, __ATOMIC_SEQ_CST);
  if (way != nullptr) {
    named_[index] = way;
    __atomic_store_n(way, query.hash >> 32 << 32 | (index + 1), __ATOMIC_SEQ_CST);
  }
}

}  // namespace sentry
