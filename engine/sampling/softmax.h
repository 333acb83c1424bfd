// The arithmetic of sampling: maximum, exponentials and sums over a vocabulary.
//
// Written so that the compiler vectorises it and yet every machine computes the same bits, a GPU
// among them: see engine/backend/sampling_arithmetic.h.
//
// Threads   Pure functions.
// Tested by tests/engine/sampling/softmax_test.cc
#pragma once

#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/sampling_arithmetic.h"

namespace bst {

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

// The sum of term(i), i < count, and of each block, in the order of sampling_arithmetic.h.
// REQUIRES: count is a multiple of kSumBlock.
template <typename Term>
double SumTerms(size_t count, Term term, std::vector<double>& block_sums) {
  block_sums.resize(count / kSumBlock);
  double total = 0;
  for (size_t block = 0; block < block_sums.size(); ++block) {
    double sums[kSumLanes] = {};
    for (size_t i = block * kSumBlock; i < (block + 1) * kSumBlock; i += kSumLanes) {
      for (size_t lane = 0; lane < kSumLanes; ++lane) sums[lane] += term(i + lane);
    }
    double sum = 0;
    for (const double partial : sums) sum += partial;
    block_sums[block] = sum;
    total += sum;
  }
  return total;
}
// The same of weights.
double SumWeights(absl::Span<const float> weights, std::vector<double>& block_sums);

}  // namespace bst
