// ReadTextFile: a whole file whose size is not to be trusted.
//
// Threads   Thread-safe.
// Errors    kNotFound (cannot open); kFailedPrecondition (not a regular file, so that a named pipe
//           does not block; larger than the limit; cannot read). The message names the file.
// Tested by tests/engine/checkpoint/json_test.cc
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace bst {

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes);

}  // namespace bst
