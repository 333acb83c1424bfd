#include "clients/cli/json_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

namespace bst::cli {
namespace {

TEST(JsonText, NumbersHaveNineSignificantDigits) {
  EXPECT_EQ(Number(1.0 / 3).dump(), "0.333333333");
  EXPECT_EQ(Number(-1.23456789012).dump(), "-1.23456789");
  EXPECT_EQ(Number(2).dump(), "2.0");
  EXPECT_EQ(Number(static_cast<double>(-1.1f)).dump(), "-1.10000002");
}

TEST(JsonText, NineDigitsGiveTheFloatBack) {
  for (float value = -1e-7f; value > -1e7f; value *= 1.37f) {
    EXPECT_EQ(std::strtof(Number(value).dump().c_str(), nullptr), value);
  }
}

TEST(JsonText, WhatIsNotFiniteIsNull) {
  EXPECT_EQ(Number(std::nan("")).dump(), "null");
  EXPECT_EQ(Number(-std::numeric_limits<double>::infinity()).dump(), "null");
}

TEST(JsonText, ShapesAreInOrder) {
  v1::Usage usage;
  usage.set_prompt_tokens(3);
  usage.set_generated_tokens(5);
  EXPECT_EQ(UsageJson(usage).dump(),
            R"({"prompt_tokens":3,"cached_tokens":0,"generated_tokens":5})");
  v1::TokenLogprob logprob;
  logprob.add_top()->set_token_id(7);
  EXPECT_EQ(TopTokensJson(logprob.top()).dump(), R"([{"token_id":7,"logprob":0.0}])");
}

}  // namespace
}  // namespace bst::cli
