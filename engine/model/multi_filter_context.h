// MultiFilterContext: multi-filter context states. S filters per feature make S context vectors of
// each block's last token; the next block attends to all of them.
//
//   u = rms(x; ssm_norm),  y_s = SSM_s(u)
//   c_s = y_s at the last token of block k - 1; the learned initial context for k = 0
//   r = rms(c; cross.norm) + context_ids,  kc = r Wkc,  vc = r Wvc
//   oc = softmax(<qc, kc> scale) vc             over all S vectors
//
// (Block-State Transformer, arXiv 2306.09539.) The SSM is read at block ends only.
//
// State per sequence: the SSM's, and the context of the current block.
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/block_contexts.h"
#include "engine/model/cross_context.h"
#include "engine/model/long_convolution.h"

namespace bst {

class MultiFilterContext : public CrossContext {
 public:
  static absl::StatusOr<std::unique_ptr<CrossContext>> Create(const LayerSource& source);

  void Forward(Backend& backend, const Step& step, const Inputs& inputs,
               TensorView out) const override;
  size_t weight_bytes() const override {
    return ssm_norm_.bytes() + cross_norm_.bytes() + context_ids_.bytes() +
           convolution_.weight_bytes() + keys_values_->bytes() + contexts_.weight_bytes();
  }

 private:
  MultiFilterContext(LongConvolution convolution, BlockContexts contexts)
      : convolution_(std::move(convolution)), contexts_(std::move(contexts)) {}
  // Keys and values of n contexts from their vectors, which are overwritten. vectors [n S, D],
  // keys_values [n S, 2A].
  void Project(Backend& backend, TensorView vectors, TensorView keys_values) const;

  int64_t attention_size_ = 0;
  int head_dim_ = 0;
  bool qk_norm_ = false;
  float norm_eps_ = 0;
  Buffer ssm_norm_, cross_norm_;  // [D]
  Buffer context_ids_;            // [S, D]
  LongConvolution convolution_;
  std::unique_ptr<LinearWeights> keys_values_;  // [2A, D]
  BlockContexts contexts_;
};

}  // namespace bst
