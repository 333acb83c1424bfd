# The three functions every CMakeLists.txt of this tree is written with. Names of targets follow
# the folder: engine/state -> bst_state.

# Flags of our own code. -ffp-contract=off: a product and a sum are fused only where the source says
# so; otherwise two instantiations of one kernel could round differently and break the batch law.
add_library(bst_flags INTERFACE)
target_compile_options(bst_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion -ffp-contract=off
                                           $<$<BOOL:${BST_WERROR}>:-Werror>)
target_include_directories(bst_flags INTERFACE ${CMAKE_SOURCE_DIR})
if(BST_SANITIZE STREQUAL "address")
  set(BST_SANITIZE_FLAGS -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(BST_SANITIZE STREQUAL "thread")
  set(BST_SANITIZE_FLAGS -fsanitize=thread -fno-omit-frame-pointer)
elseif(NOT BST_SANITIZE STREQUAL "none")
  message(FATAL_ERROR "BST_SANITIZE is '${BST_SANITIZE}'; it can be none, address or thread")
endif()
target_compile_options(bst_flags INTERFACE ${BST_SANITIZE_FLAGS})
add_link_options(${BST_SANITIZE_FLAGS})

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
  target_link_libraries(${ARG_NAME} PRIVATE bst_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS "unit;${ARG_LABELS}" TIMEOUT 600)
  add_dependencies(unit_tests ${ARG_NAME})
endfunction()
