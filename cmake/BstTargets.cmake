# The functions every CMakeLists.txt of this tree is written with. Names of targets follow
# the folder: engine/state -> bst_state.

# Flags of our own code. -ffp-contract=off: a product and a sum are fused only where the source says
# so; otherwise two instantiations of one kernel could round differently and break the batch law.
add_library(bst_flags INTERFACE)
target_compile_options(bst_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion -ffp-contract=off
                                           $<$<BOOL:${BST_WERROR}>:-Werror>)
target_include_directories(bst_flags INTERFACE ${CMAKE_SOURCE_DIR})
# A fuzzer without them finds little, and could not open SentencePiece's library: only a sanitizer's
# runtime gives a shared library what coverage calls.
if(BST_FUZZ AND BST_SANITIZE STREQUAL "none")
  set(BST_SANITIZE "address")
endif()
# Without vptr and null, which double the compile time: AddressSanitizer reports a null access too.
if(BST_SANITIZE STREQUAL "address")
  set(BST_SANITIZE_FLAGS -fsanitize=address,undefined -fno-sanitize=null,vptr -fno-sanitize-recover=all
                         -fno-omit-frame-pointer)
elseif(BST_SANITIZE STREQUAL "thread")
  set(BST_SANITIZE_FLAGS -fsanitize=thread -fno-omit-frame-pointer)
elseif(NOT BST_SANITIZE STREQUAL "none")
  message(FATAL_ERROR "BST_SANITIZE is '${BST_SANITIZE}'; it can be none, address or thread")
endif()
if(NOT BST_SANITIZE STREQUAL "none")
  target_compile_definitions(bst_flags INTERFACE BST_SANITIZED $<$<STREQUAL:${BST_SANITIZE},thread>:BST_SANITIZED_FOR_RACES>)
endif()
if(BST_FUZZ)  # Coverage of our own code, which leads libFuzzer.
  list(APPEND BST_SANITIZE_FLAGS -fsanitize=fuzzer-no-link)
endif()
target_compile_options(bst_flags INTERFACE ${BST_SANITIZE_FLAGS})
add_link_options(${BST_SANITIZE_FLAGS})
# bst_stand_in(name base libraries ...): programs that use target `base` define themselves what
# tests/support/NAME.cc stands in for. By link options and not as a library: it has to be in every
# such program, and once.
function(bst_stand_in name base)
  add_library(bst_${name} OBJECT ${CMAKE_SOURCE_DIR}/tests/support/${name}.cc)
  target_include_directories(bst_${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(bst_${name} PRIVATE ${BST_SANITIZE_FLAGS})
  target_link_libraries(bst_${name} PRIVATE ${ARGN})
  target_link_options(${base} INTERFACE $<TARGET_OBJECTS:bst_${name}>)
  set_property(TARGET ${base} APPEND PROPERTY INTERFACE_LINK_DEPENDS $<TARGET_OBJECTS:bst_${name}>)
  add_dependencies(${base} bst_${name})
endfunction()

if(BST_SANITIZE STREQUAL "thread")
  bst_stand_in(tsan_abseil bst_flags absl::synchronization)
  target_link_libraries(bst_flags INTERFACE ${CMAKE_DL_LIBS})
endif()

# Most of a file's compile time is that of its headers, so the sanitizers' builds merge sources
# (CMAKE_UNITY_BUILD in CMakePresets.json). SEPARATE: not these, of which two define the same name.
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(bst_flags INTERFACE -Wno-subobject-linkage)  # g++ takes a merged source for a header
endif()

# bst_library(NAME target SRCS a.cc ... DEPS targets ... [SEPARATE]): a static library of this folder.
function(bst_library)
  cmake_parse_arguments(ARG "SEPARATE" "NAME" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${ARG_NAME} STATIC ${ARG_SRCS})
    target_link_libraries(${ARG_NAME} PRIVATE bst_flags PUBLIC ${ARG_DEPS})
    target_include_directories(${ARG_NAME} PUBLIC ${CMAKE_SOURCE_DIR})
    if(ARG_SEPARATE)
      set_target_properties(${ARG_NAME} PROPERTIES UNITY_BUILD OFF)
    endif()
  else()
    add_library(${ARG_NAME} INTERFACE)
    target_link_libraries(${ARG_NAME} INTERFACE ${ARG_DEPS})
    target_include_directories(${ARG_NAME} INTERFACE ${CMAKE_SOURCE_DIR})
  endif()
endfunction()

# bst_binary(NAME target SRCS main.cc DEPS targets ...): an executable in build/bin.
function(bst_binary)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE bst_flags ${ARG_DEPS})
endfunction()

# bst_test(NAME target SRCS x_test.cc DEPS targets ... [LABELS ...] [COST n] [THREADS] [SEPARATE]): a
# GoogleTest binary and its one ctest entry. Tests run in the source root so that they find tests/golden
# and models/. COST: of the longest, about their seconds; ctest starts them first, lest one runs alone
# at the end. THREADS: what is tested runs on several threads. In ThreadSanitizer's build all others are
# disabled: it neither makes nor runs them.
function(bst_test)
  cmake_parse_arguments(ARG "THREADS;SEPARATE" "NAME;COST" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  if(ARG_SEPARATE)
    set_target_properties(${ARG_NAME} PROPERTIES UNITY_BUILD OFF)
  endif()
  target_link_libraries(${ARG_NAME} PRIVATE bst_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main bst_test_flags)
  if(TARGET bst_gtest_headers)
    target_precompile_headers(${ARG_NAME} REUSE_FROM bst_gtest_headers)
  endif()
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  bst_unit_test(${ARG_NAME} ${ARG_THREADS} ${ARG_LABELS})
  if(ARG_COST)
    set_tests_properties(${ARG_NAME} PROPERTIES COST ${ARG_COST})
  endif()
endfunction()

# GoogleTest's macros are slow to compile and its headers to parse. What is tested has all checks and,
# but for what headers define, all optimisation. -pthread is what gRPC asks for: precompiled headers
# are for one set of flags.
add_library(bst_test_flags INTERFACE)
target_compile_options(bst_test_flags INTERFACE -pthread)
if(BST_SANITIZE STREQUAL "address")
  target_compile_options(bst_test_flags INTERFACE -O0 -fno-sanitize=undefined)
elseif(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  target_compile_options(bst_test_flags INTERFACE -Og)
endif()

# bst_unit_test(name threads [labels ...]): what every ctest entry has that the sanitizer builds run
# too; ThreadSanitizer's only where `threads` is true.
function(bst_unit_test name threads)
  if(BST_SANITIZE STREQUAL "thread" AND NOT threads)
    set_tests_properties(${name} PROPERTIES DISABLED TRUE)
    return()
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "unit;${ARGN}" TIMEOUT 600)
  if(NOT BST_SANITIZE STREQUAL "none")
    # Machines differ by three and more in how fast they are under ThreadSanitizer. A test's dlopen
    # looks from where the sanitizer's library lies.
    set_tests_properties(${name} PROPERTIES TIMEOUT 1200 ENVIRONMENT LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/lib)
  endif()
  add_dependencies(sanitized_tests ${name})
endfunction()
