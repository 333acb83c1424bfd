// One token per draw: a block of threads per draw, with a row of logits in global memory (a second
// level cache holds it) that it passes over again and again. What is decided is decided by the
// arithmetic of sampling_arithmetic.h, in the host's order where that has one; where it has none
// (maxima, counts, integer masses) in the block's.
//
// A filter's cut is the token at which the masses of the tokens before it in rank reach a target.
// The host finds it by radix selection; here the interval of keys (rank, id) that holds it is split
// in two, by a pass each, until at most kListed tokens are in it; those add up their masses
// themselves. No atomics, no sort; nothing but the interval depends on how it was split.
//
// Shared memory  Every array is written between two barriers and read after the second.
// Bound          Latency and chains: the README beside this, with what was measured.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"
#include "engine/backend/sampling_arithmetic.h"

namespace bst::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kListed = kMaxTop;
constexpr int kBlock = static_cast<int>(kSumBlock), kLanes = static_cast<int>(kSumLanes);

struct Shared {
  double terms[kMaxThreads];
  uint64_t parts[kMaxWarps];
  uint32_t counts[kMaxWarps];
  uint64_t keys[kListed], masses[kListed];
  double sum, before;  // of a Crossing
  int32_t at;
  uint64_t cut;
};

BST_DEVICE int Warp() { return ThreadX() / kWarp; }
BST_DEVICE int Lane() { return ThreadX() % kWarp; }
BST_DEVICE int NumWarps() { return NumThreads() / kWarp; }

// Of all threads.
BST_DEVICE uint64_t LeastOfWarp(uint64_t x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const uint64_t other = ShuffleXor(x, mask);
    x = other < x ? other : x;
  }
  return x;
}
BST_DEVICE uint64_t Least(uint64_t x, Shared& shared) {
  static_assert(kMaxWarps <= kWarp);
  x = LeastOfWarp(x);
  SyncThreads();
  if (Lane() == 0) shared.parts[Warp()] = x;
  SyncThreads();
  return LeastOfWarp(shared.parts[Lane() < NumWarps() ? Lane() : 0]);
}

BST_DEVICE float Infinity() { return FloatFromBits(0x7f800000u); }

struct Largest {
  float value;
  bool has_nan;  // `value` means nothing then
};
BST_DEVICE Largest FindLargest(const float* values, int count, Shared& shared) {
  int32_t max = OrderedBits(-Infinity());
  bool has_nan = false;
  for (int i = ThreadX(); i < count; i += NumThreads()) {
    const int32_t bits = OrderedBits(values[i]);
    has_nan |= bits > OrderedBits(Infinity()) || bits < OrderedBits(-Infinity());
    max = bits > max ? bits : max;
  }
  // The largest is the one that the fewest are above; 0 is a NaN.
  constexpr int64_t kTop = int64_t{1} << 31;
  const uint64_t least = Least(has_nan ? 0 : static_cast<uint64_t>(kTop - max), shared);
  return {FloatOfOrdered(static_cast<int32_t>(kTop - static_cast<int64_t>(least))), least == 0};
}

struct Tally {
  uint64_t mass = 0;
  uint32_t count = 0;
};
BST_DEVICE Tally Total(Tally x, Shared& shared) {
  x.mass = SumLanes(x.mass, kWarp);
  x.count = SumLanes(x.count, kWarp);
  SyncThreads();
  if (Lane() == 0) {
    shared.parts[Warp()] = x.mass;
    shared.counts[Warp()] = x.count;
  }
  SyncThreads();
  const bool has_part = Lane() < NumWarps();
  return {SumLanes(has_part ? shared.parts[Lane()] : 0, kWarp),
          SumLanes(has_part ? shared.counts[Lane()] : 0, kWarp)};
}

// Sum of `x` of the threads before this one.
BST_DEVICE uint32_t SumBefore(uint32_t x, Shared& shared) {
  uint32_t total = x, before = 0;
  for (int mask = 1; mask < kWarp; mask *= 2) {  // of twice as many neighbouring lanes each time
    const uint32_t other = ShuffleXor(total, mask);
    if ((ThreadX() & mask) != 0) before += other;
    total += other;
  }
  SyncThreads();
  if (Lane() == 0) shared.counts[Warp()] = total;
  SyncThreads();
  for (int w = 0; w < Warp(); ++w) before += shared.counts[w];
  return before;
}

// ---- Sums in the host's order

// sums[b] of the b-th kSumBlock of term(i), i < count: eight neighbouring lanes have a block, each
// adds up every eighth term, the first of them what they have.
template <typename Term>
BST_DEVICE void SumBlocks(int count, double* sums, Term term) {
  const int num_blocks = (count + kBlock - 1) / kBlock;
  const int place = Lane() / kLanes, lane = ThreadX() % kLanes;
  constexpr int kBlocksOfAWarp = kWarp / kLanes;
  SyncThreads();  // terms may be other threads' results
  for (int first = Warp() * kBlocksOfAWarp; first < num_blocks; first += NumThreads() / kLanes) {
    const int block = first + place;
    const int begin = block * kBlock + lane;
    const int end = count < (block + 1) * kBlock ? count : (block + 1) * kBlock;
    double sum = 0;
    for (int i = begin; i < end; i += kLanes) sum += term(i);
    double total = 0;
    total += sum;
    for (int i = 1; i < kLanes; ++i) total += ShuffleXor(sum, i);
    if (lane == 0 && block < num_blocks) sums[block] = total;
  }
  SyncThreads();
}

// Adds term(0), term(1), ... to `crossing`, until one is crossed.
template <typename Term>
BST_DEVICE Crossing Cross(Crossing crossing, int count, Term term, Shared& shared) {
  bool done = false;
  for (int first = 0; first < count; first += NumThreads()) {
    SyncThreads();
    const int mine = first + ThreadX();
    if (mine < count) shared.terms[ThreadX()] = term(mine);
    SyncThreads();
    if (ThreadX() == 0) {
      for (int i = first; i < count && i < first + NumThreads() && !done; ++i)
        done = crossing.Add(i, shared.terms[i - first]);
    }
  }
  SyncThreads();
  if (ThreadX() == 0) {
    shared.sum = crossing.sum;
    shared.before = crossing.before;
    shared.at = crossing.at;
  }
  SyncThreads();
  return {.target = crossing.target, .sum = shared.sum, .before = shared.before, .at = shared.at};
}
template <typename Term>
BST_DEVICE double Sum(int count, double* block_sums, Term term, Shared& shared) {
  SumBlocks(count, block_sums, term);
  const auto block_sum = [=](int i) { return block_sums[i]; };
  const Crossing all = {.target = static_cast<double>(Infinity())};
  return Cross(all, (count + kBlock - 1) / kBlock, block_sum, shared).sum;
}

// ---- Cuts

BST_DEVICE uint64_t Key(uint32_t rank, int id) {
  return (static_cast<uint64_t>(rank) << 32) | static_cast<uint32_t>(id);
}

// Ranks as they come from logits, or as the bits of distances.
struct LogitRanks {
  const float* logits;
  BST_DEVICE uint32_t operator()(int i) const { return RankOfLogit(logits[i]); }
  BST_DEVICE static uint32_t Middle(uint32_t a, uint32_t b) {
    return RankOfLogit(0.5f * LogitOfRank(a) + 0.5f * LogitOfRank(b));
  }
};
struct DistanceRanks {
  const float* ranks;  // bits of them
  BST_DEVICE uint32_t operator()(int i) const { return FloatBits(ranks[i]); }
  BST_DEVICE static uint32_t Middle(uint32_t a, uint32_t b) {
    return FloatBits(0.5f * FloatFromBits(a) + 0.5f * FloatFromBits(b));
  }
};

// Between two keys, below the second: for a few splits halfway in value, which normal distributions
// like, then halfway in bits, which ends.
template <typename Ranks>
BST_DEVICE uint64_t Split(uint64_t low, uint64_t high, int split) {
  constexpr int kSplitsByValue = 8;
  const auto low_rank = static_cast<uint32_t>(low >> 32);
  const auto high_rank = static_cast<uint32_t>(high >> 32);
  if (split < kSplitsByValue && low_rank < high_rank) {
    const uint64_t middle = Key(Ranks::Middle(low_rank, high_rank), -1);
    if (low <= middle && middle < high) return middle;
  }
  return low + (high - low) / 2;
}

// Lists the tokens of [low, high] that have a mass, at most kListed.
template <typename Ranks, typename MassOfToken>
BST_DEVICE void List(const Ranks& ranks, MassOfToken mass_of, int count, uint64_t low,
                     uint64_t high, Shared& shared) {
  const auto is_listed = [=](int i, uint64_t key) {
    return low <= key && key <= high && mass_of(i) > 0;
  };
  uint32_t mine = 0;
  for (int i = ThreadX(); i < count; i += NumThreads())
    mine += is_listed(i, Key(ranks(i), i)) ? 1 : 0;
  uint32_t at = SumBefore(mine, shared);
  for (int i = ThreadX(); i < count && mine > 0; i += NumThreads()) {
    const uint64_t key = Key(ranks(i), i);
    if (!is_listed(i, key)) continue;
    shared.keys[at] = key;
    shared.masses[at] = mass_of(i);
    ++at;
    --mine;
  }
  SyncThreads();
}

// The key of the last token of the smallest leading set with the mass target_of(all mass); of all
// keys the largest if there is less.
template <typename Ranks, typename MassOfToken, typename TargetOf>
BST_DEVICE uint64_t FindCut(const Ranks& ranks, MassOfToken mass_of, int count, TargetOf target_of,
                            Shared& shared) {
  Tally inside;
  uint32_t low_rank = ~0u, high_rank = 0;
  for (int i = ThreadX(); i < count; i += NumThreads()) {
    const uint64_t mass = mass_of(i);
    if (mass == 0) continue;
    const uint32_t rank = ranks(i);
    inside.mass += mass;
    ++inside.count;
    low_rank = rank < low_rank ? rank : low_rank;
    high_rank = rank > high_rank ? rank : high_rank;
  }
  inside = Total(inside, shared);
  const uint64_t target = target_of(inside.mass);
  if (inside.mass < target) return ~uint64_t{0};
  uint64_t low = Key(static_cast<uint32_t>(Least(low_rank, shared)), 0);
  uint64_t high = Key(~static_cast<uint32_t>(Least(~high_rank, shared)), -1);
  uint64_t before = 0;  // mass below `low`
  for (int split = 0; inside.count > kListed; ++split) {
    const uint64_t middle = Split<Ranks>(low, high, split);
    Tally below;
    for (int i = ThreadX(); i < count; i += NumThreads()) {
      const uint64_t key = Key(ranks(i), i);
      if (key < low || middle < key) continue;
      const uint64_t mass = mass_of(i);
      below.mass += mass;
      below.count += mass > 0 ? 1 : 0;
    }
    below = Total(below, shared);
    if (before + below.mass >= target) {
      high = middle;
      inside.count = below.count;
    } else {
      low = middle + 1;
      before += below.mass;
      inside.count -= below.count;
    }
  }
  List(ranks, mass_of, count, low, high, shared);
  const int listed = static_cast<int>(inside.count);
  for (int mine = ThreadX(); mine < listed; mine += NumThreads()) {
    const uint64_t key = shared.keys[mine];
    uint64_t sum = before;
    for (int i = 0; i < listed; ++i) sum += shared.keys[i] < key ? shared.masses[i] : 0;
    if (sum < target && target <= sum + shared.masses[mine]) shared.cut = key;
  }
  SyncThreads();
  return shared.cut;
}

template <typename Ranks>
BST_DEVICE void DropBehind(uint64_t cut, const Ranks& ranks, float* weights, int count) {
  for (int i = ThreadX(); i < count; i += NumThreads()) {
    if (Key(ranks(i), i) > cut) weights[i] = 0;
  }
}

template <typename Ranks>
BST_DEVICE void KeepMass(float fraction, const Ranks& ranks, float* weights, int count,
                         Shared& shared) {
  const float scale = MassScale(static_cast<size_t>(count));
  const auto mass_of = [=](int i) { return MassOf(weights[i], scale); };
  const auto target_of = [=](uint64_t total) { return MassTarget(fraction, total); };
  DropBehind(FindCut(ranks, mass_of, count, target_of, shared), ranks, weights, count);
}

// ---- One draw

// The memory of one draw.
struct RowScratch {
  float* values;
  float* weights;
  double* block_sums;
};
BST_DEVICE RowScratch ScratchOf(const SamplingTask& task) {
  std::byte* const begin = task.scratch + BlockX() * SamplingScratchBytes(task.columns);
  const int padded = (task.columns + kBlock - 1) / kBlock * kBlock;
  auto* const block_sums = reinterpret_cast<double*>(begin);
  auto* const values = reinterpret_cast<float*>(block_sums + padded / kBlock);
  return {values, values + padded, block_sums};
}

// logit_bias, penalties, bans.
BST_DEVICE void Adjust(const SamplingDraw& draw, const int32_t* banned, const float* logits,
                       int count, float* adjusted) {
  const DrawParams& params = draw.params;
  for (int i = ThreadX(); i < count; i += NumThreads()) {
    float logit = logits[i];
    if (draw.state != nullptr) {
      const TokenState state = draw.state[i];
      if (state.bias != 0) logit = AddBias(logit, state.bias);
      if (state.count != 0) {
        logit =
            Penalize(logit, static_cast<int32_t>(state.count & ~kInPrompt),
                     params.repetition_penalty, params.presence_penalty, params.frequency_penalty);
      }
    }
    adjusted[i] = logit;
  }
  SyncThreads();
  if (ThreadX() == 0) {
    for (int i = 0; i < draw.num_banned; ++i) adjusted[banned[draw.first_banned + i]] = -Infinity();
  }
  SyncThreads();
}

// top_k, top_p, min_p, typical_p; the weights are those of `logits`, which `scratch` may hold.
BST_DEVICE void Filter(const DrawParams& params, const float* logits, float max, int count,
                       const RowScratch& scratch, Shared& shared) {
  float* const weights = scratch.weights;
  const LogitRanks by_logit = {logits};
  if (0 < params.top_k && params.top_k < count) {
    const auto one = [=](int i) { return weights[i] > 0 ? uint64_t{1} : uint64_t{0}; };
    const auto top_k = static_cast<uint64_t>(params.top_k);
    const uint64_t cut = FindCut(
        by_logit, one, count, [=](uint64_t) { return top_k; }, shared);
    DropBehind(cut, by_logit, weights, count);
  }
  if (params.top_p < 1) KeepMass(params.top_p, by_logit, weights, count, shared);
  if (params.min_p > 0) {
    for (int i = ThreadX(); i < count; i += NumThreads()) {
      if (weights[i] < params.min_p) weights[i] = 0;
    }
  }
  if (params.typical_p < 1) {
    const float temperature = params.temperature;
    const auto weight = [=](int i) { return static_cast<double>(weights[i]); };
    const auto weighted_x = [=](int i) {
      return weights[i] > 0 ? static_cast<double>(weights[i]) *
                                  static_cast<double>((max - logits[i]) / temperature)
                            : 0.0;
    };
    const double total = Sum(count, scratch.block_sums, weight, shared);
    const double mean = Sum(count, scratch.block_sums, weighted_x, shared) / total;
    for (int i = ThreadX(); i < count; i += NumThreads()) {
      const float x = (max - logits[i]) / temperature;
      scratch.values[i] = FloatFromBits(RankOfDistance(x, mean));
    }
    KeepMass(params.typical_p, DistanceRanks{scratch.values}, weights, count, shared);
  }
}

// The token whose weight the draw's uniform number falls on.
BST_DEVICE int DrawFromWeights(double uniform, int count, const RowScratch& scratch,
                               Shared& shared) {
  const float* const weights = scratch.weights;
  double* const sums = scratch.block_sums;
  const auto weight = [=](int i) { return static_cast<double>(weights[i]); };
  const auto block_sum = [=](int i) { return sums[i]; };
  const double total = Sum(count, sums, weight, shared);
  const Crossing blocks =
      Cross({.target = uniform * total}, (count + kBlock - 1) / kBlock, block_sum, shared);
  const int begin = blocks.at * kBlock;
  const int end = count < begin + kBlock ? count : begin + kBlock;
  const auto weight_in_block = [=](int i) { return static_cast<double>(weights[begin + i]); };
  const Crossing tokens =
      Cross({.target = blocks.target, .sum = blocks.before}, end - begin, weight_in_block, shared);
  return begin + tokens.at;
}

// -1: every token is banned. `max` is the largest of `logits`.
BST_DEVICE int DrawToken(const SamplingTask& task, const SamplingDraw& draw, const float* logits,
                         float max, Shared& shared) {
  const int count = task.columns;
  const RowScratch scratch = ScratchOf(task);
  const DrawParams& params = draw.params;
  if (draw.state != nullptr || draw.num_banned > 0) {
    Adjust(draw, task.banned, logits, count, scratch.values);
    logits = scratch.values;
    max = FindLargest(logits, count, shared).value;
    if (max == -Infinity()) return -1;
  }
  if (params.temperature == 0) {
    uint64_t first = ~uint64_t{0};
    for (int i = count - 1 - ThreadX(); i >= 0; i -= NumThreads()) {
      if (logits[i] == max) first = static_cast<uint64_t>(i);
    }
    return static_cast<int>(Least(first, shared));
  }
  for (int i = ThreadX(); i < count; i += NumThreads())
    scratch.weights[i] = ExpOfMinus((max - logits[i]) / params.temperature);
  Filter(params, logits, max, count, scratch, shared);
  const double uniform = UniformOfToken(params.seed, draw.sequence_index, draw.token_index);
  return DrawFromWeights(uniform, count, scratch, shared);
}

// The likeliest, in order.
BST_DEVICE void WriteTop(const float* logits, int count, int num_top, TokenLogit* top,
                         Shared& shared) {
  const LogitRanks ranks = {logits};
  const auto one = [](int) { return uint64_t{1}; };
  const auto wanted = static_cast<uint64_t>(num_top);
  const uint64_t cut = FindCut(
      ranks, one, count, [=](uint64_t) { return wanted; }, shared);
  List(ranks, one, count, 0, cut, shared);
  for (int mine = ThreadX(); mine < num_top; mine += NumThreads()) {
    const uint64_t key = shared.keys[mine];
    int place = 0;
    for (int i = 0; i < num_top; ++i) place += shared.keys[i] < key ? 1 : 0;
    const auto token = static_cast<int32_t>(key & 0xffffffffu);
    top[place] = {token, logits[token]};
  }
}

}  // namespace

BST_KERNEL void BST_BOUNDS(1024, 1) bst_sample(SamplingTask task) {
  if (HasNoRow(task.num_draws)) return;
  BST_SHARED(Shared, memory, 1);
  Shared& shared = memory[0];
  const SamplingDraw& draw = task.draws[BlockX()];
  const float* const logits = task.logits.data + draw.row * task.logits.stride;
  DrawResult result = {.token = -1, .logit = 0, .max = 0, .has_nan = 0, .sum = 0};
  const Largest largest = FindLargest(logits, task.columns, shared);
  result.max = largest.value;
  result.has_nan = largest.has_nan ? 1 : 0;
  if (!largest.has_nan && largest.value > -Infinity() && largest.value < Infinity()) {
    const float max = largest.value;
    const auto weight = [=](int i) { return static_cast<double>(ExpOfMinus(max - logits[i])); };
    result.sum = Sum(task.columns, ScratchOf(task).block_sums, weight, shared);
    result.token = draw.given >= 0 ? draw.given : DrawToken(task, draw, logits, max, shared);
    if (draw.num_top > 0)
      WriteTop(logits, task.columns, draw.num_top, task.top + draw.first_top, shared);
  }
  if (ThreadX() != 0) return;
  if (result.token >= 0) {
    result.logit = logits[result.token];
    if (draw.state != nullptr && draw.given < 0) ++draw.state[result.token].count;
  }
  task.results[BlockX()] = result;
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_set_sampling_state(SamplingStateTask task) {
  const int i = BlockX() * NumThreads() + ThreadX();
  if (i < task.num_prompt) task.state[task.prompt[i]].count = kInPrompt;
  if (i < task.num_biased) task.state[task.biased[i]].bias = task.bias[i];
}

void Sample(Stream& stream, const SamplingTask& task) {
  if (task.num_draws.most == 0) return;
  // Small vocabularies need no more barriers than they have work between them.
  constexpr int kTokensOfAThread = 16;
  int threads = 2 * kWarp;
  while (threads < kMaxThreads && threads * kTokensOfAThread < task.columns) threads *= 2;
  const LaunchShape shape = {.blocks_x = task.num_draws.most, .threads = threads};
  BST_LAUNCH(bst_sample, shape, stream, task);
}
void SetSamplingState(Stream& stream, const SamplingStateTask& task) {
  const int most = task.num_prompt > task.num_biased ? task.num_prompt : task.num_biased;
  if (most == 0) return;
  BST_LAUNCH(bst_set_sampling_state, LaunchShape{.blocks_x = (most + 255) / 256}, stream, task);
}

}  // namespace bst::cuda
