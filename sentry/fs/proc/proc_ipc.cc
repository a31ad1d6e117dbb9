// /proc/sysvipc, and the limits of IPC namespaces below /proc/sys. Each reader sees its own
// namespace.
#include <fmt/format.h>

#include <array>
#include <charconv>

#include "sentry/fs/mqueue/mqueue_fs.h"
#include "sentry/fs/proc/proc_root.h"
#include "sentry/fs/proc/sysctl.h"
#include "sentry/kernel/ipc/ipc.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

base::Ref<IpcNamespace> CurrentIpc() {
  base::Ref<IpcNamespace> ns = Kernel::Get().CurrentNamespaces().ipc;
  return ns ? ns : Kernel::Get().root_ipc_ns();
}

// Numbers between blanks; EINVAL unless there are exactly N, each within its bounds.
template <typename T, size_t N>
Status ParseNumbers(std::string_view data, T least, T most, std::array<T, N>* out) {
  constexpr std::string_view kBlanks = " \t\n";
  for (T& value : *out) {
    size_t at = data.find_first_not_of(kBlanks);
    if (at == data.npos) return Error(EINVAL);
    data.remove_prefix(at);
    auto [end, ec] = std::from_chars(data.data(), data.data() + data.size(), value);
    if (ec != std::errc() || value < least || value > most) return Error(EINVAL);
    data.remove_prefix(static_cast<size_t>(end - data.data()));
  }
  return data.find_first_not_of(kBlanks) == data.npos ? base::Ok() : Status(Error(EINVAL));
}

// A file for one number: `get` finds it in the namespace that the reader has.
template <typename T, typename Get>
void AddNumber(SysctlBuilder& dir, const char* name, T least, T most, Get get) {
  dir.ReadWrite(
      name,
      [get]() -> Result<std::string> { return fmt::format("{}\n", get(*CurrentIpc()).load()); },
      [get, least, most](std::string_view data) -> Status {
        std::array<T, 1> value;
        TRY(ParseNumbers(data, least, most, &value));
        get(*CurrentIpc()) = value[0];
        return base::Ok();
      });
}

constexpr int kMaxIds = 32768;  // IPCMNI

void AddSem(SysctlBuilder& dir) {
  dir.ReadWrite(
      "sem",
      []() -> Result<std::string> {
        const IpcLimits& l = IpcState::Of(*CurrentIpc())->limits;
        return fmt::format("{}\t{}\t{}\t{}\n", l.sem_per_set.load(), l.sem_total.load(),
                           l.sem_ops.load(), l.sem_sets.load());
      },
      [](std::string_view data) -> Status {
        std::array<int, 4> v;
        TRY(ParseNumbers(data, 0, INT32_MAX, &v));
        // What one call may bring is bounded by what it may copy.
        if (v[0] > 65536 || v[2] > 8192 || v[3] > kMaxIds) return Error(EINVAL);
        IpcLimits& l = IpcState::Of(*CurrentIpc())->limits;
        l.sem_per_set = v[0];
        l.sem_total = v[1];
        l.sem_ops = v[2];
        l.sem_sets = v[3];
        return base::Ok();
      });
}

}  // namespace

void AddSysvIpc(ProcFs* fs, PseudoDir& root) {
  base::Ref<PseudoDir> dir = root.AddDir("sysvipc");
  auto file = [&](const char* name, std::string (*list)(IpcNamespace&)) {
    dir->Add(name, base::MakeRef<FuncFile>(
                       fs, 0444, [list]() -> Result<std::string> { return list(*CurrentIpc()); }));
  };
  file("shm", ShmListing);
  file("sem", SemListing);
  file("msg", MsgListing);
}

void AddIpcSysctls(SysctlBuilder dir) {
  auto number = [&]<typename T>(const char* name, T least, T most,
                                std::atomic<T> IpcLimits::*limit) {
    AddNumber<T>(dir, name, least, most, [limit](IpcNamespace& ns) -> std::atomic<T>& {
      // The state lives as long as the namespace.
      return IpcState::Of(ns)->limits.*limit;
    });
  };
  number("shmmax", uint64_t{0}, ~uint64_t{0}, &IpcLimits::shm_max);
  number("shmall", uint64_t{0}, ~uint64_t{0}, &IpcLimits::shm_all);
  number("shmmni", 0, kMaxIds, &IpcLimits::shm_count);
  number("shm_rmid_forced", 0, 1, &IpcLimits::shm_rmid_forced);
  number("msgmax", 0, 1 << 20, &IpcLimits::msg_max);
  number("msgmnb", 0, 1 << 26, &IpcLimits::msg_queue_bytes);
  number("msgmni", 0, kMaxIds, &IpcLimits::msg_queues);
  AddSem(dir);
}

void AddMqueueSysctls(SysctlBuilder dir) {
  auto number = [&](const char* name, int least, int most, std::atomic<int> MqueueLimits::*limit) {
    AddNumber<int>(dir, name, least, most, [limit](IpcNamespace& ns) -> std::atomic<int>& {
      return MqueueState::Of(ns)->limits().*limit;
    });
  };
  number("queues_max", 0, INT32_MAX, &MqueueLimits::queues_max);
  number("msg_max", 1, kHardMsgMax, &MqueueLimits::msg_max);
  number("msg_default", 1, kHardMsgMax, &MqueueLimits::msg_default);
  number("msgsize_max", 128, kHardMsgSizeMax, &MqueueLimits::msgsize_max);
  number("msgsize_default", 128, kHardMsgSizeMax, &MqueueLimits::msgsize_default);
}

}  // namespace sentry
