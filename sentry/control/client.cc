#include "sentry/control/client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "sentry/boot/boot_spec_json.h"

namespace sentry {

using base::Error;
using base::LastError;
using base::Result;
using base::Status;
using base::UniqueFd;
using Json = nlohmann::json;

namespace {

constexpr int kShortMs = 10'000;
constexpr int kLongMs = 120'000;  // what waits for files

Json ParseObject(const std::string& text) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : Json::object();
}

int64_t Int(const Json& json, const char* name) {
  auto it = json.find(name);
  return it != json.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
}

std::string Str(const Json& json, const char* name) {
  std::string out;
  auto it = json.find(name);
  if (it != json.end() && it->is_string()) Utf8ToBytes(it->get_ref<const std::string&>(), &out);
  return out;
}

}  // namespace

Result<ControlClient> ControlClient::Connect(int dir_fd, const std::string& name) {
  // Through the directory's descriptor: the path may be longer than sun_path.
  std::string path = "/proc/self/fd/" + std::to_string(dir_fd) + "/" + name;
  sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  if (path.size() >= sizeof(addr.sun_path)) return Error(ENAMETOOLONG);
  memcpy(addr.sun_path, path.c_str(), path.size() + 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return LastError();
  if (connect(socket.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) != 0) {
    return LastError();
  }
  return ControlClient(std::move(socket));
}

Status ControlClient::Send(ControlOp op, std::string payload, const std::vector<int>& fds) {
  ControlMessage message;
  message.op = op;
  message.id = ++last_id_;
  message.payload = std::move(payload);
  return SendControl(socket_.get(), message, fds, 0);
}

Result<std::string> ControlClient::Receive(int timeout_ms, std::string* why) {
  pollfd p{socket_.get(), POLLIN, 0};
  int n;
  do {
    n = poll(&p, 1, timeout_ms);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return LastError();
  if (n == 0) return Error(ETIMEDOUT);
  ControlMessage reply = TRY(RecvControl(socket_.get(), 0));
  if (reply.op != ControlOp::kReply || reply.id != last_id_) return Error(EPROTO);
  if (reply.error != 0) {
    if (why != nullptr) *why = Str(ParseObject(reply.payload), "why");
    return Error(reply.error);
  }
  return std::move(reply.payload);
}

Result<std::string> ControlClient::Call(ControlOp op, std::string payload,
                                        const std::vector<int>& fds, int timeout_ms,
                                        std::string* why) {
  TRY(Send(op, std::move(payload), fds));
  return Receive(timeout_ms, why);
}

Status ControlClient::Start(std::string* why) {
  TRY(Call(ControlOp::kStart, "{}", {}, kLongMs, why));
  return base::Ok();
}

Result<int32_t> ControlClient::Exec(const ProcessSpec& process, bool owned,
                                    const std::vector<int>& fds, std::string* why) {
  std::string payload = "{\"process\":" + EncodeProcessSpec(process) +
                        ",\"owned\":" + (owned ? "true" : "false") + "}";
  Json json = ParseObject(TRY(Call(ControlOp::kExec, std::move(payload), fds, kLongMs, why)));
  return static_cast<int32_t>(Int(json, "pid"));
}

Status ControlClient::Signal(int32_t pid, int signo, bool all, int timeout_ms) {
  Json json = {{"pid", pid}, {"signo", signo}, {"all", all}};
  TRY(Call(ControlOp::kSignal, json.dump(), {}, timeout_ms, nullptr));
  return base::Ok();
}

Result<std::vector<ProcessInfo>> ControlClient::Processes() {
  Json json = ParseObject(TRY(Call(ControlOp::kProcesses, "{}", {}, kShortMs, nullptr)));
  std::vector<ProcessInfo> list;
  auto it = json.find("processes");
  if (it == json.end() || !it->is_array()) return Error(EPROTO);
  for (const Json& p : *it) {
    ProcessInfo info;
    info.pid = static_cast<int32_t>(Int(p, "pid"));
    info.ppid = static_cast<int32_t>(Int(p, "ppid"));
    info.uid = static_cast<uint32_t>(Int(p, "uid"));
    info.start_time = Int(p, "startTime");
    info.cpu_ns = Int(p, "cpuNs");
    info.threads = static_cast<int32_t>(Int(p, "threads"));
    info.tty = Str(p, "tty");
    std::string state = Str(p, "state");
    info.state = state.empty() ? '?' : state[0];
    info.command = Str(p, "command");
    info.host_pid = static_cast<int32_t>(Int(p, "hostPid"));
    info.init = Int(p, "init") != 0;
    list.push_back(std::move(info));
  }
  return list;
}

Result<std::string> ControlClient::SyscallTimes() {
  return Call(ControlOp::kSyscalls, "{}", {}, kShortMs, nullptr);
}

Status ControlClient::SetLimits(int64_t pids, int64_t memory) {
  Json json = {{"pids", pids}, {"memory", memory}};
  TRY(Call(ControlOp::kLimits, json.dump(), {}, kShortMs, nullptr));
  return base::Ok();
}

Status ControlClient::SetFrozen(bool frozen) {
  TRY(Call(ControlOp::kFreeze, Json({{"frozen", frozen}}).dump(), {}, kShortMs, nullptr));
  return base::Ok();
}

Status ControlClient::Join(const ContainerSpec& container, const std::vector<int>& fds,
                           std::string* why) {
  std::string payload = "{\"container\":" + EncodeContainerSpec(container) + "}";
  TRY(Call(ControlOp::kJoin, std::move(payload), fds, kLongMs, why));
  return base::Ok();
}

Status ControlClient::Keep() {
  TRY(Call(ControlOp::kKeep, "{}", {}, kShortMs, nullptr));
  return base::Ok();
}

Status ControlClient::SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols) {
  Json json = {{"pid", pid}, {"rows", rows}, {"cols", cols}};
  TRY(Call(ControlOp::kWindowSize, json.dump(), {}, kShortMs, nullptr));
  return base::Ok();
}

Status ControlClient::BeginWait(int32_t pid) {
  return Send(ControlOp::kWait, Json({{"pid", pid}}).dump(), {});
}

Result<int> ControlClient::FinishWait() {
  Json json = ParseObject(TRY(Receive(-1, nullptr)));
  return static_cast<int>(Int(json, "status"));
}

}  // namespace sentry
