#include "sentry/boot/boot_spec_json.h"

#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <vector>

namespace sentry {
namespace {

using Json = nlohmann::json;

// What a Writer reads and a Reader fills.
template <typename A, typename T>
using In = std::conditional_t<A::kWrites, const T, T>;

// The fields of each struct, once for both directions. `A` is Writer or Reader.
template <typename A>
void Fields(A& a, In<A, CapSets>& s) {
  a("bounding", s.bounding);
  a("effective", s.effective);
  a("inheritable", s.inheritable);
  a("permitted", s.permitted);
  a("ambient", s.ambient);
}

template <typename A>
void Fields(A& a, In<A, RlimitSpec>& s) {
  a("resource", s.resource);
  a("soft", s.soft);
  a("hard", s.hard);
}

template <typename A>
void Fields(A& a, In<A, ProcessSpec>& s) {
  a("args", s.args);
  a("env", s.env);
  a("cwd", s.cwd);
  a("uid", s.uid);
  a("gid", s.gid);
  a("additionalGids", s.additional_gids);
  a("umask", s.umask);
  a("caps", s.caps);
  a("rlimits", s.rlimits);
  a("noNewPrivileges", s.no_new_privileges);
  a("oomScoreAdj", s.oom_score_adj);
  a("terminal", s.terminal);
  a("consoleRows", s.console_rows);
  a("consoleCols", s.console_cols);
}

template <typename A>
void Fields(A& a, In<A, MountSpec>& s) {
  a("destination", s.destination);
  a("type", s.type);
  a("source", s.source);
  a("goferMount", s.gofer_mount);
  a("sourceIsDirectory", s.source_is_directory);
  a("flags", s.flags);
  a("propagation", s.propagation);
  a("data", s.data);
}

template <typename A>
void Fields(A& a, In<A, DeviceSpec>& s) {
  a("path", s.path);
  a("type", s.type);
  a("major", s.major);
  a("minor", s.minor);
  a("mode", s.mode);
  a("uid", s.uid);
  a("gid", s.gid);
}

template <typename A>
void Fields(A& a, In<A, IdMapping>& s) {
  a("containerID", s.container_id);
  a("hostID", s.host_id);
  a("size", s.size);
}

template <typename A>
void Fields(A& a, In<A, SharedNamespaces>& s) {
  a("pid", s.pid);
  a("uts", s.uts);
  a("ipc", s.ipc);
  a("net", s.net);
  a("user", s.user);
}

template <typename A>
void Fields(A& a, In<A, ContainerSpec::Sysctl>& s) {
  a("name", s.name);
  a("value", s.value);
}

template <typename A>
void Fields(A& a, In<A, ContainerSpec>& s) {
  a("containerId", s.container_id);
  a("share", s.share);
  a("hostname", s.hostname);
  a("domainname", s.domainname);
  a("process", s.process);
  a("rootReadonly", s.root_readonly);
  a("rootPropagation", s.root_propagation);
  a("overlay", s.overlay);
  a("rootShared", s.root_shared);
  a("mounts", s.mounts);
  a("maskedPaths", s.masked_paths);
  a("readonlyPaths", s.readonly_paths);
  a("devices", s.devices);
  a("uidMappings", s.uid_mappings);
  a("gidMappings", s.gid_mappings);
  a("newUserNamespace", s.new_user_namespace);
  a("newCgroupNamespace", s.new_cgroup_namespace);
  a("sysctls", s.sysctls);
  a("networkSysctls", s.network_sysctls);
  a("seccomp", s.seccomp);
  a("seccompLog", s.seccomp_log);
  a("memoryLimit", s.memory_limit);
  a("cpuLimit", s.cpu_limit);
  a("pidsLimit", s.pids_limit);
}

template <typename A>
void Fields(A& a, In<A, BootSpec>& s) {
  a("container", s.container);
  a("platform", s.platform);
  a("network", s.network);
  a("strace", s.strace);
  a("strict", s.strict);
  a("allowNoSeccomp", s.allow_no_seccomp);
  a("debug", s.debug);
  a("spinNs", s.spin_ns);
  a("lanes", s.lanes);
}

template <typename T>
inline constexpr bool kIsVector = false;
template <typename T>
inline constexpr bool kIsVector<std::vector<T>> = true;

class Writer {
 public:
  static constexpr bool kWrites = true;
  template <typename T>
  void operator()(const char* name, const T& value) {
    object_[name] = Value(value);
  }
  Json Take() { return std::move(object_); }

  template <typename T>
  static Json Value(const T& value) {
    if constexpr (std::same_as<T, std::string>) {
      return BytesToUtf8(value);
    } else if constexpr (kIsVector<T>) {
      Json array = Json::array();
      for (const auto& item : value) array.push_back(Value(item));
      return array;
    } else if constexpr (std::same_as<T, char>) {
      return static_cast<int>(value);
    } else if constexpr (std::is_class_v<T>) {
      Writer writer;
      Fields(writer, value);
      return writer.Take();
    } else {
      return value;
    }
  }

 private:
  Json object_ = Json::object();
};

class Reader {
 public:
  static constexpr bool kWrites = false;
  Reader(const Json& object, std::string path, std::string* why)
      : object_(object), path_(std::move(path)), why_(why) {}

  template <typename T>
  void operator()(const char* name, T& value) {
    if (failed_) return;
    std::string path = path_.empty() ? name : path_ + "." + name;
    auto it = object_.find(name);
    if (it == object_.end()) return Fail(path + " is missing");
    ++seen_;
    if (!Value(*it, path, why_, &value)) failed_ = true;
  }
  bool Done() {
    if (!failed_ && seen_ != object_.size()) Fail(path_ + " has an unknown field");
    return !failed_;
  }

  template <typename T>
  static bool Value(const Json& json, const std::string& path, std::string* why, T* value) {
    auto bad = [&](const char* what) {
      *why = path + " " + what;
      return false;
    };
    if constexpr (std::same_as<T, std::string>) {
      if (!json.is_string()) return bad("is not a string");
      if (!Utf8ToBytes(json.get_ref<const std::string&>(), value)) return bad("is badly encoded");
      if (value->find('\0') != std::string::npos) return bad("contains a NUL");
    } else if constexpr (kIsVector<T>) {
      if (!json.is_array()) return bad("is not an array");
      value->resize(json.size());
      for (size_t i = 0; i < json.size(); ++i) {
        if (!Value(json[i], path + "[" + std::to_string(i) + "]", why, &(*value)[i])) return false;
      }
    } else if constexpr (std::same_as<T, bool>) {
      if (!json.is_boolean()) return bad("is not a boolean");
      *value = json.get<bool>();
    } else if constexpr (std::floating_point<T>) {
      if (!json.is_number()) return bad("is not a number");
      *value = json.get<T>();
    } else if constexpr (std::is_integral_v<T>) {
      if (json.is_number_unsigned()) {
        uint64_t n = json.get<uint64_t>();
        if (n > static_cast<uint64_t>(std::numeric_limits<T>::max())) return bad("is too large");
        *value = static_cast<T>(n);
      } else if (json.is_number_integer()) {
        int64_t n = json.get<int64_t>();
        if (std::is_unsigned_v<T> || n < static_cast<int64_t>(std::numeric_limits<T>::min())) {
          return bad("is too small");
        }
        *value = static_cast<T>(n);
      } else {
        return bad("is not an integer");
      }
    } else {
      if (!json.is_object()) return bad("is not an object");
      Reader reader(json, path, why);
      Fields(reader, *value);
      return reader.Done();
    }
    return true;
  }

 private:
  void Fail(std::string why) {
    *why_ = std::move(why);
    failed_ = true;
  }
  const Json& object_;
  const std::string path_;
  std::string* const why_;
  size_t seen_ = 0;
  bool failed_ = false;
};

}  // namespace

base::Result<BootSpec> DecodeBootSpec(std::string_view text, std::string* why) {
  if (text.size() > kMaxSpecBytes) {
    *why = "the specification is too large";
    return base::Error(EINVAL);
  }
  Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    *why = "the specification is not JSON";
    return base::Error(EINVAL);
  }
  BootSpec spec;
  if (!Reader::Value(json, "", why, &spec)) return base::Error(EINVAL);
  return spec;
}

base::Result<ProcessSpec> DecodeProcessSpec(const Json& json, std::string* why) {
  ProcessSpec spec;
  if (!Reader::Value(json, "", why, &spec)) return base::Error(EINVAL);
  return spec;
}

base::Result<ContainerSpec> DecodeContainerSpec(const Json& json, std::string* why) {
  ContainerSpec spec;
  if (!Reader::Value(json, "", why, &spec)) return base::Error(EINVAL);
  return spec;
}

std::string EncodeBootSpec(const BootSpec& spec) { return Writer::Value(spec).dump(); }
std::string EncodeContainerSpec(const ContainerSpec& spec) { return Writer::Value(spec).dump(); }
std::string EncodeProcessSpec(const ProcessSpec& spec) { return Writer::Value(spec).dump(); }

std::string BytesToUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (char c : bytes) {
    auto b = static_cast<unsigned char>(c);
    if (b < 0x80) {
      out.push_back(c);
    } else {
      out.push_back(static_cast<char>(0xc0 | (b >> 6)));
      out.push_back(static_cast<char>(0x80 | (b & 0x3f)));
    }
  }
  return out;
}

bool Utf8ToBytes(std::string_view utf8, std::string* bytes) {
  bytes->clear();
  bytes->reserve(utf8.size());
  for (size_t i = 0; i < utf8.size(); ++i) {
    auto b = static_cast<unsigned char>(utf8[i]);
    if (b < 0x80) {
      bytes->push_back(utf8[i]);
      continue;
    }
    if ((b != 0xc2 && b != 0xc3) || i + 1 == utf8.size()) return false;
    auto next = static_cast<unsigned char>(utf8[++i]);
    if ((next & 0xc0) != 0x80) return false;
    bytes->push_back(static_cast<char>(((b & 3) << 6) | (next & 0x3f)));
  }
  return true;
}

}  // namespace sentry
