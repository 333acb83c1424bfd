#include "engine/model/model.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "engine/base/annotate.h"
#include "engine/base/out_of_memory.h"
#include "engine/base/status_macros.h"
#include "engine/model/gss_layer.h"
#include "engine/model/transformer_layer.h"

namespace bst {

namespace {

absl::StatusOr<std::unique_ptr<Layer>> MakeLayer(const LayerSource& source) {
  return source.layer().type == LayerType::kGss ? GssLayer::Create(source)
                                                : TransformerLayer::Create(source);
}

}  // namespace

Model::Model(Backend& backend, const ModelOptions& options)
    : backend_(backend), options_(options) {}
Model::~Model() = default;

absl::StatusOr<std::unique_ptr<Model>> Model::Create(const Checkpoint& checkpoint, Backend& backend,
                                                     const ModelOptions& options) {
  if (options.max_step_tokens < 1 || options.max_logit_rows < 1 || options.max_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_step_tokens is ", options.max_step_tokens, ", max_logit_rows is ",
        options.max_logit_rows, ", max_rows is ", options.max_rows, "; all must be at least 1"));
  }
  return OrResourceExhausted("model", [&] { return Load(checkpoint, backend, options); });
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const Checkpoint& checkpoint, Backend& backend,
                                                   const ModelOptions& options) {
  const ModelConfig& config = checkpoint.config();
  auto model = std::unique_ptr<Model>(new Model(backend, options));
  model->vocab_size_ = config.vocab_size;
  model->hidden_size_ = config.hidden_size;
  model->window_ = config.window;
  model->norm_eps_ = config.norm_eps;
  model->logit_scale_ = config.logit_scale;
  if (config.attention.position == PositionKind::kRope) {
    model->rope_theta_ = config.attention.rope_theta;
    model->rotary_dim_ = config.head_dim;
  }

  const TensorView embedding = checkpoint.Tensor("embed.weight");
  // A table that is read one row per token gains nothing from INT8.
  BST_ASSIGN_OR_RETURN(
      model->embedding_,
      backend.PackEmbedding(embedding,
                            options.weights == DType::kI8 ? DType::kBF16 : options.weights));
  model->workspace_ = std::make_unique<Workspace>();
  // A row of n tokens has at most n / W + 1 block ends, and at most n.
  const int max_rows = std::min(options.max_rows, options.max_step_tokens);
  const auto max_block_ends = static_cast<int>(std::min<int64_t>(
      options.max_step_tokens, int64_t{options.max_step_tokens / config.window} + max_rows));
  for (int n = 0; n < static_cast<int>(config.layers.size()); ++n) {
    absl::StatusOr<std::unique_ptr<Layer>> layer = MakeLayer({.checkpoint = checkpoint,
                                                              .backend = backend,
                                                              .index = n,
                                                              .weights = options.weights,
                                                              .kv = options.kv,
                                                              .layout = model->state_layout_,
                                                              .workspace = *model->workspace_,
                                                              .max_tokens = options.max_step_tokens,
                                                              .max_rows = max_rows,
                                                              .max_block_ends = max_block_ends});
    if (!layer.ok()) return Annotate(layer.status(), absl::StrCat("layer ", n));
    model->layers_.push_back(*std::move(layer));
  }
  BST_ASSIGN_OR_RETURN(model->final_norm_,
                       backend.PackVector(checkpoint.Tensor("final_norm.weight")));
  const TensorView output = config.tie_embeddings ? embedding : checkpoint.Tensor("lm_head.weight");
  BST_ASSIGN_OR_RETURN(model->output_, backend.PackLinear({output}, options.weights));

  if (const absl::Status status = model->workspace_->Allocate(backend, max_rows, max_block_ends);
      !status.ok()) {
    return Annotate(status, absl::StrCat("workspace for max_step_tokens = ",
                                         options.max_step_tokens, ", max_rows = ", max_rows));
  }
  model->block_ends_.reserve(static_cast<size_t>(max_block_ends));
  model->wanted_.reserve(static_cast<size_t>(options.max_step_tokens));
  model->last_rows_.reserve(static_cast<size_t>(max_rows));
  model->places_.reserve(static_cast<size_t>(options.max_logit_rows));
  // Logits gathers from the one of these into the other.
  model->residual_.Reserve(std::max(options.max_step_tokens, options.max_logit_rows),
                           config.hidden_size);
  model->rotary_.Reserve(options.max_step_tokens, model->rotary_dim_);
  model->gathered_rows_ = std::max(options.max_logit_rows, max_rows);
  model->gathered_.Reserve(model->gathered_rows_, config.hidden_size);
  model->logits_.Reserve(options.max_logit_rows, config.vocab_size);
  for (Scratch* scratch : {&model->residual_, &model->rotary_, &model->gathered_}) {
    BST_RETURN_IF_ERROR(scratch->Allocate(backend));
  }
  BST_RETURN_IF_ERROR(options.logits == LogitsPlace::kDevice
                          ? model->logits_.Allocate(backend)
                          : model->logits_.AllocateHostReadable(backend));
  return model;
}

void Model::Forward(absl::Span<const TokenId> tokens, absl::Span<const Row> rows,
                    absl::Span<const int> wanted, StatePool& pool) {
  const auto t = static_cast<int64_t>(tokens.size());
  BST_CHECK(t <= options_.max_step_tokens, t, " tokens in a step of at most ",
            options_.max_step_tokens);
  BST_CHECK(!rows.empty() && rows.front().begin == 0 && rows.back().end == t,
            "rows do not cover the tokens");
  BST_CHECK(static_cast<int>(rows.size()) <= options_.max_rows, rows.size(),
            " rows in a step of at most ", options_.max_rows);
  const bool ascending =
      std::adjacent_find(wanted.begin(), wanted.end(), std::greater_equal<>()) == wanted.end();
  BST_CHECK(ascending && (wanted.empty() || (wanted.front() >= 0 && wanted.back() < t)), "of ", t,
            " tokens those wanted are not some in order");
  block_ends_.clear();
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    const int to_end = window_ - 1 - static_cast<int>(row.position % window_);
    for (int token = row.begin + to_end; token < row.end; token += window_) {
      block_ends_.push_back({.row = static_cast<int>(r),
                             .token = token,
                             .block = (row.position + (token - row.begin)) / window_});
    }
  }
  const Step step = {.rows = rows,
                     .block_ends = block_ends_,
                     .pool = &pool,
                     .workspace = workspace_.get(),
                     .x = residual_.Matrix(t, hidden_size_),
                     .rotary = rotary_dim_ > 0 ? rotary_.Matrix(t, rotary_dim_) : TensorView()};

  backend_.Embed(*embedding_, tokens, step.x);
  if (rotary_dim_ > 0) backend_.RotaryTable(rows, rope_theta_, step.rotary);
  for (size_t n = 0; n + 1 < layers_.size(); ++n) layers_[n]->Forward(backend_, step);
  layers_.back()->Forward(backend_, LastStep(step, wanted));
}

Step Model::LastStep(const Step& step, absl::Span<const int> wanted) {
  wanted_.assign(wanted.begin(), wanted.end());
  const auto n = static_cast<int64_t>(wanted_.size());
  // Of more than those of all rows, as where a text is scored, most are wanted.
  has_unwanted_ = n < step.num_tokens() && n <= gathered_rows_;
  outputs_ = step.x;
  if (!has_unwanted_) return step;
  outputs_ = gathered_.Matrix(n, hidden_size_);
  last_rows_.clear();
  auto next = wanted_.begin();
  for (Row row : step.rows) {
    next = std::lower_bound(next, wanted_.end(), row.begin);
    row.outputs_from = next == wanted_.end() ? row.end : std::min(*next, row.end);
    last_rows_.push_back(row);
  }
  Step last = step;
  last.rows = last_rows_;
  last.has_unwanted = true;
  last.wanted = wanted_;
  last.outputs = outputs_;
  return last;
}

TensorView Model::Logits(absl::Span<const int> indices) {
  const auto n = static_cast<int64_t>(indices.size());
  BST_CHECK(n <= options_.max_logit_rows, n, " rows of logits, capacity ", options_.max_logit_rows);
  places_.clear();
  for (const int index : indices) {
    const auto place = std::lower_bound(wanted_.begin(), wanted_.end(), index);
    BST_CHECK(place != wanted_.end() && *place == index, "token ", index, " was not wanted");
    places_.push_back(has_unwanted_ ? static_cast<int>(place - wanted_.begin()) : index);
  }
  // The one of the two that does not hold the last layer's outputs.
  const TensorView hidden = (has_unwanted_ ? residual_ : gathered_).Matrix(n, hidden_size_);
  const TensorView logits = logits_.Matrix(n, vocab_size_);
  backend_.GatherRows(outputs_, places_, hidden);
  backend_.RmsNorm(hidden, final_norm_.View(DType::kF32, {hidden.dim(1)}), norm_eps_, hidden);
  backend_.Linear(hidden, *output_, {.scale = logit_scale_}, logits);
  return logits;
}

size_t Model::weight_bytes() const {
  size_t bytes = embedding_->bytes() + final_norm_.bytes() + output_->bytes();
  for (const std::unique_ptr<Layer>& layer : layers_) bytes += layer->weight_bytes();
  return bytes;
}

}  // namespace bst
