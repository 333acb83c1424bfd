# The three functions every CMakeLists.txt of this tree is written with. Names of targets follow
# the folder: engine/state -> bst_state.

# Flags of our own code. -ffp-contract=off: a product and a sum are fused only where the source says
# so; otherwise two instantiations of one kernel could round differently and break the batch law.
add_library(bst_flags INTERFACE)
target_compile_options(bst_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion -ffp-contract=off
                                           $<$<BOOL:${BST_WERROR}>:-Werror>)
target_include_directories(bst_flags INTERFACE ${CMAKE_SOURCE_DIR})
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
  target_compile_definitions(bst_flags INTERFACE BST_SANITIZED)
endif()
if(BST_FUZZ)  # Coverage of our own code, which leads libFuzzer.
  list(APPEND BST_SANITIZE_FLAGS -fsanitize=fuzzer-no-link)
endif()
target_compile_options(bst_flags INTERFACE ${BST_SANITIZE_FLAGS})
add_link_options(${BST_SANITIZE_FLAGS})
if(BST_SANITIZE STREQUAL "thread")
  # tests/support/tsan_abseil.cc stands in for these functions of Abseil, and says why. -u: also
  # in a program without locks of its own, for the linker renames the calls of Abseil's libraries too.
  add_library(bst_tsan_abseil STATIC ${CMAKE_SOURCE_DIR}/tests/support/tsan_abseil.cc)
  foreach(name IN ITEMS N4absl7debian35Mutex4LockEv N4absl7debian35Mutex6UnlockEv N4absl7debian35MutexD1Ev
                        N4absl7debian35Mutex5AwaitERKNS0_9ConditionE
                        N4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE
                        N4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE
                        N4absl7debian312Notification6NotifyEv
                        NK4absl7debian312Notification19WaitForNotificationEv)
    target_link_options(bst_tsan_abseil INTERFACE -Wl,--wrap=_Z${name} -Wl,-u,__wrap__Z${name})
  endforeach()
  target_link_libraries(bst_tsan_abseil PUBLIC absl::synchronization)
  target_link_libraries(bst_flags INTERFACE bst_tsan_abseil)
endif()

# bst_library(NAME target SRCS a.cc ... DEPS targets ...): a static library of this folder.
function(bst_library)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${ARG_NAME} STATIC ${ARG_SRCS})
    target_link_libraries(${ARG_NAME} PRIVATE bst_flags PUBLIC ${ARG_DEPS})
    target_include_directories(${ARG_NAME} PUBLIC ${CMAKE_SOURCE_DIR})
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

# bst_test(NAME target SRCS x_test.cc DEPS targets ... [LABELS ...]): a GoogleTest binary and its
# one ctest entry. Tests run in the source root so that they find tests/golden and models/.
function(bst_test)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  if(BST_SANITIZE STREQUAL "address")  # GoogleTest's macros are slow to compile; what is tested has all checks.
    set_source_files_properties(${ARG_SRCS} PROPERTIES COMPILE_OPTIONS "-O0;-fno-sanitize=undefined")
  endif()
  target_link_libraries(${ARG_NAME} PRIVATE bst_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS "unit;${ARG_LABELS}" TIMEOUT 600)
  if(NOT BST_SANITIZE STREQUAL "none")  # Their dlopen looks from where the sanitizer's library lies.
    set_tests_properties(${ARG_NAME} PROPERTIES ENVIRONMENT LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/lib)
  endif()
  add_dependencies(unit_tests ${ARG_NAME})
endfunction()
