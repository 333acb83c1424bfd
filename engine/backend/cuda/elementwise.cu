// One row per block, its threads along the columns.
#include "engine/backend/cuda/activation.cuh"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

BST_DEVICE float* RowOf(const Matrix& matrix) { return matrix.data + BlockX() * matrix.stride; }

LaunchShape RowPerBlock(int rows, int columns) {
  const int threads = (columns + kWarp - 1) / kWarp * kWarp;
  return {.blocks_x = rows, .threads = threads < 256 ? threads : 256};
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 8) bst_gate(GateTask task) {
  if (HasNoRow(task.rows)) return;
  const float* x = RowOf(task.x);
  float* out = RowOf(task.out);
  for (int f = ThreadX(); f < task.columns; f += NumThreads())
    out[f] = Apply(task.activation, x[f]) * x[task.columns + f];
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_activate(ActivateTask task) {
  float* x = RowOf(task.x);
  for (int f = ThreadX(); f < task.columns; f += NumThreads()) x[f] = Apply(task.activation, x[f]);
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_add_scaled(AddScaledTask task) {
  if (HasNoRow(task.rows)) return;
  const float* x = RowOf(task.x);
  float* y = RowOf(task.y);
  for (int f = ThreadX(); f < task.columns; f += NumThreads())
    y[f] = fmaf(task.gain[f], x[f % task.inputs], y[f]);
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_multiply(MultiplyTask task) {
  if (HasNoRow(task.rows)) return;
  const float* x = RowOf(task.x);
  float* y = RowOf(task.y);
  for (int f = ThreadX(); f < task.columns; f += NumThreads()) y[f] *= x[f];
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_add_table(AddTableTask task) {
  if (HasNoRow(task.rows)) return;
  const float* table = task.table.data + BlockX() % task.table_rows * task.table.stride;
  float* x = RowOf(task.x);
  for (int f = ThreadX(); f < task.columns; f += NumThreads()) x[f] += table[f];
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_interpolate(InterpolateTask task) {
  if (HasNoRow(task.rows)) return;
  const float* s = RowOf(task.s);
  float* z = RowOf(task.z);
  for (int f = ThreadX(); f < task.columns; f += NumThreads()) {
    const float gate = task.gate[f];
    z[f] = fmaf(s[f], gate, z[f] * (1.0f - gate));
  }
}

void Gate(Stream& stream, const GateTask& task) {
  if (task.rows.most > 0)
    BST_LAUNCH(bst_gate, RowPerBlock(task.rows.most, task.columns), stream, task);
}
void Activate(Stream& stream, const ActivateTask& task) {
  if (task.rows > 0) BST_LAUNCH(bst_activate, RowPerBlock(task.rows, task.columns), stream, task);
}
void AddScaled(Stream& stream, const AddScaledTask& task) {
  if (task.rows.most > 0)
    BST_LAUNCH(bst_add_scaled, RowPerBlock(task.rows.most, task.columns), stream, task);
}
void Multiply(Stream& stream, const MultiplyTask& task) {
  if (task.rows.most > 0)
    BST_LAUNCH(bst_multiply, RowPerBlock(task.rows.most, task.columns), stream, task);
}
void AddTable(Stream& stream, const AddTableTask& task) {
  if (task.rows.most > 0)
    BST_LAUNCH(bst_add_table, RowPerBlock(task.rows.most, task.columns), stream, task);
}
void Interpolate(Stream& stream, const InterpolateTask& task) {
  if (task.rows.most > 0)
    BST_LAUNCH(bst_interpolate, RowPerBlock(task.rows.most, task.columns), stream, task);
}

}  // namespace bst::cuda
