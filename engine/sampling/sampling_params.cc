#include "engine/sampling/sampling_params.h"

#include <limits>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

absl::Status OutOfRange(const char* field, float value, const char* range) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", must be in ", range));
}

// The comparisons are false for NaN, which is thereby refused.
bool InClosed(float x, float min, float max) { return x >= min && x <= max; }
bool InHalfOpen(float x, float min, float max) { return x > min && x <= max; }

absl::Status ValidateBias(const std::vector<std::pair<TokenId, float>>& logit_bias,
                          int vocab_size) {
  constexpr float kBan = -std::numeric_limits<float>::infinity();
  absl::flat_hash_set<TokenId> seen;
  for (const auto& [token, bias] : logit_bias) {
    if (token.value() < 0 || token.value() >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("logit_bias names token ", token.value(),
                                                     ", must be in [0, ", vocab_size, ")"));
    }
    if (!InClosed(bias, -100.0f, 100.0f) && bias != kBan) {
      return absl::InvalidArgumentError(absl::StrCat("logit_bias of token ", token.value(), " is ",
                                                     bias,
                                                     ", must be in [-100, 100] or -infinity"));
    }
    if (!seen.insert(token).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias names token ", token.value(), " twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const SamplingParams& params, int vocab_size) {
  const SamplingParams& p = params;
  if (!InClosed(p.temperature, 0, 100)) return OutOfRange("temperature", p.temperature, "[0, 100]");
  if (p.top_k < -1) {
    return absl::InvalidArgumentError(absl::StrCat("top_k is ", p.top_k, ", must be -1 or more"));
  }
  if (!InHalfOpen(p.top_p, 0, 1)) return OutOfRange("top_p", p.top_p, "(0, 1]");
  if (!InClosed(p.min_p, 0, 1)) return OutOfRange("min_p", p.min_p, "[0, 1]");
  if (!InHalfOpen(p.typical_p, 0, 1)) return OutOfRange("typical_p", p.typical_p, "(0, 1]");
  if (!InHalfOpen(p.repetition_penalty, 0, 10)) {
    return OutOfRange("repetition_penalty", p.repetition_penalty, "(0, 10]");
  }
  if (!InClosed(p.presence_penalty, -2, 2))
    return OutOfRange("presence_penalty", p.presence_penalty, "[-2, 2]");
  if (!InClosed(p.frequency_penalty, -2, 2))
    return OutOfRange("frequency_penalty", p.frequency_penalty, "[-2, 2]");
  return ValidateBias(p.logit_bias, vocab_size);
}

}  // namespace bst
