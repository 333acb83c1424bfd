#include "engine/sampling/sampling_params.h"

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kVocabSize = 100;

TEST(SamplingParamsTest, DefaultsAndEndsOfTheRangesAreValid) {
  EXPECT_THAT(Validate(SamplingParams(), 1), IsOk());
  for (const float end : {0.0f, 1.0f}) {
    SamplingParams params;
    params.temperature = 100 * end;
    params.top_k = end == 0 ? -1 : std::numeric_limits<int>::max();
    params.top_p = params.typical_p = end == 0 ? std::numeric_limits<float>::denorm_min() : 1.0f;
    params.min_p = end;
    params.repetition_penalty = end == 0 ? std::numeric_limits<float>::denorm_min() : 10.0f;
    params.presence_penalty = params.frequency_penalty = end == 0 ? -2.0f : 2.0f;
    params.logit_bias = {{TokenId(0), -100.0f}, {TokenId(99), 100.0f}, {TokenId(5), -kInfinity}};
    params.seed = std::numeric_limits<uint64_t>::max();
    EXPECT_THAT(Validate(params, kVocabSize), IsOk());
  }
}

TEST(SamplingParamsTest, ValuesOutOfRangeAreNamed) {
  struct Case {
    std::function<void(SamplingParams&)> set;
    const char* message;
  };
  const auto bias = [](int token, float value) {
    return [token, value](SamplingParams& p) { p.logit_bias = {{TokenId(token), value}}; };
  };
  for (const Case& c : std::vector<Case>{
           {[](auto& p) { p.temperature = -0.01f; }, "temperature is -0.01, must be in [0, 100]"},
           {[](auto& p) { p.temperature = 100.5f; }, "temperature is 100.5"},
           {[](auto& p) { p.temperature = kNan; }, "temperature is nan"},
           {[](auto& p) { p.temperature = kInfinity; }, "temperature is inf"},
           {[](auto& p) { p.top_k = -2; }, "top_k is -2, must be -1 or more"},
           {[](auto& p) { p.top_p = 0; }, "top_p is 0, must be in (0, 1]"},
           {[](auto& p) { p.top_p = 1.01f; }, "top_p is 1.01"},
           {[](auto& p) { p.top_p = kNan; }, "top_p is nan"},
           {[](auto& p) { p.min_p = -0.1f; }, "min_p is -0.1, must be in [0, 1]"},
           {[](auto& p) { p.min_p = 1.5f; }, "min_p is 1.5"},
           {[](auto& p) { p.min_p = kNan; }, "min_p is nan"},
           {[](auto& p) { p.typical_p = 0; }, "typical_p is 0, must be in (0, 1]"},
           {[](auto& p) { p.typical_p = 2; }, "typical_p is 2"},
           {[](auto& p) { p.repetition_penalty = 0; },
            "repetition_penalty is 0, must be in (0, 10]"},
           {[](auto& p) { p.repetition_penalty = 11; }, "repetition_penalty is 11"},
           {[](auto& p) { p.presence_penalty = -2.5f; },
            "presence_penalty is -2.5, must be in [-2, 2]"},
           {[](auto& p) { p.presence_penalty = kNan; }, "presence_penalty is nan"},
           {[](auto& p) { p.frequency_penalty = 2.5f; },
            "frequency_penalty is 2.5, must be in [-2, 2]"},
           {bias(-1, 0), "logit_bias names token -1, must be in [0, 100)"},
           {bias(100, 0), "logit_bias names token 100"},
           {bias(3, 101), "logit_bias of token 3 is 101"},
           {bias(3, kInfinity), "logit_bias of token 3 is inf"},
           {bias(3, kNan), "logit_bias of token 3 is nan"},
           {[](auto& p) {
              p.logit_bias = {{TokenId(3), 1.0f}, {TokenId(4), 1.0f}, {TokenId(3), 2.0f}};
            },
            "logit_bias names token 3 twice"},
       }) {
    SamplingParams params;
    c.set(params);
    EXPECT_THAT(Validate(params, kVocabSize),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)));
  }
}

}  // namespace
}  // namespace bst
