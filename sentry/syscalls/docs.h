// The table of system calls as documents.
#pragma once

#include <string>

namespace sentry {

// docs/syscalls.md.
std::string SyscallsMarkdown();
// For `runsc features`: {"supported": ["read", ...], "partial": {"clone": "note", ...},
// "configuredOut": [...], "unsupported": [...]}, on one line.
std::string SyscallsJson();

}  // namespace sentry
