// The arithmetic of sampling, for the host's sampler (engine/sampling) and for kernels: one source,
// so that both draw the same token from the same logits, bit for bit.
//
// No libm (whose exp differs between versions and machines); a product and a sum are not fused; and
// every sum of floating-point numbers has one order (kSumBlock below). Where a filter adds up the
// masses of tokens, in whatever order suits it, masses are integers.
//
// Threads   Pure functions of their arguments.
// Tested by tests/engine/sampling/sampling_arithmetic_test.cc,
// tests/engine/backend/cuda/sampling_test.cc
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define BST_HOST_DEVICE __host__ __device__
#else
#define BST_HOST_DEVICE
#endif

namespace bst {

// How one token is drawn; engine/sampling/sampling_params.h says what each means.
struct DrawParams {
  uint64_t seed = 0;
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float typical_p = 1;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
};

// What came of it.
struct DrawResult {
  int32_t token;    // -1: none is left to draw
  float logit;      // of the token: the model's own
  float max;        // of the model's logits
  int32_t has_nan;  // 1: a logit is NaN. Then, and where max is infinite, the rest means nothing
  double sum;       // of exp(logit - max), in the order of engine/sampling/softmax.h
};
struct TokenLogit {
  int32_t token;
  float logit;
};

template <typename To, typename From>
BST_HOST_DEVICE constexpr To BitCast(From x) {  // std::bit_cast is the host's alone
  return __builtin_bit_cast(To, x);
}

// Integers ordered as the floats are, with NaNs beyond both infinities; 0 above -0.
BST_HOST_DEVICE inline int32_t OrderedBits(float x) {
  const auto bits = BitCast<int32_t>(x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
BST_HOST_DEVICE inline float FloatOfOrdered(int32_t ordered) {
  return BitCast<float>(ordered ^ ((ordered >> 31) & 0x7fffffff));
}

// ---- Weights and their sums

// Sums are made in blocks of kSumBlock: within one, element i goes to partial sum i mod kSumLanes,
// and these are added from first to last; then the blocks, from first to last. All in float64.
inline constexpr size_t kSumBlock = 256;
inline constexpr size_t kSumLanes = 8;

// e^-y for y >= +0, at most 2 units in the last place off, 0 beyond y = 87.3: -y = n ln 2 + r with
// |r| <= ln(2) / 2, then the polynomial of Cephes' expf in r. Comparisons are on the bits, as
// integers, which order floats from +0 up: those of floats would become branches, and the loop
// around them would not be vectorised.
BST_HOST_DEVICE inline float ExpOfMinus(float y) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // sum: ln 2; High has 9 bits
  constexpr float kRound = 12582912.0f;             // 1.5 * 2^23: adding it rounds to an integer
  constexpr auto kLimit = BitCast<int32_t>(87.3f);  // e^-87.3 > 2^-126, the smallest normal
  const auto y_bits = BitCast<int32_t>(y);
  const float x = -BitCast<float>(y_bits < kLimit ? y_bits : kLimit);
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
  const int32_t exponent = BitCast<int32_t>(shifted) - BitCast<int32_t>(kRound) + 127;
  const float power = BitCast<float>(static_cast<uint32_t>(exponent) << 23);
  const int32_t keep = y_bits <= kLimit ? -1 : 0;
  return BitCast<float>(BitCast<int32_t>(p * power) & keep);
}

// Memory that a device needs for one draw: sums of blocks, a row of logits, its weights.
BST_HOST_DEVICE constexpr size_t SamplingScratchBytes(int vocab_size) {
  const size_t blocks = (static_cast<size_t>(vocab_size) + kSumBlock - 1) / kSumBlock;
  return blocks * (kSumBlock * 2 * sizeof(float) + sizeof(double));
}

// ---- Bias and penalties

// What bias and penalties compute from finite logits: beyond the largest float it is that, beyond
// the smallest -infinity, a ban. The second comparison never holds; without it nvcc 13 orders
// bst_sample's code otherwise, and spills two of its registers.
BST_HOST_DEVICE inline float LimitToFinite(float logit) {
  constexpr float kMax = 3.402823466e+38f;
  const float limited = logit > kMax ? kMax : logit;
  return limited < -kMax && logit != BitCast<float>(0xff800000u) ? -kMax : limited;
}
BST_HOST_DEVICE inline float AddBias(float logit, float bias) {
  return LimitToFinite(logit + bias);
}
// For a token that prompt or output have; it is `count` times in the output.
BST_HOST_DEVICE inline float Penalize(float logit, int32_t count, float repetition, float presence,
                                      float frequency) {
  if (repetition != 1) logit = logit > 0 ? logit / repetition : logit * repetition;
  if (count > 0) logit -= presence + frequency * static_cast<float>(count);
  return LimitToFinite(logit);
}

// ---- Filters. Each ranks the tokens, ascending, and keeps all up to some token, its cut; equal
// ranks in the order of ids.

// Ascending in the rank is descending in the logit. -0 and 0 have one rank.
BST_HOST_DEVICE inline uint32_t RankOfLogit(float logit) {
  const auto bits = BitCast<int32_t>(logit + 0.0f);
  // Negative: the bits, sign included, grow with the magnitude. Others: they shrink below 2^31.
  return static_cast<uint32_t>(bits < 0 ? bits : 0x7fffffff - bits);
}
BST_HOST_DEVICE inline float LogitOfRank(uint32_t rank) {
  const auto bits = static_cast<int32_t>(rank);
  return BitCast<float>(bits < 0 ? bits : 0x7fffffff - bits);
}
// By distance of the surprise from the entropy: |x - mean|, both in units of filters.cc.
BST_HOST_DEVICE inline uint32_t RankOfDistance(float x, double mean) {
  return BitCast<uint32_t>(static_cast<float>(static_cast<double>(x) - mean)) & 0x7fffffffu;
}

// A weight in [0, 1] as an integer, a multiple of 1 / scale, rounded down: those of all tokens fit
// into 62 bits together, and give one sum in any order. For 2^15 tokens the scale is 2^47; all of
// them together are off by 2^-32 then, where a weight is by 2^-23 of its value.
BST_HOST_DEVICE inline float MassScale(size_t vocab_size) {
  float scale = 0x1p62f;
  for (size_t n = 1; n < vocab_size; n *= 2) scale *= 0.5f;
  return scale;
}
BST_HOST_DEVICE inline uint64_t MassOf(float weight, float scale) {
  return static_cast<uint64_t>(static_cast<int64_t>(weight * scale));
}
// The least mass that is `fraction` of `total` or more.
BST_HOST_DEVICE inline uint64_t MassTarget(float fraction, uint64_t total) {
  const double target = static_cast<double>(fraction) * static_cast<double>(total);
  const auto down = static_cast<uint64_t>(target);
  return static_cast<double>(down) < target ? down + 1 : down;
}

// ---- The draw

// One Philox4x32-10 (engine/sampling/philox.h): `counter` becomes the random numbers.
BST_HOST_DEVICE inline void PhiloxInPlace(uint32_t (&counter)[4], uint32_t key0, uint32_t key1) {
  constexpr int kRounds = 10;
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;  // golden ratio, sqrt(3) - 1
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    const auto high0 = static_cast<uint32_t>(product0 >> 32);
    const auto high1 = static_cast<uint32_t>(product1 >> 32);
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = static_cast<uint32_t>(product0);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
}

// The uniform number in [0, 1) that draws one token (engine/sampling/philox.h).
BST_HOST_DEVICE inline double UniformOfToken(uint64_t seed, uint32_t sequence_index,
                                             uint64_t token_index) {
  uint32_t words[4] = {static_cast<uint32_t>(token_index), static_cast<uint32_t>(token_index >> 32),
                       sequence_index, 0};
  PhiloxInPlace(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = (static_cast<uint64_t>(words[1]) << 32) | words[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// Walks over weights to the first at which their running sum exceeds `target`; should rounding put
// the target beyond all, to the last one above 0.
struct Crossing {
  double target;
  double sum = 0;     // so far
  double before = 0;  // without `at`
  int32_t at = 0;

  BST_HOST_DEVICE bool Add(int32_t i, double weight) {  // true: it is the one
    if (weight == 0) return false;
    at = i;
    before = sum;
    sum += weight;
    return sum > target;
  }
};

}  // namespace bst
