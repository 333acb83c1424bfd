#include "engine/model/multi_filter_context.h"

#include <numeric>

#include "engine/model/attention_scale.h"

namespace bst {

absl::StatusOr<std::unique_ptr<CrossContext>> MultiFilterContext::Create(
    const LayerSource& source) {
  const ModelConfig& config = source.config();
  Backend& backend = source.backend;
  const int64_t vectors = source.layer().num_states, dim = config.hidden_size;
  std::vector<float> scale = AttentionScales(source, "cross.scale");
  BST_ASSIGN_OR_RETURN(LongConvolution convolution,
                       LongConvolution::Create(source, SsmOutputs::kBlockEnds));
  BST_ASSIGN_OR_RETURN(
      BlockContexts contexts,
      BlockContexts::Create(source, source.layer().num_states, absl::MakeSpan(scale)));
  auto context = std::unique_ptr<MultiFilterContext>(
      new MultiFilterContext(std::move(convolution), std::move(contexts)));
  context->attention_size_ = config.attention_size();
  context->head_dim_ = config.head_dim;
  context->qk_norm_ = config.attention.qk_norm;
  context->norm_eps_ = config.norm_eps;
  BST_ASSIGN_OR_RETURN(context->ssm_norm_, backend.PackVector(source.Tensor("ssm_norm.weight")));
  BST_ASSIGN_OR_RETURN(context->cross_norm_,
                       backend.PackVector(source.Tensor("cross.norm.weight")));
  BST_ASSIGN_OR_RETURN(context->context_ids_,
                       backend.PackVector(source.Tensor("cross.context_ids")));
  BST_ASSIGN_OR_RETURN(context->keys_values_,
                       backend.PackLinear({source.Tensor("cross.k_proj.weight"),
                                           source.Tensor("cross.v_proj.weight")},
                                          source.weights));
  source.workspace.signal.Reserve(source.max_tokens, dim);
  source.workspace.states.Reserve(source.max_block_ends * vectors, dim);
  source.workspace.context.Reserve(source.max_block_ends * vectors, 2 * context->attention_size_);

  BST_ASSIGN_OR_RETURN(const Buffer initial,
                       backend.PackVector(source.Tensor("cross.initial_context")));
  BST_ASSIGN_OR_RETURN(
      const Buffer keys_values,
      backend.Allocate(static_cast<size_t>(2 * vectors * context->attention_size_) *
                       sizeof(float)));
  const TensorView projected =
      keys_values.View(DType::kF32, {vectors, 2 * context->attention_size_});
  context->Project(backend, initial.View(DType::kF32, {vectors, dim}), projected);
  context->contexts_.SetInitial(
      backend, projected.Columns(0, context->attention_size_),
      projected.Columns(context->attention_size_, 2 * context->attention_size_));
  return context;
}

void MultiFilterContext::Project(Backend& backend, TensorView vectors,
                                 TensorView keys_values) const {
  const int64_t dim = vectors.dim(1);
  backend.RmsNorm(vectors, cross_norm_.View(DType::kF32, {dim}), norm_eps_, vectors);
  backend.AddTable(context_ids_.View(DType::kF32, {contexts_.num_vectors(), dim}), vectors);
  backend.Linear(vectors, *keys_values_, {}, keys_values);
  if (qk_norm_)
    backend.NormalizeHeads(keys_values.Columns(0, attention_size_), head_dim_, /*rotary=*/{});
}

void MultiFilterContext::Forward(Backend& backend, const Step& step, const Inputs& inputs,
                                 TensorView out) const {
  const int64_t dim = step.x.dim(1), ends = step.num_block_ends();
  const int64_t vectors = contexts_.num_vectors(), a = attention_size_;
  Workspace& workspace = *step.workspace;
  const TensorView u = workspace.signal.Matrix(step.num_tokens(), dim);
  backend.RmsNorm(step.x, ssm_norm_.View(DType::kF32, {dim}), norm_eps_, u);
  convolution_.Forward(backend, step, u, workspace.states.Matrix(ends, vectors * dim));
  if (ends > 0) {
    const TensorView keys_values = workspace.context.Matrix(ends * vectors, 2 * a);
    Project(backend, workspace.states.Matrix(ends * vectors, dim), keys_values);
    workspace.indices.resize(static_cast<size_t>(ends));
    std::iota(workspace.indices.begin(), workspace.indices.end(), 0);
    contexts_.Store(backend, step, keys_values.Columns(0, a), keys_values.Columns(a, 2 * a),
                    workspace.indices);
  }
  if (qk_norm_) backend.NormalizeHeads(inputs.queries, head_dim_, /*rotary=*/{});
  contexts_.Attend(backend, step, inputs.queries, out);
  contexts_.Commit(backend, step);
}

}  // namespace bst
