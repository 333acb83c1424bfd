#include "engine/sampling/filters.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "engine/sampling/softmax.h"

namespace bst {
namespace {

// Every filter but min_p ranks the tokens, by descending logit or by distance from the entropy, and
// keeps a leading set: all up to some token, its cut, with equal ranks in the order of ids. The cut
// is found by radix selection, in O(V): a histogram of masses over the ranks' leading 11 bits says
// in which bin the set ends; the tokens of that bin are looked at again by the next 11 bits, and so
// on. Sorting (also radix, also of the likely part of the tokens alone) took five times as long.
struct Cut {
  uint32_t rank = 0;
  size_t id = 0;
};

constexpr uint32_t kDigitBits = 11;
constexpr size_t kBins = size_t{1} << kDigitBits;
using Bins = std::array<uint64_t, kBins>;

// The bin in which the sum of masses from `before` up reaches `target`, and the sum before that
// bin; the last bin with any mass if all of them are less.
struct BinCut {
  uint32_t bin = 0;
  uint64_t before = 0;
};
BinCut FindBin(const Bins& bins, uint64_t before, uint64_t target) {
  BinCut cut;
  uint64_t sum = before;
  for (size_t bin = 0; bin < kBins && sum < target; ++bin) {
    if (bins[bin] == 0) continue;
    cut = {static_cast<uint32_t>(bin), sum};
    sum += bins[bin];
  }
  return cut;
}

// The last token of the smallest leading set whose masses sum to target_of(all mass) > 0 or more.
// `mass_of(id)` is not 0 for all.
template <typename MassOf, typename TargetOf>
Cut FindCut(MassOf mass_of, TargetOf target_of, SamplerScratch& scratch) {
  const std::vector<uint32_t>& ranks = scratch.ranks;
  std::vector<uint32_t>& ids = scratch.ids;
  constexpr uint32_t kFirstShift = 32 - kDigitBits;
  Bins bins = {};
  for (size_t i = 0; i < ranks.size(); ++i) bins[ranks[i] >> kFirstShift] += mass_of(i);
  const uint64_t target = target_of(std::accumulate(bins.begin(), bins.end(), uint64_t{0}));
  BinCut cut = FindBin(bins, 0, target);
  ids.resize(ranks.size());
  size_t count = 0;
  for (size_t i = 0; i < ranks.size(); ++i) {
    ids[count] =
        static_cast<uint32_t>(i);  // Kept only if the count moves on: no branch to mispredict.
    count += (ranks[i] >> kFirstShift) == cut.bin ? 1 : 0;
  }
  for (const uint32_t shift : {kFirstShift - kDigitBits, 0u}) {  // The last two digits share a bit.
    const auto digit = [&](uint32_t id) { return (ranks[id] >> shift) % kBins; };
    bins.fill(0);
    for (size_t i = 0; i < count; ++i) bins[digit(ids[i])] += mass_of(ids[i]);
    cut = FindBin(bins, cut.before, target);
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t id = ids[i];
      ids[kept] = id;
      kept += digit(id) == cut.bin ? 1 : 0;
    }
    count = kept;
  }
  // Those left have one rank.
  Cut last;
  uint64_t sum = cut.before;
  for (size_t i = 0; i < count && sum < target; ++i) {
    if (mass_of(ids[i]) == 0) continue;
    last = {ranks[ids[i]], ids[i]};
    sum += mass_of(ids[i]);
  }
  return last;
}

// Drops the tokens behind the cut: of a higher rank, or of the same rank and a higher id.
void DropBehind(const Cut& cut, SamplerScratch& scratch) {
  for (size_t i = 0; i <= cut.id; ++i) {
    scratch.weights[i] = scratch.ranks[i] <= cut.rank ? scratch.weights[i] : 0.0f;
  }
  for (size_t i = cut.id + 1; i < scratch.ranks.size(); ++i) {
    scratch.weights[i] = scratch.ranks[i] < cut.rank ? scratch.weights[i] : 0.0f;
  }
}

void RankByLogit(absl::Span<const float> logits, SamplerScratch& scratch) {
  scratch.ranks.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) scratch.ranks[i] = RankOfLogit(logits[i]);
}

// Drops the tokens behind the smallest leading set with `fraction` of all mass.
void KeepMass(float fraction, SamplerScratch& scratch) {
  const float scale = MassScale(scratch.ranks.size());
  const auto mass_of = [&](size_t id) { return MassOf(scratch.weights[id], scale); };
  const auto target_of = [=](uint64_t total) { return MassTarget(fraction, total); };
  DropBehind(FindCut(mass_of, target_of, scratch), scratch);
}

// The tokens that are still there, each counted once.
void KeepTopK(int top_k, absl::Span<const float> logits, SamplerScratch& scratch) {
  RankByLogit(logits, scratch);
  const auto mass_of = [&](size_t id) { return scratch.weights[id] > 0 ? uint64_t{1} : 0; };
  const auto target_of = [=](uint64_t) { return static_cast<uint64_t>(top_k); };
  DropBehind(FindCut(mass_of, target_of, scratch), scratch);
}

void KeepTopP(float top_p, absl::Span<const float> logits, SamplerScratch& scratch) {
  RankByLogit(logits, scratch);
  KeepMass(top_p, scratch);
}

// The likeliest token's weight is 1.
void KeepMinP(float min_p, std::vector<float>& weights) {
  for (float& weight : weights) weight = weight < min_p ? 0.0f : weight;
}

// Locally typical sampling (Meister et al., 2023) keeps the tokens whose surprise -ln p is nearest
// to the entropy H. With x = (max - logit) / temperature, -ln p = ln W + x and H = ln W + E[x],
// hence the distance is |x - E[x]|. A token of weight 0 may have x infinite, and then distance too.
void KeepTypical(float typical_p, absl::Span<const float> logits, float max, float temperature,
                 SamplerScratch& scratch) {
  const double total = SumWeights(scratch.weights, scratch.block_sums);
  const auto x = [&](size_t i) { return (max - logits[i]) / temperature; };
  const auto weighted_x = [&](size_t i) {  // weights are 0 beyond the logits
    const auto weight = static_cast<double>(scratch.weights[i]);
    return weight > 0 ? weight * static_cast<double>(x(i)) : 0.0;
  };
  const double mean = SumTerms(scratch.weights.size(), weighted_x, scratch.block_sums) / total;
  scratch.ranks.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) scratch.ranks[i] = RankOfDistance(x(i), mean);
  KeepMass(typical_p, scratch);
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
