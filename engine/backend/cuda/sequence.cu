// The recurrences, the shared scan and the direct convolution. A recurrence walks along its row's
// tokens; the modes of a feature lie in neighbouring lanes (a power of two of them, each lane
// taking every lanes-th mode), so that decode and prompt do the same operations in the same order.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"

namespace bst::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSegment = 128;  // taps of a convolution that are added up before they join the sum

struct Complex {
  float re, im;
};

BST_DEVICE Complex At(const float* pairs, int64_t i) { return {pairs[2 * i], pairs[2 * i + 1]}; }
BST_DEVICE void Put(float* pairs, int64_t i, Complex x) {
  pairs[2 * i] = x.re;
  pairs[2 * i + 1] = x.im;
}
// sum + a b
BST_DEVICE Complex MultiplyAdd(Complex a, Complex b, Complex sum) {
  return {fmaf(a.re, b.re, fmaf(-a.im, b.im, sum.re)), fmaf(a.re, b.im, fmaf(a.im, b.re, sum.im))};
}
// sum + Re(a b)
BST_DEVICE float RealMultiplyAdd(Complex a, Complex b, float sum) {
  return fmaf(a.re, b.re, fmaf(-a.im, b.im, sum));
}

BST_DEVICE int LanesPerFeature(int modes) {
  int lanes = 1;
  while (lanes < modes && lanes < kWarp) lanes *= 2;
  return lanes;
}

// What a thread of a recurrence has: a feature of a row, and of its modes every lanes-th.
struct Place {
  int lanes, lane;
  bool inside;  // the feature exists; all lanes of a warp take part in its sums
  int feature;
  SequenceRow row;
};
BST_DEVICE Place PlaceOf(const RecurrenceTask& task) {
  const int lanes = LanesPerFeature(task.modes);
  const int feature = BlockX() * (kThreads / lanes) + ThreadX() / lanes;
  const bool inside = feature < task.features;
  return {lanes, ThreadX() % lanes, inside, inside ? feature : 0, task.rows[BlockY()]};
}

// y of the token after its update, if the token has an output.
BST_DEVICE void Output(const RecurrenceTask& task, const Place& at, int64_t position, float part,
                       float u, int& output) {
  if (position % task.block != task.block - 1) return;
  const float sum = SumLanes(part, at.lanes);
  if (at.inside && at.lane == 0) {
    task.y.data[output * task.y.stride + at.feature] = fmaf(task.d[at.feature], u, 2.0f * sum);
  }
  ++output;
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 4) bst_diagonal(RecurrenceTask task) {
  const Place at = PlaceOf(task);
  const int64_t first = static_cast<int64_t>(at.feature) * task.modes;
  float* x = static_cast<float*>(at.row.state);
  int output = at.row.first_output;
  for (int t = at.row.begin; t < at.row.end; ++t) {
    const float u = task.u.data[t * task.u.stride + at.feature % task.inputs];
    float part = 0.0f;
    if (at.inside) {
      for (int m = at.lane; m < task.modes; m += at.lanes) {
        const int64_t i = first + m;
        const Complex b = At(task.b, i), old = At(x, i);
        const Complex step = MultiplyAdd(At(task.e, i), old, {b.re * u, b.im * u});
        const Complex next = {old.re + step.re, old.im + step.im};
        Put(x, i, next);
        part = RealMultiplyAdd(At(task.c, i), next, part);
      }
    }
    Output(task, at, at.row.position + (t - at.row.begin), part, u, output);
  }
}

// See ssm.h for the formulas.
BST_KERNEL void BST_BOUNDS(256, 3) bst_dplr(RecurrenceTask task) {
  const Place at = PlaceOf(task);
  const int64_t first = static_cast<int64_t>(at.feature) * task.modes;
  const float dt = task.dt[at.feature];
  float* x = static_cast<float*>(at.row.state);
  int output = at.row.first_output;
  const auto v_of = [&](int64_t i, float s, float u) {
    const Complex p = At(task.p, i), b = At(task.b, i);
    const float factor = -dt * s;
    return MultiplyAdd(At(task.e, i), At(x, i),
                       {fmaf(p.re, factor, b.re * u), fmaf(p.im, factor, b.im * u)});
  };
  for (int t = at.row.begin; t < at.row.end; ++t) {
    const float u = task.u.data[t * task.u.stride + at.feature % task.inputs];
    float s = 0.0f, r = 0.0f, part = 0.0f;
    if (at.inside) {
      for (int m = at.lane; m < task.modes; m += at.lanes) {
        const Complex p = At(task.p, first + m);
        s = RealMultiplyAdd({p.re, -p.im}, At(x, first + m), s);
      }
    }
    s = 2.0f * SumLanes(s, at.lanes);
    if (at.inside) {
      for (int m = at.lane; m < task.modes; m += at.lanes)
        r = RealMultiplyAdd(At(task.w, first + m), v_of(first + m, s, u), r);
    }
    r = 2.0f * SumLanes(r, at.lanes);
    if (at.inside) {
      for (int m = at.lane; m < task.modes; m += at.lanes) {
        const int64_t i = first + m;
        const Complex v = v_of(i, s, u), p = At(task.p, i);
        const Complex next =
            MultiplyAdd(At(task.g, i), {fmaf(-p.re, r, v.re), fmaf(-p.im, r, v.im)}, At(x, i));
        Put(x, i, next);
        part = RealMultiplyAdd(At(task.c, i), next, part);
      }
    }
    Output(task, at, at.row.position + (t - at.row.begin), part, u, output);
  }
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_scan(ScanTask task) {
  const int mode = BlockX() * kThreads + ThreadX();
  if (mode >= task.modes) return;
  const SequenceRow row = task.rows[BlockY()];
  const Complex e = At(task.e, mode);
  Complex x = At(static_cast<const float*>(row.state), mode);
  for (int t = row.begin; t < row.end; ++t) {
    float* v = task.v.data + t * task.v.stride;
    const Complex step = MultiplyAdd(e, x, {v[mode], v[task.modes + mode]});
    x = {x.re + step.re, x.im + step.im};
    v[mode] = x.re;
    v[task.modes + mode] = x.im;
  }
  Put(static_cast<float*>(row.state), mode, x);
}

BST_KERNEL void BST_BOUNDS(256, 4) bst_convolution(ConvolutionTask task) {
  const int feature = BlockY() * kThreads + ThreadX();
  if (feature >= task.features) return;
  const ConvolutionOutput at = task.outputs[BlockX()];
  const int input = feature % task.inputs;
  const float* u = task.u.data + input;
  const int64_t reach = at.position + 1 < task.num_taps ? at.position + 1 : task.num_taps;
  float total = task.d[feature] * u[at.token * task.u.stride];
  for (int64_t first = 0; first < reach; first += kSegment) {
    const int64_t end = first + kSegment < reach ? first + kSegment : reach;
    float sum = 0.0f;
    for (int64_t s = first; s < end; ++s) {
      const float x = at.token - s >= at.begin
                          ? u[(at.token - s) * task.u.stride]
                          : at.ring[(at.position - s) % task.num_taps * task.inputs + input];
      sum = fmaf(task.taps[s * task.features + feature], x, sum);
    }
    total += sum;
  }
  task.y.data[BlockX() * task.y.stride + feature] = total;
}

namespace {

LaunchShape RecurrenceShape(const RecurrenceTask& task) {
  int lanes = 1;
  while (lanes < task.modes && lanes < kWarp) lanes *= 2;
  const int features = kThreads / lanes;  // of a block
  return {.blocks_x = (task.features + features - 1) / features, .blocks_y = task.num_rows};
}

}  // namespace

void Diagonal(Stream& stream, const RecurrenceTask& task) {
  if (task.num_rows > 0) BST_LAUNCH(bst_diagonal, RecurrenceShape(task), stream, task);
}
void Dplr(Stream& stream, const RecurrenceTask& task) {
  if (task.num_rows > 0) BST_LAUNCH(bst_dplr, RecurrenceShape(task), stream, task);
}
void Scan(Stream& stream, const ScanTask& task) {
  if (task.num_rows == 0) return;
  const LaunchShape shape = {.blocks_x = (task.modes + kThreads - 1) / kThreads,
                             .blocks_y = task.num_rows};
  BST_LAUNCH(bst_scan, shape, stream, task);
}
void Convolution(Stream& stream, const ConvolutionTask& task) {
  if (task.num_outputs == 0) return;
  const LaunchShape shape = {.blocks_x = task.num_outputs,
                             .blocks_y = (task.features + kThreads - 1) / kThreads};
  BST_LAUNCH(bst_convolution, shape, stream, task);
}

}  // namespace bst::cuda
