// The diagonal state-space operator (S4D): the long-range half of a BST layer.
//
// Symbols   D features, M complex modes per feature, t token within one row.
// Forward   x_t = A x_{t-1} + B u_t           x_{-1} is what the slot held before; elementwise
//           y_t = 2 Re sum_m C_m x_{t,m} + d u_t     nothing conjugated
// Stored    E = A - 1 rather than A: near A = 1 a float32 A is off by up to 2^-25 absolutely, which
// a
//           million steps turn into 1e-2; E keeps its relative precision (x += E x + B u).
//           E, B, C are computed in float64 at load and rounded once.
// Precision State and sums are float32.
#pragma once

#include "engine/tensor/tensor_view.h"

namespace bst {

// Host tensors, copied by Backend::PackSsm. Complex numbers are a trailing pair (real, imaginary).
struct SsmParameters {
  TensorView a_minus_one;  // [D, M, 2] F32   E
  TensorView b;            // [D, M, 2] F32   B
  TensorView c;            // [D, M, 2] F32   C
  TensorView d;            // [D]       F32
};

}  // namespace bst
