// What the engine asks of a request before it queues it.
//
// Threads   Pure functions.
// Errors    kInvalidArgument; the message begins with the name of the field and holds its value.
// Tested by tests/engine/engine_request_check_test.cc
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/ids.h"
#include "engine/generate_request.h"

namespace bst {

struct RequestLimits {
  int vocab_size = 0;
  int64_t max_prompt_tokens = 0;
  int max_sequences = 1;       // slots
  std::optional<TokenId> eos;  // the model's
};

absl::Status CheckRequest(const GenerateRequest& request, const RequestLimits& limits);
absl::Status CheckRequest(const ScoreRequest& request, const RequestLimits& limits);
// More of an open prompt; its length is the inbox's to check.
absl::Status CheckPromptPart(const std::vector<TokenId>& tokens, int vocab_size);

}  // namespace bst
