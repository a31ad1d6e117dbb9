# Compiles through ccache where it is installed. Paths below the common parent of the source and
# build trees are made relative, so build trees beside each other share their hits.
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(_base ${CMAKE_SOURCE_DIR})
  cmake_path(IS_PREFIX _base ${CMAKE_BINARY_DIR} NORMALIZE _inside)
  if(NOT _inside)
    cmake_path(GET _base PARENT_PATH _parent)
    cmake_path(IS_PREFIX _parent ${CMAKE_BINARY_DIR} NORMALIZE _inside)
    if(_inside AND NOT _parent STREQUAL "/")
      set(_base ${_parent})
    endif()
  endif()
  set(_launcher env CCACHE_BASEDIR=${_base} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros
      ${CCACHE_PROGRAM})
  set(CMAKE_C_COMPILER_LAUNCHER ${_launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_launcher})
endif()
