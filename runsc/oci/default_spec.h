// The config.json that `spec` writes.
#pragma once

#include <sys/types.h>

#include <string>

namespace runsc::oci {

// As runc's; with `rootless`, one that the user with these ids can run.
std::string DefaultSpec(bool rootless, uid_t uid, gid_t gid);

}  // namespace runsc::oci
