// Two kernels, one order of summation (kernels.h). Up to kFewRows rows are bound by the weights'
// bytes: a warp has 32 columns and one segment of the inputs at a time, eight warps share a block's
// columns. More rows go through tiles of 64 x 64 in shared memory.
#include "engine/backend/cuda/activation.cuh"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"

namespace bst::cuda {
namespace {

constexpr int kSegment = 128;
constexpr int kFewRows = 4;
constexpr int kWarps = 8;
constexpr int kTile = 64;
constexpr int kDepth = 16;  // of a tile; divides kSegment
constexpr int kMicro = 4;   // a thread's outputs: kMicro x kMicro
constexpr int kThreads = 256;
static_assert(kTile == kLinearColumns && kSegment % kDepth == 0);
static_assert(kThreads == kWarps * kWarp && kThreads * kMicro * kMicro == kTile * kTile);

BST_DEVICE void Finish(const LinearTask& task, int row, int column, float sum) {
  float& out = task.out.data[row * task.out.stride + column];
  if (task.add) {
    out += sum;
  } else {
    out = Apply(task.activation, sum * task.scale);
  }
}

template <typename T>
BST_DEVICE void FewRows(const LinearTask& task) {
  BST_SHARED(float, parts, kWarps* kFewRows* kWarp);
  const int lane = ThreadX() % kWarp, warp = ThreadX() / kWarp;
  const int column = BlockX() * kWarp + lane;  // < padded_out
  const T* weights = static_cast<const T*>(task.weights) + column;
  float total = 0.0f;  // of row `warp`
  for (int first = 0; first < task.in; first += kWarps * kSegment) {
    const int begin = first + warp * kSegment;
    const int end = begin + kSegment < task.in ? begin + kSegment : task.in;
    float sums[kFewRows] = {};
    for (int k = begin; k < end; ++k) {
      const float w = Load(weights[int64_t{k} * task.padded_out]);
      for (int r = 0; r < kFewRows; ++r) {
        if (r < task.rows) sums[r] = fmaf(Round<T>(task.x.data[r * task.x.stride + k]), w, sums[r]);
      }
    }
    for (int r = 0; r < kFewRows; ++r) parts[(warp * kFewRows + r) * kWarp + lane] = sums[r];
    SyncThreads();
    if (warp < task.rows) {
      for (int s = 0; s < kWarps && first + s * kSegment < task.in; ++s)
        total += parts[(s * kFewRows + warp) * kWarp + lane];
    }
    SyncThreads();
  }
  if (warp < task.rows && column < task.out_features) Finish(task, warp, column, total);
}

template <typename T>
BST_DEVICE void Tile(const LinearTask& task) {
  BST_SHARED(float, xs, kDepth*(kTile + 1));  // [k][row]; the odd stride spreads the banks
  BST_SHARED(float, ws, kDepth* kTile);       // [k][column]
  const int first_row = BlockY() * kTile, first_column = BlockX() * kTile;
  const int x0 = ThreadX() % (kTile / kMicro), y0 = ThreadX() / (kTile / kMicro) * kMicro;
  const T* weights = static_cast<const T*>(task.weights) + first_column;
  float sums[kMicro][kMicro] = {}, totals[kMicro][kMicro] = {};
  for (int first = 0; first < task.in; first += kDepth) {
    const int depth = task.in - first < kDepth ? task.in - first : kDepth;
    for (int i = ThreadX(); i < kTile * kDepth; i += kThreads) {
      const int k = i % kDepth, row = i / kDepth;
      const bool inside = k < depth && first_row + row < task.rows;
      const float x = inside ? task.x.data[(first_row + row) * task.x.stride + first + k] : 0.0f;
      xs[k * (kTile + 1) + row] = Round<T>(x);
    }
    for (int i = ThreadX(); i < kTile * kDepth; i += kThreads) {
      const int k = i / kTile, column = i % kTile;
      ws[i] = k < depth ? Load(weights[int64_t{first + k} * task.padded_out + column]) : 0.0f;
    }
    SyncThreads();
    for (int k = 0; k < depth; ++k) {
      float x[kMicro], w[kMicro];
      for (int i = 0; i < kMicro; ++i) x[i] = xs[k * (kTile + 1) + y0 + i];
      for (int j = 0; j < kMicro; ++j) w[j] = ws[k * kTile + x0 + j * (kTile / kMicro)];
      for (int i = 0; i < kMicro; ++i) {
        for (int j = 0; j < kMicro; ++j) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
      }
    }
    if ((first + kDepth) % kSegment == 0 || first + kDepth >= task.in) {
      for (int i = 0; i < kMicro; ++i) {
        for (int j = 0; j < kMicro; ++j) {
          totals[i][j] += sums[i][j];
          sums[i][j] = 0.0f;
        }
      }
    }
    SyncThreads();
  }
  for (int i = 0; i < kMicro; ++i) {
    for (int j = 0; j < kMicro; ++j) {
      const int row = first_row + y0 + i, column = first_column + x0 + j * (kTile / kMicro);
      if (row < task.rows && column < task.out_features) Finish(task, row, column, totals[i][j]);
    }
  }
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 4) bst_linear_few_f32(LinearTask task) { FewRows<float>(task); }
BST_KERNEL void BST_BOUNDS(256, 4) bst_linear_few_bf16(LinearTask task) { FewRows<Bf16>(task); }
BST_KERNEL void BST_BOUNDS(256, 3) bst_linear_tile_f32(LinearTask task) { Tile<float>(task); }
BST_KERNEL void BST_BOUNDS(256, 3) bst_linear_tile_bf16(LinearTask task) { Tile<Bf16>(task); }

void Linear(Stream& stream, bool bf16, const LinearTask& task) {
  if (task.rows == 0) return;
  if (task.rows <= kFewRows) {
    const LaunchShape shape = {.blocks_x = (task.out_features + kWarp - 1) / kWarp};
    if (bf16) {
      BST_LAUNCH(bst_linear_few_bf16, shape, stream, task);
    } else {
      BST_LAUNCH(bst_linear_few_f32, shape, stream, task);
    }
    return;
  }
  const LaunchShape shape = {.blocks_x = (task.out_features + kTile - 1) / kTile,
                             .blocks_y = (task.rows + kTile - 1) / kTile};
  if (bf16) {
    BST_LAUNCH(bst_linear_tile_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_linear_tile_f32, shape, stream, task);
  }
}

}  // namespace bst::cuda
