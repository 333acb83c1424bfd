// TransformerLayer: sliding-window attention and a feed-forward network; with context states it is
// the BST layer.
//
//   n = rms(x; attn_norm);  q, k, v = n Wq, n Wk, n Wv
//   qk_norm: q, k = l2(q), l2(k);  RoPE: q, k rotated by their position
//   o = softmax((<q, k> + bias) scale) v
//   h = x + concat(o, oc) Wo          oc: what the context states give, in a BST layer
//   y = h + FFN(rms(h; ffn_norm))
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/model/context_states.h"
#include "engine/model/feed_forward.h"
#include "engine/model/layer.h"

namespace bst {

class TransformerLayer : public Layer {
 public:
  // A `transformer` or `bst` layer, as the configuration says.
  static absl::StatusOr<std::unique_ptr<Layer>> Create(const LayerSource& source);

  void Forward(Backend& backend, const Step& step) const override;
  size_t weight_bytes() const override;

 private:
  explicit TransformerLayer(FeedForward feed_forward) : feed_forward_(std::move(feed_forward)) {}

  int attention_size_ = 0, head_dim_ = 0;
  bool qk_norm_ = false;
  float norm_eps_ = 0;
  int ring_region_ = 0;  // of the state layout
  Buffer attn_norm_;     // [D]
  std::unique_ptr<LinearWeights>
      heads_;  // q, k, v and, in a BST layer, the context queries: [3A or 4A, D]
  std::unique_ptr<LinearWeights> output_;  // [D, A or 2A]
  std::unique_ptr<AttentionWeights> attention_;
  std::optional<ContextStates> context_;  // BST layer
  FeedForward feed_forward_;
};

}  // namespace bst
