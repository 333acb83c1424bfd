#include "engine/sampling/filters.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/sampling/softmax.h"

namespace bst {
namespace {

// Tokens to be sorted are packed as (rank << 32 | id), so that ascending order is by rank, then id.
size_t IdOf(uint64_t ranked) { return static_cast<uint32_t>(ranked); }

// Ascending in this number is descending in x. -0 and 0 are one number.
uint32_t DescendingRank(float x) {
  const auto bits = std::bit_cast<uint32_t>(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
}

// LSD radix sort by the rank; ids are ascending on entry and the sort is stable. Beats std::sort
// tenfold on the tens of thousands of tokens of a flat distribution.
void SortRanked(std::vector<uint64_t>& ranked, std::vector<uint64_t>& buffer) {
  constexpr size_t kComparisonSortLimit = 1024;
  if (ranked.size() <= kComparisonSortLimit) {
    std::sort(ranked.begin(), ranked.end());
    return;
  }
  constexpr uint32_t kDigitBits = 11;
  constexpr size_t kDigits = size_t{1} << kDigitBits;
  buffer.resize(ranked.size());
  for (uint32_t shift = 32; shift < 64; shift += kDigitBits) {
    std::array<uint32_t, kDigits> next = {};
    for (const uint64_t x : ranked) ++next[(x >> shift) % kDigits];
    uint32_t begin = 0;
    for (uint32_t& count : next) begin += std::exchange(count, begin);
    for (const uint64_t x : ranked) buffer[next[(x >> shift) % kDigits]++] = x;
    ranked.swap(buffer);
  }
}

// Drops every token that ranks behind `last`: a smaller logit, or the same and a higher id.
void KeepUpTo(size_t last, absl::Span<const float> logits, std::vector<float>& weights) {
  const float limit = logits[last];
  for (size_t i = 0; i < logits.size(); ++i) {
    const bool behind = logits[i] < limit || (logits[i] == limit && i > last);
    weights[i] = behind ? 0.0f : weights[i];
  }
}

// The tokens of at least this weight, by descending logit.
void RankByLogit(absl::Span<const float> logits, float min_weight, SamplerScratch& scratch) {
  scratch.ranked.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (scratch.weights[i] >= min_weight && scratch.weights[i] > 0) {
      scratch.ranked.push_back(static_cast<uint64_t>(DescendingRank(logits[i])) << 32 | i);
    }
  }
}

// How many of the ranked tokens, in order, have together at least `mass`.
size_t CountUntil(double mass, const SamplerScratch& scratch) {
  double sum = 0;
  for (size_t i = 0; i < scratch.ranked.size(); ++i) {
    sum += static_cast<double>(scratch.weights[IdOf(scratch.ranked[i])]);
    if (sum >= mass) return i + 1;
  }
  return scratch.ranked.size();  // Rounding left the sum short of the mass of all.
}

void KeepTopK(int top_k, absl::Span<const float> logits, SamplerScratch& scratch) {
  const auto k = static_cast<size_t>(top_k);
  RankByLogit(logits, 0.0f, scratch);
  if (scratch.ranked.size() <= k) return;
  const auto last = scratch.ranked.begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(scratch.ranked.begin(), last, scratch.ranked.end());
  KeepUpTo(IdOf(*last), logits, scratch.weights);
}

void KeepTopP(float top_p, absl::Span<const float> logits, SamplerScratch& scratch) {
  const double total = SumWeights(scratch.weights, scratch.block_sums);
  const double mass = static_cast<double>(top_p) * total;
  // Fewer than V tokens lie below the limit, together lighter than half of what may be left out:
  // the tokens sought are all above it, and seldom more than a few hundred have to be sorted.
  const double limit = 0.5 * (total - mass) / static_cast<double>(logits.size());
  RankByLogit(logits, static_cast<float>(limit), scratch);
  SortRanked(scratch.ranked, scratch.sort_buffer);
  const size_t count = CountUntil(mass, scratch);
  KeepUpTo(IdOf(scratch.ranked[count - 1]), logits, scratch.weights);
}

// The likeliest token's weight is 1.
void KeepMinP(float min_p, std::vector<float>& weights) {
  for (float& weight : weights) weight = weight < min_p ? 0.0f : weight;
}

// Locally typical sampling (Meister et al., 2023) keeps the tokens whose surprise -ln p is nearest
// to the entropy H. With x = (logit - max) / temperature, -ln p = ln W - x and H = ln W - E[x],
// hence the distance is |x - E[x]|.
void KeepTypical(float typical_p, absl::Span<const float> logits, float max, float temperature,
                 SamplerScratch& scratch) {
  const double total = SumWeights(scratch.weights, scratch.block_sums);
  const auto x = [&](size_t i) { return static_cast<double>((logits[i] - max) / temperature); };
  double mean = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (scratch.weights[i] > 0) mean += static_cast<double>(scratch.weights[i]) * x(i);
  }
  mean /= total;
  scratch.ranked.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (scratch.weights[i] == 0) continue;
    const auto distance = std::bit_cast<uint32_t>(static_cast<float>(std::abs(x(i) - mean)));
    scratch.ranked.push_back(static_cast<uint64_t>(distance) << 32 | i);
  }
  SortRanked(scratch.ranked, scratch.sort_buffer);
  const size_t count = CountUntil(static_cast<double>(typical_p) * total, scratch);
  for (size_t i = count; i < scratch.ranked.size(); ++i)
    scratch.weights[IdOf(scratch.ranked[i])] = 0;
}

}  // namespace

void ApplyFilters(const SamplingParams& params, absl::Span<const float> logits, float max,
                  SamplerScratch& scratch) {
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    KeepTopK(params.top_k, logits, scratch);
  }
  if (params.top_p < 1) KeepTopP(params.top_p, logits, scratch);
  if (params.min_p > 0) KeepMinP(params.min_p, scratch.weights);
  if (params.typical_p < 1) KeepTypical(params.typical_p, logits, max, params.temperature, scratch);
}

}  // namespace bst
