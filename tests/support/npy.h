// Reads and writes two-dimensional float32 arrays in NumPy's .npy format, version 1.0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bst {

struct NpyMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;  // [rows, columns]
};

// Errors: kNotFound, kInvalidArgument (not a little-endian float32 matrix in C order).
absl::StatusOr<NpyMatrix> ReadNpy(const std::string& path);
absl::Status WriteNpy(const std::string& path, const NpyMatrix& matrix);

}  // namespace bst
