// Reads elements of host tensors of any floating type as float32.
//
// Threads   Pure functions.
// Tested by tests/engine/tensor/dtype_test.cc
#pragma once

#include <vector>

#include "engine/tensor/tensor_view.h"

namespace bst {

// Element `index` (row-major) of a contiguous tensor of a floating type.
inline float ElementAsFloat(const TensorView& tensor, int64_t index) {
  switch (tensor.dtype()) {
    case DType::kF32:
      return tensor.as<float>()[index];
    case DType::kF16:
      return ToFloat(tensor.as<Float16>()[index]);
    case DType::kBF16:
      return ToFloat(tensor.as<BFloat16>()[index]);
    case DType::kU8:
    case DType::kI8:
      break;
  }
  BST_CHECK(false, "not a floating type: ", std::string(Name(tensor.dtype())));
}

// All elements of a contiguous tensor, in order.
inline std::vector<float> ToFloats(const TensorView& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.shape().num_elements()));
  for (size_t i = 0; i < out.size(); ++i) out[i] = ElementAsFloat(tensor, static_cast<int64_t>(i));
  return out;
}

}  // namespace bst
