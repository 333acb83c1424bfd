// From the stored parameters of a state-space kernel to the recurrence that the backends run
// (engine/backend/ssm.h). Computed in float64, A - 1 without cancellation, each number rounded to
// float32 once.
//
// Symbols     C filters, D inputs, M modes per feature, P modes of an s5 layer
// Stored      a = -exp(log_neg_a_real) + i a_imag (s5: lambda), dt = exp(log_dt) (s5: log_step)
// zero-order  A = e^{dt a},                        B = b (e^{dt a} - 1) / a, or dt b where a = 0
// bilinear    A = (1 + dt a / 2) / (1 - dt a / 2), B = dt b / (1 - dt a / 2)
// s4d         y = 2 Re sum c x                     M pairs; b = 1 where it is absent
// dss         y = Re sum w x, b = 1, zero-order    M = N modes, the same for all features: as s4d
//                                                  with c = w / 2
// s4          A = diag(a) - p p^H on modes and conjugates, bilinear, y = 2 Re sum c x
// s5          x_t = A x_{t-1} + B u_t, B [P, D], y = 2 Re(C x) + d u
//
// Threads   Pure functions.
// Errors    kFailedPrecondition, naming tensor and element, if a number derived from it is not
//           finite as float32.
// Tested by tests/engine/model/ssm_discretization_test.cc
#pragma once

#include <complex>
#include <map>
#include <string>
#include <string_view>
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
// One mode. REQUIRES: dt > 0.
DiscreteMode Discretize(std::complex<double> a, std::complex<double> b, double dt,
                        Discretization method);

// The tensors of one kernel, by their names within it ("log_dt"); views of F32 tensors that outlive
// it.
class SsmTensors {
 public:
  SsmTensors(std::string name, std::map<std::string, TensorView, std::less<>> tensors)
      : name_(std::move(name)), tensors_(std::move(tensors)) {}
  static SsmTensors OfLayer(const Checkpoint& checkpoint, int layer);

  const std::string& name() const { return name_; }  // "layers.3.ssm"
  bool has(std::string_view name) const { return tensors_.contains(name); }
  // REQUIRES: has(name).
  TensorView at(std::string_view name) const;

 private:
  std::string name_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

// An s4d or dss kernel, in host memory of its own.
class DiscreteSsm {
 public:
  static absl::StatusOr<DiscreteSsm> Create(const SsmTensors& tensors, const SsmConfig& config,
                                            const SsmSpec& spec);
  // Views into this object.
  SsmParameters parameters();

 private:
  explicit DiscreteSsm(const SsmSpec& spec) : spec_(spec) {}

  SsmSpec spec_;
  int64_t modes_ = 0;
  std::vector<float> a_minus_one_, b_, c_;  // [C D, M, 2]
  std::vector<float> d_;                    // [C D]
};

// An s4 kernel.
class DiscreteDplr {
 public:
  static absl::StatusOr<DiscreteDplr> Create(const SsmTensors& tensors, const SsmSpec& spec);
  // Views into this object.
  DplrParameters parameters();

 private:
  explicit DiscreteDplr(const SsmSpec& spec) : spec_(spec) {}

  SsmSpec spec_;
  int64_t modes_ = 0;
  std::vector<float> dt_lambda_, dt_b_, p_, g_, w_, c_;  // [C D, M, 2]
  std::vector<float> dt_, d_;                            // [C D]
};

// An s5 kernel, as real matrices around a scan: v = u input^T, the scan, y = v readout^T + d u.
// Modes lie side by side as real parts, then imaginary parts.
class MimoKernel {
 public:
  static absl::StatusOr<MimoKernel> Create(const Checkpoint& checkpoint, int layer);
  static absl::StatusOr<MimoKernel> Create(const SsmTensors& tensors, Discretization method);

  // Views into this object, F32.
  TensorView a_minus_one() { return {a_minus_one_.data(), DType::kF32, {modes_, 2}}; }  // [P, 2]
  TensorView input() { return {input_.data(), DType::kF32, {2 * modes_, inputs_}}; }    // [2P, D]
  // [C D, 2P]: 2 Re C, then -2 Im C.
  TensorView readout() { return {readout_.data(), DType::kF32, {features_, 2 * modes_}}; }
  TensorView d() { return {d_.data(), DType::kF32, Shape{features_}}; }  // [C D]

 private:
  MimoKernel() = default;

  int64_t modes_ = 0, inputs_ = 0, features_ = 0;
  std::vector<float> a_minus_one_, input_, readout_, d_;
};

}  // namespace bst
