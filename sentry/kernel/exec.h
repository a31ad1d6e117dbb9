// What execve(2) and the start of a process share.
#pragma once

#include <memory>
#include <string>

#include "platform/platform.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/loader/loader.h"
#include "sentry/mm/memory_manager.h"

namespace sentry {

class Kernel;

// Carries out a loader's orders on a context that no task runs yet. Runs on a fiber.
class ContextRunner : public OrderRunner, private platform::TrapListener {
 public:
  // Limits are those of `limits`; both outlive this. With `later`, orders may be queued for the
  // context's first run: see TakeQueued.
  ContextRunner(platform::Context& context, const OrderRunner& limits, bool later);
  ~ContextRunner() override { context_.set_listener(nullptr); }
  base::Result<std::vector<uint64_t>> RunOrders(std::vector<platform::Order> orders) override;
  void QueueOrders(std::vector<platform::Order> orders,
                   std::function<int64_t(int error)> on_failure) override;
  bool CanQueue() const override { return later_; }
  std::vector<platform::Order> TakeQueued() { return std::move(queued_); }
  uint64_t Rlimit(int resource) const override { return limits_.Rlimit(resource); }
  bool MayLockMemory() const override { return limits_.MayLockMemory(); }

 private:
  void OnTrap() override;
  platform::Context& context_;
  const OrderRunner& limits_;
  const bool later_;
  std::vector<platform::Order> queued_;
  std::atomic<bool> trapped_{false};
  base::Ref<fiber::Fiber> fiber_;
};

inline constexpr uint32_t kRseqUnregister = 1;  // RSEQ_FLAG_UNREGISTER

// The same ids and capabilities in the same user namespace: either may do what the other may.
bool IsSameSubject(const Credentials& a, const Credentials& b);

// A program in an empty address space, and who it runs as.
struct LoadedProgram {
  base::Ref<MemoryManager> mm;
  // Null: the address space is that of the old program's thread, which has to move there.
  std::unique_ptr<platform::Context> context;
  platform::Regs regs{};
  std::vector<platform::Order> orders;  // to be carried out before its first instruction
  base::Ref<Credentials> creds;
  std::string comm;
  bool set_id = false;      // ids or capabilities grew: AT_SECURE
  bool id_changed = false;  // a set-user-ID or set-group-ID bit took effect
};

// What an exec must not trust (Linux: bprm->unsafe).
struct ExecUnsafe {
  bool no_new_privs = false;
  bool traced = false;       // the new text is to be left as it is
  bool weak_tracer = false;  // who traces has not CAP_SYS_PTRACE: no privileges are gained
  int mdwe = 0;              // kMdwe*, which the new program's memory has from the beginning
};

// Linux: bprm_fill_uid and cap_bprm_creds_from_file, with capability extended attributes.
// EPERM: the file's effective capabilities are out of reach.
base::Result<base::Ref<Credentials>> CredentialsForExec(const Credentials& old, ExecUnsafe unsafe,
                                                        Vfs& vfs, const Path& path,
                                                        const InodeAttr& attr, bool* secure,
                                                        bool* id_changed);

// Fills an empty address space with `image`; with `later`, leaves that to LoadedProgram::orders,
// whose failure is the program's death, as in Linux. *begun becomes true where Linux gives up the
// old program: an error after that ends the process. `place`: the old program's address space, if
// the new one may get its host process; that still depends on who it runs as.
base::Result<LoadedProgram> LoadProgram(Kernel& kernel, loader::ExecImage& image,
                                        const Credentials& old, ExecUnsafe unsafe,
                                        uint32_t personality, const OrderRunner& limits, bool later,
                                        bool* begun, MemoryManager* place = nullptr);

}  // namespace sentry
