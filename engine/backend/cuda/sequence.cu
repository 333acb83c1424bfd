// The recurrences, by chunks (kernels.h), and the shared scan. Neighbouring threads have
// neighbouring features, which all tables and states are laid out for. Of prompts, what a thread
// reads of a table serves several chunks, or lies in registers. A decoded token's output reads its
// weights for itself; chunks that end are taken in fours, if they are among a block's pieces.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

BST_HOST_DEVICE constexpr int DividedUp(int a, int b) { return (a + b - 1) / b; }

struct Complex {
  float re, im;
};

// sum + a b
BST_DEVICE Complex MultiplyAdd(Complex a, Complex b, Complex sum) {
  return {fmaf(a.re, b.re, fmaf(-a.im, b.im, sum.re)), fmaf(a.re, b.im, fmaf(a.im, b.re, sum.im))};
}

// Input `index` < piece.end of a chunk.
BST_DEVICE float InputOf(const RecurrenceTask& task, const ChunkPiece& piece, int index,
                         int input) {
  if (index < piece.first) return piece.inputs[index * task.inputs + input];
  return task.u.data[(piece.token + (index - piece.first)) * task.u.stride + input];
}

// sums[k][p] = S[real + k] of *pieces[p], which may be null.
template <int kReals, int kPieces>
BST_DEVICE void SumChunks(const RecurrenceTask& task, const ChunkPiece* const (&pieces)[kPieces],
                          int real, int feature, float (&sums)[kReals][kPieces]) {
  const int input = feature % task.inputs;
  const int64_t features = task.features;
  BST_UNROLL
  for (int k = 0; k < kReals; ++k) {
    BST_UNROLL
    for (int p = 0; p < kPieces; ++p) sums[k][p] = 0.0f;
  }
  const float* weights = task.in + real * features + feature;
  for (int j = 0; j < task.chunk; ++j, weights += task.reals * features) {
    float u[kPieces];
    BST_UNROLL
    for (int p = 0; p < kPieces; ++p)
      u[p] = pieces[p] == nullptr ? 0.0f : InputOf(task, *pieces[p], j, input);
    BST_UNROLL
    for (int k = 0; k < kReals; ++k) {
      const float weight = real + k < task.reals ? weights[k * features] : 0.0f;
      BST_UNROLL
      for (int p = 0; p < kPieces; ++p) sums[k][p] = fmaf(weight, u[p], sums[k][p]);
    }
  }
}

// y of one token of a chunk.
BST_DEVICE float OutputOf(const RecurrenceTask& task, const ChunkPiece& piece, int index,
                          int feature) {
  const int input = feature % task.inputs;
  const int64_t features = task.features;
  float sum = 0.0f;
  for (int j = 0; j <= index; ++j)
    sum = fmaf(task.taps[(index - j) * features + feature], InputOf(task, piece, j, input), sum);
  const float* const out = task.out + index * task.reals * features + feature;
  for (int k = 0; k < task.reals; ++k)
    sum = fmaf(out[k * features], piece.x[k * features + feature], sum);
  return sum;
}

// The end of a chunk for one mode.
BST_DEVICE Complex CarryMode(Complex a_minus_one, Complex x, Complex s) {
  const Complex step = MultiplyAdd(a_minus_one, x, s);
  return {x.re + step.re, x.im + step.im};
}

// The end of a chunk for one real: S and the other reals of X, a few of them on their way at once.
BST_DEVICE float CarryReal(const RecurrenceTask& task, const float* x, float s, int real,
                           int feature) {
  constexpr int kAtOnce = 8;
  const int64_t features = task.features;
  const float* const row = task.carry + real * task.reals * features + feature;
  for (int first = 0; first < task.reals; first += kAtOnce) {
    float weight[kAtOnce], factor[kAtOnce];
    BST_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k >= task.reals) continue;
      weight[k] = row[(first + k) * features];
      factor[k] = x[(first + k) * features + feature];
    }
    BST_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k < task.reals) s = fmaf(weight[k], factor[k], s);
    }
  }
  return x[real * features + feature] + s;
}

// ---- Prompts: a chunk after the other only where its state is carried on

constexpr int kSumReals = 8;  // of a thread
// Likewise; a prompt of 2,048 tokens has blocks for all multiprocessors.
constexpr int kSumPieces = 2;

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 4) bst_chunk_sums(RecurrenceTask task) {
  const int feature = BlockX() * kWarp + ThreadX() % kWarp;
  if (feature >= task.features) return;
  const int tiles = DividedUp(task.reals, kSumReals);
  const int real = BlockY() % tiles * kSumReals;
  const int first = (BlockY() / tiles * kWarps + ThreadX() / kWarp) * kSumPieces;
  const int num_pieces = Exact(task.num_pieces);
  const ChunkPiece* pieces[kSumPieces];
  bool any = false;
  BST_UNROLL
  for (int p = 0; p < kSumPieces; ++p) {
    const ChunkPiece* const piece = task.pieces + first + p;
    pieces[p] = first + p < num_pieces && piece->next != nullptr ? piece : nullptr;
    any = any || pieces[p] != nullptr;
  }
  if (!any) return;
  float sums[kSumReals][kSumPieces];
  SumChunks(task, pieces, real, feature, sums);
  BST_UNROLL
  for (int p = 0; p < kSumPieces; ++p) {
    if (pieces[p] == nullptr) continue;
    BST_UNROLL
    for (int k = 0; k < kSumReals; ++k) {
      if (real + k < task.reals)
        pieces[p]->next[(real + k) * int64_t{task.features} + feature] = sums[k][p];
    }
  }
}

// A thread has a mode of a feature. The sums of some chunks are on their way at once.
BST_KERNEL void BST_BOUNDS(256, 4) bst_diagonal_carry(RecurrenceTask task) {
  constexpr int kAtOnce = 8;
  const int columns = DividedUp(task.features, kWarp);
  const int feature = BlockX() % columns * kWarp + ThreadX() % kWarp;
  const int mode = BlockX() / columns * kWarps + ThreadX() / kWarp;
  if (feature >= task.features || 2 * mode >= task.reals) return;
  if (BlockY() >= Exact(task.num_rows)) return;
  const CarryRow row = task.rows[BlockY()];
  const int64_t re = int64_t{2} * mode * task.features + feature, im = re + task.features;
  const int64_t place = int64_t{task.reals} * task.features;
  const Complex a_minus_one = {task.carry[re], task.carry[im]};
  Complex x = {row.from[re], row.from[im]};
  float* at = row.places;
  at[re] = x.re;
  at[im] = x.im;
  for (int64_t left = row.chunks; left > 0; left -= kAtOnce) {
    Complex s[kAtOnce];
    BST_UNROLL
    for (int c = 0; c < kAtOnce; ++c) {
      if (c >= left) continue;
      const float* const sums = at + (c + 1) * place;
      s[c] = {sums[re], sums[im]};
    }
    BST_UNROLL
    for (int c = 0; c < kAtOnce; ++c) {
      if (c >= left) continue;
      x = CarryMode(a_minus_one, x, s[c]);
      at += place;
      at[re] = x.re;
      at[im] = x.im;
    }
  }
  row.to[re] = x.re;
  row.to[im] = x.im;
}

namespace {

constexpr int kCarryThreads = 512;
constexpr int kHeldReals = 64;  // up to so many a thread holds its row of the matrix in registers

struct alignas(16) FourReals {
  float value[4];
};

// Threads of one feature: a power of two, one per real.
BST_HOST_DEVICE constexpr int CarryLanes(int reals) {
  int lanes = 4;
  while (lanes < reals && lanes < kHeldReals) lanes *= 2;
  return lanes;
}

// Each thread has one real of X and its row of the matrix; X goes round in shared memory, in two
// copies in turn.
BST_DEVICE void CarryHeld(const RecurrenceTask& task, const CarryRow& row, int lanes, int real,
                          int feature) {
  // kCarryThreads / lanes features, each with lanes / 4 of them and a free one; lanes >= 4.
  constexpr int kFours = kCarryThreads / 4 + kCarryThreads / 4;
  BST_SHARED(FourReals, shared, 2 * kFours);
  const bool inside = feature < task.features && real < task.reals;
  const int64_t features = task.features, place = task.reals * features;
  const int64_t mine = inside ? real * features + feature : 0;
  // What lies beyond the reals changes no bit: -0 times 0 is added there.
  float weights[kHeldReals];
  BST_UNROLL
  for (int k = 0; k < kHeldReals; ++k) {
    weights[k] = inside && k < task.reals
                     ? task.carry[(int64_t{real} * task.reals + k) * features + feature]
                     : -0.0f;
  }
  FourReals* const all = shared + ThreadX() % (kCarryThreads / lanes) * (lanes / 4 + 1);
  float* const own = all[real / 4].value + real % 4;
  float x = inside ? row.from[mine] : 0.0f;
  *own = x;
  if (inside) row.places[mine] = x;
  float s = inside && row.chunks > 0 ? row.places[place + mine] : 0.0f;
  SyncThreads();
  for (int64_t c = 1; c <= row.chunks; ++c) {
    float sum = s;
    if (inside && c < row.chunks) s = row.places[(c + 1) * place + mine];
    const int now = c % 2 == 1 ? 0 : kFours, then = kFours - now;
    BST_UNROLL
    for (int q = 0; q < kHeldReals / 4; ++q) {
      if (4 * q >= lanes) break;
      const FourReals four = all[now + q];
      BST_UNROLL
      for (int k = 0; k < 4; ++k) sum = fmaf(weights[4 * q + k], four.value[k], sum);
    }
    if (inside) {
      x += sum;
      row.places[c * place + mine] = x;
    }
    own[4 * then] = x;
    SyncThreads();
  }
  if (inside) row.to[mine] = x;
}

// More reals than registers hold: X goes round in device memory.
BST_DEVICE void CarryStreamed(const RecurrenceTask& task, const CarryRow& row, int lanes, int lane,
                              int feature) {
  const int64_t features = task.features, place = task.reals * features;
  const int reals = feature < task.features ? task.reals : 0;
  for (int k = lane; k < reals; k += lanes)
    row.places[k * features + feature] = row.from[k * features + feature];
  SyncThreads();
  for (int64_t c = 0; c < row.chunks; ++c) {
    const float* const x = row.places + c * place;
    for (int k = lane; k < reals; k += lanes) {
      float* const next = row.places + (c + 1) * place + k * features + feature;
      *next = CarryReal(task, x, *next, k, feature);
    }
    SyncThreads();
  }
  for (int k = lane; k < reals; k += lanes)
    row.to[k * features + feature] = row.places[row.chunks * place + k * features + feature];
}

}  // namespace

BST_KERNEL void BST_BOUNDS(512, 1) bst_dplr_carry(RecurrenceTask task) {
  const int lanes = CarryLanes(task.reals);
  const int features = kCarryThreads / lanes;  // of a block
  const int feature = BlockX() * features + ThreadX() % features;
  const int lane = ThreadX() / features;
  if (BlockY() >= Exact(task.num_rows)) return;
  const CarryRow row = task.rows[BlockY()];
  if (task.reals <= kHeldReals) {
    CarryHeld(task, row, lanes, lane, feature);
  } else {
    CarryStreamed(task, row, lanes, lane, feature);
  }
}

namespace {

// All outputs of kPieces pieces: each weight is read once for them all.
template <int kChunk, int kPieces>
BST_DEVICE void OutputsOfPieces(const RecurrenceTask& task) {
  const int feature = BlockX() * kWarp + ThreadX() % kWarp;
  const int first = (BlockY() * kWarps + ThreadX() / kWarp) * kPieces;
  const int count = Exact(task.num_pieces) - first;
  if (feature >= task.features || count <= 0) return;
  const ChunkPiece* const pieces = task.pieces + first;
  const int input = feature % task.inputs;
  const int64_t features = task.features;
  float sums[kChunk][kPieces] = {};
  {
    float taps[kChunk];
    BST_UNROLL
    for (int i = 0; i < kChunk; ++i) taps[i] = task.taps[i * features + feature];
    BST_UNROLL
    for (int j = 0; j < kChunk; ++j) {
      BST_UNROLL
      for (int p = 0; p < kPieces; ++p) {
        const bool there = p < count && j < pieces[p].end;
        const float u = there ? InputOf(task, pieces[p], j, input) : 0.0f;
        BST_UNROLL
        for (int i = j; i < kChunk; ++i) sums[i][p] = fmaf(taps[i - j], u, sums[i][p]);
      }
    }
  }
  const float* out = task.out + feature;
  for (int k = 0; k < task.reals; ++k, out += features) {
    float x[kPieces];
    BST_UNROLL
    for (int p = 0; p < kPieces; ++p) x[p] = p < count ? pieces[p].x[k * features + feature] : 0.0f;
    BST_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const float weight = out[i * task.reals * features];
      BST_UNROLL
      for (int p = 0; p < kPieces; ++p) sums[i][p] = fmaf(weight, x[p], sums[i][p]);
    }
  }
  BST_UNROLL
  for (int p = 0; p < kPieces; ++p) {
    if (p >= count) continue;
    const ChunkPiece piece = pieces[p];
    BST_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      if (i < piece.first || i >= piece.end) continue;
      task.y.data[(piece.output - (piece.end - 1 - i)) * task.y.stride + feature] = sums[i][p];
    }
  }
}

constexpr int kDiagonalPieces = 2;  // of a thread, as kSumPieces
constexpr int kDplrPieces = 2;

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 3) bst_diagonal_outputs(RecurrenceTask task) {
  OutputsOfPieces<kDiagonalChunk, kDiagonalPieces>(task);
}
BST_KERNEL void BST_BOUNDS(256, 2) bst_dplr_outputs(RecurrenceTask task) {
  OutputsOfPieces<kDplrChunk, kDplrPieces>(task);
}

// ---- Decoding: a launch for all of it

namespace {

constexpr int kStepThreads = 512;
constexpr int kStepWarps = kStepThreads / kWarp;
constexpr int kStepPieces = 4;  // that end a chunk, at once: each weight is read once for them

BST_DEVICE int LowestBit(uint32_t bits) {
  int bit = 0;
  while ((bits >> bit & 1) == 0) ++bit;
  return bit;
}

// A warp has a piece; then they share the reals of those that end a chunk.
template <bool kDplr>
BST_DEVICE void Step(const RecurrenceTask& task) {
  const int warp = ThreadX() / kWarp, lane = ThreadX() % kWarp;
  const int feature = BlockX() * kWarp + lane;
  const bool inside = feature < task.features;
  const ChunkPiece* const pieces = task.pieces + BlockY() * kStepWarps;
  const int left = Exact(task.num_pieces) - BlockY() * kStepWarps;
  if (left <= 0) return;
  const int count = left < kStepWarps ? left : kStepWarps;
  if (inside && warp < count) {
    const ChunkPiece piece = pieces[warp];
    if (piece.output >= 0) {
      task.y.data[piece.output * task.y.stride + feature] =
          OutputOf(task, piece, piece.end - 1, feature);
    }
    if (piece.keep && feature < task.inputs) {
      for (int i = piece.first; i < piece.end; ++i)
        piece.inputs[i * task.inputs + feature] = InputOf(task, piece, i, feature);
    }
  }
  SyncThreads();  // `next` may be `x`
  uint32_t ends = Ballot(lane < count && pieces[lane].next != nullptr);
  const int64_t features = task.features;
  while (ends != 0) {
    const ChunkPiece* group[kStepPieces];
    BST_UNROLL
    for (int p = 0; p < kStepPieces; ++p) {
      group[p] = ends == 0 ? nullptr : pieces + LowestBit(ends);
      ends &= ends - 1;
    }
    if (!inside) continue;
    if constexpr (kDplr) {
      for (int real = warp; real < task.reals; real += kStepWarps) {
        float s[1][kStepPieces];
        SumChunks(task, group, real, feature, s);
        BST_UNROLL
        for (int p = 0; p < kStepPieces; ++p) {
          if (group[p] == nullptr) continue;
          group[p]->next[real * features + feature] =
              CarryReal(task, group[p]->x, s[0][p], real, feature);
        }
      }
    } else {
      for (int real = 2 * warp; real < task.reals; real += 2 * kStepWarps) {
        const int64_t re = real * features + feature, im = re + features;
        const Complex a_minus_one = {task.carry[re], task.carry[im]};
        float s[2][kStepPieces];
        SumChunks(task, group, real, feature, s);
        BST_UNROLL
        for (int p = 0; p < kStepPieces; ++p) {
          if (group[p] == nullptr) continue;
          const float* const old = group[p]->x;
          const Complex x = CarryMode(a_minus_one, {old[re], old[im]}, {s[0][p], s[1][p]});
          group[p]->next[re] = x.re;
          group[p]->next[im] = x.im;
        }
      }
    }
  }
}

}  // namespace

BST_KERNEL void BST_BOUNDS(512, 2) bst_diagonal_steps(RecurrenceTask task) { Step<false>(task); }
BST_KERNEL void BST_BOUNDS(512, 2) bst_dplr_steps(RecurrenceTask task) { Step<true>(task); }

BST_KERNEL void BST_BOUNDS(256, 8) bst_scan(ScanTask task) {
  const int mode = BlockX() * kThreads + ThreadX();
  if (mode >= task.modes || BlockY() >= Exact(task.num_rows)) return;
  const SequenceRow row = task.rows[BlockY()];
  auto* const state = static_cast<float*>(row.state) + 2 * mode;
  const Complex e = {task.e[2 * mode], task.e[2 * mode + 1]};
  Complex x = {state[0], state[1]};
  for (int t = row.begin; t < row.end; ++t) {
    float* v = task.v.data + t * task.v.stride;
    const Complex step = MultiplyAdd(e, x, {v[mode], v[task.modes + mode]});
    x = {x.re + step.re, x.im + step.im};
    v[mode] = x.re;
    v[task.modes + mode] = x.im;
  }
  state[0] = x.re;
  state[1] = x.im;
}

void ChunkSums(Stream& stream, const RecurrenceTask& task) {
  if (task.num_pieces.most == 0) return;
  const LaunchShape shape = {.blocks_x = DividedUp(task.features, kWarp),
                             .blocks_y = DividedUp(task.num_pieces.most, kWarps * kSumPieces) *
                                         DividedUp(task.reals, kSumReals)};
  BST_LAUNCH(bst_chunk_sums, shape, stream, task);
}

void Carry(Stream& stream, Recurrence kind, const RecurrenceTask& task) {
  if (task.num_rows.most == 0) return;
  if (kind == Recurrence::kDplr) {
    const LaunchShape shape = {
        .blocks_x = DividedUp(task.features, kCarryThreads / CarryLanes(task.reals)),
        .blocks_y = task.num_rows.most,
        .threads = kCarryThreads};
    BST_LAUNCH(bst_dplr_carry, shape, stream, task);
  } else {
    const LaunchShape shape = {
        .blocks_x = DividedUp(task.features, kWarp) * DividedUp(task.reals / 2, kWarps),
        .blocks_y = task.num_rows.most};
    BST_LAUNCH(bst_diagonal_carry, shape, stream, task);
  }
}

void ChunkOutputs(Stream& stream, Recurrence kind, const RecurrenceTask& task) {
  if (task.num_pieces.most == 0) return;
  const int pieces = kind == Recurrence::kDplr ? kDplrPieces : kDiagonalPieces;  // of a thread
  const LaunchShape shape = {.blocks_x = DividedUp(task.features, kWarp),
                             .blocks_y = DividedUp(task.num_pieces.most, kWarps * pieces)};
  if (kind == Recurrence::kDplr) {
    BST_LAUNCH(bst_dplr_outputs, shape, stream, task);
  } else {
    BST_LAUNCH(bst_diagonal_outputs, shape, stream, task);
  }
}

void ChunkSteps(Stream& stream, Recurrence kind, const RecurrenceTask& task) {
  if (task.num_pieces.most == 0) return;
  const LaunchShape shape = {.blocks_x = DividedUp(task.features, kWarp),
                             .blocks_y = DividedUp(task.num_pieces.most, kStepWarps),
                             .threads = kStepThreads};
  if (kind == Recurrence::kDplr) {
    BST_LAUNCH(bst_dplr_steps, shape, stream, task);
  } else {
    BST_LAUNCH(bst_diagonal_steps, shape, stream, task);
  }
}

void Scan(Stream& stream, const ScanTask& task) {
  if (task.num_rows.most == 0) return;
  const LaunchShape shape = {.blocks_x = DividedUp(task.modes, kThreads),
                             .blocks_y = task.num_rows.most};
  BST_LAUNCH(bst_scan, shape, stream, task);
}

}  // namespace bst::cuda
