// FPU state of the guest: in the host's signal frame or in the CPU. The layout of an image is that
// of Linux's signal frames (arch/x86/kernel/fpu/signal.c): the XSAVE area with sw_reserved words in
// the last 48 bytes of the legacy region, and an end marker behind it.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr uint32_t kMagic1 = 0x46505853;
constexpr uint32_t kMagic2 = 0x46505845;
constexpr uint32_t kLegacySize = 512;
constexpr uint32_t kHeaderSize = 64;
constexpr uint32_t kMinSize = kLegacySize + kHeaderSize;
constexpr uint32_t kSoftwareOffset = 464;
constexpr uint32_t kMxcsrOffset = 24;
constexpr uint64_t kFeaturesFpSse = 3;
constexpr uint64_t kFeaturePkru = 1 << 9;
constexpr uint32_t kInitialMxcsr = 0x1f80;
constexpr uint16_t kInitialControlWord = 0x37f;
constexpr int kEfault = 14;

struct Software {
  uint32_t magic1, extended_size;
  uint64_t xfeatures;
  uint32_t xstate_size;
};

UContext* Frame(const Slot* s) { return reinterpret_cast<UContext*>(s->frame); }
unsigned char* Scratch(Slot* s) { return s->in_area; }

template <typename T>
T Get(const unsigned char* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <typename T>
void Put(unsigned char* p, T v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

void Clear(unsigned char* p, size_t n) {
  __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(0) : "memory");
}

// PKRU is not the guest's: without pkey_alloc it never differs from the host's default.
uint64_t LiveFeatures() { return SharedPage()->xfeatures & ~kFeaturePkru; }

// Reads an image of the guest into the scratch area and makes it one that XRSTOR accepts. As Linux
// does, one without valid markers counts for its legacy part alone.
bool ReadImage(Slot* s, uint64_t addr) {
  unsigned char* image = Scratch(s);
  uint32_t size = SharedPage()->xsave_size;
  Clear(image, size);
  if (addr == 0) {
    Put<uint16_t>(image, kInitialControlWord);
    Put<uint32_t>(image + kMxcsrOffset, kInitialMxcsr);
    return true;
  }
  if (StubCopy(image, reinterpret_cast<const void*>(addr), kLegacySize) != 0) return false;
  Software sw = Get<Software>(image + kSoftwareOffset);
  uint32_t magic2 = 0;
  bool extended = sw.magic1 == kMagic1 && sw.xstate_size >= kMinSize && sw.xstate_size <= size &&
                  sw.xstate_size <= sw.extended_size &&
                  StubCopy(&magic2, reinterpret_cast<const void*>(addr + sw.xstate_size), 4) == 0 &&
                  magic2 == kMagic2;
  uint64_t features = kFeaturesFpSse;
  if (extended) {
    if (StubCopy(image + kLegacySize, reinterpret_cast<const void*>(addr + kLegacySize),
                 sw.xstate_size - kLegacySize) != 0) {
      return false;
    }
    features = Get<uint64_t>(image + kLegacySize) & sw.xfeatures & LiveFeatures();
  }
  Clear(image + kLegacySize, kHeaderSize);
  Put<uint64_t>(image + kLegacySize, features);
  uint32_t mxcsr = Get<uint32_t>(image + kMxcsrOffset) & SharedPage()->mxcsr_mask;
  Put<uint32_t>(image + kMxcsrOffset, mxcsr);
  return true;
}

}  // namespace

long SaveFpu(Slot* s, uint64_t addr) {
  const Shared* shared = SharedPage();
  uint32_t size = shared->xsave_size;
  unsigned char* image = Scratch(s);
  if (s->mode == kModeFrame) {
    const unsigned char* host = reinterpret_cast<const unsigned char*>(Frame(s)->mc.fpstate);
    Software sw = Get<Software>(host + kSoftwareOffset);
    uint32_t have = sw.magic1 == kMagic1 ? sw.xstate_size : kLegacySize;
    if (have > size) have = size;
    Clear(image, size);
    StubCopy(image, host, have);
    if (have < kMinSize) Put<uint64_t>(image + kLegacySize, kFeaturesFpSse);
  } else {
    Clear(image + kLegacySize, kHeaderSize);
    if (!StubXsave(image, LiveFeatures())) return -kEfault;
  }
  Clear(image + kSoftwareOffset, kLegacySize - kSoftwareOffset);
  Put(image + kSoftwareOffset, Software{kMagic1, size + 4, shared->xfeatures, size});
  if (StubCopy(reinterpret_cast<void*>(addr), image, size) != 0) return -kEfault;
  uint32_t magic2 = kMagic2;
  return StubCopy(reinterpret_cast<void*>(addr + size), &magic2, 4) == 0 ? 0 : -kEfault;
}

long RestoreFpu(Slot* s, uint64_t addr) {
  if (!ReadImage(s, addr)) return -kEfault;
  unsigned char* image = Scratch(s);
  if (s->mode == kModeDirect) return StubXrstor(image, LiveFeatures()) ? 0 : -kEfault;
  // The host reads the frame when the handler returns; its markers stay.
  unsigned char* host = reinterpret_cast<unsigned char*>(Frame(s)->mc.fpstate);
  Software sw = Get<Software>(host + kSoftwareOffset);
  StubCopy(host, image, kSoftwareOffset);
  if (sw.magic1 == kMagic1) {
    uint32_t size = SharedPage()->xsave_size;
    if (size > sw.xstate_size) size = sw.xstate_size;
    uint64_t pkru = Get<uint64_t>(host + kLegacySize) & kFeaturePkru;
    uint64_t features = Get<uint64_t>(image + kLegacySize);
    if (pkru == 0) {
      StubCopy(host + kLegacySize, image + kLegacySize, size - kLegacySize);
    } else {
      // Leave the bytes of PKRU, which lies behind all that is the guest's but AMX, as they are.
      uint32_t pkru_at = SharedPage()->pkru_offset;
      StubCopy(host + kLegacySize, image + kLegacySize, pkru_at - kLegacySize);
      if (size > pkru_at + 8) {
        StubCopy(host + pkru_at + 8, image + pkru_at + 8, size - pkru_at - 8);
      }
    }
    Put<uint64_t>(host + kLegacySize, features | pkru);
  }
  return 0;
}

void LoadFpuForClone(Slot* s) {
  if (s->mode != kModeFrame) return;
  StubXrstor(reinterpret_cast<const void*>(Frame(s)->mc.fpstate), LiveFeatures());
}

void GiveFpu(Slot* s, Slot* to) {
  LoadFpuForClone(s);
  unsigned char* image = Scratch(to);
  Clear(image + kLegacySize, kHeaderSize);
  StubXsave(image, LiveFeatures());
}

void TakeFpu(Slot* s) { StubXrstor(Scratch(s), LiveFeatures()); }

}  // namespace platform::stub
