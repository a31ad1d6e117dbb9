// runsc boot: the sentry. Internal; started by create and run.
#include <unistd.h>

#include "runsc/cmd/command.h"
#include "sentry/boot/boot.h"

namespace runsc {
namespace {

constexpr int kMaxFiles = 256;

}  // namespace

void AddBootCommand(Context& context) {
  static sentry::BootOptions options;
  Command command(context, "boot", "run the sentry (internal)", "", "");
  command.Hide();
  command.Number("--files", &options.file_count, "");
  command.Flag("--log", &options.have_log, "");
  command.Runs([&context](const Args&) -> absl::StatusOr<int> {
    if (options.file_count < 3 || options.file_count > kMaxFiles) {
      return absl::InvalidArgumentError("boot: bad number of files");
    }
    // Threads of the kernel may still run: no destructors, no exit handlers.
    _exit(sentry::RunSentry(options, *context.boot_hooks));
  });
}

}  // namespace runsc
