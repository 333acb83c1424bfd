// The version of the program, from the project() line of CMakeLists.txt.
#pragma once

namespace bst {

inline constexpr char kVersion[] = BST_VERSION;

}  // namespace bst
