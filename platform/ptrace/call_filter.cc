#include "platform/ptrace/call_filter.h"

#include <cstddef>
#include <cstring>
#include <iterator>

namespace platform {

CallFilter::CallFilter(std::span<const uint64_t> words) : program_(words.size()) {
  static_assert(sizeof(sock_filter) == sizeof(uint64_t));
  if (!words.empty()) memcpy(program_.data(), words.data(), words.size_bytes());
}

// kernel/bpf/core.c, for what seccomp admits (seccomp_check_filter) and our programs use.
uint32_t CallFilter::Action(const seccomp_data& call) const {
  uint32_t a = 0, x = 0;
  for (size_t pc = 0; pc < program_.size(); pc++) {
    const sock_filter& i = program_[pc];
    switch (i.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        if (i.k % sizeof(a) != 0 || i.k > sizeof(call) - sizeof(a)) {
          return SECCOMP_RET_KILL_PROCESS;
        }
        memcpy(&a, reinterpret_cast<const char*>(&call) + i.k, sizeof(a));
        break;
      case BPF_MISC | BPF_TAX:
        x = a;
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        a &= i.k;
        break;
      case BPF_ALU | BPF_ADD | BPF_K:
        a += i.k;
        break;
      case BPF_ALU | BPF_ADD | BPF_X:
        a += x;
        break;
      case BPF_JMP | BPF_JA:
        pc += i.k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        pc += a == i.k ? i.jt : i.jf;
        break;
      case BPF_JMP | BPF_JGE | BPF_K:
        pc += a >= i.k ? i.jt : i.jf;
        break;
      case BPF_JMP | BPF_JGE | BPF_X:
        pc += a >= x ? i.jt : i.jf;
        break;
      case BPF_RET | BPF_K:
        return i.k;
      default:
        return SECCOMP_RET_KILL_PROCESS;
    }
  }
  return SECCOMP_RET_KILL_PROCESS;
}

std::vector<uint64_t> BelowTracer(std::span<const uint64_t> words) {
  const sock_filter head[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ~0u, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  std::vector<uint64_t> all(std::size(head));
  memcpy(all.data(), head, sizeof(head));
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

}  // namespace platform
