// What look-ups of paths give: a table that the sentry writes, and that processes map read-only
// that may look up the same with the same outcome. Their stubs answer from it without the sentry.
// Compiled into both; freestanding.
//
// An entry is the outcome of one walk. It names the words of all that the outcome depends on, with
// what they were: the sentry changes a word whenever what it stands for changes. So nobody looks
// for the entries that a change concerns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace platform {

inline constexpr uint32_t kPathWords = 128 * 1024;  // 0 is no word
inline constexpr uint32_t kPathPlaces = 1024;       // of working directories; a power of two
inline constexpr uint32_t kPathEntries = 12 * 1024;
inline constexpr uint32_t kPathBuckets = 8192;  // a power of two
inline constexpr uint32_t kPathWays = 4;
inline constexpr uint32_t kPathSteps = 18;  // words that a walk depends on
inline constexpr uint32_t kPathAttrWords = 4;
inline constexpr uint32_t kPathMost = 183;  // bytes of a path, without the NUL
inline constexpr uint32_t kPathBuffer = (kPathMost + 1 + 7) / 8 * 8;
inline constexpr uint32_t kPathText = 256;  // of an entry: its path, then a link's text

// With which directory a path begins: the process's root, or the number of its working directory or
// of a descriptor's, which is never one of these.
inline constexpr uint64_t kPathNowhere = 0, kPathAtRoot = 1;

struct PathStep {
  uint64_t value;
  uint32_t word;
  uint32_t pad;
};

enum PathFlag : uint8_t {
  kPathFollows = 1,    // a symbolic link in the last place is followed
  kPathHasAttr = 2,    // `stat` and what is besides it for statx(2)
  kPathHasAccess = 4,  // `access`
  kPathHasLink = 8,    // it is a symbolic link, and its text is there
  kPathMountRoot = 16,
};

struct PathEntry {
  uint32_t sequence;  // odd: being written
  int32_t error;      // of the walk; 0: there is something
  uint64_t hash, directory;
  uint64_t epoch;
  uint8_t flags;  // PathFlag
  uint8_t steps, attr_words;
  uint8_t path_length, link_length;
  uint8_t pad[3];
  uint8_t access[8];  // by the mode of access(2): 0, or the error
  uint64_t mount_id, btime_sec;
  uint32_t btime_nsec;
  uint32_t type;      // of mode: what readlink(2) asks for
  uint64_t stat[18];  // struct stat
  // What the walk depends on, then what the attributes depend on besides.
  PathStep step[kPathSteps + kPathAttrWords];
  uint64_t text[kPathText / 8];
};

// Where in `text` a link's begins: behind the path and the zeros that pad it.
inline constexpr uint32_t PathLinkAt(uint32_t path_length) { return (path_length + 7) / 8 * 8; }

struct PathBucket {
  uint64_t way[kPathWays];  // the upper half of a hash, and the entry's number plus one
};

// The working directory of who uses the table: a thread knows its place by a name that is given
// once, whatever the table, so no other place is taken for it. The lower bits are the index.
struct PathPlace {
  uint64_t name;       // 0: nobody's
  uint64_t directory;  // its number, or kPathNowhere
};

struct PathTable {
  // Changes with what is rare and concerns many: mounts, and permissions of directories.
  alignas(4096) uint64_t epoch;
  alignas(4096) PathPlace places[kPathPlaces];
  uint64_t words[kPathWords];
  PathBucket buckets[kPathBuckets];
  PathEntry entries[kPathEntries];
};
inline constexpr uint64_t kPathTableSize = (sizeof(PathTable) + 4095) / 4096 * 4096;

// `text` is padded with zeros to a multiple of 8 bytes.
inline uint64_t HashPath(uint64_t directory, bool follows, const uint64_t* text, uint32_t length) {
  constexpr uint64_t kOdd = 0x9e37'79b9'7f4a'7c15;
  uint64_t h = (directory * 2 + (follows ? 1 : 0)) * kOdd + length;
  for (uint32_t i = 0; i * 8 < length; i++) {
    h = (h ^ text[i]) * kOdd;
    h ^= h >> 32;
  }
  return h;
}

// What is asked for.
struct PathQuery {
  uint64_t hash, directory;
  const uint64_t* text;
  uint32_t length;
  bool follows;
};

template <typename T>
inline T PathLoad(const T* p) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

// With which directory a relative path of the place of this name begins; kPathNowhere: there is no
// such place.
inline uint64_t PathDirectory(const PathTable* table, uint64_t name) {
  const PathPlace* place = &table->places[name % kPathPlaces];
  if (PathLoad(&place->name) != name) return kPathNowhere;
  const uint64_t directory = PathLoad(&place->directory);
  return PathLoad(&place->name) == name ? directory : kPathNowhere;
}

inline bool PathStepsHold(const PathTable* table, const PathStep* step, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    if (PathLoad(&table->words[step[i].word % kPathWords]) != step[i].value) return false;
  }
  return true;
}

inline bool PathEntryIs(const PathEntry* e, const PathQuery& q) {
  if (e->hash != q.hash || e->directory != q.directory || e->path_length != q.length ||
      ((e->flags & kPathFollows) != 0) != q.follows) {
    return false;
  }
  for (uint32_t i = 0; i * 8 < q.length; i++) {
    if (e->text[i] != q.text[i]) return false;
  }
  return true;
}

// The table's entry for the query as it stands, whether its words hold or not; null: there is none.
inline const PathEntry* FindPathEntry(const PathTable* table, const PathQuery& q) {
  const PathBucket* bucket = &table->buckets[q.hash % kPathBuckets];
  for (uint32_t i = 0; i < kPathWays; i++) {
    const uint64_t way = PathLoad(&bucket->way[i]);
    if (way >> 32 != q.hash >> 32 || static_cast<uint32_t>(way) == 0) continue;
    const PathEntry* e = &table->entries[(static_cast<uint32_t>(way) - 1) % kPathEntries];
    if (PathEntryIs(e, q)) return e;
  }
  return nullptr;
}

// Calls take(entry), which copies what it wants and says whether it has what it needs, and whether
// that depends on the attributes. What it has copied holds if the outcome is true. The entry may
// change under its hands: it uses nothing of it as a length that it has not cut.
template <typename Take>
inline bool TakePath(const PathTable* table, const PathQuery& q, Take take) {
  const PathEntry* e = FindPathEntry(table, q);
  if (e == nullptr) return false;
  const uint32_t sequence = PathLoad(&e->sequence);
  if ((sequence & 1) != 0 || !PathEntryIs(e, q)) return false;
  bool attr = false;
  if (!take(*e, &attr)) return false;
  const uint32_t n = e->steps + (attr ? e->attr_words : 0u);
  if (n > kPathSteps + kPathAttrWords || e->epoch != PathLoad(&table->epoch)) return false;
  if (!PathStepsHold(table, e->step, n)) return false;
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  return __atomic_load_n(&e->sequence, __ATOMIC_RELAXED) == sequence;
}

}  // namespace platform
