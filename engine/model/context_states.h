// ContextStates: the long-range half of a BST layer. An SSM over the whole document makes one
// context vector per token; the tokens of a block attend to those of their own block, up to
// themselves.
//
//   u = rms(x; ssm_norm),  y = SSM(u)           y feeds the cross-attention only
//   r = rms(y; cross.norm),  kc = r Wkc,  vc = r Wvc
//   oc = softmax(<qc, kc> scale) vc             over the block's context vectors j <= i
//
// (single-head context states of the Block-State Transformer, arXiv 2306.09539). The queries qc
// come with the layer's own, from n = rms(x; attn_norm).
//
// State per sequence: the SSM's, and the context keys and values of the current block. The latter
// lie in a ring of W rows of which scope "block" shows the current block only, so nothing is
// cleared at a block's end.
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/layer.h"

namespace bst {

class ContextStates {
 public:
  static absl::StatusOr<ContextStates> Create(const LayerSource& source);

  // queries [T, A], normalised here where the model asks for it; out [T, A].
  void Forward(Backend& backend, const Step& step, TensorView queries, TensorView out) const;

  size_t weight_bytes() const { return ssm_->bytes() + keys_values_->bytes(); }

 private:
  ContextStates() = default;

  int attention_size_ = 0, head_dim_ = 0;
  bool qk_norm_ = false;
  float norm_eps_ = 0;
  int ssm_region_ = 0, ring_region_ = 0;  // of the state layout
  Buffer ssm_norm_, cross_norm_;          // [D]
  std::unique_ptr<SsmWeights> ssm_;
  std::unique_ptr<LinearWeights> keys_values_;  // [2A, D]
  std::unique_ptr<AttentionWeights> attention_;
};

}  // namespace bst
