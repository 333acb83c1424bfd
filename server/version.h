// The version of the program, from the project() line of CMakeLists.txt.
//
// Threads   A constant.
// Tested by tests/e2e/server_process_test.py
#pragma once

namespace bst {

inline constexpr char kVersion[] = BST_VERSION;

}  // namespace bst
