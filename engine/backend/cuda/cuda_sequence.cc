// The host's side of sequence.cu: where each row's state and outputs lie.
#include <algorithm>
#include <vector>

#include "engine/backend/cuda/cuda_weights.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

// Tokens of a row that have an output. `block` is 1 where all have.
int64_t NumOutputs(const Row& row, int block) {
  return (row.position + row.num_tokens()) / block - row.position / block;
}

int OutputBlock(const SsmSpec& spec) {
  return spec.outputs == SsmOutputs::kEveryToken ? 1 : spec.block;
}

std::vector<cuda::SequenceRow> SequenceRows(absl::Span<const Row> rows, const PoolView& state,
                                            int block) {
  std::vector<cuda::SequenceRow> out;
  out.reserve(rows.size());
  int64_t output = 0;
  for (const Row& row : rows) {
    out.push_back({.state = state.slot<std::byte>(row.slot),
                   .position = row.position,
                   .begin = row.begin,
                   .end = row.end,
                   .first_output = static_cast<int>(output)});
    output += NumOutputs(row, block);
  }
  return out;
}

int64_t TotalOutputs(absl::Span<const Row> rows, int block) {
  int64_t total = 0;
  for (const Row& row : rows) total += NumOutputs(row, block);
  return total;
}

class CudaRecurrence : public CudaSequence {
 public:
  CudaRecurrence(const SsmSpec& spec, int64_t modes, bool dplr)
      : CudaSequence(spec), modes_(static_cast<int>(modes)), dplr_(dplr) {}

  void Run(CudaDevice& device, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) const override {
    const int block = OutputBlock(spec());
    BST_CHECK(u.dim(1) == spec().num_inputs, "inputs ", u.dim(1), ", weights take ",
              spec().num_inputs);
    BST_CHECK_SHAPE(y, {TotalOutputs(rows, block), spec().num_features()});
    const std::vector<cuda::SequenceRow> places = SequenceRows(rows, state, block);
    const auto part = [](const Buffer& buffer) { return static_cast<const float*>(buffer.data()); };
    const cuda::RecurrenceTask task = {.u = ToMatrix(u),
                                       .y = ToMatrix(y),
                                       .rows = device.Stage(absl::MakeConstSpan(places)),
                                       .c = part(c),
                                       .d = part(d),
                                       .e = part(e),
                                       .b = part(b),
                                       .p = part(p),
                                       .g = part(g),
                                       .w = part(w),
                                       .dt = part(dt),
                                       .num_rows = static_cast<int>(rows.size()),
                                       .inputs = spec().num_inputs,
                                       .features = spec().num_features(),
                                       .modes = modes_,
                                       .block = block};
    if (dplr_) {
      cuda::Dplr(device.stream(), task);
    } else {
      cuda::Diagonal(device.stream(), task);
    }
  }
  size_t state_bytes() const override { return c.bytes(); }
  size_t bytes() const override {
    size_t total = 0;
    for (const Buffer* buffer : {&c, &d, &e, &b, &p, &g, &w, &dt}) total += buffer->bytes();
    return total;
  }

  Buffer c, d, e, b, p, g, w, dt;  // as in RecurrenceTask

 private:
  int modes_;
  bool dplr_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaSsm(CudaDevice& device,
                                                        const SsmParameters& parameters) {
  auto weights =
      std::make_unique<CudaRecurrence>(parameters.spec, parameters.c.dim(1), /*dplr=*/false);
  BST_ASSIGN_OR_RETURN(weights->e, UploadFloats(device, parameters.a_minus_one));
  BST_ASSIGN_OR_RETURN(weights->b, UploadFloats(device, parameters.b));
  BST_ASSIGN_OR_RETURN(weights->c, UploadFloats(device, parameters.c));
  BST_ASSIGN_OR_RETURN(weights->d, UploadFloats(device, parameters.d));
  return weights;
}

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaDplr(CudaDevice& device,
                                                         const DplrParameters& parameters) {
  auto weights =
      std::make_unique<CudaRecurrence>(parameters.spec, parameters.c.dim(1), /*dplr=*/true);
  BST_ASSIGN_OR_RETURN(weights->e, UploadFloats(device, parameters.dt_lambda));
  BST_ASSIGN_OR_RETURN(weights->b, UploadFloats(device, parameters.dt_b));
  BST_ASSIGN_OR_RETURN(weights->p, UploadFloats(device, parameters.p));
  BST_ASSIGN_OR_RETURN(weights->g, UploadFloats(device, parameters.g));
  BST_ASSIGN_OR_RETURN(weights->w, UploadFloats(device, parameters.w));
  BST_ASSIGN_OR_RETURN(weights->c, UploadFloats(device, parameters.c));
  BST_ASSIGN_OR_RETURN(weights->dt, UploadFloats(device, parameters.dt));
  BST_ASSIGN_OR_RETURN(weights->d, UploadFloats(device, parameters.d));
  return weights;
}

void CudaScan::Run(CudaDevice& device, TensorView v, absl::Span<const Row> rows,
                   PoolView state) const {
  BST_CHECK(v.dim(1) == 2 * modes_, "columns ", v.dim(1), ", modes ", modes_);
  const std::vector<cuda::SequenceRow> places = SequenceRows(rows, state, 1);
  cuda::Scan(device.stream(), {.v = ToMatrix(v),
                               .rows = device.Stage(absl::MakeConstSpan(places)),
                               .e = static_cast<const float*>(e_.data()),
                               .num_rows = static_cast<int>(rows.size()),
                               .modes = modes_});
}

}  // namespace bst
