// The programs that requests of NETLINK_SOCK_DIAG carry (Linux: inet_diag_bc_run and _audit).
#include <arpa/inet.h>

#include <cstring>

#include "sentry/net/netlink/sock_diag.h"

namespace sentry {
namespace {

constexpr size_t kOp = sizeof(inet_diag_bc_op);

template <typename T>
T At(NetlinkBytes program, size_t offset) {
  T value{};
  memcpy(&value, program.data() + offset, sizeof(value));
  return value;
}

// Bytes that the operation at `at` has behind its head; SIZE_MAX: it is no operation.
size_t ArgumentSize(NetlinkBytes program, size_t at) {
  switch (At<inet_diag_bc_op>(program, at).code) {
    case INET_DIAG_BC_NOP:
    case INET_DIAG_BC_JMP:
    case INET_DIAG_BC_AUTO:
      return 0;
    case INET_DIAG_BC_S_GE:
    case INET_DIAG_BC_S_LE:
    case INET_DIAG_BC_D_GE:
    case INET_DIAG_BC_D_LE:
    case INET_DIAG_BC_S_EQ:
    case INET_DIAG_BC_D_EQ:
      return kOp;
    case INET_DIAG_BC_DEV_COND:
      return sizeof(uint32_t);
    case INET_DIAG_BC_MARK_COND:
      return sizeof(inet_diag_markcond);
    case INET_DIAG_BC_S_COND:
    case INET_DIAG_BC_D_COND: {
      if (program.size() - at < kOp + sizeof(inet_diag_hostcond)) return SIZE_MAX;
      const auto cond = At<inet_diag_hostcond>(program, at + kOp);
      size_t address;
      if (cond.family == AF_UNSPEC) {
        address = 0;
      } else if (cond.family == AF_INET) {
        address = sizeof(in_addr);
      } else if (cond.family == AF_INET6) {
        address = sizeof(in6_addr);
      } else {
        return SIZE_MAX;
      }
      return cond.prefix_len <= 8 * address ? sizeof(cond) + address : SIZE_MAX;
    }
    default:
      return SIZE_MAX;
  }
}

bool SameBits(const std::byte* a, const std::byte* b, size_t bits) {
  if (memcmp(a, b, bits / 8) != 0) return false;
  if (bits % 8 == 0) return true;
  const auto mask = static_cast<std::byte>(0xff << (8 - bits % 8));
  return ((a[bits / 8] ^ b[bits / 8]) & mask) == std::byte{0};
}

bool HostMatches(NetlinkBytes program, size_t at, const DiagEntry& e, bool source) {
  const auto cond = At<inet_diag_hostcond>(program, at);
  if (cond.port != -1 && cond.port != (source ? e.source_port : e.destination_port)) return false;
  const uint32_t* words = source ? e.source : e.destination;
  if (cond.family != AF_UNSPEC && cond.family != e.family) {
    // An IPv4 address of a socket of IPv6.
    if (e.family != AF_INET6 || cond.family != AF_INET) return false;
    if (words[0] != 0 || words[1] != 0 || words[2] != htonl(0xffff)) return false;
    words += 3;
  }
  return SameBits(reinterpret_cast<const std::byte*>(words), program.data() + at + sizeof(cond),
                  cond.prefix_len);
}

bool Holds(NetlinkBytes program, size_t at, const DiagEntry& e) {
  const size_t argument = at + kOp;
  auto number = [&] { return At<inet_diag_bc_op>(program, argument).no; };
  switch (At<inet_diag_bc_op>(program, at).code) {
    case INET_DIAG_BC_JMP:
      return false;
    case INET_DIAG_BC_S_EQ:
      return e.source_port == number();
    case INET_DIAG_BC_S_GE:
      return e.source_port >= number();
    case INET_DIAG_BC_S_LE:
      return e.source_port <= number();
    case INET_DIAG_BC_D_EQ:
      return e.destination_port == number();
    case INET_DIAG_BC_D_GE:
      return e.destination_port >= number();
    case INET_DIAG_BC_D_LE:
      return e.destination_port <= number();
    case INET_DIAG_BC_AUTO:
      return !e.port_chosen;
    case INET_DIAG_BC_S_COND:
      return HostMatches(program, argument, e, true);
    case INET_DIAG_BC_D_COND:
      return HostMatches(program, argument, e, false);
    case INET_DIAG_BC_DEV_COND:
      return At<uint32_t>(program, argument) == e.device;
    case INET_DIAG_BC_MARK_COND: {
      const auto cond = At<inet_diag_markcond>(program, argument);
      return (e.mark & cond.mask) == cond.mark;
    }
    default:
      return true;
  }
}

}  // namespace

bool DiagFilterIsValid(NetlinkBytes program, bool admin) {
  if (program.empty()) return false;
  // Where operations begin: a jump leads to one, or behind the last, or by four bytes further.
  std::vector<bool> begins(program.size() + 1);
  for (size_t at = 0; at < program.size();) {
    if (program.size() - at < kOp) return false;
    begins[at] = true;
    const auto op = At<inet_diag_bc_op>(program, at);
    const size_t argument = ArgumentSize(program, at);
    if (argument == SIZE_MAX || argument + kOp > program.size() - at) return false;
    if (op.code == INET_DIAG_BC_MARK_COND && !admin) return false;
    if (op.yes < kOp + argument || op.yes > program.size() - at || op.yes % 4 != 0) return false;
    at += op.yes;
  }
  begins[program.size()] = true;
  for (size_t at = 0; at < program.size(); at += At<inet_diag_bc_op>(program, at).yes) {
    const auto op = At<inet_diag_bc_op>(program, at);
    if (op.code == INET_DIAG_BC_NOP) continue;
    if (op.no < kOp || op.no > program.size() - at + 4 || op.no % 4 != 0) return false;
    if (op.no <= program.size() - at && !begins[at + op.no]) return false;
  }
  return true;
}

bool DiagFilterMatches(NetlinkBytes program, const DiagEntry& entry) {
  size_t at = 0;
  while (at < program.size()) {
    const auto op = At<inet_diag_bc_op>(program, at);
    at += Holds(program, at, entry) ? op.yes : op.no;
  }
  return at == program.size();  // behind it: it does not
}

}  // namespace sentry
