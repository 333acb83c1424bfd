// StepSampler: the tokens of a whole step, drawn on the device where the backend samples, else
// here, with the same result.
//
// On the device the logits stay where they are: a draw gives its token and what its
// log-probabilities are made of. Penalties and biases lie there too, per slot: what a sequence
// begins with goes over with its first draw, and a draw counts its own token.
//
// Where several sequences go on from one prompt and not all have a slot yet, the logits of its end
// are kept for the others.
//
// Ownership   Owns the sampling state and kept logits of all slots. The backend outlives it;
//             samplers are the caller's.
// Threads     Engine thread only.
// Errors      Create: kResourceExhausted. Sample and Score: the first failure of the device, as
//             Backend::Sync; what is wrong with one row's logits is that row's own status.
// Tested by   tests/engine/backend/cuda/sampling_test.cc (both ways against each other)
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/sampling/sampler.h"

namespace bst {

class StepSampler {
 public:
  // One token of one sequence.
  struct Draw {
    Sampler* sampler = nullptr;
    int row = 0;               // of the logits; several draws may share one
    SlotId slot;               // the sequence's, from its first draw to its last
    uint64_t token_index = 0;  // in the output; 0: the sequence's first draw
    absl::Span<const TokenId> banned;
  };

  // max_rows: of logits in one call, but for kept ones.
  static absl::StatusOr<std::unique_ptr<StepSampler>> Create(Backend& backend, int vocab_size,
                                                             int num_slots, int max_rows);

  // Waits for the logits [rows, V]; tokens[i] is that of draws[i], or why there is none.
  absl::Status Sample(TensorView logits, absl::Span<const Draw> draws,
                      std::vector<absl::StatusOr<SampledToken>>& tokens);
  // A row of logits for later draws, until the slot keeps another.
  // REQUIRES: several slots; who has one needs none.
  void KeepLogits(TensorView logits, int row, SlotId slot);
  // [num_slots, V], by slot.
  TensorView kept_logits() const { return kept_logits_; }
  // The same of tokens that are given: targets[i] under row i.
  absl::Status Score(TensorView logits, absl::Span<const TokenId> targets, int top_logprobs,
                     std::vector<absl::StatusOr<SampledToken>>& tokens);

 private:
  StepSampler(Backend& backend, int num_slots, int max_draws)
      : backend_(backend), num_slots_(num_slots), max_draws_(max_draws) {}
  // Draws `draws_` on the device.
  absl::Status Run(TensorView logits, std::vector<absl::StatusOr<SampledToken>>& tokens);

  Backend& backend_;
  int num_slots_;
  int max_draws_;  // at once
  Buffer state_memory_;
  PoolView state_;
  Buffer kept_memory_;
  TensorView kept_logits_;
  // Of the call that runs; members only to keep their memory.
  std::vector<TokenDraw> draws_;
  std::vector<DrawResult> results_;
  std::vector<TokenLogit> top_;
  SamplerScratch scratch_;
};

}  // namespace bst
