#include "platform/systrap/decode.h"

#include <cstring>

namespace platform {
namespace {

constexpr size_t kMaxLength = 15;

// What follows an opcode.
enum Operands : uint8_t {
  kUnknown,
  kNone,
  kModrm,
  kModrmImm8,
  kModrmImm,    // 4 bytes, 2 with an operand size prefix
  kModrmTest,   // f6: an immediate byte for /0 and /1
  kModrmTestW,  // f7
  kImm8,
  kImm16,
  kImm,
  kImmOrQuad,  // 8 bytes with REX.W
  kRel8,
  kRel32,
};

struct Maps {
  Operands one[256] = {};
  Operands two[256] = {};  // 0f xx

  constexpr void Set(Operands* map, int from, int to, Operands operands) {
    for (int i = from; i <= to; i++) map[i] = operands;
  }
  constexpr Maps() {
    for (int op = 0; op < 0x40; op += 8) {
      Set(one, op, op + 3, kModrm);
      one[op + 4] = kImm8;
      one[op + 5] = kImm;
    }
    Set(one, 0x50, 0x5f, kNone);
    one[0x63] = kModrm;
    one[0x68] = kImm;
    one[0x69] = kModrmImm;
    one[0x6a] = kImm8;
    one[0x6b] = kModrmImm8;
    Set(one, 0x6c, 0x6f, kNone);
    Set(one, 0x70, 0x7f, kRel8);
    one[0x80] = kModrmImm8;
    one[0x81] = kModrmImm;
    one[0x83] = kModrmImm8;
    Set(one, 0x84, 0x8e, kModrm);
    Set(one, 0x90, 0x99, kNone);
    Set(one, 0x9b, 0x9f, kNone);
    Set(one, 0xa4, 0xa7, kNone);
    one[0xa8] = kImm8;
    one[0xa9] = kImm;
    Set(one, 0xaa, 0xaf, kNone);
    Set(one, 0xb0, 0xb7, kImm8);
    Set(one, 0xb8, 0xbf, kImmOrQuad);
    Set(one, 0xc0, 0xc1, kModrmImm8);
    one[0xc2] = kImm16;
    one[0xc3] = kNone;
    one[0xc6] = kModrmImm8;
    one[0xc7] = kModrmImm;
    one[0xc9] = kNone;
    one[0xcc] = kNone;
    one[0xcd] = kImm8;
    Set(one, 0xd0, 0xd3, kModrm);
    Set(one, 0xd8, 0xdf, kModrm);
    Set(one, 0xe0, 0xe3, kRel8);
    Set(one, 0xe8, 0xe9, kRel32);
    one[0xeb] = kRel8;
    one[0xf4] = one[0xf5] = kNone;
    one[0xf6] = kModrmTest;
    one[0xf7] = kModrmTestW;
    Set(one, 0xf8, 0xfd, kNone);
    Set(one, 0xfe, 0xff, kModrm);

    Set(two, 0x00, 0x03, kModrm);
    two[0x05] = two[0x0b] = kNone;
    two[0x0d] = kModrm;
    Set(two, 0x10, 0x1f, kModrm);
    Set(two, 0x28, 0x2f, kModrm);
    two[0x31] = kNone;
    Set(two, 0x40, 0x6f, kModrm);
    Set(two, 0x70, 0x73, kModrmImm8);
    Set(two, 0x74, 0x76, kModrm);
    two[0x77] = kNone;
    Set(two, 0x7c, 0x7f, kModrm);
    Set(two, 0x80, 0x8f, kRel32);
    Set(two, 0x90, 0x9f, kModrm);
    two[0xa2] = kNone;
    two[0xa3] = kModrm;
    two[0xa4] = kModrmImm8;
    two[0xa5] = kModrm;
    two[0xab] = kModrm;
    two[0xac] = kModrmImm8;
    Set(two, 0xad, 0xb9, kModrm);
    two[0xba] = kModrmImm8;
    Set(two, 0xbb, 0xc1, kModrm);
    two[0xc2] = kModrmImm8;
    two[0xc3] = kModrm;
    Set(two, 0xc4, 0xc6, kModrmImm8);
    two[0xc7] = kModrm;
    Set(two, 0xc8, 0xcf, kNone);
    Set(two, 0xd0, 0xfe, kModrm);
  }
};
constexpr Maps kMaps;

// Reads on; `ok` is false once the bytes have run out.
struct Cursor {
  std::span<const unsigned char> code;
  size_t at = 0;
  bool ok = true;

  unsigned char Next() {
    if (at >= code.size() || at >= kMaxLength) {
      ok = false;
      return 0;
    }
    return code[at++];
  }
  void Skip(size_t n) {
    for (size_t i = 0; i < n; i++) Next();
  }
};

// Skips the rest of a ModRM operand; returns the ModRM byte.
unsigned char SkipModrm(Cursor* c) {
  unsigned char modrm = c->Next();
  unsigned mod = modrm >> 6, rm = modrm & 7;
  if (mod == 3) return modrm;
  bool disp32 = mod == 2 || (mod == 0 && rm == 5);
  if (rm == 4) {
    unsigned char sib = c->Next();
    disp32 |= mod == 0 && (sib & 7) == 5;
  }
  c->Skip(disp32 ? 4 : mod == 1 ? 1 : 0);
  return modrm;
}

// The operands of an opcode in map `map` (1: 0f, 2: 0f 38, 3: 0f 3a) of VEX and EVEX.
Operands VectorOperands(unsigned map, unsigned char op) {
  if (map == 2) return kModrm;
  if (map == 3) return kModrmImm8;
  return map == 1 ? kMaps.two[op] : kUnknown;
}

}  // namespace

std::optional<Instruction> Decode(std::span<const unsigned char> code) {
  Cursor c{code};
  bool narrow = false, wide = false;
  unsigned char op = c.Next();
  for (;; op = c.Next()) {
    bool prefix = op == 0x66 || op == 0x67 || op == 0xf0 || op == 0xf2 || op == 0xf3 ||
                  op == 0x26 || op == 0x2e || op == 0x36 || op == 0x3e || op == 0x64 || op == 0x65;
    if (!prefix || !c.ok) break;
    narrow |= op == 0x66;
  }
  if ((op & 0xf0) == 0x40) {
    wide = (op & 8) != 0;
    op = c.Next();
  }
  Operands operands;
  bool vector = op == 0xc4 || op == 0xc5 || op == 0x62;
  if (vector) {
    unsigned map = 1;
    if (op != 0xc5) map = c.Next() & (op == 0x62 ? 7u : 0x1fu);
    c.Skip(op == 0x62 ? 2 : 1);
    operands = VectorOperands(map, c.Next());
    if (operands == kRel32) operands = kUnknown;
  } else if (op == 0x0f) {
    op = c.Next();
    operands = op == 0x38 ? kModrm : op == 0x3a ? kModrmImm8 : kMaps.two[op];
    if (op == 0x38 || op == 0x3a) c.Next();
  } else {
    operands = kMaps.one[op];
  }
  size_t imm = narrow ? 2 : 4;
  unsigned char modrm = 0;
  if (operands >= kModrm && operands <= kModrmTestW) modrm = SkipModrm(&c);
  Instruction i{};
  switch (operands) {
    case kUnknown:
      return std::nullopt;
    case kNone:
    case kModrm:
      break;
    case kModrmImm8:
    case kImm8:
      c.Skip(1);
      break;
    case kModrmImm:
      if (op == 0xc7 && (modrm & 0x38) != 0) return std::nullopt;  // xbegin
      c.Skip(imm);
      break;
    case kImm:
      c.Skip(imm);
      break;
    case kModrmTest:
      c.Skip((modrm & 0x30) == 0 ? 1 : 0);
      break;
    case kModrmTestW:
      c.Skip((modrm & 0x30) == 0 ? imm : 0);
      break;
    case kImm16:
      c.Skip(2);
      break;
    case kImmOrQuad:
      c.Skip(wide ? 8 : imm);
      break;
    case kRel8:
      i.branches = true;
      i.distance = static_cast<int8_t>(c.Next());
      break;
    case kRel32: {
      if (narrow) return std::nullopt;  // processors differ
      c.Skip(4);
      if (!c.ok) return std::nullopt;
      int32_t distance;
      memcpy(&distance, code.data() + c.at - 4, sizeof(distance));
      i.branches = true;
      i.distance = distance;
      break;
    }
  }
  if (!c.ok) return std::nullopt;
  i.length = static_cast<uint32_t>(c.at);
  return i;
}

}  // namespace platform
