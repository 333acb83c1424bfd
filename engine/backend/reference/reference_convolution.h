// The convolution with explicit taps as the sum it is. State: a ring [taps][D] of raw inputs, row
// position mod taps.
//
// Threads   Engine thread only.
// Tested by tests/engine/backend/convolution_test.cc (against the direct sum)
#pragma once

#include <vector>

#include "engine/backend/reference/reference_sequence.h"

namespace bst {

class ReferenceConvolution : public ReferenceSequence {
 public:
  explicit ReferenceConvolution(const ConvolutionParameters& parameters);

  void Run(TensorView u, absl::Span<const Row> rows, PoolView state, TensorView y) const override;
  size_t state_bytes() const override;
  size_t bytes() const override { return (taps_.size() + d_.size()) * sizeof(float); }

 private:
  int64_t num_taps_;
  std::vector<float> taps_;  // [C D, taps]
  std::vector<float> d_;     // [C D]
};

}  // namespace bst
