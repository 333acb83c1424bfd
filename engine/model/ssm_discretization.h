// From the stored parameters of an s4d kernel to the recurrence that the backends run.
//
// Stored      a = -exp(log_neg_a_real) + i a_imag, dt = exp(log_dt), b (1 if absent), c, d
// zero-order  A = e^{dt a},                   B = b (e^{dt a} - 1) / a
// bilinear    A = (1 + dt a / 2) / (1 - dt a / 2),  B = dt b / (1 - dt a / 2)
// Computed in float64, A - 1 without cancellation, each rounded to float32 once.
//
// Threads   Pure functions.
// Tested by tests/engine/model/ssm_discretization_test.cc
#pragma once

#include <complex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/ssm.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/model_config.h"

namespace bst {

struct DiscreteMode {
  std::complex<double> a_minus_one;
  std::complex<double> b;
};
// One mode; B = dt b where a = 0. REQUIRES: dt > 0.
DiscreteMode Discretize(std::complex<double> a, std::complex<double> b, double dt,
                        Discretization method);

// The recurrence of layer `layer`, in host memory of its own.
class DiscreteSsm {
 public:
  // Errors: kFailedPrecondition, naming the element, if a number is not finite as float32.
  static absl::StatusOr<DiscreteSsm> Create(const Checkpoint& checkpoint, int layer,
                                            Discretization method);
  // Views into this object.
  SsmParameters parameters();

 private:
  DiscreteSsm() = default;

  int64_t features_ = 0, modes_ = 0;
  std::vector<float> a_minus_one_, b_, c_;  // [D, M, 2]
  std::vector<float> d_;                    // [D]
};

}  // namespace bst
