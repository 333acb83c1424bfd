// What one load brings, 16 or 8 bytes; rows of matrices four floats at a time.
//
// Threads   Runs on the device.
// Tested by tests/engine/backend/agreement_test.cc
#pragma once

#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"

namespace bst::cuda {

struct alignas(16) FourFloats {
  float values[4];
};
struct alignas(16) FourWords {
  uint32_t words[4];
};
struct alignas(8) TwoFloats {
  float values[2];
};

// Whether rows of eights of columns can be read and written four floats at a time.
BST_DEVICE bool IsWide(const Matrix& matrix) {
  return reinterpret_cast<uintptr_t>(matrix.data) % sizeof(FourFloats) == 0 &&
         matrix.stride % 4 == 0;
}
BST_DEVICE FourFloats LoadFour(const float* from, bool wide) {
  if (wide) return *reinterpret_cast<const FourFloats*>(from);
  return {{from[0], from[1], from[2], from[3]}};
}

}  // namespace bst::cuda
