# BST_CUDA says whether the CUDA engine's plugin is built: AUTO where nvcc is found, ON or not at all
# else; the rest of the product never needs it. Sets BST_HAVE_CUDA, and BST_CUDA_BUILD_ID: what server
# and plugin must agree on, since they pass C++ objects to each other.
set(BST_CUDA AUTO CACHE STRING "The CUDA engine: AUTO (if nvcc is found), ON or OFF")
set_property(CACHE BST_CUDA PROPERTY STRINGS AUTO ON OFF)

set(BST_HAVE_CUDA FALSE)
# The plugin is what is shipped; sanitizers see the same sources emulated.
if(NOT BST_CUDA STREQUAL "OFF" AND BST_SANITIZE STREQUAL "none")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(BST_NVCC nvcc PATHS /usr/local/cuda/bin)
    if(BST_NVCC)
      set(ENV{CUDACXX} ${BST_NVCC})
    endif()
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Code for A100 and H100; PTX for what comes after.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    endif()
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc 13 has it.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    # CMake 3.25.1 asks for a property of this target, which CUDA 13 does not have.
    if(NOT TARGET CUDA::nvToolsExt)
      add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
    endif()
    find_package(CUDAToolkit REQUIRED)
    if(CUDAToolkit_VERSION VERSION_LESS 12)
      message(STATUS "CUDA engine: not built, CUDA ${CUDAToolkit_VERSION} is too old for C++20, 12 is needed")
    else()
      set(BST_HAVE_CUDA TRUE)
    endif()
  endif()
  if(NOT BST_HAVE_CUDA AND BST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "BST_CUDA is ON, but there is no nvcc of CUDA 12 or newer")
  elseif(NOT BST_HAVE_CUDA)
    message(STATUS "CUDA engine: not built, no nvcc was found")
  endif()
endif()

file(GLOB BST_ABI_HEADERS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/engine/backend/*.h ${CMAKE_SOURCE_DIR}/engine/tensor/*.h
     ${CMAKE_SOURCE_DIR}/engine/base/*.h)
list(APPEND BST_ABI_HEADERS ${CMAKE_SOURCE_DIR}/engine/backend/cuda/cuda_backend.h
     ${CMAKE_SOURCE_DIR}/engine/backend/cuda/cuda_plugin.h)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${BST_ABI_HEADERS})
set(abi "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} ${absl_VERSION} ${CMAKE_BUILD_TYPE} ${BST_SANITIZE}")
foreach(header IN LISTS BST_ABI_HEADERS)
  file(SHA256 ${header} hash)
  string(APPEND abi " ${hash}")
endforeach()
string(SHA256 abi "${abi}")
string(SUBSTRING ${abi} 0 16 abi)
set(BST_CUDA_BUILD_ID "${PROJECT_VERSION}-${abi}")
