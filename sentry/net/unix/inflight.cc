#include "sentry/net/unix/inflight.h"

#include <deque>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/net/unix/endpoint.h"
#include "sentry/net/unix/unix_socket.h"

namespace sentry {
namespace {

struct Flight {
  absl::Mutex mutex;  // before the endpoints' mutexes
  // AF_UNIX sockets in flight, and how many references the flight holds of each.
  std::unordered_map<FileDescription*, uint32_t> sockets ABSL_GUARDED_BY(mutex);
  std::unordered_map<uid_t, uint64_t> of_user ABSL_GUARDED_BY(mutex);  // files of any kind
};

Flight& TheFlight() {
  static Flight* flight = new Flight;
  return *flight;
}

struct Drops {
  absl::Mutex mutex;
  std::deque<base::Ref<FileDescription>> files ABSL_GUARDED_BY(mutex);
  bool draining ABSL_GUARDED_BY(mutex) = false;
};

Drops& TheDrops() {
  static Drops* drops = new Drops;
  return *drops;
}

}  // namespace

base::Status AddInflight(const FileList& files, uid_t uid, uint64_t limit, bool privileged) {
  if (files.empty()) return base::Ok();
  Flight& flight = TheFlight();
  absl::MutexLock lock(&flight.mutex);
  uint64_t& count = flight.of_user[uid];
  if (!privileged && count > limit) return base::Error(ETOOMANYREFS);
  count += files.size();
  for (const auto& file : files) {
    if (UnixSocket::From(*file) != nullptr) ++flight.sockets[file.get()];
  }
  return base::Ok();
}

void RemoveInflight(const FileList& files, uid_t uid) {
  if (files.empty()) return;
  Flight& flight = TheFlight();
  absl::MutexLock lock(&flight.mutex);
  auto user = flight.of_user.find(uid);
  if (user != flight.of_user.end()) {
    user->second -= std::min<uint64_t>(user->second, files.size());
    if (user->second == 0) flight.of_user.erase(user);
  }
  for (const auto& file : files) {
    auto it = flight.sockets.find(file.get());
    if (it != flight.sockets.end() && --it->second == 0) flight.sockets.erase(it);
  }
}

void DropFiles(FileList files) {
  Drops& drops = TheDrops();
  {
    absl::MutexLock lock(&drops.mutex);
    for (auto& file : files) drops.files.push_back(std::move(file));
    if (drops.draining) return;
    drops.draining = true;
  }
  while (true) {
    base::Ref<FileDescription> file;
    {
      absl::MutexLock lock(&drops.mutex);
      if (drops.files.empty()) {
        drops.draining = false;
        return;
      }
      file = std::move(drops.files.front());
      drops.files.pop_front();
    }
  }
}

// A socket is a candidate if all references to it are from the flight. Those that are held by a
// queue outside of the candidates are reachable, and so is what their own queues hold; the rest is
// garbage. Nobody can make a candidate reachable meanwhile: it would have to receive from a queue
// that it has a reference to, which then is no candidate's.
void CollectUnreachableSockets() {
  std::vector<std::pair<FileList, uid_t>> garbage;
  {
    Flight& flight = TheFlight();
    absl::MutexLock lock(&flight.mutex);
    if (flight.sockets.empty()) return;
    std::unordered_map<FileDescription*, int64_t> outside;  // references from reachable places
    for (const auto& [file, count] : flight.sockets) {
      if (file->ref_count() == count) outside[file] = count;
    }
    auto endpoint_of = [](FileDescription* file) -> UnixEndpoint& {
      return *UnixSocket::From(*file)->endpoint();
    };
    for (const auto& [file, count] : outside) {
      endpoint_of(file).VisitFiles([&](FileDescription* held) {
        auto it = outside.find(held);
        if (it != outside.end()) --it->second;
      });
    }
    std::vector<FileDescription*> reachable;
    for (const auto& [file, count] : outside) {
      if (count > 0) reachable.push_back(file);
    }
    for (FileDescription* file : reachable) outside.erase(file);
    while (!reachable.empty()) {
      FileDescription* file = reachable.back();
      reachable.pop_back();
      endpoint_of(file).VisitFiles([&](FileDescription* held) {
        if (outside.erase(held) > 0) reachable.push_back(held);
      });
    }
    for (const auto& [file, count] : outside) endpoint_of(file).TakeFiles(&garbage);
  }
  for (auto& [files, uid] : garbage) {
    RemoveInflight(files, uid);
    DropFiles(std::move(files));
  }
}

}  // namespace sentry
