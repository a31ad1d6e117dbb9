# runsc::flags: how our own code is compiled and linked. Code for other places (the stub, guest
# test programs) does not link to it.
add_library(runsc_flags INTERFACE)
add_library(runsc::flags ALIAS runsc_flags)
set(RUNSC_SANITIZE "" CACHE STRING "Sanitizers, as for -fsanitize=")
option(RUNSC_FUZZ "Build the fuzz targets (clang, with RUNSC_SANITIZE)" OFF)

# Position independence is one flag for all (not CMake's -fPIC for libraries): the precompiled header
# must be compiled as its users are.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
set(CMAKE_C_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
set(_debug "-O1 -g")
if(RUNSC_SANITIZE)
  set(_debug "-O1 -g1")  # lines are all that a report needs
endif()
set(CMAKE_CXX_FLAGS_DEBUG "${_debug}")
set(CMAKE_C_FLAGS_DEBUG "${_debug}")

target_include_directories(runsc_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(runsc_flags INTERFACE Threads::Threads)
target_compile_definitions(runsc_flags INTERFACE _GNU_SOURCE)
target_compile_options(runsc_flags INTERFACE
  -Wall -Wextra -Werror -Wno-missing-field-initializers -Wno-unused-parameter
  -fno-strict-aliasing -fno-omit-frame-pointer -ffunction-sections -fdata-sections
  -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=
  -fPIE -fstack-protector-strong -fstack-clash-protection)
target_link_options(runsc_flags INTERFACE
  -Wl,-z,relro,-z,now -Wl,-z,noexecstack -Wl,--gc-sections)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(runsc_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wthread-safety>)
endif()
if(RUNSC_SANITIZE)
  find_program(ADDR2LINE addr2line REQUIRED)  # for reports; clang's own tool is not installed
  target_compile_options(runsc_flags INTERFACE -fsanitize=${RUNSC_SANITIZE})
  target_link_options(runsc_flags INTERFACE -fsanitize=${RUNSC_SANITIZE})
  if(RUNSC_SANITIZE MATCHES "undefined")
    target_compile_options(runsc_flags INTERFACE -fno-sanitize-recover=undefined)
  endif()
  if(RUNSC_FUZZ)
    target_compile_options(runsc_flags INTERFACE -fsanitize=fuzzer-no-link)
  endif()
  if(RUNSC_SANITIZE MATCHES "thread")
    # What tsan_mutex.cc wraps, by the mangled names of Debian's inline namespace.
    file(STRINGS /usr/include/absl/base/options.h _line
         REGEX "^#define ABSL_OPTION_INLINE_NAMESPACE_NAME ")
    string(REGEX REPLACE ".* " "" _namespace "${_line}")
    string(LENGTH "${_namespace}" _length)
    set(_symbol "_ZN4absl${_length}${_namespace}")
    set(_const_symbol "_ZNK4absl${_length}${_namespace}")
    add_library(runsc_tsan_mutex STATIC ${CMAKE_SOURCE_DIR}/scripts/cmake/tsan_mutex.cc)
    target_compile_options(runsc_tsan_mutex PRIVATE -fPIE)
    target_compile_definitions(runsc_tsan_mutex PRIVATE ABSL_SYMBOL="${_symbol}"
                               ABSL_CONST_SYMBOL="${_const_symbol}")
    target_link_libraries(runsc_tsan_mutex PUBLIC absl::synchronization)
    target_link_libraries(runsc_flags INTERFACE runsc_tsan_mutex)
    foreach(_name ${_symbol}5Mutex4LockEv ${_symbol}5Mutex6UnlockEv ${_symbol}5Mutex7TryLockEv
            ${_symbol}5Mutex10ReaderLockEv ${_symbol}5Mutex12ReaderUnlockEv
            ${_symbol}7CondVar4WaitEPNS0_5MutexE
            ${_symbol}7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE
            ${_symbol}7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE
            ${_symbol}12Notification6NotifyEv
            ${_const_symbol}12Notification19WaitForNotificationEv)
      target_link_options(runsc_flags INTERFACE -Wl,--wrap=${_name})
    endforeach()
    # Archives before it may be the first to ask for it, or those behind it.
    target_link_options(runsc_flags INTERFACE -Wl,-u,__wrap_${_symbol}5Mutex4LockEv)
    target_compile_options(runsc_flags INTERFACE -Wno-tsan)
  endif()
else()
  target_compile_definitions(runsc_flags INTERFACE $<$<NOT:$<CONFIG:Debug>>:_FORTIFY_SOURCE=2>)
endif()
