#include "runsc/sandbox/id_map.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "runsc/container/state.h"
#include "sentry/base/host_fd.h"

namespace runsc {
namespace {

constexpr uint32_t kNobody = 65534;

struct Range {
  uint32_t inside = 0, outside = 0, count = 0;
};

// The ids that exist in this user namespace.
std::vector<Range> OwnRanges(const char* file) {
  std::vector<Range> ranges;
  auto text = ReadFile(file, 1 << 16);
  if (!text.ok()) return ranges;
  std::istringstream lines(*text);
  Range r;
  while (lines >> r.inside >> r.outside >> r.count) ranges.push_back(r);
  return ranges;
}

absl::Status WriteProc(pid_t child, const char* name, const std::string& text) {
  std::string path = "/proc/" + std::to_string(child) + "/" + name;
  base::UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open " + path);
  if (write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return ErrnoStatus("user namespace: write " + path);
  }
  return absl::OkStatus();
}

std::string OneId(uint32_t outside) { return "0 " + std::to_string(outside) + " 1\n"; }

std::string MapText(const char* own_map, IdMapKind kind, uint32_t own_id, bool any) {
  if (!any) return OneId(own_id);
  std::vector<Range> ranges = OwnRanges(own_map);
  if (kind == IdMapKind::kIdentity) {
    std::string text;
    for (const Range& r : ranges) {
      text += std::to_string(r.inside) + " " + std::to_string(r.inside) + " " +
              std::to_string(r.count) + "\n";
    }
    return text;
  }
  for (const Range& r : ranges) {
    if (r.inside <= kNobody && kNobody - r.inside < r.count) return OneId(kNobody);
  }
  return OneId(own_id);  // a small user namespace around us has no such id
}

}  // namespace

bool CanMapIds() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (syscall(SYS_capget, &header, data) != 0) return false;
  constexpr uint32_t kNeeded = 1U << CAP_SETUID | 1U << CAP_SETGID;
  return (data[0].effective & kNeeded) == kNeeded;
}

absl::Status WriteIdMaps(pid_t child, IdMapKind kind) {
  bool any = CanMapIds();
  if (!any) {
    // Without the right to map ids, the kernel wants setgroups(2) switched off first.
    if (auto s = WriteProc(child, "setgroups", "deny"); !s.ok()) return s;
  }
  auto s = WriteProc(child, "uid_map", MapText("/proc/self/uid_map", kind, geteuid(), any));
  if (!s.ok()) return s;
  return WriteProc(child, "gid_map", MapText("/proc/self/gid_map", kind, getegid(), any));
}

}  // namespace runsc
