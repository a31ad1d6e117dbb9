#include "sentry/lanes/path_words.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/synchronization/mutex.h"

namespace sentry {
namespace {

using Watchers = absl::InlinedVector<PathWatcher*, 2>;

// Who watches which word, in parts by the word.
struct Part {
  absl::Mutex mutex;
  absl::flat_hash_map<const PathWord*, Watchers> watchers ABSL_GUARDED_BY(mutex);
};
constexpr size_t kParts = 16;

std::array<Part, kParts>& TheParts() {
  static auto* parts = new std::array<Part, kParts>;
  return *parts;
}

Part& PartOf(const PathWord* word) { return TheParts()[absl::HashOf(word) % kParts]; }

}  // namespace

void PathWord::Watch(PathWatcher& watcher) {
  Part& part = PartOf(this);
  absl::MutexLock lock(&part.mutex);
  Watchers& watchers = part.watchers[this];
  if (std::ranges::find(watchers, &watcher) == watchers.end()) watchers.push_back(&watcher);
  tables_.fetch_or(kWatched, std::memory_order_seq_cst);
}

void PathWord::Forget(PathWatcher& watcher) {
  Part& part = PartOf(this);
  absl::MutexLock lock(&part.mutex);
  const auto it = part.watchers.find(this);
  if (it == part.watchers.end()) return;
  Watchers& watchers = it->second;
  watchers.erase(std::remove(watchers.begin(), watchers.end(), &watcher), watchers.end());
  if (watchers.empty()) part.watchers.erase(it);
}

void PathWord::TellWatchers() {
  Part& part = PartOf(this);
  absl::MutexLock lock(&part.mutex);
  const auto it = part.watchers.find(this);
  if (it == part.watchers.end()) return;
  for (PathWatcher* watcher : it->second) watcher->WordChanged();
}

void AllWatchedChanged() {
  for (Part& part : TheParts()) {
    absl::MutexLock lock(&part.mutex);
    for (auto& [_, watchers] : part.watchers) {
      for (PathWatcher* watcher : watchers) watcher->WordChanged();
    }
  }
}

}  // namespace sentry
