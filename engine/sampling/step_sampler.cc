#include "engine/sampling/step_sampler.h"

#include <algorithm>
#include <cstddef>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

// More than that are drawn in turn: each has memory of the device's for its row.
constexpr int kMaxDraws = 256;

absl::Span<const float> RowOf(const TensorView& logits, int row) {
  return {logits.row<const float>(row), static_cast<size_t>(logits.dim(1))};
}

}  // namespace

absl::StatusOr<std::unique_ptr<StepSampler>> StepSampler::Create(Backend& backend, int vocab_size,
                                                                 int num_slots, int max_rows) {
  const int max_draws = std::min(kMaxDraws, std::max(num_slots, max_rows));
  std::unique_ptr<StepSampler> sampler(new StepSampler(backend, num_slots, max_draws));
  if (num_slots > 1) {
    const Shape shape = {num_slots, vocab_size};
    const size_t bytes = static_cast<size_t>(shape.num_elements()) * sizeof(float);
    BST_ASSIGN_OR_RETURN(sampler->kept_memory_, backend.HasSampling()
                                                    ? backend.Allocate(bytes)
                                                    : backend.AllocateHostReadable(bytes));
    sampler->kept_logits_ = sampler->kept_memory_.View(DType::kF32, shape);
  }
  if (!backend.HasSampling()) return sampler;
  BST_RETURN_IF_ERROR(backend.ReserveSampling(vocab_size, max_draws));
  const size_t slot_bytes = backend.SamplingStateBytes(vocab_size);
  BST_ASSIGN_OR_RETURN(sampler->state_memory_,
                       backend.Allocate(slot_bytes * static_cast<size_t>(num_slots)));
  sampler->state_ = {static_cast<std::byte*>(sampler->state_memory_.data()), slot_bytes};
  return sampler;
}

absl::Status StepSampler::Sample(TensorView logits, absl::Span<const Draw> draws,
                                 std::vector<absl::StatusOr<SampledToken>>& tokens) {
  tokens.clear();
  if (!backend_.HasSampling()) {
    BST_RETURN_IF_ERROR(backend_.Sync());
    for (const Draw& draw : draws) {
      tokens.push_back(
          draw.sampler->Sample(RowOf(logits, draw.row), draw.token_index, draw.banned, scratch_));
    }
    return absl::OkStatus();
  }
  draws_.clear();
  for (const Draw& draw : draws) {
    BST_CHECK(0 <= draw.slot.value() && draw.slot.value() < num_slots_, "slot ", draw.slot.value());
    const Sampler& sampler = *draw.sampler;
    if (draw.token_index == 0 && sampler.HasState()) {
      backend_.ClearSlot(state_, draw.slot);
      backend_.SetSamplingState(state_, draw.slot, sampler.StateTokens(), sampler.StateBias());
    }
    draws_.push_back(sampler.DeviceDraw(draw.token_index, draw.banned, draw.row, draw.slot));
  }
  return Run(logits, tokens);
}

void StepSampler::KeepLogits(TensorView logits, int row, SlotId slot) {
  BST_CHECK(logits.dim(1) == kept_logits_.dim(1), "logits of ", logits.dim(1), " tokens");
  backend_.CopySlot(PoolOf(logits), SlotId(row), PoolOf(kept_logits_), slot);
}

absl::Status StepSampler::Score(TensorView logits, absl::Span<const TokenId> targets,
                                int top_logprobs,
                                std::vector<absl::StatusOr<SampledToken>>& tokens) {
  tokens.clear();
  if (!backend_.HasSampling()) {
    BST_RETURN_IF_ERROR(backend_.Sync());
    for (size_t i = 0; i < targets.size(); ++i) {
      tokens.push_back(
          ScoreToken(RowOf(logits, static_cast<int>(i)), targets[i], top_logprobs, scratch_));
    }
    return absl::OkStatus();
  }
  draws_.clear();
  for (size_t i = 0; i < targets.size(); ++i) {
    draws_.push_back({.row = static_cast<int>(i),
                      .given = targets[i],
                      .num_top = std::min(top_logprobs, static_cast<int>(logits.dim(1)))});
  }
  return Run(logits, tokens);
}

absl::Status StepSampler::Run(TensorView logits,
                              std::vector<absl::StatusOr<SampledToken>>& tokens) {
  const auto most = static_cast<size_t>(max_draws_);
  for (size_t begin = 0; begin < draws_.size(); begin += most) {
    const auto draws = absl::MakeConstSpan(draws_).subspan(begin, most);
    size_t num_top = 0;
    for (const TokenDraw& draw : draws) num_top += static_cast<size_t>(draw.num_top);
    results_.resize(draws.size());
    top_.resize(num_top);
    backend_.SampleTokens(logits, draws, state_, absl::MakeSpan(results_), absl::MakeSpan(top_));
    BST_RETURN_IF_ERROR(backend_.Sync());
    auto top = absl::MakeConstSpan(top_);
    for (size_t i = 0; i < draws.size(); ++i) {
      const auto count = static_cast<size_t>(draws[i].num_top);
      tokens.push_back(FromDevice(results_[i], top.first(count)));
      top.remove_prefix(count);
    }
  }
  return absl::OkStatus();
}

}  // namespace bst
