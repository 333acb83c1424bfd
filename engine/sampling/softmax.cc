#include "engine/sampling/softmax.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "engine/base/check.h"

namespace bst {

LogitRange ScanLogits(absl::Span<const float> logits) {
  // In integers ordered as the floats are, with NaNs beyond both infinities: unlike a maximum of
  // floats, one of integers may be vectorised.
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int32_t min = OrderedBits(kInfinity), max = OrderedBits(-kInfinity);
  for (const float x : logits) {
    const int32_t key = OrderedBits(x);
    min = key < min ? key : min;
    max = key > max ? key : max;
  }
  const bool has_nan = max > OrderedBits(kInfinity) || min < OrderedBits(-kInfinity);
  return {FloatOfOrdered(max), has_nan};
}

void ComputeWeights(absl::Span<const float> logits, float max, float temperature,
                    std::vector<float>& weights) {
  weights.resize((logits.size() + kSumBlock - 1) / kSumBlock * kSumBlock);
  const float* in = logits.data();
  float* out = weights.data();
  const size_t count = logits.size();
  for (size_t i = 0; i < count; ++i) out[i] = ExpOfMinus((max - in[i]) / temperature);
  std::fill(weights.begin() + static_cast<ptrdiff_t>(count), weights.end(), 0.0f);
}

double SumWeights(absl::Span<const float> weights, std::vector<double>& block_sums) {
  BST_DCHECK(weights.size() % kSumBlock == 0, weights.size(), " weights");
  const float* const w = weights.data();
  return SumTerms(
      weights.size(), [w](size_t i) { return static_cast<double>(w[i]); }, block_sums);
}

}  // namespace bst
