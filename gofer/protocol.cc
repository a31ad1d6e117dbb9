#include "gofer/protocol.h"

namespace gofer {

bool ValidName(std::string_view name) {
  if (name.empty() || name.size() > kMaxName || name == "." || name == "..") return false;
  return name.find('/') == name.npos && name.find('\0') == name.npos;
}

}  // namespace gofer
