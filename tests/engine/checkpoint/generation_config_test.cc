#include "engine/checkpoint/generation_config.h"

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;

TEST(GenerationConfigTest, ReadsKnownKeysAndIgnoresOthers) {
  const absl::StatusOr<GenerationDefaults> defaults = ParseGenerationConfig(R"({
    "temperature": 0.7, "top_k": 40, "top_p": 1, "min_p": 0.05, "typical_p": 0.9,
    "repetition_penalty": 1.1, "max_new_tokens": 64, "do_sample": true,
    "transformers_version": "4.40.0", "eos_token_id": [1, 2], "max_length": 20, "nested": {"top_p": 7}})");
  ASSERT_THAT(defaults, IsOk());
  EXPECT_EQ(defaults->temperature, 0.7f);
  EXPECT_EQ(defaults->top_k, 40);
  EXPECT_EQ(defaults->top_p, 1.0f);
  EXPECT_EQ(defaults->min_p, 0.05f);
  EXPECT_EQ(defaults->typical_p, 0.9f);
  EXPECT_EQ(defaults->repetition_penalty, 1.1f);
  EXPECT_EQ(defaults->max_new_tokens, 64);
  EXPECT_EQ(defaults->do_sample, true);
}

TEST(GenerationConfigTest, AbsentAndNullAreUnset) {
  for (const char* text :
       {"{}",
        R"({"temperature": null, "top_k": null, "top_p": null, "min_p": null, "typical_p": null,
                  "repetition_penalty": null, "max_new_tokens": null, "do_sample": null})"}) {
    const absl::StatusOr<GenerationDefaults> defaults = ParseGenerationConfig(text);
    ASSERT_THAT(defaults, IsOk());
    EXPECT_EQ(defaults->temperature, std::nullopt);
    EXPECT_EQ(defaults->top_k, std::nullopt);
    EXPECT_EQ(defaults->top_p, std::nullopt);
    EXPECT_EQ(defaults->min_p, std::nullopt);
    EXPECT_EQ(defaults->typical_p, std::nullopt);
    EXPECT_EQ(defaults->repetition_penalty, std::nullopt);
    EXPECT_EQ(defaults->max_new_tokens, std::nullopt);
    EXPECT_EQ(defaults->do_sample, std::nullopt);
  }
}

TEST(GenerationConfigTest, RefusesWrongTypesAndRangesOfKnownKeys) {
  for (const auto& [text, message] : std::vector<std::pair<const char*, const char*>>{
           {R"({"temperature": "hot"})", "`temperature` is \"hot\""},
           {R"({"temperature": -0.1})", "`temperature` is -0.1, must be a number in [0, 100]"},
           {R"({"temperature": 101})", "`temperature` is 101"},
           {R"({"temperature": true})", "`temperature` is true"},
           {R"({"top_p": 0})", "`top_p` is 0, must be a number in (0, 1]"},
           {R"({"top_p": 1e-60})", "`top_p`"},
           {R"({"top_p": 1.5})", "`top_p` is 1.5"},
           {R"({"min_p": 2})", "`min_p` is 2"},
           {R"({"typical_p": []})", "`typical_p` is []"},
           {R"({"repetition_penalty": 0})", "`repetition_penalty` is 0"},
           {R"({"repetition_penalty": 1e300})", "`repetition_penalty` is 1e+300"},
           {R"({"top_k": 1.0})", "`top_k` is 1.0"},
           {R"({"top_k": -2})", "`top_k` is -2"},
           {R"({"top_k": 4294967297})", "`top_k` is 4294967297"},
           {R"({"max_new_tokens": 0})", "`max_new_tokens` is 0"},
           {R"({"do_sample": 1})", "`do_sample` is 1"},
           {R"([])", "`the document` is []"},
           {R"({"top_k": 1, "top_k": 1})", "`top_k` occurs twice"},
       }) {
    EXPECT_THAT(ParseGenerationConfig(text),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(message)))
        << text;
  }
}

}  // namespace
}  // namespace bst
