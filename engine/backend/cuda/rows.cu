// Rows and heads: gathered, normalised, rotated, scored. Sums of squares are float64, as huge
// activations ask for; a sum is over a thread's columns first, then over lanes, then over warps.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

BST_DEVICE double BlockSum(double x) {
  BST_SHARED(double, sums, kWarps);
  x = SumLanes(x, kWarp);
  if (ThreadX() % kWarp == 0) sums[ThreadX() / kWarp] = x;
  SyncThreads();
  double total = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
  return total;
}

BST_DEVICE float BlockMax(float x) {
  BST_SHARED(float, tops, kWarps);
  x = MaxLanes(x);
  if (ThreadX() % kWarp == 0) tops[ThreadX() / kWarp] = x;
  SyncThreads();
  float top = tops[0];
  for (int warp = 1; warp < kWarps; ++warp) top = fmaxf(top, tops[warp]);
  return top;
}

// (a, b) by an angle.
BST_DEVICE void Turn(float a, float b, float cosine, float sine, float& turned_a, float& turned_b) {
  turned_a = a * cosine - b * sine;
  turned_b = b * cosine + a * sine;
}

template <typename T>
BST_DEVICE void GatherRow(const GatherTask& task) {
  if (HasNoRow(task.rows)) return;
  const T* from = static_cast<const T*>(task.table) + task.indices[BlockX()] * task.table_stride;
  float* out = task.out.data + BlockX() * task.out.stride;
  for (int c = ThreadX(); c < task.columns; c += NumThreads()) out[c] = Load(from[c]);
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 8) bst_gather_f32(GatherTask task) { GatherRow<float>(task); }
BST_KERNEL void BST_BOUNDS(256, 8) bst_gather_bf16(GatherTask task) { GatherRow<Bf16>(task); }

BST_KERNEL void BST_BOUNDS(256, 8) bst_rms_norm(RmsNormTask task) {
  if (HasNoRow(task.rows)) return;
  const float* x = task.x.data + BlockX() * task.x.stride;
  float* out = task.out.data + BlockX() * task.out.stride;
  double squares = 0.0;
  for (int c = ThreadX(); c < task.columns; c += kThreads)
    squares += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  squares = BlockSum(squares);
  const double factor =
      1.0 / sqrt(squares / static_cast<double>(task.columns) + static_cast<double>(task.epsilon));
  for (int c = ThreadX(); c < task.columns; c += kThreads)
    out[c] = task.gain[c] * static_cast<float>(static_cast<double>(x[c]) * factor);
}

namespace {

// A head of a warp; a lane has the columns j and j + half, j = lane, lane + 32 .., and lane 0 the
// last one of an odd number: those that it may turn.
struct Head {
  float* x;
  int row, lane, half;
  double factor;
};
// False: none.
BST_DEVICE bool NormalizedHead(const NormalizeTask& task, Head& head) {
  const int index = BlockX() * kWarps + ThreadX() / kWarp, lane = ThreadX() % kWarp;
  if (index >= Exact(task.rows) * task.heads) return false;
  const int row = index / task.heads, half = task.head_dim / 2;
  float* x =
      task.x.data + row * task.x.stride + static_cast<int64_t>(index % task.heads) * task.head_dim;
  double squares = 0.0;
  const auto add = [&](int c) { squares += static_cast<double>(x[c]) * static_cast<double>(x[c]); };
  for (int j = lane; j < half; j += kWarp) {
    add(j);
    add(j + half);
  }
  if (lane == 0 && task.head_dim % 2 != 0) add(2 * half);
  head = {x, row, lane, half, 1.0 / sqrt(SumLanes(squares, kWarp) + 1e-6)};
  return true;
}
BST_DEVICE float Normalized(const Head& head, int c) {
  return static_cast<float>(static_cast<double>(head.x[c]) * head.factor);
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 4) bst_normalize_heads(NormalizeTask task) {
  Head head;
  if (!NormalizedHead(task, head)) return;
  for (int j = head.lane; j < head.half; j += kWarp) {
    head.x[j] = Normalized(head, j);
    head.x[j + head.half] = Normalized(head, j + head.half);
  }
  const int last = 2 * head.half;
  if (head.lane == 0 && task.head_dim % 2 != 0) head.x[last] = Normalized(head, last);
}

BST_KERNEL void BST_BOUNDS(256, 4) bst_normalize_and_rotate_heads(NormalizeTask task) {
  Head head;
  if (!NormalizedHead(task, head)) return;
  const float* cosines = task.rotary.data + head.row * task.rotary.stride;
  for (int j = head.lane; j < head.half; j += kWarp) {
    float* x = head.x + j;
    Turn(Normalized(head, j), Normalized(head, j + head.half), cosines[j], cosines[head.half + j],
         x[0], x[head.half]);
  }
}

BST_KERNEL void BST_BOUNDS(256, 4) bst_rotary_table(RotaryTableTask task) {
  const int64_t i = static_cast<int64_t>(BlockX()) * kThreads + ThreadX();
  if (i >= static_cast<int64_t>(Exact(task.rows)) * task.half) return;
  const auto row = i / task.half, j = i % task.half;
  const double frequency =
      exp(-task.log_theta * static_cast<double>(j) / static_cast<double>(task.half));
  const double angle = static_cast<double>(task.positions[row]) * frequency;
  float* table = task.table.data + row * task.table.stride;
  table[j] = static_cast<float>(cos(angle));
  table[task.half + j] = static_cast<float>(sin(angle));
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_rotate(RotateTask task) {
  if (HasNoRow(task.rows)) return;
  const float* cosines = task.table.data + BlockX() * task.table.stride;
  const float* sines = cosines + task.half;
  for (int i = ThreadX(); i < task.heads * task.half; i += kThreads) {
    const int j = i % task.half;
    float* v = task.x.data + BlockX() * task.x.stride +
               static_cast<int64_t>(i / task.half) * 2 * task.half + j;
    Turn(v[0], v[task.half], cosines[j], sines[j], v[0], v[task.half]);
  }
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_target_logprobs(LogprobTask task) {
  const float* logits = task.logits.data + BlockX() * task.logits.stride;
  float top = logits[0];
  for (int c = ThreadX(); c < task.columns; c += kThreads) top = fmaxf(top, logits[c]);
  top = BlockMax(top);
  double sum = 0.0;
  for (int c = ThreadX(); c < task.columns; c += kThreads)
    sum += static_cast<double>(expf(logits[c] - top));
  sum = BlockSum(sum);
  if (ThreadX() == 0) {
    task.logprobs[BlockX()] = static_cast<float>(
        static_cast<double>(logits[task.targets[BlockX()]]) - static_cast<double>(top) - log(sum));
  }
}

void Gather(Stream& stream, bool bf16, const GatherTask& task) {
  if (task.rows.most == 0) return;
  if (bf16) {
    BST_LAUNCH(bst_gather_bf16, LaunchShape{.blocks_x = task.rows.most}, stream, task);
  } else {
    BST_LAUNCH(bst_gather_f32, LaunchShape{.blocks_x = task.rows.most}, stream, task);
  }
}
void RmsNorm(Stream& stream, const RmsNormTask& task) {
  if (task.rows.most == 0) return;
  BST_LAUNCH(bst_rms_norm, LaunchShape{.blocks_x = task.rows.most}, stream, task);
}
void NormalizeHeads(Stream& stream, const NormalizeTask& task) {
  if (task.rows.most == 0) return;
  const LaunchShape shape = {.blocks_x = (task.rows.most * task.heads + kWarps - 1) / kWarps};
  if (task.rotary.data == nullptr) {
    BST_LAUNCH(bst_normalize_heads, shape, stream, task);
  } else {
    BST_LAUNCH(bst_normalize_and_rotate_heads, shape, stream, task);
  }
}
void RotaryTable(Stream& stream, const RotaryTableTask& task) {
  if (task.rows.most == 0) return;
  const int64_t angles = static_cast<int64_t>(task.rows.most) * task.half;
  const LaunchShape shape = {.blocks_x = static_cast<int>((angles + kThreads - 1) / kThreads)};
  BST_LAUNCH(bst_rotary_table, shape, stream, task);
}
void Rotate(Stream& stream, const RotateTask& task) {
  if (task.rows.most == 0) return;
  BST_LAUNCH(bst_rotate, LaunchShape{.blocks_x = task.rows.most}, stream, task);
}
void TargetLogprobs(Stream& stream, const LogprobTask& task) {
  if (task.rows == 0) return;
  BST_LAUNCH(bst_target_logprobs, LaunchShape{.blocks_x = task.rows}, stream, task);
}

}  // namespace bst::cuda
