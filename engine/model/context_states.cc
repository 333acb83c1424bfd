#include "engine/model/context_states.h"

#include "absl/strings/str_cat.h"
#include "engine/model/attention_scale.h"
#include "engine/model/ssm_discretization.h"

namespace bst {

absl::StatusOr<ContextStates> ContextStates::Create(const LayerSource& source) {
  const ModelConfig& config = source.checkpoint.config();
  Backend& backend = source.backend;
  ContextStates context;
  context.attention_size_ = config.attention_size();
  context.head_dim_ = config.head_dim;
  context.qk_norm_ = config.attention.qk_norm;
  context.norm_eps_ = config.norm_eps;
  BST_ASSIGN_OR_RETURN(context.ssm_norm_, backend.PackVector(source.Tensor("ssm_norm.weight")));
  BST_ASSIGN_OR_RETURN(context.cross_norm_, backend.PackVector(source.Tensor("cross.norm.weight")));
  BST_ASSIGN_OR_RETURN(
      DiscreteSsm ssm,
      DiscreteSsm::Create(source.checkpoint, source.index,
                          config.layers[static_cast<size_t>(source.index)].ssm.discretization));
  BST_ASSIGN_OR_RETURN(context.ssm_, backend.PackSsm(ssm.parameters()));
  BST_ASSIGN_OR_RETURN(context.keys_values_,
                       backend.PackLinear({source.Tensor("cross.k_proj.weight"),
                                           source.Tensor("cross.v_proj.weight")},
                                          source.weights));
  std::vector<float> scale = AttentionScales(source, "cross.scale");
  const AttentionSpec spec = {.num_heads = config.num_heads,
                              .head_dim = config.head_dim,
                              .window = config.window,
                              .scope = AttentionScope::kBlock,
                              .include_self = true,
                              .empty_prefix = EmptyPrefix::kMasked,
                              .kv_type = source.kv};
  BST_ASSIGN_OR_RETURN(
      context.attention_,
      backend.PackAttention({.spec = spec,
                             .scale = TensorView(scale.data(), DType::kF32, {config.num_heads}),
                             .bias = {}}));
  context.ssm_region_ = source.layout.Add({.name = absl::StrCat("layers.", source.index, ".ssm"),
                                           .slot_bytes = backend.SsmStateBytes(*context.ssm_)});
  context.ring_region_ =
      source.layout.Add({.name = absl::StrCat("layers.", source.index, ".context"),
                         .slot_bytes = backend.RingBytes(spec)});
  return context;
}

void ContextStates::Forward(Backend& backend, const Step& step, TensorView queries,
                            TensorView out) const {
  const int64_t dim = step.x.dim(1);
  const TensorView u = step.signal, y = step.states;
  backend.RmsNorm(step.x, ssm_norm_.View(DType::kF32, {dim}), norm_eps_, u);
  backend.Ssm(*ssm_, u, step.rows, step.pool->region(ssm_region_), y);

  const TensorView r = y;  // y is not needed again
  backend.RmsNorm(y, cross_norm_.View(DType::kF32, {dim}), norm_eps_, r);
  backend.Linear(r, *keys_values_, {}, step.context);
  const TensorView keys = step.context.Columns(0, attention_size_);
  const TensorView values = step.context.Columns(attention_size_, 2 * attention_size_);
  if (qk_norm_) {
    backend.NormalizeHeads(queries, head_dim_);
    backend.NormalizeHeads(keys, head_dim_);
  }
  backend.Attention(*attention_, queries, keys, values, step.rows, step.pool->region(ring_region_),
                    out);
}

}  // namespace bst
