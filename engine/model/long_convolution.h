// LongConvolution: a layer's state-space model or explicit filter, of any kernel.
//
//   y[t, c, i] = sum_s K[s, c, i] u[t - s, i] + d[c, i] u[t, i]
//
// s4d, dss, s4 and explicit are one operator each. s5 is one multi-input state for all features:
// v = B u (a linear layer), x_t = A x_{t-1} + v_t (a scan), y = 2 Re(C x) + d u (a linear layer),
// all in float32 whatever the type of the other weights.
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/layer.h"

namespace bst {

class LongConvolution {
 public:
  // Of the layer's `ssm.*` tensors; adds its state to the slot.
  static absl::StatusOr<LongConvolution> Create(const LayerSource& source, SsmOutputs outputs);

  // u [T, D]; y [T, C D], or [E, C D] with outputs at block ends.
  void Forward(Backend& backend, const Step& step, TensorView u, TensorView y) const;

  size_t weight_bytes() const;

 private:
  LongConvolution() = default;

  SsmOutputs outputs_ = SsmOutputs::kEveryToken;
  int region_ = 0;                   // of the state layout
  std::unique_ptr<SsmWeights> ssm_;  // all kernels but s5
  // s5
  std::unique_ptr<ScanWeights> scan_;
  std::unique_ptr<LinearWeights> input_;    // [2P, D]
  std::unique_ptr<LinearWeights> readout_;  // [C D, 2P]
  Buffer skip_;                             // d [C D]
};

}  // namespace bst
