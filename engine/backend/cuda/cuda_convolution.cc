// Explicit filters, in two forms.
//
// Direct      The sum over all taps: short filters, outputs at block ends, and where there is no
//             cuFFT. State: the last `taps` inputs, [taps, D], row position mod taps.
// Partitioned An output of every token, over T taps and blocks of W: Q = ceil((T - 1) / W)
//             partitions. When block b starts, a transform of 2M >= 2W points makes what blocks
//             b-1 .. b-Q give to all its outputs, its base: elements W + i of
//             sum_p u_{b-p} g_p, g_p[m] = k[(p-1) W + m], m < 2W, of which the cyclic product
//             leaves W .. 2W-1 intact. An output then adds the taps that reach into its own block,
//             directly. So a token's operations depend on its position alone, wherever its row is
//             cut, and later inputs of its block, which a transform of that block would mix into
//             its rounding, are never seen. State: ring [Q W, D] of inputs, row position mod (Q W);
//             base [W, C D].
// Scratch     Spectra of Q blocks, one block before its transform, and one sum of products.
#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "engine/backend/cuda/call_list.h"
#include "engine/backend/cuda/cuda_weights.h"
#include "engine/backend/cuda/fft.h"
#include "engine/base/status_macros.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// Below, the direct sum has hardly more to do.
constexpr int kMinPartitionedBlock = 16;
constexpr int kMinPartitions = 2;

struct TransformCall {
  const cuda::Fft* fft;
  float* from;
  float* to;
};
void MakeTransform(cuda::Stream& stream, const TransformCall& call) {
  cuda::Transform(stream, *call.fft, call.from, call.to);
}

class CudaConvolution : public CudaSequence {
 public:
  CudaConvolution(const SsmSpec& spec, int num_taps) : CudaSequence(spec), num_taps_(num_taps) {}

  absl::Status Pack(CudaDevice& device, const ConvolutionParameters& parameters) {
    const auto features = static_cast<size_t>(spec().num_features());
    BST_RETURN_IF_ERROR(Partition(device, parameters));
    const int direct = num_partitions_ > 0 ? spec().block : num_taps_;
    std::vector<float> transposed(features * static_cast<size_t>(direct));
    for (size_t f = 0; f < features; ++f) {
      for (int s = 0; s < direct; ++s)
        transposed[static_cast<size_t>(s) * features + f] = Tap(parameters, f, s);
    }
    BST_ASSIGN_OR_RETURN(taps_, UploadAs(device, transposed, DType::kF32));
    BST_ASSIGN_OR_RETURN(d_, UploadFloats(device, parameters.d));
    return absl::OkStatus();
  }

  void Run(CudaDevice& device, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) const override {
    BST_CHECK(u.dim(1) == spec().num_inputs, "inputs ", u.dim(1), ", weights take ",
              spec().num_inputs);
    outputs_.clear();
    store_.clear();
    passes_.clear();
    sorted_.clear();
    blocks_.clear();
    int outputs = 0;
    for (const Row& row : rows) AddRow(row, state, outputs);
    BST_CHECK_SHAPE(y, {outputs, spec().num_features()});
    // Outputs before a row's first block start here and are first: they need the base of before.
    std::sort(outputs_.begin(), outputs_.end(), [](const auto& a, const auto& b) {
      return a.pass != b.pass ? a.pass < b.pass : a.output.output < b.output.output;
    });
    for (const Output& output : outputs_) sorted_.push_back(output.output);
    for (const Pass& pass : passes_) {
      for (int i = 0; i < pass.num_loaded; ++i) {
        blocks_.push_back({.row = pass.row,
                           .position = (pass.block - pass.num_loaded + i) * spec().block,
                           .base = pass.base});
      }
    }
    const cuda::BlockPlace* places = device.Stage(absl::MakeConstSpan(blocks_));
    int newest = 0;  // spectrum
    size_t done = 0;
    for (int pass = 0; pass <= static_cast<int>(passes_.size()); ++pass) {
      if (pass > 0) {
        const Pass& its = passes_[static_cast<size_t>(pass) - 1];
        newest = MakeBase(device, u, its, places, newest);
        places += its.num_loaded;
      }
      const size_t first = done;
      while (done < outputs_.size() && outputs_[done].pass == pass) ++done;
      // Each pass's on their own: where they lie must not depend on how many there are before.
      const auto its_outputs = absl::MakeConstSpan(sorted_).subspan(first, done - first);
      cuda::Convolution(device.stream(),
                        {.u = ToMatrix(u),
                         .y = ToMatrix(y),
                         .outputs = device.Stage(its_outputs),
                         .taps = static_cast<const float*>(taps_.data()),
                         .d = static_cast<const float*>(d_.data()),
                         .num_outputs = device.Count(static_cast<int>(done - first)),
                         .inputs = spec().num_inputs,
                         .features = spec().num_features(),
                         .ring_rows = ring_rows()});
    }
    // The new inputs replace the oldest, which all of the above have read.
    cuda::StoreRows(device.stream(), cuda::Element::kF32,
                    {.first = ToMatrix(u),
                     .second = {},
                     .store = device.Stage(absl::MakeConstSpan(store_)),
                     .rows = device.Count(static_cast<int>(store_.size())),
                     .columns = spec().num_inputs,
                     .has_second = false});
  }

  size_t state_bytes() const override {
    const int64_t base = num_partitions_ > 0 ? int64_t{spec().block} * spec().num_features() : 0;
    return static_cast<size_t>(RingFloats() + base) * sizeof(float);
  }
  size_t bytes() const override { return taps_.bytes() + d_.bytes() + filters_.bytes(); }

 private:
  // The start of block `block` of a row.
  struct Pass {
    cuda::SequenceRow row;
    float* base;
    int64_t block;
    int num_blocks;  // before it, that give something
    bool continues;  // the pass before was the block before of the same row
    int num_loaded;  // of the newest, the others are there: all, or one where it continues
  };
  // `pass`: after which an output can be made.
  struct Output {
    int pass;
    cuda::ConvolutionOutput output;
  };

  static float Tap(const ConvolutionParameters& parameters, size_t feature, int64_t s) {
    const int64_t taps = parameters.taps.dim(1);
    return s < taps ? ElementAsFloat(parameters.taps, static_cast<int64_t>(feature) * taps + s)
                    : 0.0f;
  }

  int ring_rows() const { return num_partitions_ > 0 ? num_partitions_ * spec().block : num_taps_; }
  int64_t RingFloats() const { return int64_t{ring_rows()} * spec().num_inputs; }
  int OutputBlock() const { return spec().outputs == SsmOutputs::kEveryToken ? 1 : spec().block; }
  int points() const { return size_ / 2 + 1; }
  int64_t SpectrumFloats(int features) const { return int64_t{2} * features * points(); }

  // Transforms the filters; leaves num_partitions_ at 0 where the direct form is the better one or
  // the only one.
  absl::Status Partition(CudaDevice& device, const ConvolutionParameters& parameters) {
    const int window = spec().block;
    if (spec().outputs != SsmOutputs::kEveryToken || window < kMinPartitionedBlock)
      return absl::OkStatus();
    const int partitions = (num_taps_ - 1 + window - 1) / window;
    if (partitions < kMinPartitions) return absl::OkStatus();
    const int features = spec().num_features(), inputs = spec().num_inputs;
    size_ = 2 * static_cast<int>(std::bit_ceil(static_cast<unsigned>(window)));
    struct Plan {
      cuda::FftPtr& fft;
      cuda::FftDirection direction;
      int batch;
    };
    cuda::FftPtr inputs_forward, sums_inverse, filters_forward;
    for (const Plan& plan : {Plan{inputs_forward, cuda::FftDirection::kForward, inputs},
                             Plan{sums_inverse, cuda::FftDirection::kInverse, features},
                             Plan{filters_forward, cuda::FftDirection::kForward, features}}) {
      absl::StatusOr<cuda::FftPtr> made = cuda::MakeFft(plan.direction, size_, plan.batch);
      if (absl::IsUnavailable(made.status())) return absl::OkStatus();
      BST_ASSIGN_OR_RETURN(plan.fft, std::move(made));
    }
    BST_RETURN_IF_ERROR(device.ReserveScratch(
        static_cast<size_t>(partitions * SpectrumFloats(inputs) + SpectrumFloats(features) +
                            int64_t{features} * size_) *
        sizeof(float)));
    const auto spectrum = static_cast<size_t>(SpectrumFloats(features));
    BST_ASSIGN_OR_RETURN(
        filters_, device.Allocate(static_cast<size_t>(partitions) * spectrum * sizeof(float)));
    std::vector<float> reals(static_cast<size_t>(features) * static_cast<size_t>(size_));
    for (int p = 0; p < partitions; ++p) {
      std::fill(reals.begin(), reals.end(), 0.0f);
      for (size_t f = 0; f < static_cast<size_t>(features); ++f) {
        for (int m = 1; m < 2 * window; ++m) {
          // The inverse's factor is a power of two: nothing is rounded.
          reals[f * static_cast<size_t>(size_) + static_cast<size_t>(m)] =
              Tap(parameters, f, int64_t{p} * window + m) / static_cast<float>(size_);
        }
      }
      BST_ASSIGN_OR_RETURN(const Buffer uploaded, UploadAs(device, reals, DType::kF32));
      cuda::Transform(device.stream(), *filters_forward, static_cast<float*>(uploaded.data()),
                      static_cast<float*>(filters_.data()) + static_cast<size_t>(p) * spectrum);
      BST_RETURN_IF_ERROR(device.Sync());
    }
    num_partitions_ = partitions;
    inputs_forward_ = std::move(inputs_forward);
    sums_inverse_ = std::move(sums_inverse);
    return absl::OkStatus();
  }

  void AddRow(const Row& row, const PoolView& state, int& outputs) const {
    auto* const ring = state.slot<float>(row.slot);
    float* const base = ring + RingFloats();
    const int window = spec().block;
    int pass = 0;
    for (int t = row.begin; t < row.end; ++t) {
      const int64_t position = row.position + (t - row.begin);
      const int64_t block = num_partitions_ > 0 ? position / window : 0;
      const auto offset = static_cast<int>(num_partitions_ > 0 ? position % window : 0);
      if (num_partitions_ > 0 && offset == 0 && block > 0) {
        const auto count = static_cast<int>(std::min<int64_t>(block, num_partitions_));
        passes_.push_back(
            {.row = {.state = ring, .position = row.position, .begin = row.begin, .end = row.end},
             .base = base,
             .block = block,
             .num_blocks = count,
             .continues = pass > 0,
             .num_loaded = pass > 0 ? 1 : count});
        pass = static_cast<int>(passes_.size());
      }
      if (position % OutputBlock() == OutputBlock() - 1) {
        const int64_t newest = num_partitions_ > 0 ? offset + 1 : position + 1;
        outputs_.push_back(
            {.pass = pass,
             .output = {
                 .ring = ring,
                 .base = block > 0 ? base + int64_t{offset} * spec().num_features() : nullptr,
                 .position = position,
                 .token = t,
                 .begin = row.begin,
                 .reach = static_cast<int>(std::min<int64_t>(newest, num_taps_)),
                 .output = outputs++}});
      }
      if (t < row.end - ring_rows()) continue;
      store_.push_back({.first = ring + position % ring_rows() * spec().num_inputs,
                        .second = nullptr,
                        .source = t});
    }
  }

  // Spectra are a ring that begins anew with each row, not where the document is: so that calls
  // repeat. `newest` is the last one of the pass before; that of this one is returned.
  int MakeBase(CudaDevice& device, TensorView u, const Pass& pass, const cuda::BlockPlace* places,
               int newest) const {
    const int window = spec().block, inputs = spec().num_inputs, features = spec().num_features();
    auto* const spectra = reinterpret_cast<float*>(device.scratch());
    float* const sums = spectra + num_partitions_ * SpectrumFloats(inputs);
    float* const reals = sums + SpectrumFloats(features);
    if (!pass.continues) newest = num_partitions_ - 1;
    for (int i = 0; i < pass.num_loaded; ++i) {
      newest = (newest + 1) % num_partitions_;
      cuda::LoadBlock(device.stream(), {.u = ToMatrix(u),
                                        .place = places + i,
                                        .reals = reals,
                                        .rows = window,
                                        .size = size_,
                                        .inputs = inputs,
                                        .ring_rows = ring_rows()});
      cuda::CallOrKeep<MakeTransform>(
          device.stream(),
          TransformCall{inputs_forward_.get(), reals, spectra + newest * SpectrumFloats(inputs)});
    }
    cuda::MultiplySpectra(device.stream(), {.inputs_spectra = spectra,
                                            .filters = static_cast<const float*>(filters_.data()),
                                            .sums = sums,
                                            .points = points(),
                                            .inputs = inputs,
                                            .features = features,
                                            .ring = num_partitions_,
                                            .newest = newest,
                                            .count = pass.num_blocks});
    cuda::CallOrKeep<MakeTransform>(device.stream(),
                                    TransformCall{sums_inverse_.get(), sums, reals});
    cuda::StoreBase(
        device.stream(),
        {.reals = reals, .place = places, .rows = window, .size = size_, .features = features});
    return newest;
  }

  int num_taps_;
  int num_partitions_ = 0;  // 0: the direct form
  int size_ = 0;            // of the transforms
  cuda::FftPtr inputs_forward_, sums_inverse_;
  Buffer filters_;  // [partitions, C D, points, 2]
  Buffer taps_;     // [W or taps, C D]
  Buffer d_;
  // Of the step; they keep their capacity.
  mutable std::vector<Output> outputs_;
  mutable std::vector<Pass> passes_;
  mutable std::vector<cuda::ConvolutionOutput> sorted_;
  mutable std::vector<cuda::BlockPlace> blocks_;
  mutable std::vector<cuda::StoreRow> store_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaConvolution(
    CudaDevice& device, const ConvolutionParameters& parameters) {
  auto weights =
      std::make_unique<CudaConvolution>(parameters.spec, static_cast<int>(parameters.taps.dim(1)));
  BST_RETURN_IF_ERROR(weights->Pack(device, parameters));
  return weights;
}

}  // namespace bst
