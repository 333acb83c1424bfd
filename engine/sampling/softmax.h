// The arithmetic of sampling: maximum, exponentials and sums over a vocabulary.
//
// Written so that the compiler vectorises it and yet every machine computes the same bits: no libm
// (whose exp differs between versions and CPUs), and every sum in one fixed order.
//
// Threads   Pure functions.
// Tested by tests/engine/sampling/softmax_test.cc
#pragma once

#include <cstddef>
#include <vector>

#include "absl/types/span.h"

namespace bst {

// Weights are summed in blocks of this many; arrays of weights are padded with zeros to a multiple.
inline constexpr size_t kSumBlock = 256;

struct LogitRange {
  float max;  // meaningless with NaN; -infinity of no logits
  bool has_nan;
};
LogitRange ScanLogits(absl::Span<const float> logits);

// weights[i] = exp((logits[i] - max) / temperature), at most 2 units in the last place off, 0 below
// e^-87.3; then zeros up to a multiple of kSumBlock. The largest weight is exactly 1.
// REQUIRES: no NaN, max is the largest logit and finite, temperature > 0.
void ComputeWeights(absl::Span<const float> logits, float max, float temperature,
                    std::vector<float>& weights);

// The sum of each block, and of all blocks. Within a block 8 partial sums, element i in sum i mod
// 8; these and then the blocks are added from first to last. All in float64. REQUIRES:
// weights.size() is a multiple of kSumBlock.
double SumWeights(absl::Span<const float> weights, std::vector<double>& block_sums);

}  // namespace bst
