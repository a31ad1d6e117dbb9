// Switching stacks: Boost.Context's fcontext, with what the sanitizers must be told.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>

#include "sentry/base/sanitizer.h"

#ifdef RUNSC_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef RUNSC_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace fiber {

using ContextHandle = boost::context::detail::fcontext_t;
using Transfer = boost::context::detail::transfer_t;

// `entry` runs on the stack of `size` bytes whose lowest is `bottom` at the first switch to it.
inline ContextHandle MakeContext(std::byte* bottom, size_t size, void (*entry)(Transfer)) {
  return boost::context::detail::make_fcontext(bottom + size, size, entry);
}
// Saves this context and continues `to`; returns when somebody switches back, with that one's
// context and `data`.
inline Transfer SwitchContext(ContextHandle to, void* data) {
  return boost::context::detail::jump_fcontext(to, data);
}

// Forgets the frames of a fiber that has ended, whose stack another one gets.
inline void UnpoisonStack([[maybe_unused]] std::byte* bottom, [[maybe_unused]] size_t size) {
#ifdef RUNSC_ASAN
  __asan_unpoison_memory_region(bottom, size);
#endif
}
inline void* CreateSanitizerFiber() {
#ifdef RUNSC_TSAN
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}
inline void DestroySanitizerFiber([[maybe_unused]] void* fiber) {
#ifdef RUNSC_TSAN
  __tsan_destroy_fiber(fiber);
#endif
}
inline void* CurrentSanitizerFiber() {
#ifdef RUNSC_TSAN
  return __tsan_get_current_fiber();
#else
  return nullptr;
#endif
}
// Before a switch to TSAN's fiber `to`, whose stack is `bottom`, `size`. `save` keeps what ASAN
// needs of the context that is left; null if it ends.
inline void BeforeSwitch([[maybe_unused]] void* to, [[maybe_unused]] void** save,
                         [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t size) {
#ifdef RUNSC_TSAN
  __tsan_switch_to_fiber(to, 0);
#endif
#ifdef RUNSC_ASAN
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}
// First thing after a switch. `saved`: what BeforeSwitch saved for this context (null at its first
// entry). Tells whose stack has been left.
inline void AfterSwitch([[maybe_unused]] void* saved, [[maybe_unused]] const void** left_bottom,
                        [[maybe_unused]] size_t* left_size) {
#ifdef RUNSC_ASAN
  __sanitizer_finish_switch_fiber(saved, left_bottom, left_size);
#endif
}

}  // namespace fiber
