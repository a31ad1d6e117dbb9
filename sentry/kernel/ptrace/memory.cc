// A tracer's access to the memory of its tracees.
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"

namespace sentry {

namespace {

// A tracee of `current` that stands in a stop and uses `mm`.
std::optional<StoppedTracee> FindStopped(Task& current, const std::vector<base::Ref<Task>>& tracees,
                                         const MemoryManager& mm) {
  for (const base::Ref<Task>& t : tracees) {
    if (t->mm_ref().get() != &mm) continue;
    base::Result<StoppedTracee> stopped = StoppedTracee::Freeze(current, t);
    if (stopped.ok()) return std::move(*stopped);
  }
  return std::nullopt;
}

// Has somebody who may do the work of `force(runner)`.
template <typename Force>
base::Result<size_t> Forced(Task& current, const std::vector<base::Ref<Task>>& tracees,
                            MemoryManager& mm, Force force) {
  if (current.mm_ref().get() == &mm) return force(current);
  std::optional<StoppedTracee> stopped = FindStopped(current, tracees, mm);
  if (!stopped) return base::Error(EIO);
  base::Result<size_t> result = base::Error(EIO);
  stopped->Run([&] {
    if (stopped->task().mm_ref().get() == &mm) result = force(stopped->task());
  });
  return result;
}

}  // namespace

base::Result<size_t> Ptrace::ReadMemory(Task& current, MemoryManager& mm, uint64_t addr,
                                        std::span<std::byte> dst) {
  base::Result<size_t> plain = mm.address_space().ReadPartial(addr, dst);
  if (plain.ok() && *plain == dst.size()) return plain;
  const size_t done = plain.ok() ? *plain : 0;
  base::Result<size_t> rest = Forced(current, current.Tracees(), mm, [&](OrderRunner& runner) {
    return mm.ForcedRead(runner, addr + done, dst.subspan(done));
  });
  if (rest.ok()) return done + *rest;
  return done > 0 ? base::Result<size_t>(done) : base::Result<size_t>(base::Error(EIO));
}

base::Result<size_t> Ptrace::WriteMemory(Task& current, MemoryManager& mm, uint64_t addr,
                                         std::span<const std::byte> src) {
  base::Result<size_t> plain = mm.address_space().WritePartial(addr, src);
  if (plain.ok() && *plain == src.size()) return plain;
  const size_t done = plain.ok() ? *plain : 0;
  base::Result<size_t> rest = Forced(current, current.Tracees(), mm, [&](OrderRunner& runner) {
    return mm.ForcedWrite(runner, addr + done, src.subspan(done));
  });
  if (rest.ok()) return done + *rest;
  return done > 0 ? base::Result<size_t>(done) : base::Result<size_t>(base::Error(EIO));
}

}  // namespace sentry
