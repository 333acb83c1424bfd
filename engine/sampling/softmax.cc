#include "engine/sampling/softmax.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "engine/base/check.h"

namespace bst {
namespace {

// e^-y for y >= +0: -y = n ln 2 + r with |r| <= ln(2) / 2, then the polynomial of Cephes' expf in
// r. Comparisons are on the bits, as integers, which order floats from +0 up: those of floats would
// become branches, and the loop around them would not be vectorised.
inline float ExpOfMinus(float y) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // sum: ln 2; High has 9 bits
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr auto kLimit = std::bit_cast<int32_t>(87.3f);  // e^-87.3 > 2^-126, the smallest normal
  const auto y_bits = std::bit_cast<int32_t>(y);
  const float x = -std::bit_cast<float>(y_bits < kLimit ? y_bits : kLimit);
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // The integer n stands in the low bits of `shifted`; 2^n is put together from its bits.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound) + 127;
  const float power = std::bit_cast<float>(static_cast<uint32_t>(exponent) << 23);
  const int32_t keep = y_bits <= kLimit ? -1 : 0;
  return std::bit_cast<float>(std::bit_cast<int32_t>(p * power) & keep);
}

}  // namespace

LogitRange ScanLogits(absl::Span<const float> logits) {
  // In integers ordered as the floats are, with NaNs beyond both infinities: unlike a maximum of
  // floats, one of integers may be vectorised.
  const auto ordered = [](float x) {
    const auto bits = std::bit_cast<int32_t>(x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
  };
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int32_t min = ordered(kInfinity), max = ordered(-kInfinity);
  for (const float x : logits) {
    const int32_t key = ordered(x);
    min = key < min ? key : min;
    max = key > max ? key : max;
  }
  const bool has_nan = max > ordered(kInfinity) || min < ordered(-kInfinity);
  return {std::bit_cast<float>(max ^ ((max >> 31) & 0x7fffffff)), has_nan};
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
