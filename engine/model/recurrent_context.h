// RecurrentContext: the state side of a Block-Recurrent Transformer layer (arXiv 2203.07852).
// S recurrent states of width D are updated once per completed block; the tokens of the next block
// attend to them.
//
//   ns = rms(s_k; state.norm) + state.ids
//   Ks, Vs, Qs, Qcs = ns projected;  qk_norm: l2 on Ks, Qs, Qcs
//   tokens of block k: oc = softmax(<qc, Ks> scale) Vs
//   r_self  = attention(Qs over Ks, Vs),  r_cross = attention(Qcs over the token keys and values of
//             blocks k - 1 and k, keys before rotation; no mask, no bias)
//   z = concat(r_self, r_cross) Wo,  s_{k+1} = s_k g + z (1 - g),  g = sigmoid(gate_bias)
//
// The blocks of a sequence form a chain: a prompt chunk walks them one after the other, all rows of
// the step side by side.
//
// State per sequence: s_k (float32), its keys and values, and a ring of 2 W token keys and values
// (block k at rows (k mod 2) W ..), which is all zeros before the document.
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/block_contexts.h"
#include "engine/model/cross_context.h"

namespace bst {

class RecurrentContext : public CrossContext {
 public:
  static absl::StatusOr<std::unique_ptr<CrossContext>> Create(const LayerSource& source);

  void Forward(Backend& backend, const Step& step, const Inputs& inputs,
               TensorView out) const override;
  bool TakesKeys() const override { return true; }
  size_t weight_bytes() const override;

 private:
  explicit RecurrentContext(BlockContexts contexts) : contexts_(std::move(contexts)) {}
  // ns of n S states; states [n S, D].
  TensorView Normalized(Backend& backend, TensorView states, TensorView out) const;
  // The packed tokens [begin, end) of `row`, all of one block, and where in the ring they go.
  void AddTokens(const Row& row, int begin, int end, std::vector<ContextRows>& tokens) const;
  void StoreTokens(Backend& backend, const Step& step, const Inputs& inputs,
                   absl::Span<const ContextRows> tokens) const;
  // The states that `ends` (of different rows) leave behind, and their contexts.
  void Update(Backend& backend, const Step& step, absl::Span<const int> ends) const;

  int64_t attention_size_ = 0, hidden_size_ = 0;
  int head_dim_ = 0, window_ = 0, batch_ = 1;
  bool qk_norm_ = false, zeros_before_document_ = false;
  float norm_eps_ = 0;
  int state_region_ = 0, ring_region_ = 0;      // of the state layout
  Buffer norm_;                                 // [D]
  Buffer ids_, initial_;                        // [S, D]
  Buffer gate_;                                 // [D], g
  std::unique_ptr<LinearWeights> queries_;      // Qs over Qcs, [2A, D]
  std::unique_ptr<LinearWeights> keys_values_;  // [2A, D]
  std::unique_ptr<LinearWeights> output_;       // [D, 2A]
  BlockContexts contexts_;
  std::unique_ptr<ContextWeights> self_attention_;   // over the S states
  std::unique_ptr<ContextWeights> cross_attention_;  // over the 2 W tokens
};

}  // namespace bst
