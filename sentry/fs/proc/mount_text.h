// Mounts as text: what /proc/PID/mountinfo and statmount(2) both show.
#pragma once

#include <string>
#include <string_view>

#include "sentry/vfs/mount.h"

namespace sentry {

// Blanks, '#' and backslashes as octal (mangle).
std::string MangleMountText(std::string_view text);
// ",nosuid,nodev,...": what the mount's flags say besides "ro" or "rw" (show_mnt_opts).
std::string MountFlagText(const Mount& mount);
// The mount's root within its filesystem.
std::string MountRootPath(const Mount& mount);

}  // namespace sentry
