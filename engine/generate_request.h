// The plain structs that enter the engine. They know nothing of gRPC or of text.
//
// Threads   Values.
// Tested by tests/engine/engine_request_check_test.cc
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/base/ids.h"
#include "engine/sampling/sampling_params.h"
#include "engine/scheduler/priority.h"

namespace bst {

// When a sequence's generation ends by itself. Stop strings are the front end's: it knows text.
struct StoppingParams {
  int max_new_tokens = 256;             // >= 1
  int min_new_tokens = 0;               // eos and stop tokens are not drawn before this many
  std::vector<TokenId> stop_token_ids;  // the stop token itself is part of the output ids
  bool ignore_eos = false;              // true: eos is an ordinary token
};

struct GenerateRequest {
  std::string request_id;       // the client's or drawn; unique among those in flight
  std::vector<TokenId> prompt;  // not empty unless prompt_open
  // More of the prompt follows by Engine::AppendPrompt; what is here is its beginning.
  bool prompt_open = false;
  int num_sequences = 1;  // continuations of the prompt, 1 .. max_sequences
  Priority priority = Priority::kNormal;
  SamplingParams sampling;
  StoppingParams stopping;
  int top_logprobs = 0;          // alternatives per generated token, 0 .. 20
  bool prompt_progress = false;  // send PrefillProgress events
  // How long ago it came: its submission may have taken long. All its times count from there.
  absl::Duration age = absl::ZeroDuration();  // >= 0
  // The request ends with kDeadlineExceeded if it has not started by then; infinite: never.
  absl::Duration queue_timeout = absl::InfiniteDuration();
  // Time after which the stream finishes with kTimeLimit, text kept; with
  // kDeadlineExceeded if it has no token by then.
  absl::Duration time_limit = absl::InfiniteDuration();
};

// Tokens that are not drawn before min_new_tokens, where there is one: logit_bias may ban tokens,
// and until then the stop tokens are banned too; and eos, unless it is ignored, which is not among
// these.
inline std::set<TokenId> BannedBeforeMinNewTokens(const GenerateRequest& request) {
  std::set<TokenId> banned(request.stopping.stop_token_ids.begin(),
                           request.stopping.stop_token_ids.end());
  for (const auto& [token, bias] : request.sampling.logit_bias) {
    if (std::isinf(bias)) banned.insert(token);
  }
  return banned;
}
// Whether any token may be drawn before min_new_tokens. `eos`: the model's, where it has one.
inline bool LeavesTokensToDraw(const GenerateRequest& request, int vocab_size,
                               std::optional<TokenId> eos) {
  if (request.stopping.min_new_tokens == 0) return true;
  std::set<TokenId> banned = BannedBeforeMinNewTokens(request);
  if (eos.has_value() && !request.stopping.ignore_eos) banned.insert(*eos);
  return banned.size() < static_cast<size_t>(vocab_size);
}

// Log-probabilities of the tokens of a text under the model.
struct ScoreRequest {
  std::string request_id;
  std::vector<TokenId> tokens;  // not empty
  int top_logprobs = 0;         // alternatives per position, 0 .. 20
  Priority priority = Priority::kNormal;
  absl::Duration age = absl::ZeroDuration();  // as of a GenerateRequest
};

}  // namespace bst
