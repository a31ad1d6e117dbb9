#include "runsc/oci/seccomp.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>

#include "absl/status/status.h"

namespace runsc::oci {
namespace {

struct Action {
  const char* name;
  uint32_t value;
  bool takes_errno;
};
constexpr Action kActions[] = {
    {"SCMP_ACT_ALLOW", SCMP_ACT_ALLOW, false},
    {"SCMP_ACT_ERRNO", SCMP_ACT_ERRNO(0), true},
    {"SCMP_ACT_KILL", SCMP_ACT_KILL_THREAD, false},
    {"SCMP_ACT_KILL_PROCESS", SCMP_ACT_KILL_PROCESS, false},
    {"SCMP_ACT_KILL_THREAD", SCMP_ACT_KILL_THREAD, false},
    {"SCMP_ACT_LOG", SCMP_ACT_LOG, false},
    {"SCMP_ACT_TRACE", SCMP_ACT_TRACE(0), true},
    {"SCMP_ACT_TRAP", SCMP_ACT_TRAP, false},
};

struct Operator {
  const char* name;
  scmp_compare value;
};
constexpr Operator kOperators[] = {
    {"SCMP_CMP_EQ", SCMP_CMP_EQ}, {"SCMP_CMP_GE", SCMP_CMP_GE},
    {"SCMP_CMP_GT", SCMP_CMP_GT}, {"SCMP_CMP_LE", SCMP_CMP_LE},
    {"SCMP_CMP_LT", SCMP_CMP_LT}, {"SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ},
    {"SCMP_CMP_NE", SCMP_CMP_NE},
};

template <typename Table>
auto FindName(const Table& table, const std::string& name) {
  return std::find_if(std::begin(table), std::end(table),
                      [&](const auto& entry) { return name == entry.name; });
}

std::string ReadName(const Node& node, const auto& table, const char* what) {
  std::string name = node.RequiredString();
  if (!name.empty() && FindName(table, name) == std::end(table)) {
    node.Fail(std::string("unknown ") + what + " \"" + name + "\"");
  }
  return name;
}

std::optional<uint32_t> ReadErrno(const Node& node) {
  auto value = node.Unsigned(UINT32_MAX);
  if (!value) return std::nullopt;
  return static_cast<uint32_t>(*value);
}

// Without an errno of the configuration's: EPERM, as runc.
uint32_t ActionValue(const std::string& name, std::optional<uint32_t> errno_ret) {
  const Action& action = *FindName(kActions, name);
  if (!action.takes_errno) return action.value;
  return action.value | (errno_ret.value_or(EPERM) & SECCOMP_RET_DATA);
}

scmp_arg_cmp Compare(const SeccompArg& arg) {
  return {arg.index, FindName(kOperators, arg.op)->value, arg.value, arg.value_two};
}

// The rule for one call: several conditions on one argument are alternatives, as runc has it.
int AddRule(scmp_filter_ctx filter, uint32_t action, int call,
            const std::vector<SeccompArg>& args) {
  uint32_t seen[6] = {};
  bool alternatives = false;
  for (const SeccompArg& arg : args) alternatives |= seen[arg.index]++ > 0;
  std::vector<scmp_arg_cmp> conditions;
  for (const SeccompArg& arg : args) conditions.push_back(Compare(arg));
  if (!alternatives) {
    return seccomp_rule_add_array(filter, action, call, static_cast<unsigned>(conditions.size()),
                                  conditions.data());
  }
  for (const scmp_arg_cmp& condition : conditions) {
    int rc = seccomp_rule_add_array(filter, action, call, 1, &condition);
    if (rc != 0) return rc;
  }
  return 0;
}

absl::Status LibraryError(const char* what, int rc) {
  return absl::InternalError(std::string("seccomp: ") + what + ": " + strerror(-rc));
}

absl::StatusOr<std::vector<uint64_t>> Export(scmp_filter_ctx filter) {
  int fd = memfd_create("seccomp", MFD_CLOEXEC);
  if (fd < 0) return LibraryError("memfd_create", -errno);
  int rc = seccomp_export_bpf(filter, fd);
  std::vector<uint64_t> words;
  static_assert(sizeof(sock_filter) == sizeof(uint64_t));
  off_t size = lseek(fd, 0, SEEK_END);
  if (rc == 0 && size > 0) {
    words.resize(static_cast<size_t>(size) / sizeof(uint64_t));
    const size_t bytes = words.size() * sizeof(uint64_t);
    if (pread(fd, words.data(), bytes, 0) != static_cast<ssize_t>(bytes)) rc = -EIO;
  }
  close(fd);
  if (rc != 0) return LibraryError("export", rc);
  return words;
}

// In front of the filter: calls that are newer than all that it knows do not exist.
void PrependEnosys(int highest, std::vector<uint64_t>* words) {
  constexpr uint32_t kX32Bit = 0x40000000;
  const sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kX32Bit, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, static_cast<uint32_t>(highest), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
  };
  std::vector<uint64_t> front(std::size(code));
  memcpy(front.data(), code, sizeof(code));
  words->insert(words->begin(), front.begin(), front.end());
}

template <typename Table>
std::vector<std::string> Names(const Table& table) {
  std::vector<std::string> names;
  for (const auto& entry : table) names.emplace_back(entry.name);
  return names;
}

}  // namespace

Seccomp ReadSeccomp(const Node& node) {
  Seccomp s;
  s.default_action = ReadName(node["defaultAction"], kActions, "action");
  s.default_errno = ReadErrno(node["defaultErrnoRet"]);
  for (const Node& flag : node["flags"].Items()) {
    std::string name = flag.String();
    if (name == "SECCOMP_FILTER_FLAG_LOG") {
      s.log = true;
    } else if (name != "SECCOMP_FILTER_FLAG_TSYNC" && name != "SECCOMP_FILTER_FLAG_SPEC_ALLOW" &&
               name != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV") {
      flag.Fail("unknown flag \"" + name + "\"");
    }
  }
  for (const Node& item : node["syscalls"].Items()) {
    SeccompRule rule;
    rule.names = item["names"].Strings();
    if (rule.names.empty()) item["names"].Fail("must not be empty");
    rule.action = ReadName(item["action"], kActions, "action");
    rule.errno_ret = ReadErrno(item["errnoRet"]);
    for (const Node& condition : item["args"].Items()) {
      SeccompArg arg;
      arg.index = static_cast<uint32_t>(condition["index"].Unsigned(5).value_or(0));
      arg.value = condition["value"].Unsigned(UINT64_MAX).value_or(0);
      arg.value_two = condition["valueTwo"].Unsigned(UINT64_MAX).value_or(0);
      arg.op = ReadName(condition["op"], kOperators, "operator");
      rule.args.push_back(std::move(arg));
    }
    s.rules.push_back(std::move(rule));
  }
  return s;
}

absl::StatusOr<std::vector<uint64_t>> CompileSeccomp(const Seccomp& s) {
  const uint32_t default_action = ActionValue(s.default_action, s.default_errno);
  std::unique_ptr<void, decltype(&seccomp_release)> filter(seccomp_init(default_action),
                                                           seccomp_release);
  if (!filter) return LibraryError("init", -ENOMEM);
  // Nothing in a sandbox comes by another entry; what would is refused before.
  int rc = seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
  if (rc == 0) rc = seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  if (rc != 0) return LibraryError("attributes", rc);
  int highest = -1;
  for (const SeccompRule& rule : s.rules) {
    const uint32_t action = ActionValue(rule.action, rule.errno_ret);
    for (const std::string& name : rule.names) {
      int call = seccomp_syscall_resolve_name_arch(SCMP_ARCH_X86_64, name.c_str());
      if (call < 0) continue;  // unknown, or of another architecture
      highest = std::max(highest, call);
      if (action == default_action) continue;
      rc = AddRule(filter.get(), action, call, rule.args);
      if (rc != 0) return LibraryError(name.c_str(), rc);
    }
  }
  auto words = Export(filter.get());
  if (!words.ok()) return words;
  const bool refuses = s.default_action != "SCMP_ACT_ALLOW" && s.default_action != "SCMP_ACT_LOG";
  if (refuses && highest >= 0) PrependEnosys(highest, &*words);
  if (words->size() > BPF_MAXINSNS) return absl::InvalidArgumentError("seccomp: too many rules");
  return words;
}

std::vector<std::string> KnownSeccompActions() { return Names(kActions); }
std::vector<std::string> KnownSeccompOperators() { return Names(kOperators); }

}  // namespace runsc::oci
