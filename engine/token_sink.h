// TokenSink: where the engine puts what a sequence produces; the one callback across the boundary.
//
// Order per sequence:  Accepted (PrefillProgress)* (Generated | Scored)* Finished; Finished is last
// and comes exactly once, whatever happens.
//
// Ownership   The engine shares the sink with whoever waits for the events, until Finished.
// Threads     Push is called by the engine thread only (Accepted too). It must not block and must
// not call
//             back into the engine except Engine::Cancel.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/ids.h"

namespace bst {

enum class FinishReason { kEos, kStopToken, kMaxTokens, kTimeLimit, kCancelled, kError };

struct TokenLogprob {
  TokenId token;
  float logprob = 0;  // natural logarithm, of the softmax of the model's own logits
};

// The request waits or runs; sent when the engine thread takes it in.
struct AcceptedEvent {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t queue_position = 0;  // requests that start before this one; 0: next
};

struct PrefillProgressEvent {
  int64_t processed_tokens = 0;
  int64_t total_tokens = 0;
};

// One generated token.
struct GeneratedEvent {
  TokenLogprob token;
  std::vector<TokenLogprob> top;  // the likeliest tokens, most likely first; as many as asked for
};

// A run of scored positions, first_position .. first_position + tokens.size() - 1, in order.
struct ScoredEvent {
  int64_t first_position = 0;
  std::vector<TokenLogprob>
      tokens;  // logprob of token t given tokens 0 .. t-1; position 0 is not sent
  std::vector<std::vector<TokenLogprob>> top;
};

struct Timings {
  absl::Duration queue;    // submission to the first step; if there was none, to the end
  absl::Duration prefill;  // first step to the end of the prompt
  absl::Duration time_to_first_token;  // submission to the first token
  absl::Duration decode;               // first token to the last
};

struct FinishedEvent {
  FinishReason reason = FinishReason::kError;
  // OK for kEos .. kTimeLimit; kCancelled; else what went wrong (kDeadlineExceeded in the queue
  // or, for the time limit, before the first token, kInternal for NaN logits or a failed device,
  // kUnavailable at shutdown).
  absl::Status status;
  TokenId stop_token;  // kStopToken and kEos: which
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t generated_tokens = 0;
  Timings timings;
};

using SequenceEvent =
    std::variant<AcceptedEvent, PrefillProgressEvent, GeneratedEvent, ScoredEvent, FinishedEvent>;

class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void Push(SequenceEvent event) = 0;
};

}  // namespace bst
