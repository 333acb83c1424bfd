#include "engine/model/recurrent_context.h"

#include <cmath>

#include "engine/model/attention_scale.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

TensorView Vector(std::vector<float>& values) {
  return {values.data(), DType::kF32, {static_cast<int64_t>(values.size())}};
}

}  // namespace

absl::StatusOr<std::unique_ptr<CrossContext>> RecurrentContext::Create(const LayerSource& source) {
  const ModelConfig& config = source.config();
  Backend& backend = source.backend;
  const int64_t states = source.layer().num_states, dim = config.hidden_size;
  const int64_t a = config.attention_size();
  std::vector<float> scale = AttentionScales(source, "cross.scale");
  BST_ASSIGN_OR_RETURN(
      BlockContexts contexts,
      BlockContexts::Create(source, source.layer().num_states, absl::MakeSpan(scale)));
  auto context = std::unique_ptr<RecurrentContext>(new RecurrentContext(std::move(contexts)));
  context->attention_size_ = a;
  context->hidden_size_ = dim;
  context->head_dim_ = config.head_dim;
  context->window_ = config.window;
  context->qk_norm_ = config.attention.qk_norm;
  context->zeros_before_document_ = config.attention.empty_prefix == EmptyPrefix::kZeros;
  context->norm_eps_ = config.norm_eps;
  // A step's rows are updated in groups of about as many state rows as the step has tokens.
  context->batch_ = std::clamp(source.max_tokens / source.layer().num_states, 1, source.max_rows);

  BST_ASSIGN_OR_RETURN(context->norm_, backend.PackVector(source.Tensor("state.norm.weight")));
  BST_ASSIGN_OR_RETURN(context->ids_, backend.PackVector(source.Tensor("state.ids")));
  BST_ASSIGN_OR_RETURN(context->initial_, backend.PackVector(source.Tensor("state.initial")));
  std::vector<float> gate = ToFloats(source.Tensor("state.gate_bias"));
  for (float& g : gate) g = static_cast<float>(1.0 / (1.0 + std::exp(-double{g})));
  BST_ASSIGN_OR_RETURN(context->gate_, backend.PackVector(Vector(gate)));
  const auto linear = [&](std::initializer_list<const char*> names) {
    std::vector<TensorView> parts;
    for (const char* name : names) parts.push_back(source.Tensor(name));
    return backend.PackLinear(parts, source.weights);
  };
  BST_ASSIGN_OR_RETURN(context->queries_,
                       linear({"state.q_proj.weight", "state.cross_q_proj.weight"}));
  BST_ASSIGN_OR_RETURN(context->keys_values_,
                       linear({"state.k_proj.weight", "state.v_proj.weight"}));
  BST_ASSIGN_OR_RETURN(context->output_, linear({"state.o_proj.weight"}));

  ContextSpec spec = context->contexts_.weights().spec();
  std::vector<float> self_scale = AttentionScales(source, "state.scale");
  BST_ASSIGN_OR_RETURN(context->self_attention_,
                       backend.PackContextAttention({.spec = spec, .scale = Vector(self_scale)}));
  spec.capacity = 2 * config.window;
  std::vector<float> cross_scale = AttentionScales(source, "state.cross_scale");
  BST_ASSIGN_OR_RETURN(context->cross_attention_,
                       backend.PackContextAttention({.spec = spec, .scale = Vector(cross_scale)}));
  context->state_region_ =
      source.AddRegion("states", static_cast<size_t>(states * dim) * sizeof(float));
  context->ring_region_ = source.AddRegion("tokens", backend.ContextBytes(spec));

  const int64_t rows = context->batch_ * states;
  source.workspace.states.Reserve(rows, dim);
  source.workspace.signal.Reserve(rows, dim);
  source.workspace.update.Reserve(rows, dim);
  source.workspace.context.Reserve(rows, 2 * a);
  source.workspace.modes.Reserve(rows, 2 * a);

  // The context of block 0.
  BST_ASSIGN_OR_RETURN(const Buffer normed,
                       backend.Allocate(static_cast<size_t>(states * dim) * sizeof(float)));
  BST_ASSIGN_OR_RETURN(const Buffer projected,
                       backend.Allocate(static_cast<size_t>(states * 2 * a) * sizeof(float)));
  const TensorView ns =
      context->Normalized(backend, context->initial_.View(DType::kF32, {states, dim}),
                          normed.View(DType::kF32, {states, dim}));
  const TensorView keys_values = projected.View(DType::kF32, {states, 2 * a});
  backend.Linear(ns, *context->keys_values_, {}, keys_values);
  if (context->qk_norm_)
    backend.NormalizeHeads(keys_values.Columns(0, a), config.head_dim, /*rotary=*/{});
  context->contexts_.SetInitial(backend, keys_values.Columns(0, a), keys_values.Columns(a, 2 * a));
  return context;
}

TensorView RecurrentContext::Normalized(Backend& backend, TensorView states, TensorView out) const {
  backend.RmsNorm(states, norm_.View(DType::kF32, {hidden_size_}), norm_eps_, out);
  backend.AddTable(ids_.View(DType::kF32, {contexts_.num_vectors(), hidden_size_}), out);
  return out;
}

void RecurrentContext::AddTokens(const Row& row, int begin, int end,
                                 std::vector<ContextRows>& tokens) const {
  const int64_t position = row.position + (begin - row.begin);
  tokens.push_back({begin, end, row.slot, static_cast<int>(position % (2 * window_))});
}

void RecurrentContext::StoreTokens(Backend& backend, const Step& step, const Inputs& inputs,
                                   absl::Span<const ContextRows> tokens) const {
  if (tokens.empty()) return;
  backend.StoreContext(*cross_attention_, inputs.keys, inputs.values, tokens,
                       step.pool->region(ring_region_));
}

void RecurrentContext::Update(Backend& backend, const Step& step,
                              absl::Span<const int> ends) const {
  const auto n = static_cast<int64_t>(ends.size());
  const int num_states = contexts_.num_vectors();
  const int64_t rows = n * num_states, a = attention_size_;
  Workspace& workspace = *step.workspace;
  const TensorView states = workspace.states.Matrix(rows, hidden_size_);
  const TensorView normed = workspace.signal.Matrix(rows, hidden_size_);
  const TensorView projected = workspace.context.Matrix(rows, 2 * a);
  const TensorView attended = workspace.modes.Matrix(rows, 2 * a);
  const TensorView updated = workspace.update.Matrix(rows, hidden_size_);
  const PoolView slots = step.pool->region(state_region_);
  const auto end_of = [&](int64_t i) -> const BlockEnd& {
    return step.block_ends[static_cast<size_t>(ends[static_cast<size_t>(i)])];
  };
  const auto slot_of = [&](int64_t i) {
    return step.rows[static_cast<size_t>(end_of(i).row)].slot;
  };

  const PoolView item_states = PoolOf(states, num_states);
  const PoolView initial =
      PoolOf(initial_.View(DType::kF32, {num_states, hidden_size_}), num_states);
  for (int64_t i = 0; i < n; ++i) {
    const SlotId item(static_cast<int>(i));
    if (end_of(i).block == 0) {
      backend.CopySlot(initial, SlotId(0), item_states, item);
    } else {
      backend.CopySlot(slots, slot_of(i), item_states, item);
    }
  }
  backend.Linear(Normalized(backend, states, normed), *queries_, {}, projected);
  if (qk_norm_) backend.NormalizeHeads(projected, head_dim_, /*rotary=*/{});

  std::vector<ContextUse>& uses = workspace.uses;
  const auto attend = [&](const ContextWeights& weights, int64_t column, const auto& context,
                          const auto& num_rows) {
    uses.clear();
    for (int64_t i = 0; i < n; ++i) {
      const int begin = static_cast<int>(i) * num_states;
      uses.push_back({begin, begin + num_states, context(i), num_rows(i)});
    }
    backend.ContextAttention(weights, projected.Columns(column, column + a), uses,
                             attended.Columns(column, column + a));
  };
  attend(
      *self_attention_, 0,
      [&](int64_t i) { return contexts_.Before(step, ends[static_cast<size_t>(i)]); },
      [&](int64_t) { return num_states; });
  const PoolView ring = step.pool->region(ring_region_);
  attend(
      *cross_attention_, a,
      [&](int64_t i) { return static_cast<const std::byte*>(ring.slot<std::byte>(slot_of(i))); },
      // Block 0 stands in the first half; the second is what precedes the document.
      [&](int64_t i) {
        return end_of(i).block == 0 && !zeros_before_document_ ? window_ : 2 * window_;
      });

  backend.Linear(attended, *output_, {}, updated);
  backend.Interpolate(states, gate_.View(DType::kF32, {hidden_size_}), updated);
  for (int64_t i = 0; i < n; ++i)
    backend.CopySlot(PoolOf(updated, num_states), SlotId(static_cast<int>(i)), slots, slot_of(i));
  backend.Linear(Normalized(backend, updated, normed), *keys_values_, {}, projected);
  if (qk_norm_) backend.NormalizeHeads(projected.Columns(0, a), head_dim_, /*rotary=*/{});
  contexts_.Store(backend, step, projected.Columns(0, a), projected.Columns(a, 2 * a), ends);
}

void RecurrentContext::Forward(Backend& backend, const Step& step, const Inputs& inputs,
                               TensorView out) const {
  // Round j takes the j-th block end of every row that has one. A row's tokens enter the ring block
  // by block, so that at each update it holds just the two newest.
  const auto num_ends = static_cast<int>(step.block_ends.size());
  std::vector<int>& batch = step.workspace->indices;
  std::vector<ContextRows>& tokens = step.workspace->token_stores;
  tokens.clear();
  const auto update = [&] {
    StoreTokens(backend, step, inputs, tokens);
    Update(backend, step, batch);
    batch.clear();
    tokens.clear();
  };
  batch.clear();
  bool more = num_ends > 0;
  for (int round = 0; more; ++round) {
    more = false;
    for (int end = 0, of_row = 0; end < num_ends; ++end) {
      const BlockEnd& block_end = step.block_ends[static_cast<size_t>(end)];
      const bool same_row =
          end > 0 && step.block_ends[static_cast<size_t>(end - 1)].row == block_end.row;
      of_row = same_row ? of_row + 1 : 0;
      if (of_row > round) more = true;
      if (of_row != round) continue;
      const Row& row = step.rows[static_cast<size_t>(block_end.row)];
      AddTokens(row, std::max(row.begin, block_end.token + 1 - window_), block_end.token + 1,
                tokens);
      batch.push_back(end);
      if (static_cast<int>(batch.size()) == batch_) update();
    }
    if (!batch.empty()) update();
  }
  for (const Row& row : step.rows) {
    const int64_t behind = (row.position + row.num_tokens()) % window_;  // of an unfinished block
    const int begin = std::max(row.begin, row.end - static_cast<int>(behind));
    if (begin < row.end) AddTokens(row, begin, row.end, tokens);
  }
  StoreTokens(backend, step, inputs, tokens);
  if (qk_norm_) backend.NormalizeHeads(inputs.queries, head_dim_, /*rotary=*/{});
  contexts_.Attend(backend, step, inputs.queries, out);
  contexts_.Commit(backend, step);
}

size_t RecurrentContext::weight_bytes() const {
  return norm_.bytes() + ids_.bytes() + initial_.bytes() + gate_.bytes() + queries_->bytes() +
         keys_values_->bytes() + output_->bytes() + self_attention_->bytes() +
         cross_attention_->bytes() + contexts_.weight_bytes();
}

}  // namespace bst
