// Rows and heads: gathered, normalised, rotated, scored. Sums of squares are float64, as huge
// activations ask for; a sum is over a thread's columns first, then over lanes, then over warps if
// a row has several.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/four_floats.cuh"
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

namespace {

constexpr int kNormThreads = 64;  // a row of each warp
constexpr int kNormRows = kNormThreads / kWarp;
constexpr int kHeldFours = 8;  // of a lane: up to 1,024 columns are read once

}  // namespace

BST_KERNEL void BST_BOUNDS(64, 10) bst_rms_norm(RmsNormTask task) {
  const int row = BlockX() * kNormRows + ThreadX() / kWarp, lane = ThreadX() % kWarp;
  if (row >= Exact(task.rows)) return;
  const float* const x = task.x.data + row * task.x.stride;
  float* const out = task.out.data + row * task.out.stride;
  const bool is_wide = task.columns % 4 == 0 && IsWide(task.x) && IsWide(task.out) &&
                       reinterpret_cast<uintptr_t>(task.gain) % sizeof(FourFloats) == 0;
  const auto load = [&](const float* from, int c) {  // zeros beyond the columns
    FourFloats four = {};
    if (is_wide) {
      if (c < task.columns) four = *reinterpret_cast<const FourFloats*>(from + c);
    } else {
      BST_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (c + k < task.columns) four.values[k] = from[c + k];
      }
    }
    return four;
  };
  double squares = 0.0;
  const auto add = [&](const FourFloats& four) {
    BST_UNROLL
    for (int k = 0; k < 4; ++k)
      squares += static_cast<double>(four.values[k]) * static_cast<double>(four.values[k]);
  };
  FourFloats held[kHeldFours];
  BST_UNROLL
  for (int i = 0; i < kHeldFours; ++i) held[i] = load(x, (i * kWarp + lane) * 4);
  BST_UNROLL
  for (int i = 0; i < kHeldFours; ++i) add(held[i]);
  constexpr int kHeldColumns = kHeldFours * kWarp * 4;
  BST_NO_UNROLL
  for (int c = kHeldColumns + lane * 4; c < task.columns; c += kWarp * 4) add(load(x, c));
  const double factor = InverseRoot(SumLanes(squares, kWarp) / static_cast<double>(task.columns) +
                                    static_cast<double>(task.epsilon));
  const auto store = [&](int c, const FourFloats& four) {
    const FourFloats gain = load(task.gain, c);
    FourFloats scaled;
    BST_UNROLL
    for (int k = 0; k < 4; ++k) {
      scaled.values[k] =
          gain.values[k] * static_cast<float>(static_cast<double>(four.values[k]) * factor);
    }
    if (is_wide) {
      if (c < task.columns) *reinterpret_cast<FourFloats*>(out + c) = scaled;
    } else {
      BST_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (c + k < task.columns) out[c + k] = scaled.values[k];
      }
    }
  };
  BST_UNROLL
  for (int i = 0; i < kHeldFours; ++i) store((i * kWarp + lane) * 4, held[i]);
  BST_NO_UNROLL
  for (int c = kHeldColumns + lane * 4; c < task.columns; c += kWarp * 4) store(c, load(x, c));
}

namespace {

constexpr int kHeldPairs = 2;  // of a lane: heads of up to 128 columns are read once

// Heads of a warp each. A lane has the columns j and j + half, j = lane, lane + 32 .., and lane 0
// the last one of an odd number: those that it may turn. store(x, row, j, a, b) gets where the head
// is and the normalised columns j and j + half.
template <typename Store>
BST_DEVICE void NormalizeHead(const NormalizeTask& task, Store store) {
  const int index = BlockX() * kWarps + ThreadX() / kWarp, lane = ThreadX() % kWarp;
  if (index >= Exact(task.rows) * task.heads) return;
  const int row = index / task.heads, half = task.head_dim / 2;
  float* const x =
      task.x.data + row * task.x.stride + static_cast<int64_t>(index % task.heads) * task.head_dim;
  double squares = 0.0;
  const auto add = [&](float v) { squares += static_cast<double>(v) * static_cast<double>(v); };
  float held[kHeldPairs][2] = {};
  BST_UNROLL
  for (int i = 0; i < kHeldPairs; ++i) {
    const int j = i * kWarp + lane;
    if (j >= half) continue;
    held[i][0] = x[j];
    held[i][1] = x[j + half];
  }
  BST_UNROLL
  for (int i = 0; i < kHeldPairs; ++i) {
    add(held[i][0]);
    add(held[i][1]);
  }
  BST_NO_UNROLL
  for (int j = kHeldPairs * kWarp + lane; j < half; j += kWarp) {
    add(x[j]);
    add(x[j + half]);
  }
  const bool has_last = lane == 0 && task.head_dim % 2 != 0;
  if (has_last) add(x[2 * half]);
  const double factor = InverseRoot(SumLanes(squares, kWarp) + 1e-6);
  const auto normalized = [&](float v) {
    return static_cast<float>(static_cast<double>(v) * factor);
  };
  BST_UNROLL
  for (int i = 0; i < kHeldPairs; ++i) {
    const int j = i * kWarp + lane;
    if (j < half) store(x, row, j, normalized(held[i][0]), normalized(held[i][1]));
  }
  BST_NO_UNROLL
  for (int j = kHeldPairs * kWarp + lane; j < half; j += kWarp)
    store(x, row, j, normalized(x[j]), normalized(x[j + half]));
  if (has_last) x[2 * half] = normalized(x[2 * half]);
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 6) bst_normalize_heads(NormalizeTask task) {
  NormalizeHead(task, [&](float* x, int /*row*/, int j, float a, float b) {
    x[j] = a;
    x[j + task.head_dim / 2] = b;
  });
}

BST_KERNEL void BST_BOUNDS(256, 6) bst_normalize_and_rotate_heads(NormalizeTask task) {
  NormalizeHead(task, [&](float* x, int row, int j, float a, float b) {
    const int half = task.head_dim / 2;
    const float* const cosines = task.rotary.data + row * task.rotary.stride;
    Turn(a, b, cosines[j], cosines[half + j], x[j], x[j + half]);
  });
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

void Gather(Stream& stream, Element table, const GatherTask& task) {
  if (task.rows.most == 0) return;
  if (table == Element::kBf16) {
    BST_LAUNCH(bst_gather_bf16, LaunchShape{.blocks_x = task.rows.most}, stream, task);
  } else {
    BST_LAUNCH(bst_gather_f32, LaunchShape{.blocks_x = task.rows.most}, stream, task);
  }
}
void RmsNorm(Stream& stream, const RmsNormTask& task) {
  if (task.rows.most == 0) return;
  const LaunchShape shape = {.blocks_x = (task.rows.most + kNormRows - 1) / kNormRows,
                             .threads = kNormThreads};
  BST_LAUNCH(bst_rms_norm, shape, stream, task);
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
