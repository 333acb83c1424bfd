// BlockContexts: keys and values of S vectors per block, attended to as a whole by the tokens of
// that block: the context vectors of a multi-filter layer, the recurrent states of a BRecT layer.
//
// The context of block k is made at the last token of block k - 1, that of block 0 at load. Those
// made during a step lie in the workspace, one per block end; the newest of each row is kept in its
// slot, where the next step finds it.
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/layer.h"

namespace bst {

class BlockContexts {
 public:
  // `scale` [H]. Adds a region for the context to the slot.
  static absl::StatusOr<BlockContexts> Create(const LayerSource& source, int num_vectors,
                                              absl::Span<float> scale);

  // The context of block 0: k, v [S, A].
  void SetInitial(Backend& backend, TensorView k, TensorView v);

  // Items i of k, v [n S, A] become the contexts that the block ends `ends[i]` make.
  void Store(Backend& backend, const Step& step, TensorView k, TensorView v,
             absl::Span<const int> ends) const;
  // Where the context lies that block end `end` replaces: the one its own block attended to.
  const std::byte* Before(const Step& step, int end) const;
  // Every token whose output is read attends to its block's context. queries, out [T, A].
  void Attend(Backend& backend, const Step& step, TensorView queries, TensorView out) const;
  // The newest context of each row moves to its slot.
  void Commit(Backend& backend, const Step& step) const;

  const ContextWeights& weights() const { return *attention_; }
  int num_vectors() const { return attention_->spec().capacity; }
  size_t weight_bytes() const { return attention_->bytes() + initial_.bytes(); }

 private:
  BlockContexts() = default;
  // The contexts made in this step, one slot per block end.
  PoolView StepContexts(const Step& step) const;
  // That of block 0, or of the row's slot.
  const std::byte* AtStart(const Step& step, const Row& row) const;

  int window_ = 0;
  int region_ = 0;  // of the state layout
  size_t context_bytes_ = 0;
  std::unique_ptr<ContextWeights> attention_;
  Buffer initial_;
};

}  // namespace bst
