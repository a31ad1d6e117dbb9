// add_key, request_key, keyctl (Linux: security/keys/keyctl.c).
#include <linux/capability.h>
#include <linux/keyctl.h>

#include <algorithm>
#include <iterator>

#include "sentry/kernel/keys/keys.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

constexpr size_t kMaxType = 32, kMaxDescription = 4096;
constexpr uint64_t kMaxPayload = (1 << 20) - 1, kMaxUpdate = 4096;

// strndup_user(): EINVAL if it is too long.
Result<std::string> CopyInText(Task& t, uint64_t addr, size_t max) {
  auto text = t.memory().ReadString(addr, max);
  if (!text.ok() && text.error().code() == ENAMETOOLONG) return Error(EINVAL);
  return text;
}

// key_get_type_from_user()
Result<std::string> CopyInType(Task& t, uint64_t addr) {
  Result<std::string> type = CopyInText(t, addr, kMaxType);
  if (type.ok() && type->empty()) return Error(EINVAL);
  if (type.ok() && type->front() == '.') return Error(EPERM);
  return type;
}

Result<std::vector<std::byte>> CopyInPayload(Task& t, uint64_t addr, uint64_t length) {
  std::vector<std::byte> payload(length);
  if (length > 0) TRY(t.memory().Read(addr, payload));
  return payload;
}

// What fits whole into a buffer is copied there; the call's result is the length.
Result<uint64_t> TellBytes(Task& t, std::span<const std::byte> bytes, uint64_t to, uint64_t size) {
  if (to != 0 && bytes.size() <= size) TRY(t.memory().Write(to, bytes));
  return uint64_t{bytes.size()};
}

Result<uint64_t> Serial(const Result<KeySerial>& serial) {
  if (!serial.ok()) return serial.error();
  return static_cast<uint64_t>(*serial);
}
Result<uint64_t> Zero(const Status& status) {
  if (!status.ok()) return status.error();
  return uint64_t{0};
}

Result<uint64_t> JoinSession(Task& t, const SyscallArgs& a) {
  std::optional<std::string> name;
  if (a[1] != 0) {
    name = TRY(CopyInText(t, a[1], kMaxDescription));
    if (name->starts_with('.')) return Error(EPERM);
  }
  return Serial(Keys::Get().JoinSession(t, name));
}

Result<uint64_t> Update(Task& t, const SyscallArgs& a) {
  if (a[3] > kMaxUpdate) return Error(EINVAL);
  std::vector<std::byte> payload = TRY(CopyInPayload(t, a[2], a[2] != 0 ? a[3] : 0));
  return Zero(Keys::Get().Update(t, a.Int(1), std::move(payload)));
}

Result<uint64_t> Chown(Task& t, const SyscallArgs& a) {
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  if (a.Int(2) != -1) uid = TRY(t.user_ns().MapUidIn(a.Uint(2)));
  if (a.Int(3) != -1) gid = TRY(t.user_ns().MapGidIn(a.Uint(3)));
  if (!uid && !gid) return uint64_t{0};
  return Zero(Keys::Get().Chown(t, a.Int(1), uid, gid));
}

Result<uint64_t> Describe(Task& t, const SyscallArgs& a) {
  const std::string text = TRY(Keys::Get().Describe(t, a.Int(1)));
  return TellBytes(t, std::as_bytes(std::span(text.c_str(), text.size() + 1)), a[2], a[3]);
}

Result<uint64_t> Search(Task& t, const SyscallArgs& a) {
  const std::string type = TRY(CopyInType(t, a[2]));
  const std::string description = TRY(CopyInText(t, a[3], kMaxDescription));
  return Serial(Keys::Get().Search(t, a.Int(1), type, description, a.Int(4)));
}

Result<uint64_t> Read(Task& t, const SyscallArgs& a) {
  const std::vector<std::byte> bytes = TRY(Keys::Get().Read(t, a.Int(1)));
  return TellBytes(t, bytes, a[2], a[3]);
}

// Keys are made by those who know what is in them, so nobody has been given the right to.
Result<uint64_t> Instantiate(Task&, const SyscallArgs&) { return Error(EPERM); }

Result<uint64_t> AssumeAuthority(Task&, const SyscallArgs& a) {
  if (a.Int(1) < 0) return Error(EINVAL);
  return a.Int(1) == 0 ? Result<uint64_t>(uint64_t{0}) : Error(ENOKEY);
}

// There are no labels: an empty string.
Result<uint64_t> GetSecurity(Task& t, const SyscallArgs& a) {
  TRY(Keys::Get().CheckView(t, a.Int(1)));
  constexpr std::byte kEnd{};
  return TellBytes(t, std::span(&kEnd, 1), a[2], a[3]);
}

// keyctl_get_persistent()
Result<uint64_t> GetPersistent(Task& t, const SyscallArgs& a) {
  uid_t uid = t.creds().ruid;
  if (a.Int(1) != -1) {
    uid = TRY(t.user_ns().MapUidIn(a.Uint(1)));
    if (uid != t.creds().ruid && uid != t.creds().euid && !t.HasCap(CAP_SETUID)) {
      return Error(EPERM);
    }
  }
  return Serial(Keys::Get().GetPersistent(t, uid, a.Int(2)));
}

Result<uint64_t> Restrict(Task& t, const SyscallArgs& a) {
  std::optional<std::string> type;
  if (a[2] != 0) {
    type = TRY(CopyInType(t, a[2]));
    TRY(CopyInText(t, a[3], 4096));
  } else if (a[3] != 0) {
    return Error(EINVAL);
  }
  return Zero(Keys::Get().Restrict(t, a.Int(1), type));
}

Result<uint64_t> Move(Task& t, const SyscallArgs& a) {
  if ((a.Uint(4) & ~uint32_t{KEYCTL_MOVE_EXCL}) != 0) return Error(EINVAL);
  const bool exclusive = (a.Uint(4) & KEYCTL_MOVE_EXCL) != 0;
  return Zero(Keys::Get().Move(t, a.Int(1), a.Int(2), a.Int(3), exclusive));
}

// As much of it as is wanted, and zeros behind.
Result<uint64_t> Capabilities(Task& t, const SyscallArgs& a) {
  constexpr uint8_t kCapabilities[2] = {
      KEYCTL_CAPS0_CAPABILITIES | KEYCTL_CAPS0_PERSISTENT_KEYRINGS | KEYCTL_CAPS0_BIG_KEY |
          KEYCTL_CAPS0_INVALIDATE | KEYCTL_CAPS0_RESTRICT_KEYRING | KEYCTL_CAPS0_MOVE,
      KEYCTL_CAPS1_NS_KEYRING_NAME};
  const uint64_t size = a[2], told = std::min<uint64_t>(size, sizeof(kCapabilities));
  TRY(t.memory().Write(a[1], std::as_bytes(std::span(kCapabilities).first(told))));
  const std::byte zeros[256] = {};
  for (uint64_t at = told; at < size;) {
    const uint64_t n = std::min<uint64_t>(size - at, sizeof(zeros));
    TRY(t.memory().Write(a[1] + at, std::span(zeros).first(n)));
    at += n;
  }
  return uint64_t{sizeof(kCapabilities)};
}

using Operation = Result<uint64_t> (*)(Task& t, const SyscallArgs& a);

// By KEYCTL_*; null: EOPNOTSUPP.
constexpr Operation kOperations[] = {
    [](Task& t, const SyscallArgs& a) {
      return Serial(Keys::Get().GetKeyringId(t, a.Int(1), a.Int(2) != 0));
    },
    JoinSession,
    Update,
    [](Task& t, const SyscallArgs& a) { return Zero(Keys::Get().Revoke(t, a.Int(1))); },
    Chown,
    [](Task& t, const SyscallArgs& a) {
      return Zero(Keys::Get().SetPermissions(t, a.Int(1), a.Uint(2)));
    },
    Describe,
    [](Task& t, const SyscallArgs& a) { return Zero(Keys::Get().Clear(t, a.Int(1))); },
    [](Task& t, const SyscallArgs& a) { return Zero(Keys::Get().Link(t, a.Int(1), a.Int(2))); },
    [](Task& t, const SyscallArgs& a) { return Zero(Keys::Get().Unlink(t, a.Int(1), a.Int(2))); },
    Search,
    Read,
    Instantiate,
    Instantiate,  // NEGATE
    [](Task& t, const SyscallArgs& a) -> Result<uint64_t> {
      return static_cast<uint64_t>(TRY(Keys::Get().SetDefaultKeyring(t, a.Int(1))));
    },
    [](Task& t, const SyscallArgs& a) {
      return Zero(Keys::Get().SetTimeout(t, a.Int(1), a.Uint(2)));
    },
    AssumeAuthority,
    GetSecurity,
    nullptr,      // SESSION_TO_PARENT
    Instantiate,  // REJECT
    Instantiate,  // INSTANTIATE_IOV
    [](Task& t, const SyscallArgs& a) { return Zero(Keys::Get().Invalidate(t, a.Int(1))); },
    GetPersistent,
    nullptr,  // DH_COMPUTE, and what public keys do
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    Restrict,
    Move,
    Capabilities,
};
static_assert(std::size(kOperations) == KEYCTL_CAPABILITIES + 1);

}  // namespace

Result<uint64_t> SysAddKey(Task& t, const SyscallArgs& a) {
  if (a[3] > kMaxPayload) return Error(EINVAL);
  const std::string type = TRY(CopyInType(t, a[0]));
  std::optional<std::string> description;
  if (a[1] != 0) {
    std::string text = TRY(CopyInText(t, a[1], kMaxDescription));
    if (text.starts_with('.') && type.starts_with("keyring")) return Error(EPERM);
    if (!text.empty()) description = std::move(text);
  }
  std::vector<std::byte> payload = TRY(CopyInPayload(t, a[2], a[3]));
  return Serial(Keys::Get().Add(t, type, description, std::move(payload), a.Int(4)));
}

Result<uint64_t> SysRequestKey(Task& t, const SyscallArgs& a) {
  const std::string type = TRY(CopyInType(t, a[0]));
  const std::string description = TRY(CopyInText(t, a[1], kMaxDescription));
  if (a[2] != 0) TRY(CopyInText(t, a[2], 4096));
  return Serial(Keys::Get().Request(t, type, description, a.Int(3)));
}

Result<uint64_t> SysKeyctl(Task& t, const SyscallArgs& a) {
  const uint32_t operation = a.Uint(0);
  if (operation >= std::size(kOperations) || kOperations[operation] == nullptr) {
    return Error(EOPNOTSUPP);
  }
  return kOperations[operation](t, a);
}

}  // namespace sentry
