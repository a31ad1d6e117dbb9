// Which sanitizers this is compiled with: RUNSC_ASAN and RUNSC_TSAN, defined or not. g++ and clang
// tell it in ways of their own.
#pragma once

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RUNSC_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define RUNSC_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define RUNSC_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define RUNSC_TSAN 1
#endif

namespace base {

#if defined(RUNSC_ASAN) || defined(RUNSC_TSAN)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace base
