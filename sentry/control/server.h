// The sentry's control server, which is also its main loop.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"
#include "sentry/boot/sandbox.h"
#include "sentry/control/protocol.h"

namespace sentry {

// Serves requests about one sandbox. All but Post: only on the thread that calls Run.
class ControlServer {
 public:
  // Decides by the peer's credentials (as this process's namespaces show them) whether to talk.
  using PeerCheck = std::function<bool(const ucred& peer)>;

  // `listener` listens already. `sandbox` outlives the server.
  ControlServer(Sandbox* sandbox, base::UniqueFd listener, PeerCheck peer_check);
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // Makes the descriptors of the loop. Before Run.
  base::Status Init();
  // Calls `callback` with the poll events each time some of `events` (of poll(2)) or an error is
  // pending on `fd`, which stays the caller's. The callback may Unwatch.
  base::Status Watch(int fd, uint32_t events, std::function<void(uint32_t)> callback);
  void Unwatch(int fd);
  // Runs `work` in the loop soon. From any thread.
  void Post(std::function<void()> work) ABSL_LOCKS_EXCLUDED(mutex_);
  // Serves until Quit. Returns Quit's argument.
  int Run();
  void Quit(int code) { quit_ = code; }
  // Answers all that wait for init, now and later.
  void SetInitStatus(int wait_status);

 private:
  struct Connection {
    base::UniqueFd fd;
    std::set<int32_t> owned;  // processes that die with the connection
  };
  struct Waiter {
    uint64_t connection;
    uint32_t request;
  };

  void Accept();
  void Serve(uint64_t connection);
  void Close(uint64_t connection);
  void Dispatch(uint64_t connection, ControlMessage message);
  void DoStart(uint64_t connection, uint32_t id);
  void DoExec(uint64_t connection, ControlMessage message);
  void DoWait(uint64_t connection, const ControlMessage& message);
  void DoSignal(uint64_t connection, const ControlMessage& message);
  void DoProcesses(uint64_t connection, uint32_t id);
  void DoLimits(uint64_t connection, const ControlMessage& message);
  void DoWindowSize(uint64_t connection, const ControlMessage& message);
  void FinishExec(uint64_t connection, uint32_t id, bool owned, base::Result<int32_t> pid,
                  const std::string& why);
  void Reply(uint64_t connection, uint32_t id, int error, std::string payload);
  void ReplyError(uint64_t connection, uint32_t id, int error, const std::string& why);
  void ReplyStatus(uint64_t connection, uint32_t id, int wait_status);
  void RunPosted() ABSL_LOCKS_EXCLUDED(mutex_);
  // Runs `work`, which may block, on a thread of its own.
  void Spawn(std::function<void()> work);
  void ReapThreads();

  Sandbox* const sandbox_;
  base::UniqueFd listener_;
  const PeerCheck peer_check_;
  base::UniqueFd epoll_;
  base::UniqueFd wake_;
  std::map<int, std::function<void(uint32_t)>> watched_;
  std::map<uint64_t, Connection> connections_;
  uint64_t next_connection_ = 1;
  std::vector<Waiter> init_waiters_;
  std::optional<int> init_status_;
  std::optional<int> quit_;
  std::map<uint64_t, std::thread> threads_;
  std::vector<uint64_t> finished_threads_;
  uint64_t next_thread_ = 1;

  absl::Mutex mutex_;
  std::vector<std::function<void()>> posted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
