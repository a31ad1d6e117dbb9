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

// Serves requests about the containers of one sandbox, each over a listening socket of its own. All
// but Post: only on the thread that calls Run.
class ControlServer {
 public:
  // Decides by the peer's credentials (as this process's namespaces show them) whether to talk.
  using PeerCheck = std::function<bool(const ucred& peer)>;

  // A container that a request has made.
  struct Joined {
    std::shared_ptr<Container> container;
    base::UniqueFd listener, exit_file;
    base::UniqueFd gofer;     // to watch its connection by
    uint64_t connection = 0;  // with which it ends
  };
  // What the loop waits with. Made before the sentry is confined, whose filter has no call for it.
  struct LoopFds {
    base::UniqueFd epoll, wake;
  };
  static base::Result<LoopFds> MakeLoopFds();
  // Takes charge of it.
  using OnJoin = std::function<base::Status(Joined)>;

  // `sandbox` outlives the server.
  ControlServer(Sandbox* sandbox, PeerCheck peer_check);
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // Before all else.
  base::Status Init(LoopFds fds);
  // Calls `callback` with the poll events each time some of `events` (of poll(2)) or an error is
  // pending on `fd`, which stays the caller's. The callback may Unwatch.
  base::Status Watch(int fd, uint32_t events, std::function<void(uint32_t)> callback);
  void Unwatch(int fd);
  // Runs `work` in the loop soon. From any thread.
  void Post(std::function<void()> work) ABSL_LOCKS_EXCLUDED(mutex_);
  // Serves until Quit. Returns Quit's argument.
  int Run();
  void Quit(int code) { quit_ = code; }
  // Serves requests about a container over `listener`, which listens already. `connection`: the
  // container is killed when that ends, until it has asked for something else; 0: none. A number
  // for the calls below.
  base::Result<uint64_t> Serve(std::shared_ptr<Container> container, base::UniqueFd listener,
                               uint64_t connection);
  // Answers all that wait for init, now and later.
  void SetInitStatus(uint64_t served, int wait_status);
  // Ends the container's connections and socket.
  void Remove(uint64_t served);
  // By default there is one container, and requests for more are refused.
  void set_on_join(OnJoin on_join) { on_join_ = std::move(on_join); }
  // Runs `work`, which may block, on a thread of its own.
  void Spawn(std::function<void()> work);

 private:
  struct Connection {
    base::UniqueFd fd;
    uint64_t served = 0;
    std::shared_ptr<Container> container;
    std::set<int32_t> owned;  // processes that die with the connection
  };
  struct Waiter {
    uint64_t connection;
    uint32_t request;
  };
  struct Served {
    std::shared_ptr<Container> container;
    base::UniqueFd listener;
    uint64_t owner = 0;  // the connection with which it ends, or 0
    std::vector<Waiter> init_waiters;
    std::optional<int> init_status;
  };

  void Accept(uint64_t served);
  void Receive(uint64_t connection);
  void Close(uint64_t connection);
  void Dispatch(uint64_t connection, ControlMessage message);
  void DoStart(uint64_t connection, uint32_t id);
  void DoExec(uint64_t connection, ControlMessage message);
  void DoWait(uint64_t connection, const ControlMessage& message);
  void DoSignal(uint64_t connection, const ControlMessage& message);
  void DoProcesses(uint64_t connection, uint32_t id);
  void DoLimits(uint64_t connection, const ControlMessage& message);
  void DoFreeze(uint64_t connection, const ControlMessage& message);
  void DoJoin(uint64_t connection, ControlMessage message);
  void FinishJoin(uint32_t id, Joined joined);
  void DoKeep(uint64_t connection, uint32_t id);
  void DoWindowSize(uint64_t connection, const ControlMessage& message);
  void FinishExec(uint64_t connection, uint32_t id, bool owned, base::Result<int32_t> pid,
                  const std::string& why);
  void Reply(uint64_t connection, uint32_t id, int error, std::string payload);
  void ReplyError(uint64_t connection, uint32_t id, int error, const std::string& why);
  void ReplyStatus(uint64_t connection, uint32_t id, int wait_status);
  void RunPosted() ABSL_LOCKS_EXCLUDED(mutex_);
  void ReapThreads();
  // The container that the connection is about; the connection is there.
  const std::shared_ptr<Container>& About(uint64_t connection) {
    return connections_.find(connection)->second.container;
  }

  Sandbox* const sandbox_;
  const PeerCheck peer_check_;
  OnJoin on_join_;
  LoopFds fds_;
  std::map<int, std::function<void(uint32_t)>> watched_;
  std::map<uint64_t, Connection> connections_;
  uint64_t next_connection_ = 1;
  std::map<uint64_t, Served> served_;
  uint64_t next_served_ = 1;
  std::optional<int> quit_;
  std::map<uint64_t, std::thread> threads_;
  std::vector<uint64_t> finished_threads_;
  uint64_t next_thread_ = 1;

  absl::Mutex mutex_;
  std::vector<std::function<void()>> posted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
