// /proc/pressure: kernel/sched/psi.c. The processors, the memory and the devices are the host's,
// and so is the time that is lost waiting for them: as in a container on Linux the host's figures
// are shown, for the whole machine.
#include <unistd.h>

#include "sentry/base/host_io.h"
#include "sentry/fs/proc/host_snapshot.h"
#include "sentry/fs/proc/proc_root.h"

namespace sentry {

void AddPressure(ProcFs* fs, PseudoDir& root) {
  const HostSnapshot& host = TheHostSnapshot();
  if (host.pressure.size() != std::size(HostSnapshot::kPressure)) return;
  base::Ref<PseudoDir> dir = root.AddDir("pressure");
  for (size_t i = 0; i < host.pressure.size(); ++i) {
    int fd = host.pressure[i].get();
    auto read = [fd]() -> base::Result<std::string> {
      char text[256];
      ssize_t n = base::HostReadAt(fd, text, sizeof(text), 0);
      if (n < 0) return base::LastError();
      return std::string(text, static_cast<size_t>(n));
    };
    dir->Add(HostSnapshot::kPressure[i], base::MakeRef<FuncFile>(fs, 0444, std::move(read)));
  }
}

}  // namespace sentry
