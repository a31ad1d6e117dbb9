#include "sentry/boot/members.h"
#include "sentry/base/host_io.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>

namespace sentry {

void StoreExitStatus(int file, int wait_status) {
  const std::string digits = std::to_string(wait_status);
  // Who has the disk full finds the container killed.
  [[maybe_unused]] ssize_t n = base::HostWriteAt(file, digits.data(), digits.size(), 0);
}

int ExitCodeOf(int wait_status) {
  return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

base::Status Members::Add(ControlServer::Joined joined) {
  std::shared_ptr<Container> container = joined.container;
  const uint64_t id = TRY(server_.Serve(container, std::move(joined.listener), joined.connection));
  Member& member = members_[id];
  member.container = container;
  member.exit_file = std::move(joined.exit_file);
  member.gofer = std::move(joined.gofer);
  base::Status status =
      server_.Watch(member.gofer.get(), 0, [this, id](uint32_t) { OnGoferEnd(id); });
  if (status.ok()) {
    status = container->Wait(Container::kInit, [this, id](int wait_status) {
      server_.Post([this, id, wait_status] { OnInitEnd(id, wait_status); });
    });
  }
  if (status.ok()) return status;
  server_.Unwatch(member.gofer.get());
  server_.Remove(id);
  members_.erase(id);
  return status;
}

void Members::OnGoferEnd(uint64_t id) {
  Member& member = members_.find(id)->second;
  server_.Unwatch(member.gofer.get());
  // Without its files it cannot go on; the others can.
  (void)member.container->SignalAll(SIGKILL);
}

void Members::OnInitEnd(uint64_t id, int wait_status) {
  Member& member = members_.find(id)->second;
  member.ending = true;
  StoreExitStatus(member.exit_file.get(), wait_status);
  server_.Unwatch(member.gofer.get());
  // The end of its gofer is what the host sees of its end: nothing is left of it then.
  server_.Spawn([this, id, wait_status, container = member.container] {
    container->End(ExitCodeOf(wait_status));
    server_.Post([this, id, wait_status] { OnEnded(id, wait_status); });
  });
}

void Members::OnEnded(uint64_t id, int wait_status) {
  server_.SetInitStatus(id, wait_status);
  server_.Remove(id);
  members_.erase(id);
}

void Members::StoreKilled() {
  for (const auto& [id, member] : members_) {
    if (!member.ending) StoreExitStatus(member.exit_file.get(), SIGKILL);
  }
}

}  // namespace sentry
