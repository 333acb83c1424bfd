// FirstNonFinite: where a tensor holds NaN or an infinity.
//
// Every number of a checkpoint passes here at load, so it works at memory speed: the test is on the
// exponent bits, in blocks of fixed length that any compiler vectorises.
//
// Threads   Pure function.
// Tested by tests/engine/checkpoint/finite_scan_test.cc
#pragma once

#include <cstdint>
#include <optional>

#include "engine/tensor/tensor_view.h"

namespace bst {

// The index, in row-major order, of the first element that is not finite; nullopt if all are.
// REQUIRES: `tensor` is contiguous and F32, F16 or BF16.
std::optional<int64_t> FirstNonFinite(const TensorView& tensor);

}  // namespace bst
