#include "engine/model/transformer_layer.h"

#include "engine/model/attention_scale.h"
#include "engine/model/position_bias.h"

namespace bst {

absl::StatusOr<std::unique_ptr<Layer>> TransformerLayer::Create(const LayerSource& source) {
  const ModelConfig& config = source.config();
  Backend& backend = source.backend;
  BST_ASSIGN_OR_RETURN(FeedForward feed_forward, FeedForward::Create(source));
  auto layer = std::unique_ptr<TransformerLayer>(new TransformerLayer(std::move(feed_forward)));
  layer->attention_size_ = config.attention_size();
  layer->head_dim_ = config.head_dim;
  layer->qk_norm_ = config.attention.qk_norm;
  layer->norm_eps_ = config.norm_eps;

  BST_ASSIGN_OR_RETURN(layer->attn_norm_, backend.PackVector(source.Tensor("attn_norm.weight")));
  std::vector<TensorView> heads = {source.Tensor("attn.q_proj.weight"),
                                   source.Tensor("attn.k_proj.weight"),
                                   source.Tensor("attn.v_proj.weight")};
  if (source.layer().type != LayerType::kTransformer)
    heads.push_back(source.Tensor("cross.q_proj.weight"));
  BST_ASSIGN_OR_RETURN(layer->heads_, backend.PackLinear(heads, source.weights));
  BST_ASSIGN_OR_RETURN(layer->output_,
                       backend.PackLinear({source.Tensor("attn.o_proj.weight")}, source.weights));

  const AttentionSpec spec = {.num_heads = config.num_heads,
                              .head_dim = config.head_dim,
                              .window = config.window,
                              .scope = config.attention.scope,
                              .include_self = config.attention.include_self,
                              .empty_prefix = config.attention.empty_prefix,
                              .kv_type = source.kv};
  std::vector<float> scale = AttentionScales(source, "attn.scale");
  AttentionParameters parameters = {
      .spec = spec, .scale = TensorView(scale.data(), DType::kF32, {config.num_heads}), .bias = {}};
  std::vector<float> bias;
  if (config.attention.position == PositionKind::kT5) {
    bias = BiasByDistance(source.Tensor("attn.position_bias"), config.attention.t5_max_distance,
                          config.window);
    parameters.bias = TensorView(bias.data(), DType::kF32, {config.num_heads, config.window + 1});
  }
  BST_ASSIGN_OR_RETURN(layer->attention_, backend.PackAttention(parameters));
  layer->ring_region_ = source.AddRegion("ring", backend.RingBytes(spec));
  BST_ASSIGN_OR_RETURN(layer->context_, MakeCrossContext(source));
  source.workspace.normed.Reserve(source.max_tokens, config.hidden_size);
  source.workspace.heads.Reserve(source.max_tokens, layer->heads_->out_features());
  source.workspace.attended.Reserve(source.max_tokens, layer->output_->in_features());
  return layer;
}

void TransformerLayer::Forward(Backend& backend, const Step& step) const {
  const int64_t a = attention_size_, tokens = step.num_tokens(), dim = step.x.dim(1);
  const TensorView n = step.workspace->normed.Matrix(tokens, dim);
  const TensorView heads = step.workspace->heads.Matrix(tokens, heads_->out_features());
  const TensorView attended = step.workspace->attended.Matrix(tokens, output_->in_features());
  // A context takes its keys before they are rotated.
  const bool rotates = !step.rotary.empty();
  const bool rotates_at_once = rotates && qk_norm_ && context_ == nullptr;
  backend.ProjectHeads(step.x, attn_norm_.View(DType::kF32, {dim}), norm_eps_, *heads_,
                       {.normalized = qk_norm_ ? 2 * a : 0,
                        .head_dim = head_dim_,
                        .rotary = rotates_at_once ? step.rotary : TensorView()},
                       n, heads);
  if (context_ != nullptr) {
    context_->Forward(backend, step,
                      {.queries = heads.Columns(3 * a, 4 * a),
                       .keys = heads.Columns(a, 2 * a),
                       .values = heads.Columns(2 * a, 3 * a)},
                      attended.Columns(a, 2 * a));
  }
  if (rotates && !rotates_at_once) backend.Rotate(heads.Columns(0, 2 * a), head_dim_, step.rotary);
  backend.Attention(*attention_, heads.Columns(0, a), heads.Columns(a, 2 * a),
                    heads.Columns(2 * a, 3 * a), step.rows, step.pool->region(ring_region_),
                    attended.Columns(0, a));
  backend.Linear(attended, *output_, {.epilogue = LinearEpilogue::kAdd}, step.x);
  feed_forward_.Forward(backend, step);
}

size_t TransformerLayer::weight_bytes() const {
  return attn_norm_.bytes() + heads_->bytes() + output_->bytes() + attention_->bytes() +
         feed_forward_.weight_bytes() + (context_ ? context_->weight_bytes() : 0);
}

}  // namespace bst
