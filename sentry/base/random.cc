#include "sentry/base/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace base {

namespace {

void FromHost(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t n = getrandom(out.data(), out.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) abort();
    out = out.subspan(n);
  }
}

constexpr size_t kBuffer = 1024;
absl::Mutex g_mu(absl::kConstInit);
std::byte g_buffer[kBuffer] ABSL_GUARDED_BY(g_mu);
size_t g_left ABSL_GUARDED_BY(g_mu) = 0;  // unused bytes, at the start of the buffer

}  // namespace

void FillRandom(std::span<std::byte> out) {
  if (out.size() > kBuffer / 4) return FromHost(out);
  absl::MutexLock lock(&g_mu);
  if (g_left < out.size()) {
    FromHost(g_buffer);
    g_left = kBuffer;
  }
  g_left -= out.size();
  memcpy(out.data(), g_buffer + g_left, out.size());
  explicit_bzero(g_buffer + g_left, out.size());
}

uint64_t Random64() {
  uint64_t value;
  FillRandom(std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

uint64_t RandomBelow(uint64_t bound) {
  // Values below `threshold` would make the low residues likelier.
  const uint64_t threshold = -bound % bound;
  while (true) {
    const uint64_t value = Random64();
    if (value >= threshold) return value % bound;
  }
}

}  // namespace base
