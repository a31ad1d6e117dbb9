#include "platform/systrap/machine.h"

#include <cpuid.h>
#include <fcntl.h>
#include <immintrin.h>
#include <sched.h>
#include <sys/auxv.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "platform/mailbox.h"

namespace platform {
namespace {

constexpr uint32_t kHwcap2Fsgsbase = 1 << 1;
// Tile data of AMX is given by the host only to processes that ask (arch_prctl
// ARCH_REQ_XCOMP_PERM), and stubs do not.
constexpr uint64_t kFeatureTileConfig = 1 << 17;
constexpr uint64_t kFeatureTileData = 1 << 18;
constexpr int kPkruBit = 9;
constexpr uint32_t kLegacyAndHeader = 512 + 64;

uint64_t MeasureTicksPerUs() {
  auto now = [] {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
  };
  int64_t t0 = now();
  uint64_t c0 = __rdtsc();
  while (now() - t0 < 500'000) {
  }
  int64_t t1 = now();
  uint64_t c1 = __rdtsc();
  return std::max<uint64_t>(1, (c1 - c0) * 1000 / static_cast<uint64_t>(t1 - t0));
}

uint64_t ReadMmapMinAddr() {
  int fd = open("/proc/sys/vm/mmap_min_addr", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 65536;
  char buf[32] = {};
  ssize_t n = read(fd, buf, sizeof(buf) - 1);
  close(fd);
  uint64_t v = n > 0 ? strtoull(buf, nullptr, 10) : 65536;
  return std::max<uint64_t>(kPageSize, (v + kPageSize - 1) & ~(kPageSize - 1));
}

__attribute__((target("xsave"))) uint64_t ReadXcr0() { return _xgetbv(0); }

bool ProbeXsave(Machine* m) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  m->xfeatures = ReadXcr0() & ~(kFeatureTileConfig | kFeatureTileData);
  m->xsave_size = kLegacyAndHeader;
  m->pkru_offset = 0;
  for (int i = 2; i < 63; i++) {
    if (!(m->xfeatures & (1ull << i))) continue;
    if (!__get_cpuid_count(0xd, i, &a, &b, &c, &d)) continue;
    m->xsave_size = std::max(m->xsave_size, a + b);
    if (i == kPkruBit) m->pkru_offset = b;
  }
  if (m->pkru_offset == 0) m->pkru_offset = m->xsave_size;
  alignas(16) unsigned char image[512] = {};
  __asm__ volatile("fxsave %0" : "=m"(image));
  memcpy(&m->mxcsr_mask, image + 28, sizeof(m->mxcsr_mask));
  if (m->mxcsr_mask == 0) m->mxcsr_mask = 0xffbf;
  return true;
}

}  // namespace

base::Result<Machine> ProbeMachine(std::string* why) {
  Machine m;
  m.has_fsgsbase = (getauxval(AT_HWCAP2) & kHwcap2Fsgsbase) != 0;
  if (!ProbeXsave(&m)) {
    *why = "the CPU or the host kernel has no XSAVE";
    return base::Error(ENOSYS);
  }
  // A slot's stack holds a trap's frame, that of an interrupt or a fault inside it, and our own.
  uint64_t frame = std::max<uint64_t>(getauxval(AT_MINSIGSTKSZ), m.xsave_size + 1024);
  if (3 * frame + 4096 > sizeof(Slot::stack) || m.xsave_size + sizeof(uint32_t) > std::min(kCopyInSize, kCopyOutSize)) {
    *why = "the host's signal frames are larger than a stub's stack";
    return base::Error(ENOSYS);
  }
  m.ticks_per_us = MeasureTicksPerUs();
  m.mmap_min_addr = ReadMmapMinAddr();
  if (sched_getaffinity(0, sizeof(m.cpus), &m.cpus) == 0) {
    m.cores = std::max(1, CPU_COUNT(&m.cpus));
    // Unless somebody has chosen some, whatever a change of the cpuset may add.
    if (m.cores >= sysconf(_SC_NPROCESSORS_ONLN)) memset(&m.cpus, 0xff, sizeof(m.cpus));
  }
  return m;
}

}  // namespace platform
