#include "engine/model/block_contexts.h"

#include <algorithm>

namespace bst {

absl::StatusOr<BlockContexts> BlockContexts::Create(const LayerSource& source, int num_vectors,
                                                    absl::Span<float> scale) {
  const ModelConfig& config = source.config();
  const ContextSpec spec = {.num_heads = config.num_heads,
                            .head_dim = config.head_dim,
                            .capacity = num_vectors,
                            .kv_type = source.kv};
  BlockContexts contexts;
  contexts.window_ = config.window;
  BST_ASSIGN_OR_RETURN(
      contexts.attention_,
      source.backend.PackContextAttention(
          {.spec = spec, .scale = TensorView(scale.data(), DType::kF32, {config.num_heads})}));
  contexts.region_ = source.AddRegion("context", source.backend.ContextBytes(spec));
  // All contexts are as far apart as the slots of the pool.
  contexts.context_bytes_ = source.layout.regions().back().padded_bytes();
  BST_ASSIGN_OR_RETURN(contexts.initial_, source.backend.Allocate(contexts.context_bytes_));
  source.workspace.step_context_bytes =
      std::max(source.workspace.step_context_bytes, contexts.context_bytes_);
  return contexts;
}

void BlockContexts::SetInitial(Backend& backend, TensorView k, TensorView v) {
  const ContextRows all = {.begin = 0, .end = num_vectors(), .slot = SlotId(0), .first_row = 0};
  backend.StoreContext(*attention_, k, v, {all},
                       {static_cast<std::byte*>(initial_.data()), context_bytes_});
}

PoolView BlockContexts::StepContexts(const Step& step) const {
  return {static_cast<std::byte*>(step.workspace->step_contexts.data()), context_bytes_};
}

const std::byte* BlockContexts::AtStart(const Step& step, const Row& row) const {
  return row.position < window_ ? static_cast<const std::byte*>(initial_.data())
                                : step.pool->region(region_).slot<std::byte>(row.slot);
}

const std::byte* BlockContexts::Before(const Step& step, int end) const {
  const auto index = static_cast<size_t>(end);
  const int row = step.block_ends[index].row;
  if (end > 0 && step.block_ends[index - 1].row == row)
    return StepContexts(step).slot<std::byte>(SlotId(end - 1));
  return AtStart(step, step.rows[static_cast<size_t>(row)]);
}

void BlockContexts::Store(Backend& backend, const Step& step, TensorView k, TensorView v,
                          absl::Span<const int> ends) const {
  std::vector<ContextRows>& stores = step.workspace->stores;
  stores.clear();
  for (const int end : ends) {
    const int begin = static_cast<int>(stores.size()) * num_vectors();
    stores.push_back({begin, begin + num_vectors(), SlotId(end), 0});
  }
  backend.StoreContext(*attention_, k, v, stores, StepContexts(step));
}

void BlockContexts::Attend(Backend& backend, const Step& step, TensorView queries,
                           TensorView out) const {
  std::vector<ContextUse>& uses = step.workspace->uses;
  uses.clear();
  size_t end = 0;
  for (size_t r = 0; r < step.rows.size(); ++r) {
    const Row& row = step.rows[r];
    const std::byte* context = AtStart(step, row);
    int begin = std::max(row.begin, row.outputs_from);
    for (; end < step.block_ends.size() && step.block_ends[end].row == static_cast<int>(r); ++end) {
      const int next = step.block_ends[end].token + 1;
      if (begin < next) uses.push_back({begin, next, context, num_vectors()});
      begin = std::max(begin, next);
      context = StepContexts(step).slot<std::byte>(SlotId(static_cast<int>(end)));
    }
    if (begin < row.end) uses.push_back({begin, row.end, context, num_vectors()});
  }
  if (!uses.empty()) backend.ContextAttention(*attention_, queries, uses, out);
}

void BlockContexts::Commit(Backend& backend, const Step& step) const {
  for (size_t end = 0; end < step.block_ends.size(); ++end) {
    const int row = step.block_ends[end].row;
    if (end + 1 < step.block_ends.size() && step.block_ends[end + 1].row == row) continue;
    backend.CopySlot(StepContexts(step), SlotId(static_cast<int>(end)), step.pool->region(region_),
                     step.rows[static_cast<size_t>(row)].slot);
  }
}

}  // namespace bst
