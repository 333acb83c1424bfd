#include "engine/model/long_convolution.h"

#include "engine/model/ssm_kernel.h"

namespace bst {

absl::StatusOr<LongConvolution> LongConvolution::Create(const LayerSource& source,
                                                        SsmOutputs outputs) {
  Backend& backend = source.backend;
  LongConvolution convolution;
  convolution.outputs_ = outputs;
  if (source.layer().ssm.kernel != SsmKernel::kS5) {
    BST_ASSIGN_OR_RETURN(convolution.ssm_,
                         PackSsmKernel(source.checkpoint, source.index, backend, outputs));
    convolution.region_ = source.AddRegion("ssm", backend.SsmStateBytes(*convolution.ssm_));
    return convolution;
  }
  BST_ASSIGN_OR_RETURN(MimoKernel kernel, MimoKernel::Create(source.checkpoint, source.index));
  BST_ASSIGN_OR_RETURN(convolution.scan_, backend.PackScan(kernel.a_minus_one()));
  BST_ASSIGN_OR_RETURN(convolution.input_, backend.PackLinear({kernel.input()}, DType::kF32));
  BST_ASSIGN_OR_RETURN(convolution.readout_, backend.PackLinear({kernel.readout()}, DType::kF32));
  BST_ASSIGN_OR_RETURN(convolution.skip_, backend.PackVector(kernel.d()));
  convolution.region_ = source.AddRegion("ssm", backend.ScanStateBytes(*convolution.scan_));
  source.workspace.modes.Reserve(source.max_tokens, convolution.input_->out_features());
  if (outputs == SsmOutputs::kBlockEnds) {
    source.workspace.end_modes.Reserve(source.max_block_ends, convolution.input_->out_features());
    source.workspace.end_input.Reserve(source.max_block_ends, convolution.input_->in_features());
  }
  return convolution;
}

void LongConvolution::Forward(Backend& backend, const Step& step, TensorView u,
                              TensorView y) const {
  const PoolView state = step.pool->region(region_);
  if (ssm_ != nullptr) {
    backend.Ssm(*ssm_, u, step.rows, state, y);
    return;
  }
  TensorView modes = step.workspace->modes.Matrix(u.dim(0), input_->out_features());
  backend.Linear(u, *input_, {}, modes);
  backend.Scan(*scan_, modes, step.rows, state);
  if (outputs_ == SsmOutputs::kBlockEnds) {
    const int64_t ends = step.num_block_ends();
    if (ends == 0) return;
    std::vector<int>& indices = step.workspace->indices;
    indices.clear();
    for (const BlockEnd& end : step.block_ends) indices.push_back(end.token);
    const TensorView end_modes = step.workspace->end_modes.Matrix(ends, modes.dim(1));
    const TensorView end_input = step.workspace->end_input.Matrix(ends, u.dim(1));
    backend.GatherRows(modes, indices, end_modes);
    backend.GatherRows(u, indices, end_input);
    modes = end_modes;
    u = end_input;
  }
  backend.Linear(modes, *readout_, {}, y);
  backend.AddScaled(u, skip_.View(DType::kF32, {y.dim(1)}), y);
}

size_t LongConvolution::weight_bytes() const {
  return ssm_ != nullptr ? ssm_->bytes()
                         : scan_->bytes() + input_->bytes() + readout_->bytes() + skip_.bytes();
}

}  // namespace bst
