// SplitPromptTokens: how a step's prompt tokens are shared among the prompts that can use them.
//
// Half goes to the prompts with the fewest tokens left, so that a short one passes a long one
// without a threshold between the two; the rest to the oldest, so that a long one never starves.
// See scheduler.h, policy (4) and (5).
//
// Invariants  (1) The tokens given sum to at most `budget`; each prompt gets at most chunk_tokens
//                 and what it can read, and a multiple of window unless that ends it.
//             (2) The oldest gets something when it is its turn, and also when two blocks fit and
//                 no prompt ends.  REQUIRES: budget >= window.
// Threads     Pure function.
// Tested by   tests/engine/scheduler/prompt_split_test.cc
#pragma once

#include <cstdint>
#include <limits>

#include "absl/types/span.h"

namespace bst {

// What one prompt could use.
struct PromptClaim {
  // Of a prompt that has not come to its end yet.
  static constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

  int64_t readable = 0;          // tokens that can be read now, > 0
  int64_t remaining = kUnknown;  // tokens to the end of the prompt, >= readable
  int tokens = 0;                // the answer
};

struct SplitLimits {
  int chunk_tokens = 1;  // of one prompt, a multiple of window
  int window = 1;
};

// Who comes first when a step has room for less than two blocks, or should be short because it ends
// a prompt: the oldest, if the last step passed over the oldest or an earlier one this very prompt.
enum class SplitTurn { kShortest, kOldest };

// `claims`: oldest first; their `tokens` are 0 and become what each one reads.
void SplitPromptTokens(const SplitLimits& limits, int budget, SplitTurn turn,
                       absl::Span<PromptClaim> claims);

}  // namespace bst
