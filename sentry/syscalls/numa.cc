// Memory policies as on a machine with one NUMA node, where every valid policy comes to the same.
// Follows Linux's mm/mempolicy.c and mm/migrate.c.
#include <linux/mempolicy.h>

#include <algorithm>
#include <bit>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMaxNodes = 1024;   // nodes that a mask may have (MAX_NUMNODES)
constexpr int kModeMax = 6;            // MPOL_WEIGHTED_INTERLEAVE is newer than what we follow
constexpr int kModePreferredMany = 5;  // MPOL_PREFERRED_MANY
constexpr int kNumaBalancing = 1 << 13;
constexpr int kStatic = 1 << 15, kRelative = 1 << 14;
constexpr int kModeFlags = kNumaBalancing | kStatic | kRelative;
constexpr uint64_t kNodeBit = 1;  // node 0, the only one

// A node mask of the guest (Linux: get_nodes): which of our nodes are in it, and whether any is.
struct Nodes {
  bool any = false;
  bool ours = false;
};

Result<Nodes> CopyInNodes(Task& t, uint64_t addr, uint64_t max_node) {
  Nodes nodes;
  if (max_node <= 1 || addr == 0) return nodes;
  const uint64_t bits = max_node - 1;
  if (bits > kPage * 8) return Error(EINVAL);
  for (uint64_t at = 0; at < bits; at += 64) {
    uint64_t word = TRY(UserPtr<uint64_t>(addr + at / 8).CopyIn(t.memory()));
    if (bits - at < 64) word &= (uint64_t{1} << (bits - at)) - 1;
    if (word == 0) continue;
    if (at >= kMaxNodes) return Error(EINVAL);
    nodes.any = true;
    if (at == 0 && (word & kNodeBit)) nodes.ours = true;
  }
  return nodes;
}

// A policy that is valid here: its mode with its flags (Linux: sanitize_mpol_flags, mpol_new).
Result<int> CheckPolicy(int mode_and_flags, const Nodes& nodes) {
  const int flags = mode_and_flags & kModeFlags;
  int mode = mode_and_flags & ~kModeFlags;
  if (mode < 0 || mode >= kModeMax) return Error(EINVAL);
  if ((flags & kStatic) && (flags & kRelative)) return Error(EINVAL);
  if ((flags & kNumaBalancing) && mode != MPOL_BIND && mode != kModePreferredMany) {
    return Error(EINVAL);
  }
  switch (mode) {
    case MPOL_DEFAULT:
      if (nodes.any) return Error(EINVAL);
      return MPOL_DEFAULT;
    case MPOL_LOCAL:
      if (nodes.any || (flags & (kStatic | kRelative))) return Error(EINVAL);
      return MPOL_LOCAL;
    case MPOL_PREFERRED:
      if (!nodes.any) {
        if (flags & (kStatic | kRelative)) return Error(EINVAL);
        return MPOL_LOCAL;
      }
      break;
    default:
      if (!nodes.any) return Error(EINVAL);
  }
  // Relative masks fold onto the nodes there are.
  if (!nodes.ours && !(flags & kRelative)) return Error(EINVAL);
  return mode | flags;
}

// Writes a mask with or without our node (Linux: copy_nodes_to_user).
Status CopyOutNodes(Task& t, uint64_t addr, uint64_t max_node, bool ours) {
  const uint64_t bytes = (max_node - 1 + 63) / 64 * 8;
  if (bytes > kPage) return Error(EINVAL);
  std::vector<uint64_t> mask(std::max<uint64_t>(bytes, 8) / 8, 0);
  if (ours) mask[0] = kNodeBit;
  return t.memory().Write(addr, std::as_bytes(std::span(mask)).first(bytes));
}

}  // namespace

Result<uint64_t> SysMbind(Task& t, const SyscallArgs& args) {
  constexpr uint64_t kFlags = MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL;
  const uint64_t start = args[0], flags = args[5];
  if (start % kPage != 0) return Error(EINVAL);
  const Nodes nodes = TRY(CopyInNodes(t, args[3], args[4]));
  if (args[2] > UINT32_MAX) return Error(EINVAL);
  if (flags & ~kFlags) return Error(EINVAL);
  if ((flags & MPOL_MF_MOVE_ALL) && !t.HasCap(CAP_SYS_NICE)) return Error(EPERM);
  const uint64_t length = (args[1] + kPage - 1) & ~(kPage - 1);
  if (start + length < start) return Error(EINVAL);
  if (length == 0) return uint64_t{0};
  TRY(CheckPolicy(args.Int(2), nodes));
  if (!t.mm().IsMapped(start, length)) return Error(EFAULT);
  return uint64_t{0};
}

Result<uint64_t> SysSetMempolicy(Task& t, const SyscallArgs& args) {
  const Nodes nodes = TRY(CopyInNodes(t, args[1], args[2]));
  t.mempolicy = TRY(CheckPolicy(args.Int(0), nodes));
  return uint64_t{0};
}

Result<uint64_t> SysGetMempolicy(Task& t, const SyscallArgs& args) {
  const uint64_t mode_addr = args[0], mask_addr = args[1], max_node = args[2], addr = args[3];
  const uint64_t flags = args[4];
  if (mask_addr != 0 && max_node < 1) return Error(EINVAL);
  if (flags & ~uint64_t{MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED}) return Error(EINVAL);
  int mode = 0;
  bool ours = false;
  if (flags & MPOL_F_MEMS_ALLOWED) {
    if (flags & (MPOL_F_NODE | MPOL_F_ADDR)) return Error(EINVAL);
    ours = true;
  } else {
    if (flags & MPOL_F_ADDR) {
      if (!t.mm().IsMapped(addr & ~(kPage - 1), kPage)) return Error(EFAULT);
    } else if (addr != 0) {
      return Error(EINVAL);
    }
    const int policy = t.mempolicy.load();
    const int policy_mode = policy & ~kModeFlags;
    if (flags & MPOL_F_NODE) {
      // The node of the page, or the next one to interleave on: node 0.
      if (!(flags & MPOL_F_ADDR) && policy_mode != MPOL_INTERLEAVE) return Error(EINVAL);
    } else {
      mode = policy;
      ours = policy_mode != MPOL_DEFAULT && policy_mode != MPOL_LOCAL;
    }
  }
  if (mode_addr != 0) TRY(UserPtr<int>(mode_addr).CopyOut(t.memory(), mode));
  if (mask_addr != 0) TRY(CopyOutNodes(t, mask_addr, max_node, ours));
  return uint64_t{0};
}

Result<uint64_t> SysSetMempolicyHomeNode(Task& t, const SyscallArgs& args) {
  const uint64_t start = args[0];
  if (start % kPage != 0 || args[3] != 0 || args[2] != 0) return Error(EINVAL);
  const uint64_t length = (args[1] + kPage - 1) & ~(kPage - 1);
  if (start + length < start) return Error(EINVAL);
  if (length == 0) return uint64_t{0};
  return Error(ENOENT);  // no range has a policy of its own
}

Result<uint64_t> SysMigratePages(Task& t, const SyscallArgs& args) {
  TRY(CopyInNodes(t, args[2], args[1]));
  const Nodes to = TRY(CopyInNodes(t, args[3], args[1]));
  if (args.Int(0) != 0 && !t.kernel().FindTask(t.pid_namespace(), args.Int(0))) {
    return Error(ESRCH);
  }
  if (!to.ours) return Error(EINVAL);
  return uint64_t{0};  // none is left behind
}

Result<uint64_t> SysMovePages(Task& t, const SyscallArgs& args) {
  const uint64_t count = args[1], pages = args[2], nodes = args[3], status = args[4];
  const int flags = args.Int(5);
  if (flags & ~(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL)) return Error(EINVAL);
  if ((flags & MPOL_MF_MOVE_ALL) && !t.HasCap(CAP_SYS_NICE)) return Error(EPERM);
  base::Ref<MemoryManager> mm = t.mm_ref();
  if (args.Int(0) != 0 && args.Int(0) != t.Pid_()) {
    base::Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), args.Int(0));
    if (!target) return Error(ESRCH);
    if (!t.HasCap(CAP_SYS_NICE)) return Error(EPERM);
    mm = target->mm_ref();
    if (!mm) return Error(EINVAL);
  }
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t page = TRY(UserPtr<uint64_t>(pages + i * 8).CopyIn(t.memory()));
    if (nodes != 0) {
      const int node = TRY(UserPtr<int>(nodes + i * 4).CopyIn(t.memory()));
      if (node != 0) return Error(ENODEV);
    }
    const int where = mm->IsMapped(page & ~(kPage - 1), kPage) ? 0 : -EFAULT;
    TRY(UserPtr<int>(status + i * 4).CopyOut(t.memory(), where));
    if (t.SignalPending()) return Error(base::kERESTARTNOINTR);
  }
  return uint64_t{0};
}

}  // namespace sentry
