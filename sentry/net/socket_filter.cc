#include "sentry/net/socket_filter.h"

#include <cerrno>
#include <optional>

#include "sentry/base/random.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

// Linux knows the ancillary loads by these offsets (SKF_AD_OFF + SKF_AD_*).
bool KnownAncillary(uint32_t k) {
  const uint32_t what = k - static_cast<uint32_t>(SKF_AD_OFF);
  return what < SKF_AD_MAX;
}

// Instructions that exist (chk_code_allowed).
bool KnownCode(uint16_t code) {
  switch (code) {
    case BPF_LD | BPF_W | BPF_ABS:
    case BPF_LD | BPF_H | BPF_ABS:
    case BPF_LD | BPF_B | BPF_ABS:
    case BPF_LD | BPF_W | BPF_IND:
    case BPF_LD | BPF_H | BPF_IND:
    case BPF_LD | BPF_B | BPF_IND:
    case BPF_LD | BPF_W | BPF_LEN:
    case BPF_LDX | BPF_W | BPF_LEN:
    case BPF_LDX | BPF_B | BPF_MSH:
    case BPF_LD | BPF_IMM:
    case BPF_LDX | BPF_IMM:
    case BPF_LD | BPF_MEM:
    case BPF_LDX | BPF_MEM:
    case BPF_ST:
    case BPF_STX:
    case BPF_MISC | BPF_TAX:
    case BPF_MISC | BPF_TXA:
    case BPF_RET | BPF_K:
    case BPF_RET | BPF_A:
    case BPF_ALU | BPF_NEG:
    case BPF_JMP | BPF_JA:
      return true;
    default:
      break;
  }
  const uint16_t source = BPF_SRC(code), op = BPF_OP(code);
  if ((code & ~(0xf8)) == BPF_ALU) {
    return op <= BPF_XOR && op != BPF_NEG && (source == BPF_K || source == BPF_X);
  }
  if ((code & ~(0xf8)) == BPF_JMP) return op >= BPF_JEQ && op <= BPF_JSET;
  return false;
}

// A word of scratch memory is read on no path before it is written (check_load_and_stores).
bool ScratchIsWritten(std::span<const sock_filter> code) {
  std::vector<uint16_t> masks(code.size(), 0xffff);
  uint16_t valid = 0;
  for (size_t pc = 0; pc < code.size(); ++pc) {
    const sock_filter& f = code[pc];
    valid &= masks[pc];
    switch (f.code) {
      case BPF_ST:
      case BPF_STX:
        valid |= static_cast<uint16_t>(1u << f.k);
        continue;
      case BPF_LD | BPF_MEM:
      case BPF_LDX | BPF_MEM:
        if ((valid & (1u << f.k)) == 0) return false;
        continue;
      default:
        break;
    }
    if (f.code == (BPF_JMP | BPF_JA)) {
      masks[pc + 1 + f.k] &= valid;
      valid = 0xffff;
    } else if (BPF_CLASS(f.code) == BPF_JMP) {
      masks[pc + 1 + f.jt] &= valid;
      masks[pc + 1 + f.jf] &= valid;
      valid = 0xffff;
    }
  }
  return true;
}

bool CheckOne(const sock_filter& f, size_t pc, size_t size) {
  if (!KnownCode(f.code)) return false;
  const size_t left = size - pc - 1;
  switch (f.code) {
    case BPF_ALU | BPF_DIV | BPF_K:
    case BPF_ALU | BPF_MOD | BPF_K:
      return f.k != 0;
    case BPF_ALU | BPF_LSH | BPF_K:
    case BPF_ALU | BPF_RSH | BPF_K:
      return f.k < 32;
    case BPF_LD | BPF_MEM:
    case BPF_LDX | BPF_MEM:
    case BPF_ST:
    case BPF_STX:
      return f.k < BPF_MEMWORDS;
    case BPF_JMP | BPF_JA:
      return f.k < left;
    case BPF_LD | BPF_W | BPF_ABS:
    case BPF_LD | BPF_H | BPF_ABS:
    case BPF_LD | BPF_B | BPF_ABS:
      return f.k < static_cast<uint32_t>(SKF_AD_OFF) || KnownAncillary(f.k);
    default:
      return BPF_CLASS(f.code) != BPF_JMP || (f.jt < left && f.jf < left);
  }
}

// The machine at work on one packet.
class Machine {
 public:
  explicit Machine(const FilterContext& packet) : packet_(packet) {}
  uint32_t Run(std::span<const sock_filter> code);

 private:
  // `size` bytes at `offset`, which may count from the headers (SKF_NET_OFF, SKF_LL_OFF). None: the
  // packet has none there.
  std::optional<uint32_t> Load(uint32_t offset, size_t size) const;
  std::optional<uint32_t> Ancillary(uint32_t k);
  bool LoadInstruction(const sock_filter& f);
  bool Arithmetic(const sock_filter& f);
  static bool Compare(uint16_t op, uint32_t a, uint32_t b);

  const FilterContext& packet_;
  uint32_t a_ = 0, x_ = 0, memory_[BPF_MEMWORDS] = {};
};

std::optional<uint32_t> Machine::Load(uint32_t offset, size_t size) const {
  int64_t at = static_cast<int32_t>(offset);
  if (at < 0) {
    if (at >= SKF_NET_OFF) {
      at += packet_.network_offset - SKF_NET_OFF;
    } else if (at >= SKF_LL_OFF) {
      at += packet_.link_offset - SKF_LL_OFF;
    } else {
      return std::nullopt;
    }
  }
  if (at < 0 || static_cast<uint64_t>(at) + size > packet_.bytes.size()) return std::nullopt;
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value = value << 8 | static_cast<uint32_t>(packet_.bytes[static_cast<size_t>(at) + i]);
  }
  return value;
}

std::optional<uint32_t> Machine::Ancillary(uint32_t k) {
  switch (k - static_cast<uint32_t>(SKF_AD_OFF)) {
    case SKF_AD_PROTOCOL:
      return packet_.protocol;
    case SKF_AD_PKTTYPE:
      return packet_.packet_type;
    case SKF_AD_IFINDEX:
      return packet_.device;
    case SKF_AD_HATYPE:
      return packet_.hardware_type;
    case SKF_AD_MARK:
      return packet_.mark;
    case SKF_AD_ALU_XOR_X:
      return a_ ^ x_;
    case SKF_AD_RANDOM:
      return static_cast<uint32_t>(base::Random64());
    case SKF_AD_PAY_OFFSET:
      return 0;
    default:  // queues, hashes, VLAN tags, the processor: there are none here
      return 0;
  }
}

bool Machine::LoadInstruction(const sock_filter& f) {
  const size_t size = BPF_SIZE(f.code) == BPF_W ? 4 : BPF_SIZE(f.code) == BPF_H ? 2 : 1;
  std::optional<uint32_t> value;
  switch (BPF_MODE(f.code)) {
    case BPF_IMM:
      value = f.k;
      break;
    case BPF_MEM:
      value = memory_[f.k];
      break;
    case BPF_LEN:
      value = static_cast<uint32_t>(packet_.bytes.size());
      break;
    case BPF_MSH:
      value = Load(f.k, 1);
      if (value) value = (*value & 0xf) << 2;
      break;
    case BPF_ABS:
      value = KnownAncillary(f.k) ? Ancillary(f.k) : Load(f.k, size);
      break;
    default:  // BPF_IND
      value = Load(x_ + f.k, size);
  }
  if (!value) return false;
  (BPF_CLASS(f.code) == BPF_LD ? a_ : x_) = *value;
  return true;
}

// False: a division by zero ends the program.
bool Machine::Arithmetic(const sock_filter& f) {
  const uint32_t b = BPF_SRC(f.code) == BPF_X ? x_ : f.k;
  switch (BPF_OP(f.code)) {
    case BPF_ADD:
      a_ += b;
      break;
    case BPF_SUB:
      a_ -= b;
      break;
    case BPF_MUL:
      a_ *= b;
      break;
    case BPF_DIV:
      if (b == 0) return false;
      a_ /= b;
      break;
    case BPF_MOD:
      if (b == 0) return false;
      a_ %= b;
      break;
    case BPF_OR:
      a_ |= b;
      break;
    case BPF_AND:
      a_ &= b;
      break;
    case BPF_XOR:
      a_ ^= b;
      break;
    case BPF_LSH:
      a_ <<= b & 31;
      break;
    case BPF_RSH:
      a_ >>= b & 31;
      break;
    default:
      a_ = -a_;
  }
  return true;
}

bool Machine::Compare(uint16_t op, uint32_t a, uint32_t b) {
  switch (op) {
    case BPF_JEQ:
      return a == b;
    case BPF_JGT:
      return a > b;
    case BPF_JGE:
      return a >= b;
    default:
      return (a & b) != 0;
  }
}

// A checked program goes forward alone and ends with a BPF_RET.
uint32_t Machine::Run(std::span<const sock_filter> code) {
  for (size_t pc = 0;; ++pc) {
    const sock_filter& f = code[pc];
    switch (BPF_CLASS(f.code)) {
      case BPF_LD:
      case BPF_LDX:
        if (!LoadInstruction(f)) return 0;
        break;
      case BPF_ST:
        memory_[f.k] = a_;
        break;
      case BPF_STX:
        memory_[f.k] = x_;
        break;
      case BPF_ALU:
        if (!Arithmetic(f)) return 0;
        break;
      case BPF_JMP:
        if (BPF_OP(f.code) == BPF_JA) {
          pc += f.k;
        } else {
          pc += Compare(BPF_OP(f.code), a_, BPF_SRC(f.code) == BPF_X ? x_ : f.k) ? f.jt : f.jf;
        }
        break;
      case BPF_RET:
        return BPF_RVAL(f.code) == BPF_A ? a_ : f.k;
      default:
        (BPF_MISCOP(f.code) == BPF_TAX ? x_ : a_) = BPF_MISCOP(f.code) == BPF_TAX ? a_ : x_;
    }
  }
}

}  // namespace

Result<base::Ref<SocketFilter>> SocketFilter::New(std::vector<sock_filter> code) {
  if (code.empty() || code.size() > BPF_MAXINSNS) return Error(EINVAL);
  for (size_t pc = 0; pc < code.size(); ++pc) {
    if (!CheckOne(code[pc], pc, code.size())) return Error(EINVAL);
  }
  const uint16_t last = code.back().code;
  if (last != (BPF_RET | BPF_K) && last != (BPF_RET | BPF_A)) return Error(EINVAL);
  if (!ScratchIsWritten(code)) return Error(EINVAL);
  return base::MakeRef<SocketFilter>(std::move(code));
}

uint32_t SocketFilter::Run(const FilterContext& packet) const { return Machine(packet).Run(code_); }

}  // namespace sentry
