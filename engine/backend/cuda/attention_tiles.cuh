// The arithmetic of attention on the tensor cores: what prompts (attention_tiles.cu) and rows of
// one token (attention_singles.cu) have in common, so that a query has the same bits in both.
//
// Tiles of 32 keys begin at multiples of 32 in the document or the context. A tile by itself gives
// a query its largest score, the sum of its weights and the weighted sum of values; tiles then join
// one after the other. A key that the query does not see has weight 0 and a tile of such keys
// changes nothing, so neither the queries beside it nor the tiles they need change a bit. Nor does
// it matter which warps take which tiles.
//
// Queries and weights are float32: each is the sum of three BF16 numbers, so that three products
// are one in float32. They are added up sixteen of depth after sixteen, the three one after the
// other.
//
// Order of depth  A product of fragments does not ask which columns its depth stands for, as long
// as both sides agree. Lane t has columns 8 t .. 8 t + 7 of every 32: 16 bytes of a key, a single
// load, are its words of two fragments. Weighted sums of values: fragment i of a half of 64 columns
// has columns i, 8 + i, .. 56 + i: 16 bytes of a value are column g of eight fragments.
//
// Threads   Runs on the device.
// Tested by tests/engine/backend/agreement_test.cc, context_attention_test.cc
#pragma once

#include "engine/backend/cuda/attention.cuh"
#include "engine/backend/cuda/four_floats.cuh"
#include "engine/backend/cuda/mma.cuh"

namespace bst::cuda {

constexpr int kTileKeys = 32;
constexpr int kTerms = 3;  // BF16 numbers that make a float32
constexpr int kKeyFragments = kTileKeys / kFragmentColumns;
constexpr int kKeySteps = kTileKeys / kFragmentDepth;
constexpr int kColumnsOfWords = 8;  // of FourWords
constexpr int kPieceColumns = 32;   // those that four lanes have of a row at once
constexpr int kPieces = kMaxTileColumns / kPieceColumns;
constexpr int kHalfColumns = 64;  // those that eight lanes have
constexpr int kHalves = kMaxTileColumns / kHalfColumns;
constexpr int kHalfFragments = kHalfColumns / kFragmentColumns;
constexpr float kLog2E = 1.44269504f;  // scores are multiplied by it: weights are powers of two
constexpr int kScores = 2 * kKeyFragments;  // that a lane has of a query, of keys 8 n + 2 t + i
static_assert(kMaxTileColumns % kHalfColumns == 0 && kTileKeys % kFragmentDepth == 0);

// The first term of x and y as a word; they become what is left, which is exact.
BST_DEVICE uint32_t TakeTerm(float& x, float& y) {
  const uint32_t word = PackBf16(x, y);
  x -= FloatFromBits(word << 16);
  y -= FloatFromBits(word & 0xffff0000u);
  return word;
}
// The terms of eight columns of a query.
BST_DEVICE void TakeTerms(const float* query, bool wide, FourWords (&terms)[kTerms]) {
  FourFloats parts[2] = {LoadFour(query, wide), LoadFour(query + 4, wide)};
  BST_UNROLL
  for (int i = 0; i < 4; ++i) {
    float x = parts[i / 2].values[i % 2 * 2], y = parts[i / 2].values[i % 2 * 2 + 1];
    BST_UNROLL
    for (int term = 0; term < kTerms; ++term) terms[term].words[i] = TakeTerm(x, y);
  }
}

// Column i of two keys' eight, as a word of B.
BST_DEVICE uint32_t PairOf(const FourWords& first, const FourWords& second, int i) {
  const uint32_t x = first.words[i / 2], y = second.words[i / 2];
  return i % 2 == 0 ? LowHalves(x, y) : HighHalves(x, y);
}

// A query's scores of a tile become weights; all four lanes of the query get the same `top` and
// `total`.
BST_DEVICE void Weigh(float (&scores)[kScores], float& top, float& total) {
  top = scores[0];
  BST_UNROLL
  for (int i = 1; i < kScores; ++i) top = fmaxf(top, scores[i]);
  top = fmaxf(top, ShuffleXor(top, 2));
  top = fmaxf(top, ShuffleXor(top, 1));
  const float subtracted = top == -INFINITY ? 0.0f : top;  // the weights of no key are 0
  total = 0.0f;
  BST_UNROLL
  for (int i = 0; i < kScores; ++i) {
    scores[i] = Exp2(scores[i] - subtracted);
    total += scores[i];
  }
  total = SumLanes(total, 4);
}

// How a tile joins those before it: what they and it are multiplied by. `top` becomes the larger.
struct JoinWeights {
  float before, tile;
};
BST_DEVICE JoinWeights JoinTops(float& top, float tile_top) {
  const float before = top;
  top = fmaxf(top, tile_top);
  if (top == -INFINITY) return {1.0f, 0.0f};  // the query has seen no key yet
  return {Exp2(before - top), Exp2(tile_top - top)};
}
BST_DEVICE float Join(const JoinWeights& weights, float before, float tile) {
  return fmaf(tile, weights.tile, before * weights.before);
}
// What sums are multiplied by in the end.
BST_DEVICE float Inverse(float total) { return total == 0.0f ? 0.0f : 1.0f / total; }
// + 0: a sum that underflowed may be -0, unless tiles of weight 0 came after it.
BST_DEVICE float Output(float sum, float inverse) { return sum * inverse + 0.0f; }

// Numbers of the keys of a document count from the tile of the first that any query of the block
// sees: they are small then.
BST_DEVICE int64_t FloorTile(int64_t position) {
  return (position >= 0 ? position : position - kTileKeys + 1) / kTileKeys * kTileKeys;
}
// Where a window's keys lie in a ring.
struct RingRows {
  uint32_t window;
  int first;  // row of the oldest, less its number

  // Of a query at `place` whose farthest key has the number `oldest`.
  BST_DEVICE RingRows(const AttentionTask& task, int place, int farthest, int oldest)
      : window(static_cast<uint32_t>(task.window)),
        first((place < farthest ? place + task.window : place) - farthest - oldest) {}
  BST_DEVICE int Row(int key) const {
    const auto row = static_cast<uint32_t>(first + key);
    const uint32_t wrapped = row - window;  // huge where it does not wrap
    return static_cast<int>(row < wrapped ? row : wrapped);
  }
};

}  // namespace bst::cuda
