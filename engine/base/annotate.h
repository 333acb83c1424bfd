// Annotate: where a failure happened, before its message.
//
// Threads   A pure function.
// Tested by tests/engine/base/annotate_test.cc
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace bst {

// The same status with "`where`: " before its message. OK stays OK.
inline absl::Status Annotate(const absl::Status& status, std::string_view where) {
  return absl::Status(status.code(), absl::StrCat(std::string(where), ": ", status.message()));
}

}  // namespace bst
