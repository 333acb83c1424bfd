// FeedForward: x += FFN(rms(x; ffn_norm)).
//
//   FFN(z) = act(z Wup) Wdown                   relu, gelu
//            (act(z Wgate) * (z Wup)) Wdown     geglu (gelu), swiglu (silu)
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/layer.h"

namespace bst {

class FeedForward {
 public:
  static absl::StatusOr<FeedForward> Create(const LayerSource& source);
  // x [n, D], n at most the tokens of a step.
  void Forward(Backend& backend, const Workspace& workspace, TensorView x) const;
  size_t weight_bytes() const { return norm_.bytes() + up_->bytes() + down_->bytes(); }

 private:
  FeedForward() = default;

  Activation activation_ = Activation::kRelu;
  float norm_eps_ = 0;
  int ffn_size_ = 0;
  Buffer norm_;                          // [D]
  std::unique_ptr<LinearWeights> up_;    // [F, D], or gate over up [2F, D]
  std::unique_ptr<LinearWeights> down_;  // [D, F]
};

}  // namespace bst
