#include "sentry/loader/initial_stack.h"

#include <elf.h>
#include <sys/auxv.h>

#include <cstring>

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

namespace sentry::loader {

namespace {

constexpr char kPlatform[] = "x86_64";
constexpr uint64_t kClockTicks = 100;  // USER_HZ
constexpr size_t kAuxPairs = 21;       // the list in Finish, with AT_NULL
constexpr uint64_t kWord = sizeof(uint64_t);
// Linux's size of a signal frame without any extended state.
constexpr uint64_t kMinSigStackDefault = 1440;

}  // namespace

InitialStack::InitialStack(const ExecImage& image, uint64_t top, uint64_t align_random,
                           const std::array<std::byte, 16>& at_random)
    : image_(image) {
  // From the top: a null word, the name of the executable, the environment, the arguments.
  uint64_t p = top - kWord;
  p -= image.filename.size() + 1;
  exec_fn_ = layout_.env_end = p;
  for (const std::string& s : image.envp) p -= s.size() + 1;
  layout_.env_start = layout_.arg_end = p;
  for (const std::string& s : image.argv) p -= s.size() + 1;
  strings_ = layout_.arg_start = p;
  gap_ = p = (p - align_random) & ~uint64_t{15};
  platform_ = p -= sizeof(kPlatform);
  random_ = p -= at_random.size();
  p &= ~uint64_t{15};
  p -= kAuxPairs * 2 * kWord;
  const uint64_t words = 1 + image.argv.size() + 1 + image.envp.size() + 1;
  sp_ = layout_.start_stack = (p - words * kWord) & ~uint64_t{15};

  bytes_.resize(top - sp_);
  Put(exec_fn_, image.filename.c_str(), image.filename.size() + 1);
  Put(platform_, kPlatform, sizeof(kPlatform));
  Put(random_, at_random.data(), at_random.size());
}

size_t InitialStack::SizeFor(const ExecImage& image) {
  constexpr size_t kOthers = 512;  // auxiliary vector, platform, random bytes, alignment
  static_assert(kOthers >= (kAuxPairs * 2 + 1) * kWord + sizeof(kPlatform) + 16 + 4 * 16);
  size_t size = kOthers + image.filename.size() + 1;
  for (const auto* list : {&image.argv, &image.envp}) {
    size += (list->size() + 2) * kWord;
    for (const std::string& s : *list) size += s.size() + 1;
  }
  return size;
}

void InitialStack::Put(uint64_t addr, const void* data, size_t size) {
  memcpy(bytes_.data() + (addr - sp_), data, size);
}

std::vector<std::byte> InitialStack::Finish(const AuxFacts& facts) {
  uint64_t at = sp_;
  auto word = [&](uint64_t value) {
    PutWord(at, value);
    at += kWord;
  };
  word(image_.argv.size());
  uint64_t string = strings_;
  for (const auto* list : {&image_.argv, &image_.envp}) {
    for (const std::string& s : *list) {
      Put(string, s.c_str(), s.size() + 1);
      word(string);
      string += s.size() + 1;
    }
    word(0);
  }
  const uint64_t min_sig_stack = getauxval(AT_MINSIGSTKSZ);
  const uint64_t aux[kAuxPairs][2] = {
      {AT_SYSINFO_EHDR, facts.vdso},
      {AT_MINSIGSTKSZ, min_sig_stack != 0 ? min_sig_stack : kMinSigStackDefault},
      {AT_HWCAP, getauxval(AT_HWCAP)},
      {AT_PAGESZ, 4096},
      {AT_CLKTCK, kClockTicks},
      {AT_PHDR, facts.headers},
      {AT_PHENT, sizeof(Elf64_Phdr)},
      {AT_PHNUM, facts.header_count},
      {AT_BASE, facts.interpreter_base},
      {AT_FLAGS, 0},
      {AT_ENTRY, facts.entry},
      {AT_UID, facts.identity.uid},
      {AT_EUID, facts.identity.euid},
      {AT_GID, facts.identity.gid},
      {AT_EGID, facts.identity.egid},
      {AT_SECURE, facts.identity.secure},
      {AT_RANDOM, random_},
      {AT_HWCAP2, getauxval(AT_HWCAP2)},
      {AT_EXECFN, exec_fn_},
      {AT_PLATFORM, platform_},
      {AT_NULL, 0},
  };
  // Without a vDSO its entry is left out; the vector is then padded by one more end.
  const size_t skip = facts.vdso == 0 ? 1 : 0;
  layout_.auxv.clear();
  for (size_t i = skip; i < kAuxPairs; ++i) {
    for (uint64_t value : aux[i]) {
      word(value);
      layout_.auxv.push_back(value);
    }
  }
  return std::move(bytes_);
}

}  // namespace sentry::loader
