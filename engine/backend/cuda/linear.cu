// Linear layers: two kernels for each type, one order of summation (kernels.h).
//
//   few, F32    a block has 32 columns and up to four rows, a thread per output; all threads bring
//               the weights
//   few, BF16   a block has 16 features and up to 32 rows, a warp per segment; the weights go from
//               memory to the registers of the tensor cores, 4 KB of a warp on their way at a time
//   tile, F32   64 x 64 outputs in shared memory, 4 x 4 of a thread
//   tile, BF16  128 features x 64 rows, 32 x 32 of a warp, in fragments; x is rounded on its way
//               into shared memory
//
// The few are bound by the weights' bytes, tiles by operations.
// Shared memory is written between two barriers and read after the second. Rows of a BF16 tile are
// 20 words apart: the eight rows and four words that a fragment reads lie in 32 banks.
#include "engine/backend/cuda/activation.cuh"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/mma.cuh"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The sum of the segment that begins at `first` joins those before it, which lie in `out`.
BST_DEVICE void AddSegment(const LinearTask& task, int first, int row, int column, float sum) {
  float& out = task.out.data[row * task.out.stride + column];
  const float total = first > 0 || task.add ? out + sum : sum;
  const bool last = first + kLinearSegment >= task.in;
  out = last && !task.add ? Apply(task.activation, total * task.scale) : total;
}

// ---- F32

constexpr int kFewRows = 4;
constexpr int kFewColumns = 32;
constexpr int kFewDepth = 128;  // of the weights brought at a time
constexpr int kFewLoads = kFewColumns * kFewDepth / kThreads;
static_assert(kFewRows * kFewColumns <= kThreads && kLinearSegment % kFewDepth == 0);

BST_DEVICE void FewRows(const LinearTask& task) {
  BST_SHARED(float, ws, kFewDepth* kFewColumns);  // [k][column]
  BST_SHARED(float, xs, kFewRows* kFewDepth);
  const int column = BlockX() * kFewColumns + ThreadX() % kFewColumns;
  const int row = ThreadX() / kFewColumns, rows = Exact(task.rows);
  const bool has_output = row < rows && column < task.out_features;
  const float* weights = static_cast<const float*>(task.weights) + BlockX() * kFewColumns;
  float next[kFewLoads];
  const auto load = [&](int first) {
    BST_UNROLL
    for (int i = 0; i < kFewLoads; ++i) {
      const int at = ThreadX() + i * kThreads, k = first + at / kFewColumns;
      next[i] = k < task.in ? weights[int64_t{k} * task.padded_out + at % kFewColumns] : 0.0f;
    }
  };
  load(0);
  float sum = 0.0f;
  for (int first = 0; first < task.in; first += kFewDepth) {
    const int depth = task.in - first < kFewDepth ? task.in - first : kFewDepth;
    SyncThreads();
    BST_UNROLL
    for (int i = 0; i < kFewLoads; ++i) ws[ThreadX() + i * kThreads] = next[i];
    for (int i = ThreadX(); i < kFewRows * kFewDepth; i += kThreads) {
      const int r = i / kFewDepth, k = i % kFewDepth;
      xs[i] = r < rows && k < depth ? task.x.data[r * task.x.stride + first + k] : 0.0f;
    }
    SyncThreads();
    load(first + kFewDepth);  // on its way while these are added
    if (!has_output) continue;
    for (int k = 0; k < depth; ++k)
      sum = fmaf(xs[row * kFewDepth + k], ws[k * kFewColumns + ThreadX() % kFewColumns], sum);
    if ((first + kFewDepth) % kLinearSegment == 0 || first + kFewDepth >= task.in) {
      AddSegment(task, first / kLinearSegment * kLinearSegment, row, column, sum);
      sum = 0.0f;
    }
  }
}

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kMicro = 4;  // a thread's outputs: kMicro x kMicro
static_assert(kLinearColumns % kTile == 0 && kLinearSegment % kDepth == 0);
static_assert(kThreads * kMicro * kMicro == kTile * kTile);

BST_DEVICE void Tile(const LinearTask& task) {
  BST_SHARED(float, xs, kDepth*(kTile + 1));  // [k][row]; the odd stride spreads the banks
  BST_SHARED(float, ws, kDepth* kTile);       // [k][column]
  const int first_row = BlockY() * kTile, first_column = BlockX() * kTile;
  const int rows = Exact(task.rows);
  if (first_row >= rows) return;
  const int x0 = ThreadX() % (kTile / kMicro), y0 = ThreadX() / (kTile / kMicro) * kMicro;
  const float* weights = static_cast<const float*>(task.weights) + first_column;
  float sums[kMicro][kMicro] = {};
  for (int first = 0; first < task.in; first += kDepth) {
    const int depth = task.in - first < kDepth ? task.in - first : kDepth;
    for (int i = ThreadX(); i < kTile * kDepth; i += kThreads) {
      const int k = i % kDepth, row = i / kDepth;
      const bool inside = k < depth && first_row + row < rows;
      xs[k * (kTile + 1) + row] =
          inside ? task.x.data[(first_row + row) * task.x.stride + first + k] : 0.0f;
    }
    for (int i = ThreadX(); i < kTile * kDepth; i += kThreads) {
      const int k = i / kTile, column = i % kTile;
      ws[i] = k < depth ? weights[int64_t{first + k} * task.padded_out + column] : 0.0f;
    }
    SyncThreads();
    for (int k = 0; k < depth; ++k) {
      float x[kMicro], w[kMicro];
      BST_UNROLL
      for (int i = 0; i < kMicro; ++i) x[i] = xs[k * (kTile + 1) + y0 + i];
      BST_UNROLL
      for (int j = 0; j < kMicro; ++j) w[j] = ws[k * kTile + x0 + j * (kTile / kMicro)];
      BST_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        BST_UNROLL
        for (int j = 0; j < kMicro; ++j) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
      }
    }
    if ((first + kDepth) % kLinearSegment == 0 || first + kDepth >= task.in) {
      BST_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        BST_UNROLL
        for (int j = 0; j < kMicro; ++j) {
          const int row = first_row + y0 + i, column = first_column + x0 + j * (kTile / kMicro);
          if (row < rows && column < task.out_features)
            AddSegment(task, first / kLinearSegment * kLinearSegment, row, column, sums[i][j]);
          sums[i][j] = 0.0f;
        }
      }
    }
    SyncThreads();
  }
}

// ---- BF16. Fragments: A is of the weights, features in its rows; B of x, tokens in its columns.

constexpr int kFewTokens = 32;
constexpr int kFewTiles = kFewTokens / kFragmentColumns;
constexpr int kAhead = 8;  // fragments of weights on their way

BST_DEVICE const uint32_t* WeightWords(const LinearTask& task, int feature) {
  return static_cast<const uint32_t*>(task.weights) + int64_t{feature} * (task.padded_in / 2);
}

BST_DEVICE void FewTokens(const LinearTask& task) {
  const int warps = NumThreads() / kWarp;
  const int lane = ThreadX() % kWarp, warp = ThreadX() / kWarp, g = lane / 4, t = lane % 4;
  const int first_feature = BlockX() * kFragmentRows;
  const int rows = Exact(task.rows), tiles = (rows + kFragmentColumns - 1) / kFragmentColumns;
  const uint32_t* low = WeightWords(task, first_feature + g) + t;
  const uint32_t* high = WeightWords(task, first_feature + g + 8) + t;
  const auto x_word = [&](int row, int k) {
    if (row >= rows) return 0u;
    const float* x = task.x.data + row * task.x.stride + k;
    return PackBf16(k < task.in ? x[0] : 0.0f, k + 1 < task.in ? x[1] : 0.0f);
  };
  for (int first = 0; first < task.padded_in; first += warps * kLinearSegment) {
    const int begin = first + warp * kLinearSegment;
    const int end =
        begin + kLinearSegment < task.padded_in ? begin + kLinearSegment : task.padded_in;
    FragmentC sums[kFewTiles] = {};
    for (int k = begin; k < end; k += kAhead * kFragmentDepth) {
      FragmentA weights[kAhead];
      BST_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int at = k + i * kFragmentDepth;
        if (at >= end) break;
        weights[i] = {{low[at / 2], high[at / 2], low[at / 2 + 4], high[at / 2 + 4]}};
      }
      BST_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int at = k + i * kFragmentDepth;
        if (at >= end) break;  // all lanes
        BST_UNROLL
        for (int tile = 0; tile < kFewTiles; ++tile) {
          if (tile >= tiles) break;
          const int row = tile * kFragmentColumns + g;
          MultiplyAdd(weights[i], {{x_word(row, at + 2 * t), x_word(row, at + 2 * t + 8)}},
                      sums[tile]);
        }
      }
    }
    // One segment after the other joins the sums in `out`.
    for (int s = 0; s < warps; ++s) {
      if (s > 0) SyncThreads();
      if (s != warp || begin >= task.padded_in) continue;
      BST_UNROLL
      for (int tile = 0; tile < kFewTiles; ++tile) {
        BST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int row = tile * kFragmentColumns + 2 * t + i % 2;
          const int feature = first_feature + g + i / 2 * 8;
          if (row < rows && feature < task.out_features)
            AddSegment(task, begin, row, feature, sums[tile].values[i]);
        }
      }
    }
    SyncThreads();
  }
}

constexpr int kTileFeatures = 128;
constexpr int kTileTokens = 64;
constexpr int kTileDepth = 32;
constexpr int kTileWords = kTileDepth / 2 + 4;  // from a row to the next
constexpr int kWarpFeatures = 32, kWarpTokens = 32;
constexpr int kFeatureTiles = kWarpFeatures / kFragmentRows;
constexpr int kTokenTiles = kWarpTokens / kFragmentColumns;
static_assert(kLinearColumns % kTileFeatures == 0 && kLinearSegment % kTileDepth == 0);
static_assert(kLinearDepth % kTileDepth == 0 && kLinearDepth % kFragmentDepth == 0);
static_assert(kTileFeatures / kWarpFeatures * (kTileTokens / kWarpTokens) == kWarps);

struct alignas(16) FourWords {
  uint32_t words[4];
};

BST_DEVICE void TokenTile(const LinearTask& task) {
  BST_SHARED(uint32_t, ws, kTileFeatures * kTileWords);
  BST_SHARED(uint32_t, xs, kTileTokens * kTileWords);
  constexpr int kWeightLoads = kTileFeatures * kTileDepth / 8 / kThreads;  // of four words
  constexpr int kInputs = kTileTokens * kTileDepth / kThreads;             // of one row
  const int lane = ThreadX() % kWarp, warp = ThreadX() / kWarp, g = lane / 4, t = lane % 4;
  const int first_feature = BlockX() * kTileFeatures, first_token = BlockY() * kTileTokens;
  const int warp_feature = warp % (kTileFeatures / kWarpFeatures) * kWarpFeatures;
  const int warp_token = warp / (kTileFeatures / kWarpFeatures) * kWarpTokens;
  const int rows = Exact(task.rows);
  if (first_token >= rows) return;
  const bool has_tokens = first_token + warp_token < rows;  // all lanes of the warp

  FourWords next_weights[kWeightLoads];
  float next_x[kInputs];
  const int x_row = ThreadX() / (kTileDepth / kInputs);
  const int x_k = ThreadX() % (kTileDepth / kInputs) * kInputs;
  const auto load = [&](int first) {
    if (first >= task.padded_in) return;
    BST_UNROLL
    for (int i = 0; i < kWeightLoads; ++i) {
      const int at = ThreadX() + i * kThreads;
      const uint32_t* words = WeightWords(task, first_feature + at / (kTileDepth / 8)) + first / 2;
      next_weights[i] = *reinterpret_cast<const FourWords*>(words + at % (kTileDepth / 8) * 4);
    }
    const float* x = task.x.data + (first_token + x_row) * task.x.stride + first + x_k;
    BST_UNROLL
    for (int i = 0; i < kInputs; ++i) {
      const bool inside = first_token + x_row < rows && first + x_k + i < task.in;
      next_x[i] = inside ? x[i] : 0.0f;
    }
  };
  load(0);
  FragmentC sums[kFeatureTiles][kTokenTiles] = {};
  for (int first = 0; first < task.padded_in; first += kTileDepth) {
    SyncThreads();
    BST_UNROLL
    for (int i = 0; i < kWeightLoads; ++i) {
      const int at = ThreadX() + i * kThreads;
      uint32_t* to = ws + at / (kTileDepth / 8) * kTileWords + at % (kTileDepth / 8) * 4;
      *reinterpret_cast<FourWords*>(to) = next_weights[i];
    }
    BST_UNROLL
    for (int i = 0; i < kInputs; i += 2)
      xs[x_row * kTileWords + (x_k + i) / 2] = PackBf16(next_x[i], next_x[i + 1]);
    SyncThreads();
    load(first + kTileDepth);
    if (!has_tokens) continue;
    BST_UNROLL
    for (int k = 0; k < kTileDepth / 2; k += kFragmentDepth / 2) {  // in words
      FragmentA a[kFeatureTiles];
      BST_UNROLL
      for (int i = 0; i < kFeatureTiles; ++i) {
        const uint32_t* w = ws + (warp_feature + i * kFragmentRows + g) * kTileWords + k + t;
        a[i] = {{w[0], w[8 * kTileWords], w[4], w[8 * kTileWords + 4]}};
      }
      BST_UNROLL
      for (int j = 0; j < kTokenTiles; ++j) {
        const uint32_t* x = xs + (warp_token + j * kFragmentColumns + g) * kTileWords + k + t;
        const FragmentB b = {{x[0], x[4]}};
        BST_UNROLL
        for (int i = 0; i < kFeatureTiles; ++i) MultiplyAdd(a[i], b, sums[i][j]);
      }
    }
    if ((first + kTileDepth) % kLinearSegment != 0 && first + kTileDepth < task.padded_in) continue;
    BST_UNROLL
    for (int i = 0; i < kFeatureTiles; ++i) {
      BST_UNROLL
      for (int j = 0; j < kTokenTiles; ++j) {
        BST_UNROLL
        for (int c = 0; c < 4; ++c) {
          const int row = first_token + warp_token + j * kFragmentColumns + 2 * t + c % 2;
          const int feature = first_feature + warp_feature + i * kFragmentRows + g + c / 2 * 8;
          if (row < rows && feature < task.out_features) {
            AddSegment(task, first / kLinearSegment * kLinearSegment, row, feature,
                       sums[i][j].values[c]);
          }
          sums[i][j].values[c] = 0.0f;
        }
      }
    }
  }
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 3) bst_linear_few_f32(LinearTask task) { FewRows(task); }
BST_KERNEL void BST_BOUNDS(256, 2) bst_linear_few_bf16(LinearTask task) { FewTokens(task); }
BST_KERNEL void BST_BOUNDS(256, 3) bst_linear_tile_f32(LinearTask task) { Tile(task); }
BST_KERNEL void BST_BOUNDS(256, 2) bst_linear_tile_bf16(LinearTask task) { TokenTile(task); }

BST_KERNEL void BST_BOUNDS(256, 8) bst_round_rows(RoundTask task) {
  const float* x = task.x.data + BlockX() * task.x.stride;
  Bf16* out = static_cast<Bf16*>(task.out) + int64_t{BlockX()} * task.padded_columns;
  for (int k = ThreadX(); k < task.padded_columns; k += kThreads)
    out[k] = Store<Bf16>(k < task.columns ? x[k] : 0.0f);
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_count_differences(DifferenceTask task) {
  BST_SHARED(int, counts, kWarps);
  const float* a = task.a.data + BlockX() * task.a.stride;
  const float* b = task.b.data + BlockX() * task.b.stride;
  int count = 0;
  for (int c = ThreadX(); c < task.columns; c += kThreads)
    count += FloatBits(a[c]) != FloatBits(b[c]) && !(a[c] != a[c] && b[c] != b[c]);
  count = SumLanes(count, kWarp);
  if (ThreadX() % kWarp == 0) counts[ThreadX() / kWarp] = count;
  SyncThreads();
  if (ThreadX() != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) count += counts[warp];
  task.counts[BlockX()] = count;
}

void Linear(Stream& stream, bool bf16, const LinearTask& task) {
  if (task.rows.most == 0) return;
  const auto blocks = [](int n, int of) { return (n + of - 1) / of; };
  if (bf16 && task.rows.most <= kFewTokens) {
    const int segments = blocks(task.in, kLinearSegment);
    const LaunchShape shape = {.blocks_x = blocks(task.out_features, kFragmentRows),
                               .threads = kWarp * (segments < kWarps ? segments : kWarps)};
    BST_LAUNCH(bst_linear_few_bf16, shape, stream, task);
  } else if (bf16) {
    const LaunchShape shape = {.blocks_x = blocks(task.out_features, kTileFeatures),
                               .blocks_y = blocks(task.rows.most, kTileTokens)};
    BST_LAUNCH(bst_linear_tile_bf16, shape, stream, task);
  } else if (task.rows.most <= kFewRows) {
    const LaunchShape shape = {.blocks_x = blocks(task.out_features, kFewColumns)};
    BST_LAUNCH(bst_linear_few_f32, shape, stream, task);
  } else {
    const LaunchShape shape = {.blocks_x = blocks(task.out_features, kTile),
                               .blocks_y = blocks(task.rows.most, kTile)};
    BST_LAUNCH(bst_linear_tile_f32, shape, stream, task);
  }
}
void RoundRows(Stream& stream, const RoundTask& task) {
  if (task.rows > 0) BST_LAUNCH(bst_round_rows, LaunchShape{.blocks_x = task.rows}, stream, task);
}
void CountDifferences(Stream& stream, const DifferenceTask& task) {
  if (task.rows == 0) return;
  BST_LAUNCH(bst_count_differences, LaunchShape{.blocks_x = task.rows}, stream, task);
}

}  // namespace bst::cuda
