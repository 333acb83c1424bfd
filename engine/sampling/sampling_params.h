// SamplingParams: how one sequence's next token is drawn from its logits.
//
// Applied in this order: logit_bias; penalties (repetition counts prompt and output, presence and
// frequency the output only); temperature; top_k; top_p; min_p; typical_p; then one uniform number
// of Philox4x32-10 with key = seed and counter = (index of the token in the output, sequence
// index); see philox.h. Each filter sees the probabilities renormalised over what the ones before
// it kept. "Likeliest" is by logit; of equal logits the lower token id counts as the likelier.
// Greedy (temperature 0) takes the largest logit after bias and penalties, the lowest id at a tie.
//
// Threads   A value.
// Tested by tests/engine/sampling/sampling_params_test.cc, sampler_test.cc
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/ids.h"

namespace bst {

struct SamplingParams {
  float temperature = 1.0f;  // [0, 100]; 0 is greedy
  int top_k = 0;             // -1 or 0: all; else the k most likely tokens
  float top_p = 1.0f;        // (0, 1]: the smallest set of likeliest tokens with this mass
  float min_p = 0.0f;        // [0, 1]: at least min_p times the likeliest token's probability
  float typical_p = 1.0f;    // (0, 1]: locally typical sampling, mass kept
  float repetition_penalty = 1.0f;  // (0, 10]: > 1 discourages tokens seen in prompt or output
  float presence_penalty = 0.0f;    // [-2, 2]: subtracted once for a token of the output
  float frequency_penalty = 0.0f;   // [-2, 2]: subtracted per occurrence in the output
  std::vector<std::pair<TokenId, float>>
      logit_bias;  // added; finite, [-100, 100], or -infinity to ban a token
  uint64_t seed = 0;
};

// Errors: kInvalidArgument naming the field, its value and its range; ids against `vocab_size`. A
// token may have one bias only.
absl::Status Validate(const SamplingParams& params, int vocab_size);

}  // namespace bst
