// Stacks of fibers.
#pragma once

#include <cstddef>

namespace fiber {

// A mapped stack: a guard area, then `size` usable bytes.
struct Stack {
  std::byte* bottom;  // lowest usable byte
  size_t size;
  Stack* next;  // in the pool
};

// From the pool, or mapped; contents are undefined. Aborts if the host has no memory. Any thread.
Stack* AcquireStack();
void ReleaseStack(Stack* stack);

}  // namespace fiber
