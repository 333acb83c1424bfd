// TokenContext: single-head and multi-head context states. An SSM over the whole document makes
// context vectors at every token; the tokens of a block attend to those of their own block, up to
// themselves.
//
//   u = rms(x; ssm_norm),  y = SSM(u)           y feeds the cross-attention only
//   r = rms(y; cross.norm),  kc = r Wkc,  vc = r Wvc        multi-head: y_h, r_h, Wkc[h] per head
//   oc = softmax(<qc, kc> scale) vc             over the block's context vectors j <= i
//
// (Block-State Transformer, arXiv 2306.09539.)
//
// State per sequence: the SSM's, and the context keys and values of the current block. The latter
// lie in a ring of W rows of which scope "block" shows the current block only, so nothing is
// cleared at a block's end.
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/cross_context.h"
#include "engine/model/long_convolution.h"

namespace bst {

class TokenContext : public CrossContext {
 public:
  static absl::StatusOr<std::unique_ptr<CrossContext>> Create(const LayerSource& source);

  void Forward(Backend& backend, const Step& step, const Inputs& inputs,
               TensorView out) const override;
  size_t weight_bytes() const override;

 private:
  explicit TokenContext(LongConvolution convolution) : convolution_(std::move(convolution)) {}

  int64_t attention_size_ = 0;
  int head_dim_ = 0, num_filters_ = 1;
  bool qk_norm_ = false;
  float norm_eps_ = 0;
  int ring_region_ = 0;           // of the state layout
  Buffer ssm_norm_, cross_norm_;  // [D]
  LongConvolution convolution_;
  // Single-head: keys over values, [2A, D]. Multi-head: of each head [dh, D], keys, then values.
  std::vector<std::unique_ptr<LinearWeights>> keys_values_;
  std::unique_ptr<AttentionWeights> attention_;
};

}  // namespace bst
