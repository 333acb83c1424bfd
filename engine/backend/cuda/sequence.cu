// The recurrences and the shared scan. A recurrence walks along its row's
// tokens; the modes of a feature lie in neighbouring lanes (a power of two of them, each lane
// taking every lanes-th mode), so that decode and prompt do the same operations in the same order.
// Bound by the chain of a token's update along the row: state and weights of a lane's first modes
// are in registers.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"

namespace bst::cuda {
namespace {

constexpr int kThreads = 256;

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

// Of a lane's modes the first ones stay in registers along the row, the others in memory.
constexpr int kHeld = 2;

BST_DEVICE Complex DiagonalStep(Complex e, Complex b, Complex x, float u) {
  const Complex step = MultiplyAdd(e, x, {b.re * u, b.im * u});
  return {x.re + step.re, x.im + step.im};
}

struct DplrMode {
  Complex e, b, p, w, g, c;
};
// v of ssm.h; factor is -dt s.
BST_DEVICE Complex DplrInput(const DplrMode& mode, Complex x, float factor, float u) {
  return MultiplyAdd(
      mode.e, x, {fmaf(mode.p.re, factor, mode.b.re * u), fmaf(mode.p.im, factor, mode.b.im * u)});
}
BST_DEVICE Complex DplrStep(const DplrMode& mode, Complex v, float r, Complex x) {
  return MultiplyAdd(mode.g, {fmaf(-mode.p.re, r, v.re), fmaf(-mode.p.im, r, v.im)}, x);
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 2) bst_diagonal(RecurrenceTask task) {
  const Place at = PlaceOf(task);
  const int64_t first = static_cast<int64_t>(at.feature) * task.modes;
  float* states = static_cast<float*>(at.row.state);
  const auto held_mode = [&](int i) { return at.lane + i * at.lanes; };
  const auto has_held = [&](int i) { return at.inside && held_mode(i) < task.modes; };
  Complex x[kHeld] = {}, e[kHeld] = {}, b[kHeld] = {}, c[kHeld] = {};
  BST_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    if (!has_held(i)) continue;
    const int64_t place = first + held_mode(i);
    x[i] = At(states, place);
    e[i] = At(task.e, place);
    b[i] = At(task.b, place);
    c[i] = At(task.c, place);
  }
  int output = at.row.first_output;
  const float* u_column = task.u.data + at.feature % task.inputs;
  float next_u = u_column[at.row.begin * task.u.stride];
  for (int t = at.row.begin; t < at.row.end; ++t) {
    const float u = next_u;
    if (t + 1 < at.row.end) next_u = u_column[(t + 1) * task.u.stride];
    float part = 0.0f;
    BST_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      if (!has_held(i)) continue;
      x[i] = DiagonalStep(e[i], b[i], x[i], u);
      part = RealMultiplyAdd(c[i], x[i], part);
    }
    if (at.inside) {
      for (int m = held_mode(kHeld); m < task.modes; m += at.lanes) {
        const int64_t place = first + m;
        const Complex next =
            DiagonalStep(At(task.e, place), At(task.b, place), At(states, place), u);
        Put(states, place, next);
        part = RealMultiplyAdd(At(task.c, place), next, part);
      }
    }
    Output(task, at, at.row.position + (t - at.row.begin), part, u, output);
  }
  BST_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    if (has_held(i)) Put(states, first + held_mode(i), x[i]);
  }
}

// See ssm.h for the formulas.
BST_KERNEL void BST_BOUNDS(256, 2) bst_dplr(RecurrenceTask task) {
  const Place at = PlaceOf(task);
  const int64_t first = static_cast<int64_t>(at.feature) * task.modes;
  const float dt = task.dt[at.feature];
  float* states = static_cast<float*>(at.row.state);
  const auto held_mode = [&](int i) { return at.lane + i * at.lanes; };
  const auto has_held = [&](int i) { return at.inside && held_mode(i) < task.modes; };
  const auto mode_at = [&](int64_t place) {
    return DplrMode{At(task.e, place), At(task.b, place), At(task.p, place),
                    At(task.w, place), At(task.g, place), At(task.c, place)};
  };
  DplrMode held[kHeld] = {};
  Complex x[kHeld] = {}, v[kHeld] = {};
  BST_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    if (!has_held(i)) continue;
    held[i] = mode_at(first + held_mode(i));
    x[i] = At(states, first + held_mode(i));
  }
  int output = at.row.first_output;
  for (int t = at.row.begin; t < at.row.end; ++t) {
    const float u = task.u.data[t * task.u.stride + at.feature % task.inputs];
    float s = 0.0f, r = 0.0f, part = 0.0f;
    BST_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      if (has_held(i)) s = RealMultiplyAdd({held[i].p.re, -held[i].p.im}, x[i], s);
    }
    if (at.inside) {
      for (int m = held_mode(kHeld); m < task.modes; m += at.lanes) {
        const Complex p = At(task.p, first + m);
        s = RealMultiplyAdd({p.re, -p.im}, At(states, first + m), s);
      }
    }
    const float factor = -dt * (2.0f * SumLanes(s, at.lanes));
    BST_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      if (!has_held(i)) continue;
      v[i] = DplrInput(held[i], x[i], factor, u);
      r = RealMultiplyAdd(held[i].w, v[i], r);
    }
    if (at.inside) {
      for (int m = held_mode(kHeld); m < task.modes; m += at.lanes) {
        const DplrMode mode = mode_at(first + m);
        r = RealMultiplyAdd(mode.w, DplrInput(mode, At(states, first + m), factor, u), r);
      }
    }
    r = 2.0f * SumLanes(r, at.lanes);
    BST_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      if (!has_held(i)) continue;
      x[i] = DplrStep(held[i], v[i], r, x[i]);
      part = RealMultiplyAdd(held[i].c, x[i], part);
    }
    if (at.inside) {
      for (int m = held_mode(kHeld); m < task.modes; m += at.lanes) {
        const DplrMode mode = mode_at(first + m);
        const Complex old = At(states, first + m);
        const Complex next = DplrStep(mode, DplrInput(mode, old, factor, u), r, old);
        Put(states, first + m, next);
        part = RealMultiplyAdd(mode.c, next, part);
      }
    }
    Output(task, at, at.row.position + (t - at.row.begin), part, u, output);
  }
  BST_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    if (has_held(i)) Put(states, first + held_mode(i), x[i]);
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
}  // namespace bst::cuda
