// ActiveRequest: what the engine keeps of a request from Submit to its FinishedEvent.
//
// Ownership   One owner at a time: the submitting thread, then the inbox, then the engine thread.
// Threads     Follows the owner; never shared.
// Tested by   tests/engine/engine_test.cc
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/ids.h"
#include "engine/engine.h"
#include "engine/generate_request.h"
#include "engine/sampling/sampler.h"
#include "engine/token_sink.h"

namespace bst {

// One of the sequences that go on from the prompt.
struct ContinuationRecord {
  std::optional<Sampler> sampler;  // from the first token drawn to the last
  int64_t generated_tokens = 0;
  absl::Time last_token = absl::InfiniteFuture();
  std::optional<TokenId> stop_token;  // drawn: the sequence ended by itself
  std::optional<FinishReason> ended;
};

struct ActiveRequest {
  // Fixed at submission. Times are the engine clock's.
  SequenceId id;
  std::string request_id;
  RequestStats::Kind kind = RequestStats::Kind::kGenerate;
  StoppingParams stopping;       // kGenerate
  bool prompt_progress = false;  // always for an open prompt and for kScore
  int top_logprobs = 0;
  Priority priority = Priority::kNormal;
  absl::Time arrived;
  absl::Time start_by = absl::InfiniteFuture();
  absl::Time finish_by = absl::InfiniteFuture();
  std::shared_ptr<TokenSink> sink;

  std::vector<TokenId> prompt;       // moves on to the scheduler
  std::unique_ptr<Sampler> sampler;  // kGenerate; knows the prompt; a lone continuation takes it,
                                     // of several each has a copy
  std::optional<TokenId> eos;        // none if ignored
  std::vector<TokenId> ending;       // tokens that end the sequence: eos and the stop tokens
  std::vector<ContinuationRecord> continuations;  // by index; none for kScore

  // What happened so far; InfiniteFuture: not yet.
  int64_t prompt_tokens = 0;  // that have come
  bool prompt_open = false;   // more may come
  absl::Time started = absl::InfiniteFuture();
  absl::Time prompt_read = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
  int64_t generated_tokens = 0;  // of all continuations
  absl::Status failure;          // not OK: the request ends with this, whatever else it did

  bool has_started() const { return started != absl::InfiniteFuture(); }
  bool has_read_prompt() const { return prompt_read != absl::InfiniteFuture(); }
};

}  // namespace bst
