#include "sentry/control/server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <utility>

#include "sentry/base/host_io.h"
#include "sentry/boot/boot_spec_json.h"

namespace sentry {

using base::LastError;
using base::Result;
using base::Status;
using base::UniqueFd;
using Json = nlohmann::json;

namespace {

constexpr size_t kMaxConnections = 512;
constexpr size_t kMaxThreads = 64;

Json ParseObject(const std::string& text) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : Json();
}

// The member `name` as an integer within [min, max].
std::optional<int64_t> IntField(const Json& json, const char* name, int64_t min, int64_t max) {
  auto it = json.find(name);
  if (it == json.end() || !it->is_number_integer()) return std::nullopt;
  if (it->is_number_unsigned() && it->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return std::nullopt;
  }
  int64_t value = it->get<int64_t>();
  if (value < min || value > max) return std::nullopt;
  return value;
}

std::optional<bool> BoolField(const Json& json, const char* name) {
  auto it = json.find(name);
  if (it == json.end() || !it->is_boolean()) return std::nullopt;
  return it->get<bool>();
}

}  // namespace

ControlServer::ControlServer(Sandbox* sandbox, PeerCheck peer_check)
    : sandbox_(sandbox), peer_check_(std::move(peer_check)) {}

ControlServer::~ControlServer() {
  for (auto& [id, thread] : threads_) thread.join();
}

Result<ControlServer::LoopFds> ControlServer::MakeLoopFds() {
  LoopFds fds;
  fds.epoll.reset(epoll_create1(EPOLL_CLOEXEC));
  if (!fds.epoll.valid()) return LastError();
  fds.wake.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fds.wake.valid()) return LastError();
  return fds;
}

Status ControlServer::Init(LoopFds fds) {
  fds_ = std::move(fds);
  return Watch(fds_.wake.get(), EPOLLIN, [this](uint32_t) { RunPosted(); });
}

Result<uint64_t> ControlServer::Serve(std::shared_ptr<Container> container, UniqueFd listener,
                                      uint64_t connection) {
  const uint64_t id = next_served_++;
  TRY(Watch(listener.get(), EPOLLIN, [this, id](uint32_t) { Accept(id); }));
  Served& served = served_[id];
  served.container = std::move(container);
  served.listener = std::move(listener);
  served.owner = connection;
  return id;
}

void ControlServer::Remove(uint64_t served) {
  auto it = served_.find(served);
  if (it == served_.end()) return;
  Unwatch(it->second.listener.get());
  served_.erase(it);
  std::vector<uint64_t> gone;
  for (const auto& [id, connection] : connections_) {
    if (connection.served == served) gone.push_back(id);
  }
  for (uint64_t id : gone) Close(id);
}

Status ControlServer::Watch(int fd, uint32_t events, std::function<void(uint32_t)> callback) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(fds_.epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) return LastError();
  watched_[fd] = std::move(callback);
  return base::Ok();
}

void ControlServer::Unwatch(int fd) {
  if (watched_.erase(fd) != 0) epoll_ctl(fds_.epoll.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void ControlServer::Post(std::function<void()> work) {
  {
    absl::MutexLock lock(&mutex_);
    posted_.push_back(std::move(work));
  }
  uint64_t one = 1;
  // Fails only when the counter is full, and then the loop is awake anyway.
  [[maybe_unused]] ssize_t n = write(fds_.wake.get(), &one, sizeof(one));
}

void ControlServer::RunPosted() {
  uint64_t count;
  [[maybe_unused]] ssize_t n = base::HostRead(fds_.wake.get(), &count, sizeof(count));
  std::vector<std::function<void()>> work;
  {
    absl::MutexLock lock(&mutex_);
    work.swap(posted_);
  }
  for (auto& w : work) w();
}

int ControlServer::Run() {
  while (!quit_) {
    epoll_event events[16];
    int n = base::HostEpollWait(fds_.epoll.get(), events, 16, -1);
    if (n < 0 && errno != EINTR) return EXIT_FAILURE;
    for (int i = 0; i < n; ++i) {
      // An earlier callback of this round may have unwatched it.
      auto it = watched_.find(events[i].data.fd);
      if (it == watched_.end()) continue;
      auto callback = it->second;
      callback(events[i].events);
    }
    ReapThreads();
  }
  return *quit_;
}

void ControlServer::Accept(uint64_t served) {
  auto it = served_.find(served);
  if (it == served_.end()) return;
  UniqueFd fd(accept4(it->second.listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) return;
  ucred peer{};
  socklen_t len = sizeof(peer);
  if (connections_.size() >= kMaxConnections ||
      getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0 || !peer_check_(peer)) {
    return;
  }
  uint64_t id = next_connection_++;
  int raw = fd.get();
  Connection& connection = connections_[id];
  connection.fd = std::move(fd);
  connection.served = served;
  connection.container = it->second.container;
  if (!Watch(raw, EPOLLIN, [this, id](uint32_t) { Receive(id); }).ok()) connections_.erase(id);
}

void ControlServer::Receive(uint64_t connection) {
  auto it = connections_.find(connection);
  if (it == connections_.end()) return;
  Result<ControlMessage> message = RecvControl(it->second.fd.get(), MSG_DONTWAIT);
  if (!message.ok()) {
    if (message.error().code() != EAGAIN) Close(connection);
    return;
  }
  Dispatch(connection, std::move(*message));
}

void ControlServer::Close(uint64_t connection) {
  auto it = connections_.find(connection);
  if (it == connections_.end()) return;
  for (int32_t pid : it->second.owned) (void)it->second.container->Signal(pid, SIGKILL);
  for (auto& [id, served] : served_) {
    if (served.owner == connection) (void)served.container->SignalAll(SIGKILL);
  }
  Unwatch(it->second.fd.get());
  connections_.erase(it);
}

void ControlServer::Dispatch(uint64_t connection, ControlMessage message) {
  switch (message.op) {
    case ControlOp::kStart:
      return DoStart(connection, message.id);
    case ControlOp::kExec:
      return DoExec(connection, std::move(message));
    case ControlOp::kWait:
      return DoWait(connection, message);
    case ControlOp::kSignal:
      return DoSignal(connection, message);
    case ControlOp::kLimits:
      return DoLimits(connection, message);
    case ControlOp::kProcesses:
      return DoProcesses(connection, message.id);
    case ControlOp::kWindowSize:
      return DoWindowSize(connection, message);
    case ControlOp::kFreeze:
      return DoFreeze(connection, message);
    case ControlOp::kJoin:
      return DoJoin(connection, std::move(message));
    case ControlOp::kKeep:
      return DoKeep(connection, message.id);
    case ControlOp::kSyscalls:
      return Reply(connection, message.id, 0, sandbox_->SyscallTimes());
    case ControlOp::kReply:
      break;
  }
  Close(connection);
}

void ControlServer::Spawn(std::function<void()> work) {
  uint64_t id = next_thread_++;
  threads_[id] = std::thread([this, id, work = std::move(work)] {
    work();
    Post([this, id] { finished_threads_.push_back(id); });
  });
}

void ControlServer::ReapThreads() {
  for (uint64_t id : finished_threads_) {
    threads_[id].join();
    threads_.erase(id);
  }
  finished_threads_.clear();
}

void ControlServer::DoStart(uint64_t connection, uint32_t id) {
  if (threads_.size() >= kMaxThreads)
    return ReplyError(connection, id, EAGAIN, "too many requests");
  Spawn([this, connection, id, container = About(connection)] {
    std::string why;
    Status status = container->Start(&why);
    Post([this, connection, id, status, why] {
      if (!status.ok()) return ReplyError(connection, id, status.error().code(), why);
      Reply(connection, id, 0, "{}");
    });
  });
}

void ControlServer::DoExec(uint64_t connection, ControlMessage message) {
  uint32_t id = message.id;
  Json json = ParseObject(message.payload);
  std::optional<bool> owned = BoolField(json, "owned");
  auto process_json = json.find("process");
  if (!owned || process_json == json.end() || message.fds.size() < 3) {
    return ReplyError(connection, id, EPROTO, "malformed exec request");
  }
  std::string why;
  Result<ProcessSpec> process = DecodeProcessSpec(*process_json, &why);
  if (!process.ok()) return ReplyError(connection, id, EPROTO, why);
  if (threads_.size() >= kMaxThreads)
    return ReplyError(connection, id, EAGAIN, "too many requests");
  auto fds = std::make_shared<std::vector<UniqueFd>>(std::move(message.fds));
  Spawn([this, connection, id, owned = *owned, process = std::move(*process), fds,
         container = About(connection)] {
    std::string error;
    Result<int32_t> pid = container->Exec(process, ProcessFds{std::move(*fds)}, &error);
    Post([this, connection, id, owned, pid, error, container] {
      // Nobody waits for it any more.
      if (owned && pid.ok() && !connections_.contains(connection)) {
        (void)container->Signal(*pid, SIGKILL);
      }
      FinishExec(connection, id, owned, pid, error);
    });
  });
}

void ControlServer::FinishExec(uint64_t connection, uint32_t id, bool owned, Result<int32_t> pid,
                               const std::string& why) {
  if (!pid.ok()) return ReplyError(connection, id, pid.error().code(), why);
  auto it = connections_.find(connection);
  if (it == connections_.end()) return;
  if (owned) it->second.owned.insert(*pid);
  Reply(connection, id, 0, Json({{"pid", *pid}}).dump());
}

void ControlServer::DoWait(uint64_t connection, const ControlMessage& message) {
  std::optional<int64_t> pid = IntField(ParseObject(message.payload), "pid", 0, INT32_MAX);
  uint32_t id = message.id;
  if (!pid) return ReplyError(connection, id, EPROTO, "malformed wait request");
  if (*pid == Container::kInit) {
    Served& served = served_.find(connections_.find(connection)->second.served)->second;
    if (served.init_status) return ReplyStatus(connection, id, *served.init_status);
    served.init_waiters.push_back({connection, id});
    return;
  }
  auto child = static_cast<int32_t>(*pid);
  Status status = About(connection)->Wait(child, [this, connection, id, child](int wait_status) {
    Post([this, connection, id, child, wait_status] {
      auto it = connections_.find(connection);
      if (it != connections_.end()) it->second.owned.erase(child);
      ReplyStatus(connection, id, wait_status);
    });
  });
  if (!status.ok()) ReplyError(connection, id, status.error().code(), "no such process");
}

void ControlServer::SetInitStatus(uint64_t served, int wait_status) {
  auto it = served_.find(served);
  if (it == served_.end()) return;
  it->second.init_status = wait_status;
  for (const Waiter& w : std::exchange(it->second.init_waiters, {})) {
    ReplyStatus(w.connection, w.request, wait_status);
  }
}

void ControlServer::DoSignal(uint64_t connection, const ControlMessage& message) {
  Json json = ParseObject(message.payload);
  std::optional<int64_t> pid = IntField(json, "pid", 0, INT32_MAX);
  std::optional<int64_t> signo = IntField(json, "signo", 0, 64);
  std::optional<bool> all = BoolField(json, "all");
  if (!pid || !signo || !all) {
    return ReplyError(connection, message.id, EPROTO, "malformed signal request");
  }
  Container& container = *About(connection);
  Status status = *all ? container.SignalAll(static_cast<int>(*signo))
                       : container.Signal(static_cast<int32_t>(*pid), static_cast<int>(*signo));
  if (!status.ok()) {
    return ReplyError(connection, message.id, status.error().code(), "cannot send the signal");
  }
  Reply(connection, message.id, 0, "{}");
}

void ControlServer::DoProcesses(uint64_t connection, uint32_t id) {
  Json list = Json::array();
  for (const ProcessInfo& p : About(connection)->Processes()) {
    list.push_back({{"pid", p.pid},
                    {"ppid", p.ppid},
                    {"uid", p.uid},
                    {"startTime", p.start_time},
                    {"cpuNs", p.cpu_ns},
                    {"threads", p.threads},
                    {"tty", BytesToUtf8(p.tty)},
                    {"state", std::string(1, p.state)},
                    {"command", BytesToUtf8(p.command)},
                    {"hostPid", p.host_pid},
                    {"init", p.init ? 1 : 0}});
  }
  Reply(connection, id, 0, Json({{"processes", std::move(list)}}).dump());
}

void ControlServer::DoWindowSize(uint64_t connection, const ControlMessage& message) {
  Json json = ParseObject(message.payload);
  std::optional<int64_t> pid = IntField(json, "pid", 0, INT32_MAX);
  std::optional<int64_t> rows = IntField(json, "rows", 0, UINT16_MAX);
  std::optional<int64_t> cols = IntField(json, "cols", 0, UINT16_MAX);
  if (!pid || !rows || !cols) {
    return ReplyError(connection, message.id, EPROTO, "malformed window size request");
  }
  Status status = About(connection)
                      ->SetWindowSize(static_cast<int32_t>(*pid), static_cast<uint16_t>(*rows),
                                      static_cast<uint16_t>(*cols));
  if (!status.ok()) {
    return ReplyError(connection, message.id, status.error().code(), "cannot resize the terminal");
  }
  Reply(connection, message.id, 0, "{}");
}

void ControlServer::DoLimits(uint64_t connection, const ControlMessage& message) {
  Json json = ParseObject(message.payload);
  std::optional<int64_t> pids = IntField(json, "pids", -1, INT64_MAX);
  std::optional<int64_t> memory = IntField(json, "memory", -1, INT64_MAX);
  if (!pids || !memory) return ReplyError(connection, message.id, EPROTO, "malformed limits");
  About(connection)->SetLimits(*pids, *memory);
  Reply(connection, message.id, 0, "{}");
}

void ControlServer::DoFreeze(uint64_t connection, const ControlMessage& message) {
  std::optional<bool> frozen = BoolField(ParseObject(message.payload), "frozen");
  if (!frozen) return ReplyError(connection, message.id, EPROTO, "malformed freeze request");
  About(connection)->SetFrozen(*frozen);
  Reply(connection, message.id, 0, "{}");
}

void ControlServer::DoJoin(uint64_t connection, ControlMessage message) {
  constexpr size_t kOwnFds = 3;  // socket, exit file, gofer
  const uint32_t id = message.id;
  Json json = ParseObject(message.payload);
  auto spec_json = json.find("container");
  if (!on_join_ || spec_json == json.end() || message.fds.size() < kOwnFds + 3) {
    return ReplyError(connection, id, EPROTO, "malformed join request");
  }
  if (About(connection) != sandbox_->first()) {
    return ReplyError(connection, id, EINVAL, "this container has no sandbox of its own");
  }
  std::string why;
  Result<ContainerSpec> spec = DecodeContainerSpec(*spec_json, &why);
  if (!spec.ok()) return ReplyError(connection, id, EPROTO, why);
  if (threads_.size() >= kMaxThreads) {
    return ReplyError(connection, id, EAGAIN, "too many requests");
  }
  auto joined = std::make_shared<Joined>();
  joined->connection = connection;
  joined->listener = std::move(message.fds[0]);
  joined->exit_file = std::move(message.fds[1]);
  joined->gofer.reset(fcntl(message.fds[2].get(), F_DUPFD_CLOEXEC, 0));
  auto fds = std::make_shared<ContainerFds>();
  fds->gofer = std::move(message.fds[2]);
  for (size_t i = kOwnFds; i < message.fds.size(); ++i) {
    fds->process.files.push_back(std::move(message.fds[i]));
  }
  Spawn([this, connection, id, spec = std::move(*spec), joined, fds] {
    std::string error;
    auto container = sandbox_->Join(spec, std::move(*fds), &error);
    Post([this, connection, id, container, error, joined] {
      if (!container.ok()) return ReplyError(connection, id, container.error().code(), error);
      joined->container = *container;
      FinishJoin(id, std::move(*joined));
    });
  });
}

void ControlServer::FinishJoin(uint32_t id, Joined joined) {
  const uint64_t connection = joined.connection;
  std::shared_ptr<Container> container = joined.container;
  Status status = on_join_(std::move(joined));
  if (!status.ok() || !connections_.contains(connection)) {
    (void)container->SignalAll(SIGKILL);
  }
  if (!status.ok()) {
    return ReplyError(connection, id, status.error().code(), "cannot serve the container");
  }
  Reply(connection, id, 0, "{}");
}

void ControlServer::DoKeep(uint64_t connection, uint32_t id) {
  for (auto& [number, served] : served_) {
    if (served.owner == connection) served.owner = 0;
  }
  Reply(connection, id, 0, "{}");
}

void ControlServer::Reply(uint64_t connection, uint32_t id, int error, std::string payload) {
  auto it = connections_.find(connection);
  if (it == connections_.end()) return;
  ControlMessage reply;
  reply.op = ControlOp::kReply;
  reply.id = id;
  reply.error = error;
  reply.payload = std::move(payload);
  // A peer that does not read its replies loses the connection.
  if (!SendControl(it->second.fd.get(), reply, {}, MSG_DONTWAIT).ok()) Close(connection);
}

void ControlServer::ReplyError(uint64_t connection, uint32_t id, int error,
                               const std::string& why) {
  Reply(connection, id, error, Json({{"why", BytesToUtf8(why)}}).dump());
}

void ControlServer::ReplyStatus(uint64_t connection, uint32_t id, int wait_status) {
  Reply(connection, id, 0, Json({{"status", wait_status}}).dump());
}

}  // namespace sentry
