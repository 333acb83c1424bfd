#include "engine/model/token_context.h"

#include "engine/model/attention_scale.h"

namespace bst {
namespace {

// Matrix `head` of a tensor [H, dh, D].
TensorView HeadMatrix(const TensorView& tensor, int64_t head) {
  const int64_t elements = tensor.dim(1) * tensor.dim(2);
  auto* base = static_cast<std::byte*>(tensor.data());
  return {base + static_cast<size_t>(head * elements) * SizeOf(tensor.dtype()),
          tensor.dtype(),
          {tensor.dim(1), tensor.dim(2)}};
}

}  // namespace

absl::StatusOr<std::unique_ptr<CrossContext>> TokenContext::Create(const LayerSource& source) {
  const ModelConfig& config = source.config();
  Backend& backend = source.backend;
  BST_ASSIGN_OR_RETURN(LongConvolution convolution,
                       LongConvolution::Create(source, SsmOutputs::kEveryToken));
  auto context = std::unique_ptr<TokenContext>(new TokenContext(std::move(convolution)));
  context->attention_size_ = config.attention_size();
  context->head_dim_ = config.head_dim;
  context->num_filters_ = config.num_filters(source.layer());
  context->qk_norm_ = config.attention.qk_norm;
  context->norm_eps_ = config.norm_eps;
  BST_ASSIGN_OR_RETURN(context->ssm_norm_, backend.PackVector(source.Tensor("ssm_norm.weight")));
  BST_ASSIGN_OR_RETURN(context->cross_norm_,
                       backend.PackVector(source.Tensor("cross.norm.weight")));
  const TensorView keys = source.Tensor("cross.k_proj.weight");
  const TensorView values = source.Tensor("cross.v_proj.weight");
  if (source.layer().context == ContextKind::kMultiHead) {
    for (const TensorView& tensor : {keys, values}) {
      for (int head = 0; head < config.num_heads; ++head) {
        BST_ASSIGN_OR_RETURN(std::unique_ptr<LinearWeights> weights,
                             backend.PackLinear({HeadMatrix(tensor, head)}, source.weights));
        context->keys_values_.push_back(std::move(weights));
      }
    }
  } else {
    BST_ASSIGN_OR_RETURN(std::unique_ptr<LinearWeights> weights,
                         backend.PackLinear({keys, values}, source.weights));
    context->keys_values_.push_back(std::move(weights));
  }
  std::vector<float> scale = AttentionScales(source, "cross.scale");
  const AttentionSpec spec = {.num_heads = config.num_heads,
                              .head_dim = config.head_dim,
                              .window = config.window,
                              .scope = AttentionScope::kBlock,
                              .include_self = true,
                              .empty_prefix = EmptyPrefix::kMasked,
                              .kv_type = source.kv};
  BST_ASSIGN_OR_RETURN(
      context->attention_,
      backend.PackAttention({.spec = spec,
                             .scale = TensorView(scale.data(), DType::kF32, {config.num_heads}),
                             .bias = {}}));
  context->ring_region_ = source.AddRegion("context", backend.RingBytes(spec));
  source.workspace.signal.Reserve(source.max_tokens, config.hidden_size);
  source.workspace.states.Reserve(source.max_tokens,
                                  int64_t{context->num_filters_} * config.hidden_size);
  source.workspace.context.Reserve(source.max_tokens, 2 * context->attention_size_);
  return context;
}

void TokenContext::Forward(Backend& backend, const Step& step, const Inputs& inputs,
                           TensorView out) const {
  const int64_t tokens = step.num_tokens(), dim = step.x.dim(1), filters = num_filters_;
  const TensorView u = step.workspace->signal.Matrix(tokens, dim);
  const TensorView y = step.workspace->states.Matrix(tokens, filters * dim);
  backend.RmsNorm(step.x, ssm_norm_.View(DType::kF32, {dim}), norm_eps_, u);
  convolution_.Forward(backend, step, u, y);

  const TensorView vectors = step.workspace->states.Matrix(tokens * filters, dim);  // y again
  backend.RmsNorm(vectors, cross_norm_.View(DType::kF32, {dim}), norm_eps_, vectors);
  const TensorView context = step.workspace->context.Matrix(tokens, 2 * attention_size_);
  if (keys_values_.size() == 1) {
    backend.Linear(y, *keys_values_[0], {}, context);
  } else {
    for (int64_t i = 0; i < 2 * filters; ++i) {
      const int64_t head = i % filters;
      backend.Linear(y.Columns(head * dim, (head + 1) * dim), *keys_values_[static_cast<size_t>(i)],
                     {}, context.Columns(i * head_dim_, (i + 1) * head_dim_));
    }
  }
  const TensorView keys = context.Columns(0, attention_size_);
  const TensorView values = context.Columns(attention_size_, 2 * attention_size_);
  if (qk_norm_) {
    backend.NormalizeHeads(inputs.queries, head_dim_, /*rotary=*/{});
    backend.NormalizeHeads(keys, head_dim_, /*rotary=*/{});
  }
  backend.Attention(*attention_, inputs.queries, keys, values, step.rows,
                    step.pool->region(ring_region_), out);
}

size_t TokenContext::weight_bytes() const {
  size_t bytes =
      ssm_norm_.bytes() + cross_norm_.bytes() + convolution_.weight_bytes() + attention_->bytes();
  for (const std::unique_ptr<LinearWeights>& weights : keys_values_) bytes += weights->bytes();
  return bytes;
}

}  // namespace bst
