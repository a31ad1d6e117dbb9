// /proc/keys, /proc/key-users and /proc/sys/kernel/keys: security/keys/proc.c, sysctl.c.
#include "sentry/fs/proc/proc_root.h"
#include "sentry/fs/proc/sysctl.h"
#include "sentry/kernel/keys/keys.h"
#include "sentry/kernel/task.h"

namespace sentry {

void AddKeys(ProcFs* fs, PseudoDir& root) {
  auto file = [&](const char* name, std::string (Keys::*text)(const Task&)) {
    root.Add(name, base::MakeRef<FuncFile>(fs, 0444, [text] {
               Task* t = Task::Current();
               return t != nullptr ? (Keys::Get().*text)(*t) : std::string();
             }));
  };
  file("keys", &Keys::KeysText);
  file("key-users", &Keys::UsersText);
}

void AddKeySysctls(SysctlBuilder dir) {
  dir.Value("maxkeys", int64_t{kMaxUserKeys});
  dir.Value("maxbytes", int64_t{kMaxUserKeyBytes});
  dir.Value("root_maxkeys", int64_t{kMaxRootKeys});
  dir.Value("root_maxbytes", int64_t{kMaxRootKeyBytes});
  dir.Value("persistent_keyring_expiry", kPersistentKeyringSeconds);
}

}  // namespace sentry
