#include "engine/checkpoint/generation_config.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/json.h"
#include "nlohmann/json.hpp"

namespace bst {
namespace {

using nlohmann::json;

enum class Lower { kInclusive, kExclusive };

absl::Status BadValue(const char* key, const json& value, const std::string& expected) {
  return absl::FailedPreconditionError(
      absl::StrCat("`", key, "` is ", Excerpt(value.dump()), ", must be ", expected));
}

// What a request may ask for at most.
constexpr int kMaxNewTokens = 1'000'000;

// The value of `key`, or nullptr if it is absent or null.
const json* FindValue(const json& document, const char* key) {
  const auto found = document.find(key);
  return found == document.end() || found->is_null() ? nullptr : &*found;
}

absl::StatusOr<std::optional<float>> Number(const json& document, const char* key, Lower lower,
                                            float max) {
  const json* value = FindValue(document, key);
  if (value == nullptr) return std::optional<float>();
  const float number = value->is_number() ? static_cast<float>(value->get<double>()) : -1.0f;
  const bool above = lower == Lower::kInclusive ? number >= 0 : number > 0;
  if (!above || number > max) {
    return BadValue(
        key, *value,
        absl::StrCat("a number in ", lower == Lower::kInclusive ? "[" : "(", "0, ", max, "]"));
  }
  return std::optional<float>(number);
}

absl::StatusOr<std::optional<int>> Integer(const json& document, const char* key, int min,
                                           int max = INT32_MAX) {
  const json* value = FindValue(document, key);
  if (value == nullptr) return std::optional<int>();
  const bool fits =
      !value->is_number_unsigned() || value->get<uint64_t>() <= static_cast<uint64_t>(max);
  if (!value->is_number_integer() || !fits || value->get<int64_t>() < min) {
    return BadValue(key, *value, absl::StrCat("an integer from ", min, " to ", max));
  }
  return std::optional<int>(value->get<int>());
}

absl::StatusOr<std::optional<bool>> Bool(const json& document, const char* key) {
  const json* value = FindValue(document, key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_boolean()) return BadValue(key, *value, "true or false");
  return std::optional<bool>(value->get<bool>());
}

}  // namespace

absl::StatusOr<GenerationDefaults> ParseGenerationConfig(std::string_view text) {
  BST_ASSIGN_OR_RETURN(const json document, ParseJson(text));
  if (!document.is_object()) return BadValue("the document", document, "an object");
  GenerationDefaults defaults;
  BST_ASSIGN_OR_RETURN(defaults.temperature,
                       Number(document, "temperature", Lower::kInclusive, 100.0f));
  BST_ASSIGN_OR_RETURN(defaults.top_p, Number(document, "top_p", Lower::kExclusive, 1.0f));
  BST_ASSIGN_OR_RETURN(defaults.min_p, Number(document, "min_p", Lower::kInclusive, 1.0f));
  BST_ASSIGN_OR_RETURN(defaults.typical_p, Number(document, "typical_p", Lower::kExclusive, 1.0f));
  BST_ASSIGN_OR_RETURN(defaults.repetition_penalty,
                       Number(document, "repetition_penalty", Lower::kExclusive, 10.0f));
  BST_ASSIGN_OR_RETURN(defaults.top_k, Integer(document, "top_k", -1));
  BST_ASSIGN_OR_RETURN(defaults.max_new_tokens,
                       Integer(document, "max_new_tokens", 1, kMaxNewTokens));
  BST_ASSIGN_OR_RETURN(defaults.do_sample, Bool(document, "do_sample"));
  return defaults;
}

}  // namespace bst
