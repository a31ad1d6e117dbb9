// Random bytes from the host's getrandom(2), fit for keys: AT_RANDOM, the guest's getrandom and
// /dev/urandom, address space layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace base {

// Fills `out`. Thread-safe; small requests are served from a buffer, so that most make no host
// call, and bytes are erased as they are given out. Never fails: aborts if the host has no
// randomness to give.
void FillRandom(std::span<std::byte> out);
uint64_t Random64();
// Uniform in [0, bound). Precondition: bound > 0.
uint64_t RandomBelow(uint64_t bound);

}  // namespace base
