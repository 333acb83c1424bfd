// TokenSink: where the engine puts what a sequence produces; the one callback across the boundary.
//
// Order per request:  Accepted (PrefillProgress | Scored | SequenceEnded)*
//                     (Generated | SequenceEnded)* Finished
// Scored positions come while the prompt is read, a chunk's before its PrefillProgress. A
// continuation may end by Engine::StopSequence before the prompt is read. Finished is last and
// comes exactly once, whatever happens. Of the events with one sequence_index, SequenceEnded is
// last.
//
// Ownership   The engine shares the sink with whoever waits for the events, until Finished.
// Threads     Push is called by the engine thread only (Accepted too). It must not block and may
//             call back into the engine only Cancel, StopSequence and AppendPrompt.
// Tested by   tests/engine/engine_test.cc, tests/engine/engine_lifecycle_test.cc
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/ids.h"

namespace bst {

enum class FinishReason {
  kEos,
  kStopToken,
  kMaxTokens,
  kTimeLimit,
  kStopped,  // by Engine::StopSequence
  kCancelled,
  kError
};

struct TokenLogprob {
  TokenId token;
  float logprob = 0;  // natural logarithm, of the softmax of the model's own logits
};

// The request waits or runs; sent when the engine thread takes it in.
struct AcceptedEvent {
  int64_t prompt_tokens = 0;   // of an open prompt: so far
  int64_t queue_position = 0;  // requests that start before this one; 0: next
};

// On request. An open prompt always gets them, since whoever sends it must not run far ahead, and
// so does a text that is scored.
struct PrefillProgressEvent {
  int64_t processed_tokens = 0;
  int64_t total_tokens = 0;  // of an open prompt: so far
};

// One generated token.
struct GeneratedEvent {
  TokenLogprob token;
  std::vector<TokenLogprob> top;  // the likeliest tokens, most likely first; as many as asked for
  int sequence_index = 0;         // which of the request's continuations
};

// One continuation is complete and its slot, if it had one, is free. Comes for every continuation
// that ended by itself, by its limits or by Engine::StopSequence; those that an error or the
// cancellation of the request cuts off have none.
struct SequenceEndedEvent {
  int sequence_index = 0;
  FinishReason reason = FinishReason::kMaxTokens;  // kEos .. kStopped
  TokenId stop_token;                              // kStopToken and kEos: which
  int64_t generated_tokens = 0;
};

// A run of scored positions, first_position .. first_position + tokens.size() - 1, in order.
struct ScoredEvent {
  int64_t first_position = 0;
  std::vector<TokenLogprob>
      tokens;  // logprob of token t given tokens 0 .. t-1; position 0 is not sent
  std::vector<std::vector<TokenLogprob>> top;
};

struct Timings {
  absl::Duration queue;                // arrival to the first step; if there was none, to the end
  absl::Duration prefill;              // first step to the end of the prompt
  absl::Duration time_to_first_token;  // arrival to the first token
  absl::Duration decode;               // first token of any continuation to the last of all
};

struct FinishedEvent {
  FinishReason reason = FinishReason::kError;  // status OK: that of sequence 0
  // OK for kEos .. kStopped; kCancelled; else what went wrong (kDeadlineExceeded in the queue
  // or, for the time limit, before the first token, kInternal for NaN logits or a failed device,
  // kUnavailable at shutdown).
  absl::Status status;
  TokenId stop_token;  // kStopToken and kEos: which
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;  // of all continuations together
  Timings timings;
};

using SequenceEvent = std::variant<AcceptedEvent, PrefillProgressEvent, GeneratedEvent, ScoredEvent,
                                   SequenceEndedEvent, FinishedEvent>;

class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void Push(SequenceEvent event) = 0;
};

}  // namespace bst
