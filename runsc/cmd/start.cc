// runsc start

#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {

void AddStartCommand(Context& context) {
  Command command(context, "start", "executes the user defined process in a created container",
                  kIdUsage, kIdText);
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    Store store = context.store();
    auto lock = store.Lock(args[0], /*create=*/false);
    if (!lock.ok()) return lock.status();
    auto state = store.Load(args[0]);
    if (!state.ok()) return state.status();
    if (auto s = StartContainer(store, &*state); !s.ok()) return s;
    return 0;
  });
}

}  // namespace runsc
