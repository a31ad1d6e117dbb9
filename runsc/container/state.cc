#include "runsc/container/state.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

namespace runsc {

using base::UniqueFd;
using Json = nlohmann::ordered_json;

namespace {

constexpr size_t kMaxStateBytes = 16 << 20;

Json ToJson(const ProcessId& p) { return {{"pid", p.pid}, {"startTime", p.start_time}}; }

bool GetProcess(const Json& json, const char* name, ProcessId* p) {
  auto it = json.find(name);
  if (it == json.end() || !it->is_object()) return false;
  auto pid = it->find("pid");
  auto start = it->find("startTime");
  if (pid == it->end() || !pid->is_number_integer() || start == it->end() ||
      !start->is_number_unsigned()) {
    return false;
  }
  p->pid = pid->get<pid_t>();
  p->start_time = start->get<uint64_t>();
  return true;
}

bool GetString(const Json& json, const char* name, std::string* value) {
  auto it = json.find(name);
  if (it == json.end() || !it->is_string()) return false;
  *value = it->get<std::string>();
  return true;
}

// Reads /proc/PID/stat: the state letter and the start time.
bool ReadStat(pid_t pid, char* state, uint64_t* start_time) {
  auto text = ReadFile("/proc/" + std::to_string(pid) + "/stat", 4096);
  if (!text.ok()) return false;
  // The command in parentheses may hold anything; the fields follow the last one.
  size_t at = text->rfind(')');
  if (at == std::string::npos) return false;
  unsigned long long start = 0;
  int n = sscanf(text->c_str() + at + 1,
                 " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                 state, &start);
  *start_time = start;
  return n == 2;
}

}  // namespace

absl::Status ErrnoStatus(const std::string& what) {
  return absl::UnavailableError(what + ": " + strerror(errno));
}

const char* StatusName(ContainerStatus status) {
  switch (status) {
    case ContainerStatus::kCreating:
      return "creating";
    case ContainerStatus::kCreated:
      return "created";
    case ContainerStatus::kRunning:
      return "running";
    case ContainerStatus::kPaused:
      return "paused";
    case ContainerStatus::kStopped:
      return "stopped";
  }
  return "";
}

ProcessId ProcessId::Of(pid_t pid) {
  ProcessId p;
  char state;
  if (ReadStat(pid, &state, &p.start_time)) p.pid = pid;
  return p;
}

bool ProcessId::Alive() const {
  char state;
  uint64_t start;
  return pid > 0 && ReadStat(pid, &state, &start) && start == start_time && state != 'Z' &&
         state != 'X';
}

ContainerStatus ContainerState::CurrentStatus() const {
  bool alive = status == ContainerStatus::kCreating ? creator.Alive() : init().Alive();
  return alive ? status : ContainerStatus::kStopped;
}

std::string ContainerState::OciJson() const {
  ContainerStatus now = CurrentStatus();
  Json json = {{"ociVersion", oci_version},
               {"id", id},
               {"status", StatusName(now)},
               {"pid", now == ContainerStatus::kStopped ? 0 : init().pid},
               {"bundle", bundle}};
  if (now == ContainerStatus::kStopped) json.erase("pid");
  if (!annotations.empty()) json["annotations"] = annotations;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void ContainerLock::Remove() {
  unlink(path_.c_str());
  fd_.reset();
}

absl::StatusOr<ContainerLock> Store::Lock(const std::string& id, bool create) const {
  if (create) {
    // As mkdir -p.
    for (size_t at = 1; at != std::string::npos;) {
      at = root_.find('/', at + 1);
      std::string path = root_.substr(0, at);
      if (mkdir(path.c_str(), 0711) != 0 && errno != EEXIST) {
        return ErrnoStatus("mkdir " + path);
      }
    }
  } else if (access(Dir(id).c_str(), F_OK) != 0) {
    return absl::NotFoundError("container " + id + " does not exist");
  }
  std::string path = root_ + "/." + id + ".lock";
  for (;;) {
    UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd.valid()) return ErrnoStatus("open " + path);
    while (flock(fd.get(), LOCK_EX) != 0) {
      if (errno != EINTR) return ErrnoStatus("lock " + path);
    }
    // The holder before us may have removed it with the container.
    struct stat mine, there;
    if (fstat(fd.get(), &mine) == 0 && stat(path.c_str(), &there) == 0 &&
        mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
      ContainerLock lock(std::move(fd), path);
      if (!create && access(Dir(id).c_str(), F_OK) != 0) {
        lock.Remove();  // the holder before us removed the container; this file is ours
        return absl::NotFoundError("container " + id + " does not exist");
      }
      return lock;
    }
  }
}

absl::StatusOr<ContainerState> Store::Load(const std::string& id) const {
  struct stat st;
  if (stat(Dir(id).c_str(), &st) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return absl::NotFoundError("container " + id + " does not exist");
    }
    return ErrnoStatus("stat " + Dir(id));
  }
  auto broken = [&](const std::string& what) {
    return absl::FailedPreconditionError("container " + id + " is incomplete: " + what +
                                         "; remove it with delete --force");
  };
  std::string path = Dir(id) + "/state.json";
  auto text = ReadFile(path, kMaxStateBytes);
  if (!text.ok()) return broken(std::string(text.status().message()));
  Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return broken(path + " is not JSON");
  ContainerState s;
  std::string status;
  if (!GetString(json, "id", &s.id) || !GetString(json, "ociVersion", &s.oci_version) ||
      !GetString(json, "bundle", &s.bundle) || !GetString(json, "rootfs", &s.rootfs) ||
      !GetString(json, "created", &s.created) || !GetString(json, "status", &status) ||
      !GetProcess(json, "creator", &s.creator) || !GetProcess(json, "sandbox", &s.sandbox) ||
      !GetProcess(json, "gofer", &s.gofer) || s.id != id) {
    return broken(path + " lacks a field");
  }
  s.owner_uid = st.st_uid;
  s.status = status == "created"   ? ContainerStatus::kCreated
             : status == "running" ? ContainerStatus::kRunning
             : status == "paused"  ? ContainerStatus::kPaused
                                   : ContainerStatus::kCreating;
  if (auto it = json.find("annotations"); it != json.end() && it->is_object()) {
    for (auto& [key, value] : it->items()) {
      if (value.is_string()) s.annotations[key] = value.get<std::string>();
    }
  }
  if (auto it = json.find("cgroupDirs"); it != json.end() && it->is_array()) {
    for (auto& dir : *it) {
      if (dir.is_string()) s.cgroup_dirs.push_back(dir.get<std::string>());
    }
  }
  (void)GetString(json, "sandboxId", &s.sandbox_id);
  if (auto it = json.find("terminal"); it != json.end() && it->is_boolean()) {
    s.terminal = it->get<bool>();
  }
  return s;
}

absl::Status Store::Save(const ContainerState& s) const {
  Json json = {{"id", s.id},
               {"ociVersion", s.oci_version},
               {"bundle", s.bundle},
               {"rootfs", s.rootfs},
               {"created", s.created},
               {"status", StatusName(s.status)},
               {"creator", ToJson(s.creator)},
               {"sandbox", ToJson(s.sandbox)},
               {"gofer", ToJson(s.gofer)},
               {"sandboxId", s.sandbox_id},
               {"terminal", s.terminal},
               {"cgroupDirs", s.cgroup_dirs},
               {"annotations", Json::object()}};
  for (const auto& [key, value] : s.annotations) json["annotations"][key] = value;
  return WriteFileAtomically(Dir(s.id) + "/state.json",
                             json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n", 0600);
}

absl::Status Store::MakeDir(const std::string& id) const {
  if (mkdir(Dir(id).c_str(), 0711) == 0) return absl::OkStatus();
  if (errno == EEXIST)
    return absl::AlreadyExistsError("container with given ID already exists: " + id);
  return ErrnoStatus("mkdir " + Dir(id));
}

absl::Status Store::RemoveDir(const std::string& id) const {
  std::string dir = Dir(id);
  DIR* d = opendir(dir.c_str());
  if (d == nullptr) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus("open " + dir);
  }
  // It holds plain files only.
  while (dirent* entry = readdir(d)) {
    std::string name = entry->d_name;
    if (name != "." && name != "..") unlinkat(dirfd(d), entry->d_name, 0);
  }
  closedir(d);
  if (rmdir(dir.c_str()) != 0 && errno != ENOENT) return ErrnoStatus("remove " + dir);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Store::List() const {
  std::vector<std::string> ids;
  DIR* d = opendir(root_.c_str());
  if (d == nullptr) {
    if (errno == ENOENT) return ids;
    return ErrnoStatus("open " + root_);
  }
  while (dirent* entry = readdir(d)) {
    struct stat st;
    if (entry->d_name[0] != '.' && fstatat(dirfd(d), entry->d_name, &st, 0) == 0 &&
        S_ISDIR(st.st_mode)) {
      ids.push_back(entry->d_name);
    }
  }
  closedir(d);
  std::sort(ids.begin(), ids.end());
  return ids;
}

absl::StatusOr<UniqueFd> Store::OpenDir(const std::string& id) const {
  UniqueFd fd(open(Dir(id).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open " + Dir(id));
  return fd;
}

std::optional<int> Store::ExitStatus(const std::string& id) const {
  auto text = ReadFile(Dir(id) + "/exit", 32);
  if (!text.ok() || text->empty()) return std::nullopt;
  char* end;
  long value = strtol(text->c_str(), &end, 10);
  if (*end != '\0') return std::nullopt;
  return static_cast<int>(value);
}

absl::Status CheckId(const std::string& id) {
  if (id.empty()) return absl::InvalidArgumentError("container id cannot be empty");
  bool good = id.size() <= 1024 && id != "." && id != "..";
  for (char c : id) {
    good &= isalnum(static_cast<unsigned char>(c)) || strchr("_+-.", c) != nullptr;
  }
  return good ? absl::OkStatus() : absl::InvalidArgumentError("invalid container ID format");
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open " + path);
  std::string text;
  char buffer[16384];
  for (;;) {
    ssize_t n = read(fd.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("read " + path);
    if (n == 0) return text;
    text.append(buffer, n);
    if (text.size() > max) return absl::InvalidArgumentError(path + " is too large");
  }
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& bytes, mode_t mode) {
  std::string temporary = path + ".new" + std::to_string(getpid());
  UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!fd.valid()) return ErrnoStatus("open " + temporary);
  size_t done = 0;
  while (done < bytes.size()) {
    ssize_t n = write(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      absl::Status status = ErrnoStatus("write " + temporary);
      unlink(temporary.c_str());
      return status;
    }
    done += n;
  }
  if (rename(temporary.c_str(), path.c_str()) != 0) {
    absl::Status status = ErrnoStatus("rename " + temporary);
    unlink(temporary.c_str());
    return status;
  }
  return absl::OkStatus();
}

}  // namespace runsc
