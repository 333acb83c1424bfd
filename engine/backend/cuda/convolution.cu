// Explicit filters: the direct sum over the newest inputs, a thread per output and feature; and
// around the transforms (fft.h) what a block of inputs gets from the blocks before it.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSegment = 128;  // taps that are added up before they join the sum
constexpr int kTile = 32;      // of a transposition
constexpr int kTileRows = kThreads / kTile;

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 4) bst_convolution(ConvolutionTask task) {
  const int feature = BlockY() * kThreads + ThreadX();
  if (feature >= task.features || HasNoRow(task.num_outputs)) return;
  const ConvolutionOutput at = task.outputs[BlockX()];
  const int input = feature % task.inputs;
  const float* u = task.u.data + input;
  float total = task.d[feature] * u[at.token * task.u.stride];
  if (at.base != nullptr) total += at.base[feature];
  for (int first = 0; first < at.reach; first += kSegment) {
    const int end = first + kSegment < at.reach ? first + kSegment : at.reach;
    float sum = 0.0f;
    for (int s = first; s < end; ++s) {
      const float x = at.token - s >= at.begin
                          ? u[(at.token - s) * task.u.stride]
                          : at.ring[(at.position - s) % task.ring_rows * task.inputs + input];
      sum = fmaf(task.taps[int64_t{s} * task.features + feature], x, sum);
    }
    total += sum;
  }
  task.y.data[at.output * task.y.stride + feature] = total;
}

// Transposed by tiles in shared memory, so that both sides are read and written along their rows.
// Each thread writes one column of a tile and reads another: the barrier is between.
BST_KERNEL void BST_BOUNDS(256, 4) bst_load_block(LoadBlockTask task) {
  BST_SHARED(float, tile, kTile*(kTile + 1));
  const int x = ThreadX() % kTile, y = ThreadX() / kTile;
  const int first_input = BlockX() * kTile, first_row = BlockY() * kTile;
  const BlockPlace place = *task.place;
  for (int r = y; r < kTile; r += kTileRows) {
    const int row = first_row + r, input = first_input + x;
    float value = 0.0f;
    if (row < task.rows && input < task.inputs) {
      const int64_t position = place.position + row;
      value =
          position >= place.row.position
              ? task.u.data[(place.row.begin + (position - place.row.position)) * task.u.stride +
                            input]
              : static_cast<const float*>(
                    place.row.state)[position % task.ring_rows * task.inputs + input];
    }
    tile[r * (kTile + 1) + x] = value;
  }
  SyncThreads();
  for (int r = y; r < kTile; r += kTileRows) {
    const int input = first_input + r, row = first_row + x;
    if (input < task.inputs && row < task.size)
      task.reals[int64_t{input} * task.size + row] = tile[x * (kTile + 1) + r];
  }
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_store_base(StoreBaseTask task) {
  BST_SHARED(float, tile, kTile*(kTile + 1));
  const int x = ThreadX() % kTile, y = ThreadX() / kTile;
  const int first_feature = BlockX() * kTile, first_row = BlockY() * kTile;
  float* base = task.place->base;
  for (int r = y; r < kTile; r += kTileRows) {
    const int feature = first_feature + r, row = first_row + x;
    tile[r * (kTile + 1) + x] = feature < task.features && row < task.rows
                                    ? task.reals[int64_t{feature} * task.size + task.rows + row]
                                    : 0.0f;
  }
  SyncThreads();
  for (int r = y; r < kTile; r += kTileRows) {
    const int feature = first_feature + x, row = first_row + r;
    if (feature < task.features && row < task.rows)
      base[int64_t{row} * task.features + feature] = tile[x * (kTile + 1) + r];
  }
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_multiply_spectra(SpectraTask task) {
  const int point = BlockY() * kThreads + ThreadX(), feature = BlockX();
  if (point >= task.points) return;
  const int input = feature % task.inputs;
  float re = 0.0f, im = 0.0f;
  for (int p = 0; p < task.count; ++p) {  // the newest block first
    const int block = (task.newest - p + task.ring) % task.ring;
    const float* a =
        task.inputs_spectra + 2 * ((int64_t{block} * task.inputs + input) * task.points + point);
    const float* b =
        task.filters + 2 * ((int64_t{p} * task.features + feature) * task.points + point);
    re = fmaf(a[0], b[0], fmaf(-a[1], b[1], re));
    im = fmaf(a[0], b[1], fmaf(a[1], b[0], im));
  }
  float* out = task.sums + 2 * (int64_t{feature} * task.points + point);
  out[0] = re;
  out[1] = im;
}

void Convolution(Stream& stream, const ConvolutionTask& task) {
  if (task.num_outputs.most == 0) return;
  const LaunchShape shape = {.blocks_x = task.num_outputs.most,
                             .blocks_y = (task.features + kThreads - 1) / kThreads};
  BST_LAUNCH(bst_convolution, shape, stream, task);
}
void LoadBlock(Stream& stream, const LoadBlockTask& task) {
  const LaunchShape shape = {.blocks_x = (task.inputs + kTile - 1) / kTile,
                             .blocks_y = (task.size + kTile - 1) / kTile};
  BST_LAUNCH(bst_load_block, shape, stream, task);
}
void StoreBase(Stream& stream, const StoreBaseTask& task) {
  const LaunchShape shape = {.blocks_x = (task.features + kTile - 1) / kTile,
                             .blocks_y = (task.rows + kTile - 1) / kTile};
  BST_LAUNCH(bst_store_base, shape, stream, task);
}
void MultiplySpectra(Stream& stream, const SpectraTask& task) {
  const LaunchShape shape = {.blocks_x = task.features,
                             .blocks_y = (task.points + kThreads - 1) / kThreads};
  BST_LAUNCH(bst_multiply_spectra, shape, stream, task);
}

}  // namespace bst::cuda
