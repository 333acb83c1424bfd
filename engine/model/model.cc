#include "engine/model/model.h"

#include <algorithm>

#include "engine/base/status_macros.h"
#include "engine/model/layer.h"
#include "engine/model/transformer_layer.h"

namespace bst {

// The activations of the largest step, one buffer each, cut to T rows by Forward.
struct Model::Workspace {
  std::vector<Buffer> buffers;
  Step step;
  TensorView gathered;  // [max_logit_rows, D]
  TensorView logits;    // [max_logit_rows, V]

  absl::StatusOr<TensorView> Add(Backend& backend, int64_t rows, int64_t columns) {
    const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(columns) * sizeof(float);
    BST_ASSIGN_OR_RETURN(Buffer buffer, backend.Allocate(bytes));
    buffers.push_back(std::move(buffer));
    return buffers.back().View(DType::kF32, {rows, columns});
  }
};

Model::Model(Backend& backend, const ModelOptions& options)
    : backend_(backend), options_(options) {}
Model::~Model() = default;

absl::StatusOr<std::unique_ptr<Model>> Model::Create(const Checkpoint& checkpoint, Backend& backend,
                                                     const ModelOptions& options) {
  if (options.max_step_tokens < 1 || options.max_logit_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_step_tokens is ", options.max_step_tokens,
                                                   ", max_logit_rows is ", options.max_logit_rows,
                                                   "; both must be at least 1"));
  }
  const ModelConfig& config = checkpoint.config();
  auto model = std::unique_ptr<Model>(new Model(backend, options));
  model->vocab_size_ = config.vocab_size;
  model->norm_eps_ = config.norm_eps;
  model->logit_scale_ = config.logit_scale;
  if (config.attention.position == PositionKind::kRope) {
    model->rope_theta_ = config.attention.rope_theta;
    model->rotary_dim_ = config.head_dim;
  }

  const TensorView embedding = checkpoint.Tensor("embed.weight");
  BST_ASSIGN_OR_RETURN(model->embedding_, backend.PackEmbedding(embedding, options.weights));
  for (int n = 0; n < static_cast<int>(config.layers.size()); ++n) {
    BST_ASSIGN_OR_RETURN(std::unique_ptr<Layer> layer,
                         TransformerLayer::Create({.checkpoint = checkpoint,
                                                   .backend = backend,
                                                   .index = n,
                                                   .weights = options.weights,
                                                   .kv = options.kv,
                                                   .layout = model->state_layout_}));
    model->layers_.push_back(std::move(layer));
  }
  BST_ASSIGN_OR_RETURN(model->final_norm_,
                       backend.PackVector(checkpoint.Tensor("final_norm.weight")));
  const TensorView output = config.tie_embeddings ? embedding : checkpoint.Tensor("lm_head.weight");
  BST_ASSIGN_OR_RETURN(model->output_, backend.PackLinear({output}, options.weights));

  model->workspace_ = std::make_unique<Workspace>();
  Workspace& w = *model->workspace_;
  const int64_t t = options.max_step_tokens, d = config.hidden_size, a = config.attention_size(),
                f = config.ffn_size;
  const bool gated =
      config.ffn_activation == Activation::kGeglu || config.ffn_activation == Activation::kSwiglu;
  BST_ASSIGN_OR_RETURN(w.step.x, w.Add(backend, t, d));
  BST_ASSIGN_OR_RETURN(w.step.normed, w.Add(backend, t, d));
  BST_ASSIGN_OR_RETURN(w.step.heads, w.Add(backend, t, 4 * a));
  BST_ASSIGN_OR_RETURN(w.step.attended, w.Add(backend, t, 2 * a));
  BST_ASSIGN_OR_RETURN(w.step.context, w.Add(backend, t, 2 * a));
  BST_ASSIGN_OR_RETURN(w.step.signal, w.Add(backend, t, d));
  BST_ASSIGN_OR_RETURN(w.step.states, w.Add(backend, t, d));
  BST_ASSIGN_OR_RETURN(w.step.hidden, w.Add(backend, t, gated ? 2 * f : f));
  BST_ASSIGN_OR_RETURN(w.step.gated, w.Add(backend, gated ? t : 1, f));
  if (model->rotary_dim_ > 0) {
    BST_ASSIGN_OR_RETURN(w.step.rotary, w.Add(backend, t, model->rotary_dim_));
  }
  BST_ASSIGN_OR_RETURN(w.gathered, w.Add(backend, options.max_logit_rows, d));
  BST_ASSIGN_OR_RETURN(w.logits, w.Add(backend, options.max_logit_rows, config.vocab_size));
  return model;
}

void Model::Forward(absl::Span<const TokenId> tokens, absl::Span<const Row> rows, StatePool& pool) {
  const auto t = static_cast<int64_t>(tokens.size());
  BST_CHECK(t <= options_.max_step_tokens, t, " tokens in a step of at most ",
            options_.max_step_tokens);
  BST_CHECK(!rows.empty() && rows.front().begin == 0 && rows.back().end == t,
            "rows do not cover the tokens");
  Step step = workspace_->step;
  step.rows = rows;
  step.pool = &pool;
  for (TensorView* view : {&step.x, &step.normed, &step.heads, &step.attended, &step.context,
                           &step.signal, &step.states, &step.hidden, &step.gated, &step.rotary}) {
    if (!view->empty()) *view = view->Rows(0, std::min(t, view->dim(0)));
  }
  num_tokens_ = static_cast<int>(t);

  backend_.Embed(*embedding_, tokens, step.x);
  if (rotary_dim_ > 0) backend_.RotaryTable(rows, rope_theta_, step.rotary);
  for (const std::unique_ptr<Layer>& layer : layers_) layer->Forward(backend_, step);
}

TensorView Model::Logits(absl::Span<const int> indices) {
  const auto n = static_cast<int64_t>(indices.size());
  BST_CHECK(n <= options_.max_logit_rows, n, " rows of logits, capacity ", options_.max_logit_rows);
  for (const int index : indices)
    BST_CHECK(0 <= index && index < num_tokens_, "token ", index, " of ", num_tokens_);
  const TensorView hidden = workspace_->gathered.Rows(0, n), logits = workspace_->logits.Rows(0, n);
  backend_.GatherRows(workspace_->step.x, indices, hidden);
  backend_.RmsNorm(hidden, final_norm_.View(DType::kF32, {hidden.dim(1)}), norm_eps_, hidden);
  backend_.Linear(hidden, *output_, {.scale = logit_scale_}, logits);
  return logits;
}

size_t Model::weight_bytes() const {
  size_t bytes = embedding_->bytes() + output_->bytes();
  for (const std::unique_ptr<Layer>& layer : layers_) bytes += layer->weight_bytes();
  return bytes;
}

}  // namespace bst
