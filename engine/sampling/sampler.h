// Sampler: draws one sequence's tokens from the logits of the model.
//
// A token is a function of (logits, tokens seen, parameters, seed, sequence index, token index) and
// of nothing else; see sampling_params.h for the order of the steps.
//
// The draw    Let w_i >= 0 be the weights (unnormalised probabilities) of the tokens kept, W their
//             sum and u in [0, 1) the token's uniform number. Drawn is the lowest id i with
//             w_0 + ... + w_i > u W. Over ids, not over ranks: nothing need be sorted to draw.
// Cost        At V = 32,768, one core: see engine/sampling/README.md. No allocation per token once
//             the scratch has its size, but for the result's `top` and the growth of the token
//             counts.
// Threads     Thread-compatible; engine thread only.
// Tested by   tests/engine/sampling/sampler_test.cc (against a slow one that sorts everything)
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/sampling.h"
#include "engine/base/ids.h"
#include "engine/sampling/sampling_params.h"

namespace bst {

// A token and natural logarithms of the softmax of the model's own logits: before bias, penalties,
// bans, temperature and filters.
struct SampledToken {
  TokenId token;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>>
      top;  // the likeliest, most likely first; ties: lower id first
};

// Memory that all samplers of one thread share: about 16 bytes per token of the vocabulary.
struct SamplerScratch {
  std::vector<float> logits;   // [V] after bias, penalties and bans
  std::vector<float> weights;  // [V] padded with zeros, see softmax.h
  std::vector<double> block_sums;
  std::vector<uint32_t> ranks;  // [V] see filters.cc
  std::vector<uint32_t> ids;    // [V]
};

class Sampler {
 public:
  struct Options {
    SamplingParams params;
    int vocab_size = 0;
    uint32_t sequence_index = 0;  // among the sequences of one request
    int top_logprobs = 0;         // alternatives per token
  };

  // REQUIRES: Validate(params, vocab_size) is OK; the prompt's ids are in the vocabulary.
  Sampler(Options options, absl::Span<const TokenId> prompt);

  // Whether the prompt's tokens matter to what is drawn; else AddPrompt does nothing.
  bool looks_at_prompt() const { return params().repetition_penalty != 1; }
  // More of the prompt; order and number of its tokens do not matter, so DistinctTokens will do.
  // REQUIRES: nothing was drawn yet; the ids are in the vocabulary.
  void AddPrompt(absl::Span<const TokenId> tokens);
  // The sampler of another sequence of the same request, which shares its parameters.
  // REQUIRES: nothing was drawn yet.
  Sampler ForSequence(uint32_t sequence_index) const&;
  Sampler ForSequence(uint32_t sequence_index) &&;

  // Draws the token that stands at `token_index` of the output and remembers it for the penalties.
  //   logits [V]; `banned` are tokens not to be drawn now (eos before min_new_tokens)
  // Errors: kInternal when a logit is NaN or +infinity, or no token is left to draw; nothing is
  // remembered then.
  // REQUIRES: logits.size() == vocab_size; banned ids in the vocabulary.
  absl::StatusOr<SampledToken> Sample(absl::Span<const float> logits, uint64_t token_index,
                                      absl::Span<const TokenId> banned, SamplerScratch& scratch);

  // The same draw for a device that samples (Backend::SampleTokens), which then remembers the
  // token. `state` is where, for draws that HasState; it begins as StateTokens and the bias.
  TokenDraw DeviceDraw(uint64_t token_index, absl::Span<const TokenId> banned, int row,
                       SlotId state) const;
  bool HasState() const { return has_penalties() || !params().logit_bias.empty(); }
  std::vector<TokenId> StateTokens() const;  // of the prompt. REQUIRES: nothing was drawn yet
  std::vector<TokenBias> StateBias() const;

 private:
  bool has_penalties() const;
  // The logits to draw from: `logits` themselves, or scratch.logits when anything changes them.
  absl::Span<const float> Adjust(absl::Span<const float> logits, absl::Span<const TokenId> banned,
                                 SamplerScratch& scratch) const;

  const SamplingParams& params() const { return options_->params; }

  std::shared_ptr<const Options> options_;  // but for its sequence_index
  uint32_t sequence_index_;
  // With penalties only: tokens of prompt and output, and how often each is in the output.
  absl::flat_hash_map<TokenId, int> output_counts_;
};

// What Sample would have returned, from what the device says of its draw and of the likeliest.
absl::StatusOr<SampledToken> FromDevice(const DrawResult& result, absl::Span<const TokenLogit> top);

// Each of `tokens` once, in the order in which they come first. REQUIRES: they are in the
// vocabulary. Any thread.
std::vector<TokenId> DistinctTokens(absl::Span<const TokenId> tokens, int vocab_size);

// The log-probability of a given token under the softmax of `logits`, with `top_logprobs`
// likeliest. Errors: kInternal when a logit is NaN or +infinity or all are -infinity. REQUIRES: 0
// <= token < logits.size().
absl::StatusOr<SampledToken> ScoreToken(absl::Span<const float> logits, TokenId token,
                                        int top_logprobs, SamplerScratch& scratch);

}  // namespace bst
