// The filters of sampling: top_k, top_p, min_p, typical_p. Each sets the weights of the tokens that
// it drops to 0, and sees only those that the ones before it left above 0.
//
// Symbols   logits [V], weights [V padded] = exp((logit - max) / temperature); the largest weight
//           is 1.
// Threads   Pure functions of their arguments.
// Tested by tests/engine/sampling/sampler_test.cc
#pragma once

#include "absl/types/span.h"
#include "engine/sampling/sampler.h"

namespace bst {

// Applies the filters that `params` asks for to scratch.weights, in the order of sampling_params.h.
// REQUIRES: scratch.weights are those of `logits` at params.temperature > 0, `max` their largest.
void ApplyFilters(const SamplingParams& params, absl::Span<const float> logits, float max,
                  SamplerScratch& scratch);

}  // namespace bst
