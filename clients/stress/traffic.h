// Traffic: what the requests look like. Request `index` depends on the seed and the index alone, so
// two runs with one seed send the same requests, whatever the load.
//
// Threads     Immutable after construction; thread-safe.
// Tested by   tests/clients/stress/traffic_test.cc
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bst/v1/generation.pb.h"
#include "clients/stress/random.h"

namespace bst::stress {

// Tokens, both ends included; 1 <= low <= high.
struct LengthRange {
  uint32_t low = 1, high = 1;
};

// "128" or "64-256". Throws UsageError that names `flag`.
LengthRange ParseRange(std::string_view text, std::string_view flag);

struct MixPart {
  double weight = 1;
  LengthRange prompt;
  std::optional<LengthRange> output;  // unset: --max-new-tokens
};

// "90:32-256,10:4000-8000:16": weight, prompt tokens and, if given, new tokens. Throws UsageError.
std::vector<MixPart> ParseMix(std::string_view text);

// One line of a JSON-lines file: {"prompt": "text"} or {"token_ids": [1, 2]}, and if wanted
// "max_new_tokens".
struct JsonPrompt {
  std::string text;
  std::vector<uint32_t> token_ids;  // if not empty, instead of text
  std::optional<uint32_t> max_new_tokens;
};

// Throws UsageError that names the line.
std::vector<JsonPrompt> ParseJsonLines(std::string_view lines, std::string_view file);

// What the server says about the model, as far as prompts depend on it.
struct ModelLimits {
  uint32_t vocab_size = 0;
  std::vector<uint32_t> special_ids;  // bos, eos, pad: not drawn for random prompts
  uint64_t max_prompt_tokens = 0;
  uint64_t max_new_tokens = 0;
  uint64_t max_message_bytes = std::numeric_limits<uint64_t>::max();
};

struct TrafficOptions {
  uint64_t seed = 1;
  LengthRange prompt_tokens = {128, 128}, new_tokens = {64, 64};
  std::vector<MixPart> mix;  // not empty: instead of prompt_tokens
  // What prompts are cut from; both empty: random ids.
  std::vector<uint32_t> text_tokens;
  std::vector<JsonPrompt> json_prompts;  // sent in this order, again and again
  // Tokens that all requests of one of `num_prefixes` groups share, in front of their own.
  uint32_t prefix_tokens = 0, num_prefixes = 1;

  // Fields that are set hold for every request; the seed is drawn per request.
  v1::Sampling sampling;
  bool ignore_eos = false, logprobs = false;

  // Shares of the requests, 0 .. 1.
  double cancel_rate = 0, slow_reader_rate = 0, deadline_rate = 0;
  double slow_reader_delay_seconds = 0.1, deadline_seconds = 0;
};

// One request and what the client is going to do to it.
struct RequestPlan {
  uint64_t index = 0;
  bool is_probe = false;
  v1::GenerateRequest request;
  std::optional<double> deadline_seconds;
  // The client cancels so long after the send, or when it has so many tokens; at most one is set.
  std::optional<double> cancel_after_seconds;
  std::optional<uint32_t> cancel_after_tokens;
  double read_delay_seconds = 0;  // before every read; 0: reads at once

  bool is_cancelled() const {
    return cancel_after_seconds.has_value() || cancel_after_tokens.has_value();
  }
};

class Traffic {
 public:
  // Throws UsageError when a request could not be served whatever the load: too long a prompt, too
  // large a message.
  Traffic(TrafficOptions options, ModelLimits model);

  RequestPlan Plan(uint64_t index) const;
  // A request of kProbePromptTokens for one token: its latency is what the queue and the running
  // steps make of it.
  RequestPlan PlanProbe(uint64_t index) const;

  static constexpr uint32_t kProbePromptTokens = 16;
  // A third of the cancelled requests are cancelled at a random moment of this time after the send,
  // which finds them in the queue or in prefill; the others after a random number of tokens.
  static constexpr double kEarlyCancelSeconds = 0.1;

 private:
  const MixPart* PickMixPart(Random& random) const;
  void FillPrompt(uint32_t tokens, Random& random, v1::TokenIds& ids) const;
  uint32_t RandomId(Random& random) const;

  const TrafficOptions options_;
  const ModelLimits model_;
  std::vector<uint32_t> ordinary_ids_;  // empty: all of the vocabulary
  double total_weight_ = 0;
};

}  // namespace bst::stress
