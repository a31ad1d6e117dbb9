// runsc kill
#include <signal.h>
#include <strings.h>

#include <cstdlib>

#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {
namespace {

// "0" (is it there?), "9", "KILL", "SIGKILL", "SIGRTMIN+3"; -1 if it is none. As the guest counts,
// SIGRTMIN is 34.
int ParseSignal(const std::string& text) {
  char* end;
  long number = strtol(text.c_str(), &end, 10);
  if (end != text.c_str() && *end == '\0') return number >= 0 && number <= 64 ? number : -1;
  const char* name = text.c_str();
  if (strncasecmp(name, "SIG", 3) == 0) name += 3;
  for (int signo = 1; signo < 32; ++signo) {
    const char* known = sigabbrev_np(signo);
    if (known != nullptr && strcasecmp(known, name) == 0) return signo;
  }
  if (strcasecmp(name, "IOT") == 0) return SIGABRT;
  if (strcasecmp(name, "CLD") == 0) return SIGCHLD;
  for (auto [base, at, sign] : {std::tuple{"RTMIN", 34, '+'}, std::tuple{"RTMAX", 64, '-'}}) {
    if (strncasecmp(name, base, 5) != 0) continue;
    if (name[5] == '\0') return at;
    if (name[5] != sign) return -1;
    long offset = strtol(name + 6, &end, 10);
    if (*end != '\0' || end == name + 6 || offset < 0 || offset > 30) return -1;
    return sign == '+' ? at + offset : at - offset;
  }
  return -1;
}

}  // namespace

void AddKillCommand(Context& context) {
  static bool all = false;
  Command command(
      context, "kill",
      "kill sends the specified signal (default: SIGTERM) to the container's init process",
      "<container-id> [signal]",
      "Where \"[signal]\" is the signal to be sent: a name or a number.\n\n"
      "EXAMPLE:\n"
      "To send a \"KILL\" signal to the init process of the \"ubuntu01\" container:\n\n"
      "       # runsc kill ubuntu01 KILL");
  command.Flag("--all,-a", &all, "send the specified signal to all processes inside the container");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 2); !s.ok()) return s;
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    Store store = context.store();
    auto state = store.Load(args[0]);
    if (!state.ok()) return state.status();
    int signo = args.size() < 2 ? SIGTERM : ParseSignal(args[1]);
    if (signo < 0) return absl::InvalidArgumentError("unknown signal \"" + args[1] + "\"");
    if (auto s = SignalContainer(store, *state, signo, all); !s.ok()) return s;
    return 0;
  });
}

}  // namespace runsc
