#include "clients/cli/json_text.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

namespace bst::cli {

Json Number(double value) {
  if (!std::isfinite(value)) return nullptr;
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%.9g", value);
  return std::strtod(digits, nullptr);
}

Json UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"generated_tokens", usage.generated_tokens()}};
}

Json TimingsJson(const v1::Timings& timings) {
  return {{"queue_seconds", Number(timings.queue_seconds())},
          {"prefill_seconds", Number(timings.prefill_seconds())},
          {"time_to_first_token_seconds", Number(timings.time_to_first_token_seconds())},
          {"mean_inter_token_seconds", Number(timings.mean_inter_token_seconds())},
          {"tokens_per_second", Number(timings.tokens_per_second())}};
}

Json TopTokensJson(const google::protobuf::RepeatedPtrField<v1::TopToken>& top) {
  Json list = Json::array();
  for (const v1::TopToken& token : top) {
    list.push_back({{"token_id", token.token_id()}, {"logprob", Number(token.logprob())}});
  }
  return list;
}

void PrintJson(const Json& object) {
  const std::string text = object.dump() + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace bst::cli
