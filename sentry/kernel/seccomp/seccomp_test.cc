// The checker and the interpreter of seccomp's BPF.
#include <linux/bpf_common.h>

#include "gtest/gtest.h"
#include "sentry/kernel/seccomp/filter.h"

namespace sentry {
namespace {

sock_filter Stmt(int code, uint32_t k) { return {static_cast<uint16_t>(code), 0, 0, k}; }
sock_filter Jump(int code, uint32_t k, uint8_t jt, uint8_t jf) {
  return {static_cast<uint16_t>(code), jt, jf, k};
}
constexpr int kLoad = BPF_LD | BPF_W | BPF_ABS, kRet = BPF_RET | BPF_K;

bool Good(std::vector<sock_filter> code) { return BpfProgram::Check(std::move(code)).ok(); }

uint32_t Result(std::vector<sock_filter> code, seccomp_data data = {}) {
  return BpfProgram::Check(std::move(code)).value().Run(data);
}

TEST(Bpf, RefusesWhatLinuxRefuses) {
  EXPECT_FALSE(Good({}));
  EXPECT_TRUE(Good({Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(kLoad, 0)}));                  // does not end
  EXPECT_FALSE(Good({Stmt(kLoad, 2), Stmt(kRet, 0)}));   // not aligned
  EXPECT_FALSE(Good({Stmt(kLoad, 64), Stmt(kRet, 0)}));  // beyond the data
  EXPECT_FALSE(Good({Stmt(BPF_LD | BPF_B | BPF_ABS, 0), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(BPF_LD | BPF_W | BPF_IND, 0), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(BPF_JMP | BPF_JA, 1), Stmt(kRet, 0)}));  // past the end
  EXPECT_FALSE(Good({Jump(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(BPF_ALU | BPF_DIV | BPF_K, 0), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(BPF_ALU | BPF_LSH | BPF_K, 32), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(BPF_ALU | BPF_MOD | BPF_K, 3), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(BPF_ST, 16), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good({Stmt(BPF_LD | BPF_MEM, 0), Stmt(kRet, 0)}));  // never stored
  // Stored on one of two ways alone.
  EXPECT_FALSE(Good({Stmt(kLoad, 0), Jump(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 1), Stmt(BPF_ST, 3),
                     Stmt(BPF_LD | BPF_MEM, 3), Stmt(kRet, 0)}));
  EXPECT_FALSE(Good(std::vector<sock_filter>(4097, Stmt(kRet, 0))));
}

TEST(Bpf, Computes) {
  seccomp_data data{};
  data.nr = 7;
  data.args[1] = 0x1234567890abcdef;
  EXPECT_EQ(7u, Result({Stmt(kLoad, 0), Stmt(BPF_RET | BPF_A, 0)}, data));
  EXPECT_EQ(0x12345678u, Result({Stmt(kLoad, 28), Stmt(BPF_RET | BPF_A, 0)}, data));
  EXPECT_EQ(64u, Result({Stmt(BPF_LD | BPF_W | BPF_LEN, 0), Stmt(BPF_RET | BPF_A, 0)}));
  EXPECT_EQ(3u, Result({Stmt(kLoad, 0), Stmt(BPF_ALU | BPF_NEG, 0),
                        Stmt(BPF_ALU | BPF_ADD | BPF_K, 10), Stmt(BPF_RET | BPF_A, 0)},
                       data));
  // Division by a zero in X ends the program.
  EXPECT_EQ(uint32_t{SECCOMP_RET_KILL_THREAD},
            Result({Stmt(BPF_LDX | BPF_IMM, 0), Stmt(BPF_ALU | BPF_DIV | BPF_X, 0),
                    Stmt(kRet, SECCOMP_RET_ALLOW)}));
  EXPECT_EQ(9u, Result({Stmt(BPF_LD | BPF_IMM, 9), Stmt(BPF_ST, 2), Stmt(BPF_LD | BPF_IMM, 1),
                        Stmt(BPF_LDX | BPF_MEM, 2), Stmt(BPF_MISC | BPF_TXA, 0),
                        Stmt(BPF_RET | BPF_A, 0)}));
}

TEST(SeccompFilter, StrictestOfTheChain) {
  auto constant = [](uint32_t verdict) { return BpfProgram::Check({Stmt(kRet, verdict)}).value(); };
  auto a = SeccompFilter::New(constant(SECCOMP_RET_ERRNO | 1), nullptr, false).value();
  auto b = SeccompFilter::New(constant(SECCOMP_RET_ALLOW), a, false).value();
  auto c = SeccompFilter::New(constant(SECCOMP_RET_ERRNO | 2), b, false).value();
  bool log;
  EXPECT_EQ(SECCOMP_RET_ERRNO | 1u, b->Run({}, &log));
  EXPECT_EQ(SECCOMP_RET_ERRNO | 2u, c->Run({}, &log));
  auto d = SeccompFilter::New(constant(SECCOMP_RET_KILL_PROCESS), c, true).value();
  EXPECT_EQ(uint32_t{SECCOMP_RET_KILL_PROCESS}, d->Run({}, &log));
  EXPECT_TRUE(log);
  EXPECT_TRUE(a->IsAncestorOf(d.get()));
  EXPECT_FALSE(d->IsAncestorOf(a.get()));
  EXPECT_EQ(4, d->count());
}

TEST(SeccompFilter, ConstantVerdicts) {
  // Allows 1, and 2 with a first argument of 5; else an errno.
  std::vector<sock_filter> code = {Stmt(kLoad, 4),
                                   Jump(BPF_JMP | BPF_JEQ | BPF_K, kSeccompArch, 1, 0),
                                   Stmt(kRet, SECCOMP_RET_KILL_PROCESS),
                                   Stmt(kLoad, 0),
                                   Jump(BPF_JMP | BPF_JEQ | BPF_K, 1, 3, 0),
                                   Jump(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 3),
                                   Stmt(kLoad, 16),
                                   Jump(BPF_JMP | BPF_JEQ | BPF_K, 5, 0, 1),
                                   Stmt(kRet, SECCOMP_RET_ALLOW),
                                   Stmt(kRet, SECCOMP_RET_ERRNO | 1)};
  auto filter =
      SeccompFilter::New(BpfProgram::Check(std::move(code)).value(), nullptr, false).value();
  EXPECT_TRUE(filter->AlwaysAllows(1));
  EXPECT_FALSE(filter->AlwaysAllows(2));
  EXPECT_FALSE(filter->AlwaysAllows(3));
  EXPECT_FALSE(filter->AlwaysAllows(-1));
  EXPECT_FALSE(filter->AlwaysAllows(100000));
}

TEST(SeccompFilter, LongChainsEnd) {
  base::Ref<SeccompFilter> chain;
  auto program = BpfProgram::Check(std::vector<sock_filter>(4096, Stmt(kRet, SECCOMP_RET_ALLOW)));
  int count = 0, error = 0;
  while (error == 0) {
    auto next = SeccompFilter::New(*program, chain, false);
    if (next.ok()) {
      chain = *next;
      ++count;
    } else {
      error = next.error().code();
    }
  }
  EXPECT_EQ(ENOMEM, error);
  EXPECT_EQ(7, count);  // of 32,768 instructions, with four more for each
}

}  // namespace
}  // namespace sentry
