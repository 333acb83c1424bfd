// Checks at load that a state-space mode cannot grow: |A-bar| <= 1.
//
//   a = -exp(log_neg_a_real) + i a_imag,  dt = exp(log_dt)
//   zero-order hold  A-bar = e^{dt a}          bilinear  A-bar = (1 + dt a / 2) / (1 - dt a / 2)
//
// Threads   Pure functions.
// Errors    kFailedPrecondition, naming the numbers.
// Tested by tests/engine/checkpoint/ssm_stability_test.cc
#pragma once

#include <complex>

#include "absl/status/status.h"
#include "engine/checkpoint/model_config.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

// |A-bar| above 1 by more than this is refused; less is rounding of the exponentials.
inline constexpr double kMaxModeExcess = 1e-6;

// One mode. `dt` must be finite and above 0, a finite. (Both stay float64 until A-bar and B-bar
// are.)
absl::Status CheckMode(std::complex<double> a, double dt, Discretization discretization);

// All modes of one layer: log_dt [C, D], log_neg_a_real and a_imag [C, D, M], float32. The message
// names the element.
absl::Status CheckModes(const TensorView& log_dt, const TensorView& log_neg_a_real,
                        const TensorView& a_imag, Discretization discretization);

}  // namespace bst
