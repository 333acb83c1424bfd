// GssLayer: a gated state-space layer (arXiv 2206.13947), without attention.
//
//   n = rms(x; gss.norm),  u = gelu(n Wu),  v = gelu(n Wv),  s = SSM(v)
//   y = x + ((s Wgate) * u) Wout
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/layer.h"
#include "engine/model/long_convolution.h"

namespace bst {

class GssLayer : public Layer {
 public:
  static absl::StatusOr<std::unique_ptr<Layer>> Create(const LayerSource& source);

  void Forward(Backend& backend, const Step& step) const override;
  size_t weight_bytes() const override;

 private:
  explicit GssLayer(LongConvolution convolution) : convolution_(std::move(convolution)) {}

  float norm_eps_ = 0;
  Buffer norm_;                            // [D]
  std::unique_ptr<LinearWeights> u_;       // [F_g, D]
  std::unique_ptr<LinearWeights> v_;       // [E, D]
  std::unique_ptr<LinearWeights> gate_;    // [F_g, E]
  std::unique_ptr<LinearWeights> output_;  // [D, F_g]
  LongConvolution convolution_;
};

}  // namespace bst
