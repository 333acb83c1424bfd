// Sampling as an operator: what Backend::SampleTokens takes for each token that it draws.
//
// A draw is a function of one row of logits, of the sequence's sampling state and of what stands
// here, and of nothing else; engine/sampling/sampling_params.h orders its steps, and
// sampling_arithmetic.h has their arithmetic. Whoever implements it gives the tokens that
// engine/sampling gives on the host.
//
// Sampling state   What the penalties and the bias look at, per slot of a pool that the caller has:
//                  which tokens stand in the prompt, how often each is in the output, and its bias.
//                  A draw counts its own token.
//
// Threads   Values.
// Tested by tests/engine/backend/cuda/sampling_test.cc (device and host against each other)
#pragma once

#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "engine/backend/sampling_arithmetic.h"
#include "engine/base/ids.h"

namespace bst {

struct TokenDraw {
  DrawParams params = {};
  uint64_t token_index = 0;  // in the output
  uint32_t sequence_index = 0;
  int row = 0;                            // of the logits; several draws may share one
  std::optional<SlotId> state = {};       // none: no penalties, no bias. Of one draw at most
  absl::Span<const TokenId> banned = {};  // not to be drawn now
  std::optional<TokenId> given = {};      // nothing is drawn: what is said of a token is of this
  int num_top = 0;                        // likeliest tokens wanted
};

struct TokenBias {
  TokenId token;
  float bias;  // finite, or -infinity
};

}  // namespace bst
