# How targets are declared.
#
#   runsc_library(NAME sentry_foo SRCS a.cc b.cc DEPS sentry_base absl::flat_hash_map)
#     A static library. Without SRCS an interface library (headers alone). HDRS defaults to the
#     folder's *.h; the `checkheaders` target compiles each of them alone.
#   runsc_test(NAME foo_test SRCS foo_test.cc DEPS sentry_foo [TIMEOUT 120])
#     A GoogleTest program, and a ctest test foo_test.Suite.Case for each of its cases, with the
#     label unit.
#   runsc_gtests(NAME foo TARGET foo_test [LAUNCHER ..] PROPERTIES ..)
#     The ctest tests of a GoogleTest program that is there already.
#   runsc_benchmark(NAME foo_bench SRCS foo_bench.cc DEPS sentry_foo)
#     A Google Benchmark program.
#   runsc_binary(NAME runsc SRCS main.cc DEPS ...)
#     A program. Static (static-pie) except under sanitizers: exec of a static program is what makes
#     a container start quickly, since a dynamic loader and five libraries cost more than the rest.
#
# Names of targets: the path with '_' for '/': sentry/base is sentry_base, platform/systrap is
# platform_systrap. Outside libraries: runsc::fmt, runsc::seccomp, absl::..., Boost::context,
# nlohmann_json::nlohmann_json, CLI11::CLI11.
# Long compiles of <gtest/gtest.h> and of the common standard headers are paid once, by precompiled
# headers that all targets reuse.
option(RUNSC_PCH "Use precompiled headers" ON)
option(RUNSC_STATIC "Link the installed programs statically" ON)
add_custom_target(checkheaders)
add_custom_target(unit_tests)  # builds the tests with the label unit

if(RUNSC_PCH)
  file(WRITE ${CMAKE_BINARY_DIR}/pch/empty.cc "")
  add_library(runsc_pch OBJECT ${CMAKE_BINARY_DIR}/pch/empty.cc)
  target_link_libraries(runsc_pch PRIVATE runsc::flags)
  target_precompile_headers(runsc_pch PRIVATE
    <algorithm> <array> <atomic> <bit> <cerrno> <cstdint> <cstring> <deque> <functional> <map>
    <memory> <optional> <span> <string> <string_view> <unordered_map> <utility> <variant> <vector>)
  add_library(runsc_test_pch OBJECT ${CMAKE_BINARY_DIR}/pch/empty.cc)
  target_link_libraries(runsc_test_pch PRIVATE runsc::flags GTest::gmock GTest::gtest)
  target_precompile_headers(runsc_test_pch PRIVATE
    <gtest/gtest.h> <gmock/gmock.h> <algorithm> <atomic> <functional> <map> <memory> <optional>
    <span> <string> <thread> <vector>)
  foreach(_pch runsc_pch runsc_test_pch)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${_pch} PRIVATE -fpch-preprocess)
    endif()
  endforeach()
endif()

function(_runsc_use_pch target pch)
  if(RUNSC_PCH)
    target_precompile_headers(${target} REUSE_FROM ${pch})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${target} PRIVATE
        $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess;-Wno-error=invalid-pch>)
    endif()
  endif()
endfunction()

# With RUNSC_ALLOW_MISSING_SOURCES, drops sources that are not there (yet) with a warning, so that one
# unfinished folder does not stop the others from being configured. The presets do not allow it.
option(RUNSC_ALLOW_MISSING_SOURCES "Warn of sources that are not there, instead of failing" ON)
function(_runsc_existing out)
  set(_found)
  foreach(_source ${ARGN})
    cmake_path(ABSOLUTE_PATH _source BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
               OUTPUT_VARIABLE _path)
    get_source_file_property(_generated ${_path} GENERATED)
    if(NOT RUNSC_ALLOW_MISSING_SOURCES OR _generated OR EXISTS ${_path} OR _source MATCHES "^\\$<")
      list(APPEND _found ${_source})
    else()
      message(WARNING "no such source: ${_path}")
    endif()
  endforeach()
  set(${out} ${_found} PARENT_SCOPE)
endfunction()

function(_runsc_check_headers name headers deps)
  set(_sources)
  foreach(_header ${headers})
    cmake_path(ABSOLUTE_PATH _header BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} NORMALIZE)
    file(RELATIVE_PATH _relative ${CMAKE_SOURCE_DIR} ${_header})
    set(_source ${CMAKE_BINARY_DIR}/checkheaders/${_relative}.cc)
    file(CONFIGURE OUTPUT ${_source} CONTENT "#include \"${_relative}\"\n")
    list(APPEND _sources ${_source})
  endforeach()
  if(_sources)
    add_library(checkheaders_${name} OBJECT EXCLUDE_FROM_ALL ${_sources})
    target_link_libraries(checkheaders_${name} PRIVATE runsc::flags ${deps})
    target_compile_options(checkheaders_${name} PRIVATE -O0 -g0 -U_FORTIFY_SOURCE)
    add_dependencies(checkheaders checkheaders_${name})
  endif()
endfunction()

function(runsc_library)
  cmake_parse_arguments(A "" "NAME" "SRCS;HDRS;DEPS" ${ARGN})
  if(A_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "runsc_library(${A_NAME}): unknown ${A_UNPARSED_ARGUMENTS}")
  endif()
  _runsc_existing(A_SRCS ${A_SRCS})
  if(A_SRCS)
    add_library(${A_NAME} STATIC ${A_SRCS})
    target_link_libraries(${A_NAME} PUBLIC ${A_DEPS} PRIVATE runsc::flags)
    target_include_directories(${A_NAME} PUBLIC ${CMAKE_SOURCE_DIR})
    _runsc_use_pch(${A_NAME} runsc_pch)
  else()
    add_library(${A_NAME} INTERFACE)
    target_link_libraries(${A_NAME} INTERFACE ${A_DEPS})
    target_include_directories(${A_NAME} INTERFACE ${CMAKE_SOURCE_DIR})
  endif()
  if(NOT A_HDRS)
    file(GLOB A_HDRS CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.h)
  endif()
  _runsc_check_headers(${A_NAME} "${A_HDRS}" "${A_DEPS}")
endfunction()

# Has ctest read a line of CMake that calls a function of EachTest.cmake.
function(_runsc_ctest_reads name line)
  set(_file ${CMAKE_CURRENT_BINARY_DIR}/${name}_tests.cmake)
  file(GENERATE OUTPUT ${_file} CONTENT
    "include(\"${CMAKE_SOURCE_DIR}/scripts/cmake/EachTest.cmake\")\n${line}\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${_file})
endfunction()

# Arguments as text of one CMake command, each quoted.
function(_runsc_quoted out)
  set(_text)
  foreach(_argument IN LISTS ARGN)
    string(APPEND _text " [==[${_argument}]==]")
  endforeach()
  set(${out} "${_text}" PARENT_SCOPE)
endfunction()

function(runsc_gtests)
  cmake_parse_arguments(A "" "NAME;TARGET" "LAUNCHER;PROPERTIES" ${ARGN})
  _runsc_quoted(_properties ${A_PROPERTIES})
  _runsc_ctest_reads(${A_NAME}
    "runsc_each_gtest(${A_NAME} \"$<TARGET_FILE:${A_TARGET}>\" [==[${A_LAUNCHER}]==] ${_properties})")
endfunction()

function(runsc_test)
  cmake_parse_arguments(A "" "NAME;TIMEOUT" "SRCS;DEPS" ${ARGN})
  if(A_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "runsc_test(${A_NAME}): unknown ${A_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  _runsc_existing(A_SRCS ${A_SRCS})
  if(NOT A_SRCS)
    return()
  endif()
  add_executable(${A_NAME} ${A_SRCS})
  target_link_libraries(${A_NAME} PRIVATE runsc::flags ${A_DEPS} GTest::gmock GTest::gtest
                                          GTest::gtest_main)
  target_link_options(${A_NAME} PRIVATE -pie)
  _runsc_use_pch(${A_NAME} runsc_test_pch)
  set(_properties LABELS unit TIMEOUT ${A_TIMEOUT})
  if(RUNSC_SANITIZE)
    # Everything is slower by some factor; and reports name functions and lines.
    math(EXPR A_TIMEOUT "4 * ${A_TIMEOUT}")
    set(_properties LABELS unit TIMEOUT ${A_TIMEOUT}
        ENVIRONMENT ASAN_SYMBOLIZER_PATH=${ADDR2LINE})
  endif()
  runsc_gtests(NAME ${A_NAME} TARGET ${A_NAME} PROPERTIES ${_properties})
  add_dependencies(unit_tests ${A_NAME})
endfunction()

function(runsc_benchmark)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  _runsc_existing(A_SRCS ${A_SRCS})
  if(NOT A_SRCS)
    return()
  endif()
  add_executable(${A_NAME} ${A_SRCS})
  target_link_libraries(${A_NAME} PRIVATE runsc::flags ${A_DEPS} benchmark::benchmark)
  target_link_options(${A_NAME} PRIVATE -pie)
endfunction()

function(runsc_binary)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  _runsc_existing(A_SRCS ${A_SRCS})
  if(NOT A_SRCS)
    return()
  endif()
  add_executable(${A_NAME} ${A_SRCS})
  target_link_libraries(${A_NAME} PRIVATE runsc::flags ${A_DEPS})
  if(RUNSC_STATIC AND NOT RUNSC_SANITIZE)
    target_link_options(${A_NAME} PRIVATE -static-pie)
  else()
    target_link_options(${A_NAME} PRIVATE -pie)
  endif()
  _runsc_use_pch(${A_NAME} runsc_pch)
endfunction()
