// Words that change with what the outcome of a walk depends on (platform/path_lane.h).
#pragma once

#include <atomic>
#include <cstdint>

namespace sentry {

class PathTable;

// Who is told of changes. Told with locks held, so it must be short, and change no words.
class PathWatcher {
 public:
  virtual void WordChanged() = 0;

 protected:
  ~PathWatcher() = default;
};

// A part of what may change: a name in a directory, an object's attributes. It has a word in the
// tables in which something depends on it, from Use until the next change. Thread-safe.
class PathWord {
 public:
  PathWord() = default;
  ~PathWord() {
    if (index_.load(std::memory_order_relaxed) != 0) Release();
  }
  PathWord(const PathWord&) = delete;
  PathWord& operator=(const PathWord&) = delete;

  // It has changed: what was found out before holds no more. Before anybody is told.
  void Changed() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (tables_.load(std::memory_order_relaxed) != 0) Change();
  }
  // It is about to change, so that nobody who sees the change finds what was before. Changed is
  // called after it all the same.
  void Changing() {
    if (tables_.load(std::memory_order_acquire) != 0) Change();
  }
  // Its number in `table`, where it is changed the next time; 0: there is none left.
  uint32_t Use(PathTable& table);
  // `watcher` is told of the next change. It calls Forget before it goes.
  void Watch(PathWatcher& watcher);
  void Forget(PathWatcher& watcher);

 private:
  static constexpr uint32_t kWatched = 1u << 31;  // in tables_
  void Change();
  void TellWatchers();
  void Release();
  std::atomic<uint32_t> index_{0};
  std::atomic<uint32_t> tables_{0};  // a bit for each
};

// It changes while this lives, or may.
class PathChange {
 public:
  explicit PathChange(PathWord& word) : word_(word) { word_.Changing(); }
  ~PathChange() { word_.Changed(); }
  PathChange(const PathChange&) = delete;
  PathChange& operator=(const PathChange&) = delete;

 private:
  PathWord& word_;
};

// Tells all watchers of all words.
void AllWatchedChanged();

// What is rare, and concerns many walks: mounts, permissions of directories.
void AllPathsChanged();

}  // namespace sentry
