// Checks at load that no state-space mode can grow, |A-bar| <= 1, and that its numbers are numbers.
//
//   a = -exp(log_neg_a_real) + i a_imag, dt = exp(log_dt); s5: a = lambda, dt = exp(log_step)
//   zero-order hold  A-bar = e^{dt a}          bilinear  A-bar = (1 + dt a / 2) / (1 - dt a / 2)
//
// With dt > 0 either rule has |A-bar| <= 1 if and only if Re a <= 0, so that is what is checked,
// exactly: only s5 stores the real part itself and can fail it. An s4 kernel's A = Lambda - p p^H
// has a numerical range within that of Lambda, so |A-bar| <= 1 follows from Re Lambda <= 0 whatever
// p is. Taps of an explicit filter cannot be unstable.
//
// dt and Re a must lie within float32's range: with the other numbers, which are stored as float32,
// no product of the discretisation overflows float64.
//
// Threads   Pure functions.
// Errors    kFailedPrecondition, naming the tensor, the element and the numbers.
// Tested by tests/engine/checkpoint/ssm_stability_test.cc
#pragma once

#include <complex>
#include <functional>
#include <string_view>

#include "absl/status/status.h"
#include "engine/checkpoint/model_config.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

// A time step in tokens; it stays float64 until A-bar and B-bar are computed.
absl::Status CheckTimeStep(double dt);

// One mode. REQUIRES: CheckTimeStep(dt) is OK.
absl::Status CheckMode(std::complex<double> a, double dt, Discretization discretization);

// Every mode and time step of layer `layer`. `tensor` gives the tensor of a name of the schema
// ("layers.3.ssm.log_dt"); those that the kernel has, of the schema's shape and type, are read.
absl::Status CheckSsm(int layer, const SsmConfig& ssm,
                      const std::function<TensorView(std::string_view)>& tensor);

}  // namespace bst
