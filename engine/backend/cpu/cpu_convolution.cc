#include "engine/backend/cpu/cpu_convolution.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <complex>
#include <cstring>
#include <numbers>

#include "absl/functional/function_ref.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// A filter that decays ends in taps near the smallest float, whose products with the inputs are
// denormal numbers: a hundred times slower, and nothing beside the taps in front. They count as 0.
constexpr float kSmallestTap = 0x1p-96f;

float Tap(const ConvolutionParameters& parameters, int64_t feature, int64_t s) {
  const float tap = ElementAsFloat(parameters.taps, feature * parameters.taps.dim(1) + s);
  return std::fabs(tap) < kSmallestTap ? 0.0f : tap;
}

// Block ends that one pass over the taps serves.
constexpr int kMaxEnds = 8;

int NumGroups(const SsmSpec& spec) { return (spec.num_inputs + kLanes - 1) / kLanes; }
int GroupFeatures(const SsmSpec& spec, int group) {
  return std::min(kLanes, spec.num_inputs - group * kLanes);
}

void CopyRows(const float* from, int64_t rows, float* to) {
  std::memcpy(to, from, static_cast<size_t>(rows * kLanes) * sizeof(float));
}
void ClearRows(int64_t rows, float* to) {
  std::memset(to, 0, static_cast<size_t>(rows * kLanes) * sizeof(float));
}
// `features` lanes of a row; the others stay.
void CopyFeatures(const float* from, int features, float* to) {
  std::memcpy(to, from, static_cast<size_t>(features) * sizeof(float));
}

// For each row and group. `work`: vector operations of all together.
void ForEachRowAndGroup(CpuContext& context, int rows, int groups, int64_t work,
                        absl::FunctionRef<void(int row, int group, int thread)> run) {
  const int tasks = rows * groups;
  // Some microseconds' worth: over sooner than another thread wakes up.
  if (work < 20'000) {
    for (int i = 0; i < tasks; ++i) run(i / groups, i % groups, 0);
    return;
  }
  context.pool().Run(tasks,
                     [&](int index, int thread) { run(index / groups, index % groups, thread); });
}

// [size][2]: c of each node of TransformKernel's tree. The root splits t^size - i, the left child
// of a node t^n - c, the right one t^n + c.
void FillRoots(int size, float* roots) {
  std::vector<double> angles(static_cast<size_t>(size));
  for (int node = 1; node < size; ++node) {
    double power = std::numbers::pi / 2;  // of c^2
    if (node > 1) power = angles[static_cast<size_t>(node / 2)] + node % 2 * std::numbers::pi;
    const double angle = power / 2;
    angles[static_cast<size_t>(node)] = angle;
    roots[2 * node] = static_cast<float>(std::cos(angle));
    roots[2 * node + 1] = static_cast<float>(std::sin(angle));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCpuConvolution(
    CpuContext& context, const ConvolutionParameters& parameters) {
  if (parameters.spec.outputs == SsmOutputs::kEveryToken)
    return CpuTokenConvolution::Pack(context, parameters);
  return CpuEndConvolution::Pack(context, parameters);
}

// ---------------------------------------------------------------- every token

CpuTokenConvolution::CpuTokenConvolution(const SsmSpec& spec, int num_taps)
    : CpuSequence(spec),
      num_partitions_((num_taps - 1 + spec.block - 1) / spec.block),
      transform_size_(static_cast<int>(std::bit_ceil(static_cast<unsigned>(spec.block)))) {}

absl::StatusOr<std::unique_ptr<CpuTokenConvolution>> CpuTokenConvolution::Pack(
    CpuContext& context, const ConvolutionParameters& parameters) {
  const SsmSpec& spec = parameters.spec;
  const int64_t num_taps = parameters.taps.dim(1), window = spec.block;
  auto convolution = std::unique_ptr<CpuTokenConvolution>(
      new CpuTokenConvolution(spec, static_cast<int>(num_taps)));
  CpuTokenConvolution& c = *convolution;
  const int64_t size = c.transform_size_;
  BST_ASSIGN_OR_RETURN(c.roots_, Buffer::Allocate(static_cast<size_t>(size * 2) * sizeof(float)));
  float* roots = static_cast<float*>(c.roots_.data());
  FillRoots(c.transform_size_, roots);
  const int64_t filters = int64_t{NumGroups(spec)} * spec.num_filters;
  BST_ASSIGN_OR_RETURN(
      c.packed_, Buffer::Allocate(static_cast<size_t>(filters * c.FilterSize()) * sizeof(float)));
  float* packed = static_cast<float*>(c.packed_.data());
  for (int64_t feature = 0; feature < spec.num_features(); ++feature) {
    const int64_t filter = feature / spec.num_inputs, input = feature % spec.num_inputs;
    float* lane =
        packed + (input / kLanes * spec.num_filters + filter) * c.FilterSize() + input % kLanes;
    const auto tap = [&](int64_t s) { return s < num_taps ? Tap(parameters, feature, s) : 0.0f; };
    for (int64_t s = 0; s < window; ++s) lane[s * kLanes] = tap(s);
    lane[0] += ElementAsFloat(parameters.d, feature);
    for (int64_t p = 0; p < c.num_partitions_; ++p) {
      float* spectrum = lane + c.BlockSize() + p * c.SpectrumSize();
      for (int64_t m = 1; m < 2 * window; ++m) {
        // The inverse's factor is a power of two: nothing is rounded.
        spectrum[(m % size * 2 + m / size) * kLanes] =
            tap(p * window + m) / static_cast<float>(size);
      }
    }
  }
  for (int64_t filter = 0; filter < filters; ++filter) {
    for (int64_t p = 0; p < c.num_partitions_; ++p) {
      context.kernels().transform(
          roots, c.transform_size_,
          packed + filter * c.FilterSize() + c.BlockSize() + p * c.SpectrumSize());
    }
  }
  BST_RETURN_IF_ERROR(context.ReserveScratch(
      static_cast<size_t>((c.num_partitions_ + 1) * c.SpectrumSize()) * sizeof(float)));
  return convolution;
}

size_t CpuTokenConvolution::state_bytes() const {
  return static_cast<size_t>(NumGroups(spec()) * GroupState()) * sizeof(float);
}

void CpuTokenConvolution::Run(CpuContext& context, TensorView u, absl::Span<const Row> rows,
                              PoolView state, TensorView y) const {
  BST_CHECK(u.dim(1) == spec().num_inputs, "inputs ", u.dim(1), ", weights take ",
            spec().num_inputs);
  BST_CHECK_SHAPE(y, {u.dim(0), spec().num_features()});
  const int64_t window = spec().block, filters = spec().num_filters;
  const int groups = NumGroups(spec());
  int64_t work = u.dim(0) * filters * window / 2;
  for (const Row& row : rows) {
    const bool block_starts =
        (row.position + window - 1) / window * window < row.position + row.num_tokens();
    if (block_starts) work += (int64_t{16} + 4 * filters) * num_partitions_ * transform_size_;
  }
  ForEachRowAndGroup(context, static_cast<int>(rows.size()), groups, work * groups,
                     [&](int row, int group, int thread) {
                       RunRow(context, thread, rows[static_cast<size_t>(row)], group, u, state, y);
                     });
}

void CpuTokenConvolution::RunRow(CpuContext& context, int thread, const Row& row, int group,
                                 TensorView u, PoolView state, TensorView y) const {
  const int window = spec().block, column = group * kLanes;
  float* ring = state.slot<float>(row.slot) + group * GroupState();
  float* base = ring + RingBlocks() * BlockSize();
  ConvolveBlockTask task = {};
  task.num_features = GroupFeatures(spec(), group);
  task.y_stride = y.row_stride();
  int64_t transformed = 0;
  for (int t = row.begin; t < row.end;) {
    const int64_t position = row.position + (t - row.begin), block = position / window;
    task.first = static_cast<int>(position % window);
    task.last = std::min(window, task.first + (row.end - t));
    // Before the block's first input takes the place of the oldest.
    if (task.first == 0 && num_partitions_ > 0) {
      MakeBase(context, thread, group, block, transformed, ring, base);
      transformed = block;
    }
    float* inputs = ring + block % RingBlocks() * BlockSize();
    for (int i = task.first; i < task.last; ++i) {
      CopyFeatures(u.row<float>(t + i - task.first) + column, task.num_features,
                   inputs + i * kLanes);
    }
    task.u = inputs;
    for (int c = 0; c < spec().num_filters; ++c) {
      task.taps = static_cast<const float*>(packed_.data()) +
                  (int64_t{group} * spec().num_filters + c) * FilterSize();
      task.base = base + c * BlockSize();
      task.y = y.row<float>(t) + c * spec().num_inputs + column;
      context.kernels().convolve_block(task);
    }
    t += task.last - task.first;
  }
}

void CpuTokenConvolution::MakeBase(CpuContext& context, int thread, int group, int64_t block,
                                   int64_t transformed, const float* ring, float* base) const {
  const int64_t window = spec().block, size = transform_size_;
  const auto* roots = static_cast<const float*>(roots_.data());
  float* spectra = context.scratch(thread);
  const int64_t oldest = std::max<int64_t>(0, block - num_partitions_);
  for (int64_t j = std::max(oldest, transformed); j < block; ++j) {
    const int64_t index = j % num_partitions_;
    context.kernels().transform_real(roots, transform_size_, ring + index * BlockSize(),
                                     spec().block, spectra + index * SpectrumSize());
  }
  if (oldest == block) return ClearRows(window * spec().num_filters, base);
  SpectraTask task = {};
  task.inputs = spectra;
  task.sum = spectra + num_partitions_ * SpectrumSize();
  task.size = transform_size_;
  task.ring = num_partitions_;
  task.newest = static_cast<int>((block - 1) % num_partitions_);
  task.count = static_cast<int>(block - oldest);
  for (int c = 0; c < spec().num_filters; ++c, base += BlockSize()) {
    task.filters = static_cast<const float*>(packed_.data()) +
                   (int64_t{group} * spec().num_filters + c) * FilterSize() + BlockSize();
    context.kernels().multiply_spectra(task);
    context.kernels().inverse_transform(roots, transform_size_, task.sum);
    for (int64_t i = 0; i < window; ++i) {
      const int64_t m = window + i;
      CopyRows(task.sum + (m % size * 2 + m / size) * kLanes, 1, base + i * kLanes);
    }
  }
}

// ---------------------------------------------------------------- block ends

CpuEndConvolution::CpuEndConvolution(const SsmSpec& spec, int num_taps)
    : CpuSequence(spec), num_taps_(num_taps) {}

absl::StatusOr<std::unique_ptr<CpuEndConvolution>> CpuEndConvolution::Pack(
    CpuContext& context, const ConvolutionParameters& parameters) {
  const SsmSpec& spec = parameters.spec;
  const int64_t num_taps = parameters.taps.dim(1);
  auto convolution =
      std::unique_ptr<CpuEndConvolution>(new CpuEndConvolution(spec, static_cast<int>(num_taps)));
  const int64_t filters = int64_t{NumGroups(spec)} * spec.num_filters;
  BST_ASSIGN_OR_RETURN(
      convolution->packed_,
      Buffer::Allocate(static_cast<size_t>(filters * num_taps * kLanes) * sizeof(float)));
  float* packed = static_cast<float*>(convolution->packed_.data());
  for (int64_t feature = 0; feature < spec.num_features(); ++feature) {
    const int64_t filter = feature / spec.num_inputs, input = feature % spec.num_inputs;
    float* lane =
        packed + (input / kLanes * spec.num_filters + filter) * num_taps * kLanes + input % kLanes;
    for (int64_t s = 0; s < num_taps; ++s) lane[s * kLanes] = Tap(parameters, feature, s);
    lane[0] += ElementAsFloat(parameters.d, feature);
  }
  const int64_t rows =
      int64_t{kMaxEnds} * spec.num_filters + num_taps + int64_t{kMaxEnds - 1} * spec.block;
  BST_RETURN_IF_ERROR(context.ReserveScratch(static_cast<size_t>(rows * kLanes) * sizeof(float)));
  return convolution;
}

size_t CpuEndConvolution::state_bytes() const {
  return static_cast<size_t>(int64_t{NumGroups(spec())} * num_taps_ * kLanes) * sizeof(float);
}

void CpuEndConvolution::Run(CpuContext& context, TensorView u, absl::Span<const Row> rows,
                            PoolView state, TensorView y) const {
  BST_CHECK(u.dim(1) == spec().num_inputs, "inputs ", u.dim(1), ", weights take ",
            spec().num_inputs);
  first_outputs_.clear();
  int64_t ends = 0;
  for (const Row& row : rows) {
    first_outputs_.push_back(static_cast<int>(ends));
    ends += (row.position + row.num_tokens()) / spec().block - row.position / spec().block;
  }
  BST_CHECK_SHAPE(y, {ends, spec().num_features()});
  const int groups = NumGroups(spec());
  const int64_t work = (u.dim(0) + ends * spec().num_filters * num_taps_) * groups;
  ForEachRowAndGroup(context, static_cast<int>(rows.size()), groups, work,
                     [&](int index, int group, int thread) {
                       const auto i = static_cast<size_t>(index);
                       RunRow(context, thread, rows[i], first_outputs_[i], group, u, state, y);
                     });
}

void CpuEndConvolution::RunRow(CpuContext& context, int thread, const Row& row, int first_output,
                               int group, TensorView u, PoolView state, TensorView y) const {
  const int64_t window = spec().block, num_taps = num_taps_, filters = spec().num_filters;
  const int features = GroupFeatures(spec(), group), column = group * kLanes;
  float* ring = state.slot<float>(row.slot) + group * num_taps * kLanes;
  const int64_t row_end = row.position + row.num_tokens();
  const auto input = [&](int64_t position) {
    return u.row<float>(row.begin + (position - row.position)) + column;
  };

  ConvolveEndsTask task = {};
  task.taps = static_cast<const float*>(packed_.data()) + group * filters * num_taps * kLanes;
  task.sums = context.scratch(thread);
  task.num_taps = num_taps_;
  task.num_filters = spec().num_filters;
  task.block = spec().block;
  float* inputs = task.sums + kMaxEnds * filters * kLanes;
  int output = first_output;
  for (int64_t first = row.position / window * window + window - 1; first < row_end;
       first += kMaxEnds * window) {
    task.num_ends =
        static_cast<int>(std::min<int64_t>(kMaxEnds, (row_end - 1 - first) / window + 1));
    const int64_t last = first + (task.num_ends - 1) * window;
    // Positions oldest .. last, those before the document zero: in a sum that started from +0 they
    // change no bit, so it does not matter how many of them a cut brings.
    task.reach = static_cast<int>(std::min(num_taps, last + 1));
    const int64_t oldest = first - task.reach + 1;
    float* to = inputs;
    int64_t position = oldest;
    const auto advance = [&](int64_t rows) {
      position += rows;
      to += rows * kLanes;
    };
    if (position < 0) {
      ClearRows(-position, to);
      advance(-position);
    }
    while (position < row.position) {
      const int64_t index = position % num_taps;
      const int64_t run = std::min(row.position - position, num_taps - index);
      CopyRows(ring + index * kLanes, run, to);
      advance(run);
    }
    while (position <= last) {
      if (features < kLanes) ClearRows(1, to);
      CopyFeatures(input(position), features, to);
      advance(1);
    }
    task.u = inputs + (first - oldest) * kLanes;
    ClearRows(task.num_ends * filters, task.sums);
    context.kernels().convolve_ends(task);
    const float* sum = task.sums;
    for (int e = 0; e < task.num_ends; ++e, ++output) {
      for (int c = 0; c < spec().num_filters; ++c, sum += kLanes)
        CopyFeatures(sum, features, y.row<float>(output) + c * spec().num_inputs + column);
    }
  }

  int64_t position = std::max(row.position, row_end - num_taps);
  for (int64_t index = position % num_taps; position < row_end; ++position) {
    CopyFeatures(input(position), features, ring + index * kLanes);
    if (++index == num_taps) index = 0;
  }
}

}  // namespace bst
