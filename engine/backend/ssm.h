// The long-range operators: causal convolutions over a whole document, one per feature and filter,
// run as recurrences (here) or over taps (convolution.h), and the shared scan of an S5 layer.
//
// Symbols   D inputs, C filters per input (feature c D + i is filter c of input i), M complex modes
//           per feature, W block length, t token within one row.
// Outputs   kEveryToken: y [T, C D], one row per token.
//           kBlockEnds: y [E, C D], one row per token of the step that is the last of its block
//           (position mod W == W - 1), in packed order; the others are never computed.
// Diagonal  x_t = A x_{t-1} + B u_t           x_{-1} is what the slot held before; elementwise
//           y_t = 2 Re sum_m C_m x_{t,m} + d u_t     nothing conjugated
//           Stored as E = A - 1 rather than A: near A = 1 a float32 A is off by up to 2^-25
//           absolutely, which a million steps turn into 1e-2; E keeps its relative precision
//           (x += E x + B u). Near A = -1, where the bilinear rule puts modes with |dt a| much
//           above 1 and makes them slow, E is about -2 and no better than A: S4D-Inv with N = 64
//           loses 1e-4 relative over 60,000 tokens with dt in [0.1, 1], and 3e-5 to 7e-5 with dt
//           in [1e-3, 0.1]. E, B, C are computed in float64 at load and rounded once.
// DPLR      x' = dt (L - p p^H) x + dt b u on modes and their conjugates, by the bilinear rule, in
//           increments for the same reason, O(M) per token (Woodbury; S4, arXiv 2111.00396):
//             s = 2 Re sum_m conj(p_m) x_m
//             v = dtl x - dtp s + dtb u            dtl = dt l, dtp = dt p, dtb = dt b
//             r = 2 Re sum_m w_m v_m               w = (dt / 2) conj(p) g / rho
//             x += g (v - p r)                     g = 1 / (1 - dt l / 2)
//             y = 2 Re sum_m C_m x_m + d u         rho = 1 + dt Re sum_m conj(p_m) g_m p_m
// Scan      x_t = A x_{t-1} + v_t, elementwise over P modes shared by all features; stored as
//           E = A - 1 (S5, arXiv 2208.04933; the projections in and out are linear layers)
// Precision State and sums are float32 (reference: float64).
// Threads   Values; weights are immutable.
// Tested by tests/engine/backend/recurrence_test.cc, convolution_test.cc
#pragma once

#include "engine/tensor/tensor_view.h"

namespace bst {

enum class SsmOutputs { kEveryToken, kBlockEnds };

struct SsmSpec {
  int num_inputs = 0;   // D
  int num_filters = 1;  // C
  SsmOutputs outputs = SsmOutputs::kEveryToken;
  int block = 0;  // W; read with kBlockEnds and by convolutions

  int num_features() const { return num_inputs * num_filters; }
};

// Host tensors, copied by the backend's Pack functions. Complex numbers are a trailing pair (real,
// imaginary).
struct SsmParameters {
  SsmSpec spec;
  TensorView a_minus_one;  // [C D, M, 2] F32   E
  TensorView b;            // [C D, M, 2] F32   B
  TensorView c;            // [C D, M, 2] F32   C
  TensorView d;            // [C D]       F32
};

struct DplrParameters {
  SsmSpec spec;
  TensorView dt_lambda;  // [C D, M, 2] F32   dt l
  TensorView dt_b;       // [C D, M, 2] F32
  TensorView p;          // [C D, M, 2] F32
  TensorView g;          // [C D, M, 2] F32
  TensorView w;          // [C D, M, 2] F32
  TensorView c;          // [C D, M, 2] F32
  TensorView dt;         // [C D]       F32
  TensorView d;          // [C D]       F32
};

}  // namespace bst
