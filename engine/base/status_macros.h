// Early return on error, for functions that return absl::Status or absl::StatusOr.
//
// Threads   As the functions that they stand in.
// Tested by tests/engine/base/status_macros_test.cc
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define BST_RETURN_IF_ERROR(expression)                                     \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

#define BST_STATUS_CONCAT_INNER(a, b) a##b
#define BST_STATUS_CONCAT(a, b) BST_STATUS_CONCAT_INNER(a, b)

// BST_ASSIGN_OR_RETURN(auto x, MakeX());
#define BST_ASSIGN_OR_RETURN(declaration, expression) \
  BST_ASSIGN_OR_RETURN_IMPL(BST_STATUS_CONCAT(status_or_, __LINE__), declaration, expression)
#define BST_ASSIGN_OR_RETURN_IMPL(result, declaration, expression) \
  auto result = (expression);                                      \
  if (!result.ok()) return std::move(result).status();             \
  declaration = *std::move(result)
