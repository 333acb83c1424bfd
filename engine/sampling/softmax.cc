#include "engine/sampling/softmax.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "engine/base/check.h"

namespace bst {
namespace {

constexpr float kSmallestExponent = -87.3f;  // e^-87.3 > 2^-126, the smallest normal float

// e^x for x <= 0: x = n ln 2 + r with |r| <= ln(2) / 2, then the polynomial of Cephes' expf in r.
inline float ExpNonPositive(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // sum: ln 2; High has 9 bits
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < kSmallestExponent ? kSmallestExponent : x;
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // The integer n stands in the low bits of `shifted`.
  const uint32_t exponent =
      std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127u;
  const float power = std::bit_cast<float>(exponent << 23);
  return x < kSmallestExponent ? 0.0f : p * power;
}

}  // namespace

LogitRange ScanLogits(absl::Span<const float> logits) {
  constexpr size_t kLanes = 16;
  float max[kLanes];
  uint32_t nan[kLanes] = {};
  std::fill(std::begin(max), std::end(max), -std::numeric_limits<float>::infinity());
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float x = logits[i + lane];
      max[lane] = x > max[lane] ? x : max[lane];
      nan[lane] |= x != x ? 1u : 0u;
    }
  }
  LogitRange range = {*std::max_element(std::begin(max), std::end(max)),
                      *std::max_element(std::begin(nan), std::end(nan)) != 0};
  for (const float x : logits.subspan(whole)) {
    range.max = x > range.max ? x : range.max;
    range.has_nan |= x != x;
  }
  return range;
}

void ComputeWeights(absl::Span<const float> logits, float max, float temperature,
                    std::vector<float>& weights) {
  weights.resize((logits.size() + kSumBlock - 1) / kSumBlock * kSumBlock);
  const float* in = logits.data();
  float* out = weights.data();
  const size_t count = logits.size();
  for (size_t i = 0; i < count; ++i) out[i] = ExpNonPositive((in[i] - max) / temperature);
  std::fill(weights.begin() + static_cast<ptrdiff_t>(count), weights.end(), 0.0f);
}

double SumWeights(absl::Span<const float> weights, std::vector<double>& block_sums) {
  constexpr size_t kLanes = 8;
  BST_DCHECK(weights.size() % kSumBlock == 0, weights.size(), " weights");
  block_sums.resize(weights.size() / kSumBlock);
  double total = 0;
  for (size_t block = 0; block < block_sums.size(); ++block) {
    const float* w = weights.data() + block * kSumBlock;
    double sums[kLanes] = {};
    for (size_t i = 0; i < kSumBlock; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(w[i + lane]);
    }
    double sum = 0;
    for (const double partial : sums) sum += partial;
    block_sums[block] = sum;
    total += sum;
  }
  return total;
}

}  // namespace bst
