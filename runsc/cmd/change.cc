// runsc start, runsc pause and runsc resume
#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {
namespace {

// A command that changes what one container is doing.
void AddChangeCommand(Context& context, const char* name, const char* summary, const char* text,
                      absl::Status (*change)(const Store&, ContainerState*)) {
  Command command(context, name, summary, kIdUsage, text);
  command.Runs([command, &context, change](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    Store store = context.store();
    auto lock = store.Lock(args[0], /*create=*/false);
    if (!lock.ok()) return lock.status();
    auto state = store.Load(args[0]);
    if (!state.ok()) return state.status();
    if (auto s = change(store, &*state); !s.ok()) return s;
    return 0;
  });
}

}  // namespace

void AddStartCommand(Context& context) {
  AddChangeCommand(context, "start", "executes the user defined process in a created container",
                   kIdText, &StartContainer);
}

void AddPauseCommand(Context& context) {
  AddChangeCommand(context, "pause", "pause suspends all processes inside the container",
                   "The pause command suspends all processes in the instance of the container.\n\n"
                   "Use runsc list to identify instances of containers and their current status.",
                   &PauseContainer);
}

void AddResumeCommand(Context& context) {
  AddChangeCommand(context, "resume", "resumes all processes that have been previously paused",
                   "The resume command resumes all processes in the instance of the container.\n\n"
                   "Use runsc list to identify instances of containers and their current status.",
                   &ResumeContainer);
}

}  // namespace runsc
