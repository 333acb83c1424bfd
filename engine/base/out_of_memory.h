// OrResourceExhausted: memory that runs out in the standard library, as a Status.
//
// Loading works with vectors whose sizes a checkpoint sets; that they do not fit the machine is no
// bug. What is large goes through Buffer, which says so itself.
//
// Threads   A pure function.
// Errors    kResourceExhausted where `load` throws std::bad_alloc, or std::length_error of a vector
//           that no machine could hold; else what `load` returns.
// Tested by tests/engine/engine_memory_test.cc
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace bst {

// `what` is being loaded; `load` returns an absl::Status or an absl::StatusOr.
template <typename Function>
std::invoke_result_t<Function> OrResourceExhausted(const std::string& what, Function load) {
  try {
    return load();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  return absl::ResourceExhaustedError(absl::StrCat(what, ": not enough memory"));
}

}  // namespace bst
