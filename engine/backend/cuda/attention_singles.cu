// Attention of one query, by itself, on the tensor cores: rows of one token, which is what decoding
// is, and uses of a context by a single query. attention_tiles.cuh has the arithmetic.
//
// A block has a query and a head, its warps take a tile of keys each at the same time, and 128
// threads join the tiles in order. All rows of a fragment are the query. Keys and values go from
// the cache to the registers of the tensor cores, 8 KB of a warp on their way at a time: where a
// quarter has been used, the one after the next three is asked for.
//
// All keys lie in the cache: where a query sees its own, that replaces the oldest, which it does
// not see, before anything is read; else after everything is.
#include "engine/backend/cuda/attention_tiles.cuh"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kWarps = 6;  // three tiles each of a window of 512, which has 16 or 17
constexpr int kThreads = kWarps * kWarp;
constexpr int kSlots = 3 * kWarps;  // tiles between two joinings
constexpr int kQueryFragments = kMaxTileColumns / kFragmentDepth * kTerms;
static_assert(kThreads >= kMaxTileColumns);

// The query at `q` and the keys that it sees: `oldest` .. `newest`. Those before
// `stored` are zeros.
struct Single {
  const float* q;
  bool wide;
  int head_dim;
  float scale;
  const Bf16* k;
  const Bf16* v;
  int stride;
  int oldest, stored, newest;

  BST_DEVICE bool Sees(int key) const { return key >= oldest && key <= newest; }
};

// The query's terms of one piece of columns with those of a tile's keys.
BST_DEVICE void MultiplyKeys(const FourWords* query, const FourWords (&keys)[4],
                             FragmentC (&dots)[kKeyFragments]) {
  BST_UNROLL
  for (int i = 0; i < 2 * kTerms; ++i) {
    const FourWords a = query[i * 4];
    BST_UNROLL
    for (int n = 0; n < kKeyFragments; ++n) {
      const uint32_t* b = keys[n].words + i / kTerms * 2;
      MultiplyAdd({{a.words[0], a.words[1], a.words[2], a.words[3]}}, {{b[0], b[1]}}, dots[n]);
    }
  }
}

// weight(i) as fragments of A, whose rows are all the same.
template <typename Weight>
BST_DEVICE void TakeWeights(Weight weight, FragmentA (&weights)[kKeySteps][kTerms]) {
  BST_UNROLL
  for (int i = 0; i < 2 * kKeySteps; ++i) {
    float x = weight(2 * i), y = weight(2 * i + 1);
    BST_UNROLL
    for (int term = 0; term < kTerms; ++term) {
      uint32_t* const words = weights[i / 2][term].words + i % 2 * 2;
      words[0] = words[1] = TakeTerm(x, y);
    }
  }
}

// A tile's weights with a half of its values' columns. Of the lanes with the same columns one
// `writes`, from column 16 t of the half on.
BST_DEVICE void WeighHalf(const FragmentA (&weights)[kKeySteps][kTerms],
                          const FourWords (&pieces)[kPieces][4], int half, bool writes,
                          float* part) {
  BST_UNROLL
  for (int i = 0; i < kHalfFragments; i += 2) {
    TwoFloats columns[2];  // of fragments i and i + 1: from 16 t + i and 16 t + 8 + i on
    BST_UNROLL
    for (int k = 0; k < 2; ++k) {
      FragmentC sums = {};
      BST_UNROLL
      for (int step = 0; step < kKeySteps; ++step) {
        const auto& p = pieces[half * kKeySteps + step];
        const FragmentB b = {{PairOf(p[0], p[1], i + k), PairOf(p[2], p[3], i + k)}};
        BST_UNROLL
        for (int term = 0; term < kTerms; ++term) MultiplyAdd(weights[step][term], b, sums);
      }
      columns[0].values[k] = sums.values[0];
      columns[1].values[k] = sums.values[1];
    }
    if (writes) {
      *reinterpret_cast<TwoFloats*>(part + i) = columns[0];
      *reinterpret_cast<TwoFloats*>(part + kColumnsOfWords + i) = columns[1];
    }
  }
}

// What column ThreadX() has so far: top, total and sum. They are used once in kSlots tiles.
using Column = float[kMaxTileColumns];
struct Sum {
  float sum, total;
};
// Of `tiles` the first kSlots join what is in `joined`, if something is.
BST_DEVICE Sum JoinSlots(bool has_joined, int tiles, const float* tops, const float* totals,
                         const float* parts, Column* joined) {
  float top = -INFINITY, total = 0.0f, sum = 0.0f;
  if (has_joined) {
    top = joined[0][ThreadX()];
    total = joined[1][ThreadX()];
    sum = joined[2][ThreadX()];
  }
  for (int slot = 0; slot < kSlots && slot < tiles; ++slot) {
    const JoinWeights join = JoinTops(top, tops[slot]);
    total = Join(join, total, totals[slot]);
    sum = Join(join, sum, parts[slot * kMaxTileColumns + ThreadX()]);
  }
  joined[0][ThreadX()] = top;
  joined[1][ThreadX()] = total;
  joined[2][ThreadX()] = sum;
  return {sum, total};
}

// rows.Row(key) for the stored keys that the query sees, bias(key) for all that it sees; out() is
// where the output goes.
//
// A key that it does not see is read as the nearest that it does: it has weight 0 whatever it is.
// Beyond the head, columns of keys are 0; those of values hold what they held, for no output.
template <typename Rows, typename Bias, typename Out>
BST_DEVICE void AttendSingle(const Single& own, const Rows& rows, Bias bias, Out out) {
  BST_SHARED(FourWords, query, kQueryFragments * 4);  // words of A, of each t: rows are the same
  BST_SHARED(float, parts, kSlots* kMaxTileColumns);  // of each tile
  BST_SHARED(float, tops, kSlots);
  BST_SHARED(float, totals, kSlots);
  BST_SHARED(Column, joined, 3);
  if (own.stored > own.newest) {  // no key, or zeros
    for (int c = ThreadX(); c < own.head_dim; c += kThreads) out()[c] = 0.0f;
    return;
  }
  const auto thread = static_cast<uint32_t>(ThreadX());
  const int lane = thread % kWarp, warp = thread / kWarp, g = thread % kWarp / 4, t = thread % 4;

  const auto row_of = [&](int key) {
    if (key < own.stored) key = own.stored;
    if (key > own.newest) key = own.newest;
    return uint64_t{static_cast<uint32_t>(rows.Row(key))} * static_cast<uint32_t>(own.stride);
  };
  FourWords pieces[kPieces][4] = {};  // what is on its way
  // Piece i of keys: columns 32 i .. of every eighth.
  const auto load_keys = [&](int i, int tile) {
    const int column = i * kPieceColumns + t * kColumnsOfWords;
    BST_UNROLL
    for (int n = 0; n < kKeyFragments; ++n) {
      const Bf16* from = own.k + row_of(tile * kTileKeys + n * kFragmentColumns + g) + column;
      pieces[i][n] =
          column < own.head_dim ? *reinterpret_cast<const FourWords*>(from) : FourWords{};
    }
  };
  // Piece i of values: keys of step i % 2, columns of half i / 2.
  const auto load_values = [&](int i, int tile) {
    const int column = i / kKeySteps * kHalfColumns + g * kColumnsOfWords;
    BST_UNROLL
    for (int r = 0; r < 4; ++r) {
      const int key = i % kKeySteps * kFragmentDepth + 2 * t + r % 2 + r / 2 * 8;
      const Bf16* from = own.v + row_of(tile * kTileKeys + key) + column;
      if (column < own.head_dim) pieces[i][r] = *reinterpret_cast<const FourWords*>(from);
    }
  };
  static_assert(kKeyFragments == 4 && kHalves * kKeySteps == kPieces);

  const int tiles = own.newest / kTileKeys + 1;
  if (warp < tiles) {
    BST_UNROLL
    for (int i = 0; i < kPieces; ++i) load_keys(i, warp);
  }
  if (warp < kPieces && g == 0) {
    const int column = warp * kPieceColumns + t * kColumnsOfWords;
    FourWords terms[kTerms] = {};
    if (column < own.head_dim) TakeTerms(own.q + column, own.wide, terms);
    BST_UNROLL
    for (int i = 0; i < 2 * kTerms; ++i) {
      const uint32_t* words = terms[i % kTerms].words + i / kTerms * 2;
      query[(2 * warp * kTerms + i) * 4 + t] = {{words[0], words[0], words[1], words[1]}};
    }
  }
  SyncThreads();

  for (int first = 0; first < tiles; first += kSlots) {
    for (int tile = first + warp; tile < tiles && tile < first + kSlots; tile += kWarps) {
      const auto key_of = [&](int i) {
        return tile * kTileKeys + i / 2 * kFragmentColumns + 2 * t + i % 2;
      };
      FragmentC dots[kKeyFragments] = {};
      BST_UNROLL
      for (int j = 0; j < kPieces; ++j) {
        if (j * kPieceColumns < own.head_dim)
          MultiplyKeys(query + 2 * j * kTerms * 4 + t, pieces[j], dots);
        load_values(j, tile);
      }
      float biases[kScores], scores[kScores];
      BST_UNROLL
      for (int i = 0; i < kScores; ++i) biases[i] = own.Sees(key_of(i)) ? bias(key_of(i)) : 0.0f;
      BST_UNROLL
      for (int i = 0; i < kScores; ++i) {
        const int key = key_of(i);
        const float dot = key < own.stored ? 0.0f : dots[i / 2].values[i % 2];
        scores[i] = own.Sees(key) ? (dot + biases[i]) * own.scale : -INFINITY;
      }
      float tile_top, tile_total;
      Weigh(scores, tile_top, tile_total);
      FragmentA weights[kKeySteps][kTerms];
      TakeWeights([&](int i) { return key_of(i) < own.stored ? 0.0f : scores[i]; }, weights);
      const int slot = tile - first;
      if (lane == 0) {
        tops[slot] = tile_top;
        totals[slot] = tile_total;
      }
      BST_UNROLL
      for (int half = 0; half < kHalves; ++half) {
        WeighHalf(weights, pieces, half, g == 0,
                  parts + slot * kMaxTileColumns + half * kHalfColumns + 16 * t);
        if (tile + kWarps >= tiles) continue;
        BST_UNROLL
        for (int step = 0; step < kKeySteps; ++step)
          load_keys(half * kKeySteps + step, tile + kWarps);
      }
    }
    SyncThreads();
    if (ThreadX() < own.head_dim) {
      const Sum sum = JoinSlots(first > 0, tiles - first, tops, totals, parts, joined);
      if (first + kSlots >= tiles) out()[ThreadX()] = Output(sum.sum, Inverse(sum.total));
    }
    SyncThreads();
  }
}

template <typename Task>
BST_DEVICE Single SingleOf(const Task& task, int query, const void* cache, int64_t rows) {
  const int64_t column = static_cast<int64_t>(BlockY()) * task.head_dim;
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  const Bf16* k = static_cast<const Bf16*>(cache) + column;
  return {.q = task.q.data + query * task.q.stride + column,
          .wide = IsWide(task.q),
          .head_dim = task.head_dim,
          .scale = task.scale[BlockY()] * kLog2E,
          .k = k,
          .v = k + rows * width,
          .stride = static_cast<int>(width),
          .oldest = 0,
          .stored = 0,
          .newest = 0};
}

// Looked up where it is needed: registers are short until then.
template <typename Task>
BST_DEVICE float* OutOf(const Task& task, int query) {
  return task.out.data + query * task.out.stride + static_cast<int64_t>(BlockY()) * task.head_dim;
}

// The row's new key and value go to their place in the ring.
BST_DEVICE void StoreOwn(const AttentionTask& task) {
  const TokenRow row = task.singles[BlockX()];
  StoreInRing<Bf16>(task, row.cache, row.place, row.begin,
                    static_cast<int64_t>(BlockY()) * task.head_dim);
}

BST_DEVICE void AttendRing(const AttentionTask& task) {
  if (HasNoRow(task.num_singles)) return;
  if (task.nearest == 0) {
    StoreOwn(task);
    SyncThreads();
  }
  {
    const TokenRow row = task.singles[BlockX()];
    const int farthest = Farthest(task, row.position, row.place);
    const int64_t oldest = row.position - farthest, origin = FloorTile(oldest);
    Single own = SingleOf(task, row.begin, row.cache, task.window);
    own.oldest = static_cast<int>(oldest - origin);
    own.stored = oldest < 0 ? static_cast<int>(-origin) : own.oldest;
    const int position = static_cast<int>(row.position - origin);
    own.newest = position - task.nearest;
    const int own_bias = BlockY() * (task.window + 1) + position;
    AttendSingle(
        own, RingRows(task, row.place, farthest, own.oldest),
        [&](int key) { return task.bias == nullptr ? 0.0f : task.bias[own_bias - key]; },
        [&] { return OutOf(task, task.singles[BlockX()].begin); });
  }
  if (task.nearest > 0) StoreOwn(task);  // AttendSingle has passed a barrier since it read
}

struct ContextRowsOfSingle {
  BST_DEVICE int Row(int key) const { return key; }
};

BST_DEVICE void AttendContext(const ContextTask& task) {
  if (HasNoRow(task.num_singles)) return;
  const ContextTile use = task.singles[BlockX()];
  Single own = SingleOf(task, use.first, use.context, task.capacity);
  own.newest = use.num_rows - 1;
  AttendSingle(
      own, ContextRowsOfSingle(), [](int /*key*/) { return 0.0f; },
      [&] { return OutOf(task, task.singles[BlockX()].first); });
}

}  // namespace

BST_KERNEL void BST_BOUNDS(192, 2) bst_attention_singles(AttentionTask task) { AttendRing(task); }
BST_KERNEL void BST_BOUNDS(192, 2) bst_context_singles(ContextTask task) { AttendContext(task); }

void AttentionSingles(Stream& stream, const AttentionTask& task) {
  const LaunchShape shape = {
      .blocks_x = task.num_singles.most, .blocks_y = task.heads, .threads = kThreads};
  if (shape.blocks_x > 0) BST_LAUNCH(bst_attention_singles, shape, stream, task);
}
void ContextSingles(Stream& stream, const ContextTask& task) {
  const LaunchShape shape = {
      .blocks_x = task.num_singles.most, .blocks_y = task.heads, .threads = kThreads};
  if (shape.blocks_x > 0) BST_LAUNCH(bst_context_singles, shape, stream, task);
}

}  // namespace bst::cuda
