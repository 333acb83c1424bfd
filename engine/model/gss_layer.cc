#include "engine/model/gss_layer.h"

namespace bst {

absl::StatusOr<std::unique_ptr<Layer>> GssLayer::Create(const LayerSource& source) {
  Backend& backend = source.backend;
  BST_ASSIGN_OR_RETURN(LongConvolution convolution,
                       LongConvolution::Create(source, SsmOutputs::kEveryToken));
  auto layer = std::unique_ptr<GssLayer>(new GssLayer(std::move(convolution)));
  layer->norm_eps_ = source.config().norm_eps;
  BST_ASSIGN_OR_RETURN(layer->norm_, backend.PackVector(source.Tensor("gss.norm.weight")));
  const auto linear = [&](const char* name) {
    return backend.PackLinear({source.Tensor(name)}, source.weights);
  };
  BST_ASSIGN_OR_RETURN(layer->u_, linear("gss.u_proj.weight"));
  BST_ASSIGN_OR_RETURN(layer->v_, linear("gss.v_proj.weight"));
  BST_ASSIGN_OR_RETURN(layer->gate_, linear("gss.gate_proj.weight"));
  BST_ASSIGN_OR_RETURN(layer->output_, linear("gss.out_proj.weight"));
  const int64_t inner = source.layer().inner_size, size = source.layer().ssm_size;
  source.workspace.normed.Reserve(source.max_tokens, source.config().hidden_size);
  source.workspace.hidden.Reserve(source.max_tokens, inner);
  source.workspace.gated.Reserve(source.max_tokens, inner);
  source.workspace.signal.Reserve(source.max_tokens, size);
  source.workspace.states.Reserve(source.max_tokens, size);
  return layer;
}

void GssLayer::Forward(Backend& backend, const Step& step) const {
  const Workspace& workspace = *step.workspace;
  const int64_t dim = step.x.dim(1), size = v_->out_features();
  const TensorView gain = norm_.View(DType::kF32, {dim});
  TensorView x = step.x;
  TensorView n = workspace.normed.Matrix(x.dim(0), dim);
  const TensorView v = workspace.signal.Matrix(x.dim(0), size);
  TensorView s = workspace.states.Matrix(x.dim(0), size);
  backend.RmsNorm(x, gain, norm_eps_, n);
  backend.Linear(n, *v_, {.epilogue = LinearEpilogue::kGelu}, v);
  convolution_.Forward(backend, step, v, s);
  if (step.has_unwanted) {
    if (step.wanted.empty()) return;
    x = step.outputs;
    n = workspace.normed.Matrix(x.dim(0), dim);
    backend.GatherRows(step.x, step.wanted, x);
    backend.RmsNorm(x, gain, norm_eps_, n);
    const TensorView states = workspace.signal.Matrix(x.dim(0), size);  // v has been read
    backend.GatherRows(s, step.wanted, states);
    s = states;
  }
  const TensorView u = workspace.hidden.Matrix(x.dim(0), u_->out_features());
  const TensorView gated = workspace.gated.Matrix(x.dim(0), u_->out_features());
  backend.Linear(n, *u_, {.epilogue = LinearEpilogue::kGelu}, u);
  backend.Linear(s, *gate_, {}, gated);
  backend.Multiply(u, gated);
  backend.Linear(gated, *output_, {.epilogue = LinearEpilogue::kAdd}, x);
}

size_t GssLayer::weight_bytes() const {
  return norm_.bytes() + u_->bytes() + v_->bytes() + gate_->bytes() + output_->bytes() +
         convolution_.weight_bytes();
}

}  // namespace bst
