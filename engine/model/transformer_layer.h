// TransformerLayer: sliding-window attention and a feed-forward network; with a cross context it is
// the BST layer or the BRecT layer.
//
//   n = rms(x; attn_norm);  q, k, v = n Wq, n Wk, n Wv
//   qk_norm: q, k = l2(q), l2(k);  RoPE: q, k rotated by their position
//   o = softmax((<q, k> + bias) scale) v
//   h = x + concat(o, oc) Wo          oc: what the cross context gives
//   y = h + FFN(rms(h; ffn_norm))
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/cross_context.h"
#include "engine/model/feed_forward.h"
#include "engine/model/layer.h"

namespace bst {

class TransformerLayer : public Layer {
 public:
  // A `transformer`, `bst` or `brect` layer, as the configuration says.
  static absl::StatusOr<std::unique_ptr<Layer>> Create(const LayerSource& source);

  void Forward(Backend& backend, const Step& step) const override;
  size_t weight_bytes() const override;

 private:
  explicit TransformerLayer(FeedForward feed_forward) : feed_forward_(std::move(feed_forward)) {}

  // attended [T, A or 2A]: of the window, then what the context gives.
  void Attend(Backend& backend, const Step& step, TensorView attended) const;

  int attention_size_ = 0, head_dim_ = 0;
  bool qk_norm_ = false;
  float norm_eps_ = 0;
  int ring_region_ = 0;  // of the state layout
  Buffer attn_norm_;     // [D]
  std::unique_ptr<LinearWeights>
      heads_;  // q, k, v and, with a cross context, its queries: [3A or 4A, D]
  std::unique_ptr<LinearWeights> output_;  // [D, A or 2A]
  std::unique_ptr<AttentionWeights> attention_;
  std::unique_ptr<CrossContext> context_;  // bst, brect
  FeedForward feed_forward_;
};

}  // namespace bst
