// Options of a mount in config.json, sorted as mount(2) wants them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace runsc::oci {

struct MountOptions {
  uint64_t flags = 0;                 // MS_ flags, without propagation
  std::vector<uint64_t> propagation;  // MS_PRIVATE and the like, each perhaps with MS_REC
  std::vector<std::string> data;      // what is left: for the file system
  bool bind = false;                  // "bind" or "rbind"
};

// As runc: a later option wins over an earlier one, "recursive read-only" and the like ("rro") are
// read as their plain forms, since a mount here has no mounts of the host below it that differ.
MountOptions ParseMountOptions(const std::vector<std::string>& options);

// All options known by name, sorted; for `features`.
std::vector<std::string> KnownMountOptions();

}  // namespace runsc::oci
