#include "runsc/oci/mount_options.h"

#include <sys/mount.h>

#include <algorithm>

namespace runsc::oci {
namespace {

#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif
#ifndef MS_LAZYTIME
#define MS_LAZYTIME (1 << 25)
#endif

struct Flag {
  const char* name;
  bool clear;
  uint64_t flag;
};

constexpr Flag kFlags[] = {
    {"acl", false, MS_POSIXACL},
    {"async", true, MS_SYNCHRONOUS},
    {"atime", true, MS_NOATIME},
    {"bind", false, MS_BIND},
    {"defaults", false, 0},
    {"dev", true, MS_NODEV},
    {"diratime", true, MS_NODIRATIME},
    {"dirsync", false, MS_DIRSYNC},
    {"exec", true, MS_NOEXEC},
    {"iversion", false, MS_I_VERSION},
    {"lazytime", false, MS_LAZYTIME},
    {"loud", true, MS_SILENT},
    {"mand", false, MS_MANDLOCK},
    {"noacl", true, MS_POSIXACL},
    {"noatime", false, MS_NOATIME},
    {"nodev", false, MS_NODEV},
    {"nodiratime", false, MS_NODIRATIME},
    {"noexec", false, MS_NOEXEC},
    {"noiversion", true, MS_I_VERSION},
    {"nolazytime", true, MS_LAZYTIME},
    {"nomand", true, MS_MANDLOCK},
    {"norelatime", true, MS_RELATIME},
    {"nostrictatime", true, MS_STRICTATIME},
    {"nosuid", false, MS_NOSUID},
    {"nosymfollow", false, MS_NOSYMFOLLOW},
    {"ratime", true, MS_NOATIME},
    {"rbind", false, MS_BIND | MS_REC},
    {"rdev", true, MS_NODEV},
    {"rdiratime", true, MS_NODIRATIME},
    {"relatime", false, MS_RELATIME},
    {"remount", false, MS_REMOUNT},
    {"rexec", true, MS_NOEXEC},
    {"rnoatime", false, MS_NOATIME},
    {"rnodev", false, MS_NODEV},
    {"rnodiratime", false, MS_NODIRATIME},
    {"rnoexec", false, MS_NOEXEC},
    {"rnorelatime", true, MS_RELATIME},
    {"rnostrictatime", true, MS_STRICTATIME},
    {"rnosuid", false, MS_NOSUID},
    {"rnosymfollow", false, MS_NOSYMFOLLOW},
    {"ro", false, MS_RDONLY},
    {"rrelatime", false, MS_RELATIME},
    {"rro", false, MS_RDONLY},
    {"rrw", true, MS_RDONLY},
    {"rstrictatime", false, MS_STRICTATIME},
    {"rsuid", true, MS_NOSUID},
    {"rsymfollow", true, MS_NOSYMFOLLOW},
    {"rw", true, MS_RDONLY},
    {"silent", false, MS_SILENT},
    {"strictatime", false, MS_STRICTATIME},
    {"suid", true, MS_NOSUID},
    {"symfollow", true, MS_NOSYMFOLLOW},
    {"sync", false, MS_SYNCHRONOUS},
};

struct Propagation {
  const char* name;
  uint64_t flags;
};

constexpr Propagation kPropagation[] = {
    {"private", MS_PRIVATE},
    {"rprivate", MS_PRIVATE | MS_REC},
    {"rshared", MS_SHARED | MS_REC},
    {"rslave", MS_SLAVE | MS_REC},
    {"runbindable", MS_UNBINDABLE | MS_REC},
    {"shared", MS_SHARED},
    {"slave", MS_SLAVE},
    {"unbindable", MS_UNBINDABLE},
};

template <typename Table>
auto* Find(const Table& table, const std::string& name) {
  auto* it = std::find_if(std::begin(table), std::end(table),
                          [&](const auto& entry) { return name == entry.name; });
  return it == std::end(table) ? nullptr : it;
}

}  // namespace

MountOptions ParseMountOptions(const std::vector<std::string>& options) {
  MountOptions out;
  for (const std::string& option : options) {
    if (const Flag* flag = Find(kFlags, option)) {
      if (flag->clear) {
        out.flags &= ~flag->flag;
      } else {
        out.flags |= flag->flag;
      }
    } else if (const Propagation* propagation = Find(kPropagation, option)) {
      out.propagation.push_back(propagation->flags);
    } else {
      out.data.push_back(option);
    }
  }
  out.bind = (out.flags & MS_BIND) != 0;
  return out;
}

std::vector<std::string> KnownMountOptions() {
  std::vector<std::string> names;
  for (const Flag& flag : kFlags) names.push_back(flag.name);
  for (const Propagation& p : kPropagation) names.push_back(p.name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace runsc::oci
