// Prints docs/syscalls.md, or with --json what `runsc features` shows.
#include <cstdio>
#include <cstring>
#include <string>

#include "sentry/syscalls/docs.h"

int main(int argc, char** argv) {
  bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
  std::string text = json ? sentry::SyscallsJson() + "\n" : sentry::SyscallsMarkdown();
  return fwrite(text.data(), 1, text.size(), stdout) == text.size() ? 0 : 1;
}
