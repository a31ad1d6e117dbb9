# The libraries we stand on, all from Debian. Each is linked statically (see Targets.cmake).
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
set(Boost_USE_STATIC_LIBS ON)
find_package(Boost 1.74 REQUIRED COMPONENTS context)
find_package(fmt REQUIRED)
find_package(GTest REQUIRED)
find_package(benchmark REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(SECCOMP REQUIRED IMPORTED_TARGET libseccomp)

# Debian's CMake files for Abseil and benchmark name the shared libraries; the archives are beside
# them. (The archives are built with ABSL_OPTION_USE_STD_STRING_VIEW=0: absl::string_view,
# absl::optional and the like are types of their own here. Use the std ones in our code.)
get_property(_imported DIRECTORY ${CMAKE_SOURCE_DIR} PROPERTY IMPORTED_TARGETS)
foreach(_target ${_imported})
  if(_target MATCHES "^(absl|benchmark)::")
    get_target_property(_location ${_target} IMPORTED_LOCATION_NONE)
    if(_location)
      string(REGEX REPLACE "\\.so[.0-9]*$" ".a" _archive ${_location})
      if(EXISTS ${_archive})
        set_target_properties(${_target} PROPERTIES IMPORTED_LOCATION_NONE ${_archive})
      endif()
    endif()
  endif()
endforeach()

# libseccomp as an archive.
find_library(SECCOMP_ARCHIVE libseccomp.a REQUIRED)
add_library(runsc_seccomp INTERFACE)
target_link_libraries(runsc_seccomp INTERFACE ${SECCOMP_ARCHIVE})
target_include_directories(runsc_seccomp INTERFACE ${SECCOMP_INCLUDE_DIRS})
add_library(runsc::seccomp ALIAS runsc_seccomp)

# Debian has no archive of fmt, so its out-of-line part is compiled here from its own header.
add_library(runsc_fmt STATIC ${CMAKE_SOURCE_DIR}/scripts/cmake/fmt_impl.cc)
add_library(runsc::fmt ALIAS runsc_fmt)
