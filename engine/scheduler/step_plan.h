// StepPlan: what one step runs, as the scheduler decided it.
//
// Threads   Values; a plan is move-only.
// Tested by tests/engine/scheduler/scheduler_test.cc
#pragma once

#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/row.h"
#include "engine/base/ids.h"

namespace bst {

// One row of a plan: what the model needs (row) and what is to be done with its logits.
struct PlannedRow {
  SequenceId id;
  Row row;                 // tokens are plan.tokens()[row.begin .. row.end)
  bool is_prompt = false;  // a prompt chunk, not a decode row
  int num_samples = 0;     // tokens drawn from the logits after its last token: plan.samples()
  // Those logits are kept under its slot: sequences start from them later.
  bool keeps_logits = false;
  bool scores = false;  // the logits after every token are wanted
  // Of a prompt chunk: the prompt's next token; none at its end, or before it has come.
  std::optional<TokenId> following = std::nullopt;
};

// A token to draw, for one continuation.
struct PlannedSample {
  SequenceId id;
  int sequence_index = 0;
  SlotId slot;  // of the continuation
  // Of a prompt that was read in an earlier step: the slot under which its logits are kept.
  std::optional<SlotId> kept_logits = std::nullopt;
};

// After the rows ran, slot `to` becomes a copy of slot `from`.
struct PlannedCopy {
  SlotId from;
  SlotId to;
};

class StepPlan {
 public:
  StepPlan(StepPlan&&) = default;
  StepPlan& operator=(StepPlan&&) = default;

  bool empty() const { return rows_.empty() && samples_.empty(); }
  absl::Span<const TokenId> tokens() const { return tokens_; }
  absl::Span<const PlannedRow> rows() const { return rows_; }  // decode rows first
  // In the order of the rows, then those from kept logits.
  absl::Span<const PlannedSample> samples() const { return samples_; }
  absl::Span<const PlannedCopy> copies() const { return copies_; }

 private:
  friend class Scheduler;
  StepPlan() = default;
  void Clear() {
    tokens_.clear();
    rows_.clear();
    samples_.clear();
    copies_.clear();
  }

  std::vector<TokenId> tokens_;
  std::vector<PlannedRow> rows_;
  std::vector<PlannedSample> samples_;
  std::vector<PlannedCopy> copies_;
};

}  // namespace bst
