// GenerationDefaults: the sampling defaults a checkpoint suggests, from generation_config.json.
//
// The file uses Hugging Face's key names. Keys we do not know are ignored, since such files hold
// many that mean nothing here; null counts as unset. A known key of a wrong type or out of the
// range that requests have is an error.
//
// Threads   A value.
// Errors    kFailedPrecondition, naming the key.
// Tested by tests/engine/checkpoint/generation_config_test.cc
#pragma once

#include <optional>
#include <string_view>

#include "absl/status/statusor.h"

namespace bst {

// An unset one leaves the server's own default in force. Ranges as in SamplingParams.
struct GenerationDefaults {
  std::optional<float> temperature, top_p, min_p, typical_p, repetition_penalty;
  std::optional<int> top_k, max_new_tokens;
  std::optional<bool> do_sample;  // false means temperature 0
};

// Parses the text of a generation_config.json.
absl::StatusOr<GenerationDefaults> ParseGenerationConfig(std::string_view json);

}  // namespace bst
