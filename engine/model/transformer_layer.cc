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
  if (backend.PacksHeads() && layer->context_ != nullptr && !layer->context_->TakesKeys())
    source.workspace.queries.Reserve(source.max_tokens, layer->attention_size_);
  source.workspace.attended.Reserve(source.max_tokens, layer->output_->in_features());
  return layer;
}

void TransformerLayer::Forward(Backend& backend, const Step& step) const {
  const TensorView attended =
      step.workspace->attended.Matrix(step.num_tokens(), output_->in_features());
  Attend(backend, step, attended);
  TensorView x = step.x, o = attended;
  if (step.has_unwanted) {
    if (step.wanted.empty()) return;
    x = step.outputs;
    // In the place of the heads, which have been read.
    o = step.workspace->heads.Matrix(x.dim(0), output_->in_features());
    backend.GatherRows(step.x, step.wanted, x);
    backend.GatherRows(attended, step.wanted, o);
  }
  backend.Linear(o, *output_, {.epilogue = LinearEpilogue::kAdd}, x);
  feed_forward_.Forward(backend, *step.workspace, x);
}

void TransformerLayer::Attend(Backend& backend, const Step& step, TensorView attended) const {
  const int64_t a = attention_size_, tokens = step.num_tokens(), dim = step.x.dim(1);
  const TensorView n = step.workspace->normed.Matrix(tokens, dim);
  const TensorView heads = step.workspace->heads.Matrix(tokens, heads_->out_features());
  const TensorView gain = attn_norm_.View(DType::kF32, {dim}), self = attended.Columns(0, a);
  const PoolView ring = step.pool->region(ring_region_);
  const auto attend_to_context = [&](const CrossContext::Inputs& inputs) {
    if (context_ != nullptr) context_->Forward(backend, step, inputs, attended.Columns(a, 2 * a));
  };
  HeadOptions options = {.normalized = qk_norm_ ? 2 * a : 0, .head_dim = head_dim_, .rotary = {}};
  const bool takes_keys = context_ != nullptr && context_->TakesKeys();
  const bool rotates = !step.rotary.empty();
  if (!takes_keys && (qk_norm_ || !rotates)) {
    options.rotary = step.rotary;
    const TensorView queries = context_ != nullptr && backend.PacksHeads()
                                   ? step.workspace->queries.Matrix(tokens, a)
                                   : TensorView();
    const ProjectedHeads projected = backend.ProjectAttention(
        step.x, gain, norm_eps_, *heads_, options, *attention_, step.rows, ring, n, heads, queries);
    attend_to_context({.queries = projected.others, .keys = {}, .values = {}});
    backend.ProjectedAttention(*attention_, projected, step.rows, ring, self);
    return;
  }
  const TensorView q = heads.Columns(0, a), k = heads.Columns(a, 2 * a);
  const TensorView v = heads.Columns(2 * a, 3 * a);
  backend.ProjectHeads(step.x, gain, norm_eps_, *heads_, options, n, heads);
  // A context takes its keys before they are rotated.
  attend_to_context({.queries = heads.Columns(3 * a, heads.dim(1)), .keys = k, .values = v});
  if (rotates) backend.Rotate(heads.Columns(0, 2 * a), head_dim_, step.rotary);
  backend.Attention(*attention_, q, k, v, step.rows, ring, self);
}

size_t TransformerLayer::weight_bytes() const {
  return attn_norm_.bytes() + heads_->bytes() + output_->bytes() + attention_->bytes() +
         feed_forward_.weight_bytes() + (context_ ? context_->weight_bytes() : 0);
}

}  // namespace bst
