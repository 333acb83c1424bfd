// BST_CHECK: aborts with file, line and a message when an invariant of our own code is broken.
//
// Only for our bugs. Nothing that a request or a checkpoint contains may reach a failing check;
// what the world can get wrong is answered with absl::Status.
//
// Threads   Thread-safe.
// Tested by tests/engine/base/check_test.cc
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"

namespace bst {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition,
                                     const std::string& message) {
  std::fprintf(stderr, "%s:%d: check failed: %s %s\n", file, line, condition, message.c_str());
  std::abort();
}

}  // namespace bst

// BST_CHECK(a == b, "a is ", a, ", b is ", b); the message parts are absl::StrCat arguments.
#define BST_CHECK(condition, ...) \
  (static_cast<bool>(condition)   \
       ? static_cast<void>(0)     \
       : ::bst::CheckFailed(__FILE__, __LINE__, #condition, absl::StrCat(__VA_ARGS__)))

#ifdef NDEBUG
#define BST_DCHECK(condition, ...) static_cast<void>(0)
#else
#define BST_DCHECK(condition, ...) BST_CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif
