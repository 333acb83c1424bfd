// CheckRequest: each rule refuses its own violation, by the field's name.
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/request_check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr TokenId kEos(7);
constexpr RequestLimits kLimits = {
    .vocab_size = 100, .max_prompt_tokens = 5, .max_sequences = 4, .eos = kEos};

GenerateRequest Valid() {
  GenerateRequest request;
  request.prompt = {TokenId(0), TokenId(99)};
  return request;
}

TEST(RequestCheckTest, TakesValidRequestsUpToTheirLimits) {
  EXPECT_TRUE(CheckRequest(Valid(), kLimits).ok());
  GenerateRequest request = Valid();
  request.prompt.assign(5, TokenId(3));
  request.stopping = {.max_new_tokens = 1, .min_new_tokens = 1, .stop_token_ids = {TokenId(99)}};
  request.top_logprobs = 20;
  request.queue_timeout = absl::Nanoseconds(1);
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
  EXPECT_TRUE(
      CheckRequest(ScoreRequest{.request_id = "", .tokens = {TokenId(99)}, .top_logprobs = 20},
                   kLimits)
          .ok());
}

TEST(RequestCheckTest, AnOpenPromptMayBeEmptyButNotTooLong) {
  GenerateRequest request = Valid();
  request.prompt_open = true;
  request.num_sequences = 3;
  request.prompt.clear();
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
  request.prompt.assign(6, TokenId(1));
  EXPECT_FALSE(CheckRequest(request, kLimits).ok());
}

TEST(RequestCheckTest, NamesTheFieldTheValueAndTheLimit) {
  struct Case {
    std::function<void(GenerateRequest&)> spoil;
    std::string field;
    std::string detail;
  };
  const std::vector<Case> cases = {
      {[](auto& r) { r.prompt.clear(); }, "prompt ", "empty"},
      {[](auto& r) { r.prompt.assign(6, TokenId(1)); }, "prompt ", "6 tokens, limit 5"},
      {[](auto& r) { r.prompt[1] = TokenId(100); }, "prompt ", "token 1 is 100"},
      {[](auto& r) { r.prompt[0] = TokenId(-1); }, "prompt ", "token 0 is -1"},
      {[](auto& r) { r.stopping.max_new_tokens = 0; }, "max_new_tokens ", "is 0"},
      {[](auto& r) { r.stopping.min_new_tokens = -1; }, "min_new_tokens ", "is -1"},
      {[](auto& r) { r.stopping.min_new_tokens = 257; }, "min_new_tokens ", "257"},
      {[](auto& r) {
         r.stopping.stop_token_ids = {TokenId(7), TokenId(100)};
       },
       "stop_token_ids ", "token 1 is 100"},
      {[](auto& r) { r.num_sequences = 0; }, "num_sequences ", "is 0, not in 1 .. 4"},
      {[](auto& r) { r.num_sequences = 5; }, "num_sequences ", "is 5, not in 1 .. 4"},
      {[](auto& r) { r.top_logprobs = 21; }, "top_logprobs ", "21"},
      {[](auto& r) { r.top_logprobs = -1; }, "top_logprobs ", "-1"},
      {[](auto& r) { r.age = -absl::Seconds(1); }, "age ", "-1s"},
      {[](auto& r) { r.age = absl::InfiniteDuration(); }, "age ", "inf"},
      {[](auto& r) { r.queue_timeout = absl::ZeroDuration(); }, "queue_timeout ", "0"},
      {[](auto& r) { r.time_limit = -absl::Seconds(1); }, "time_limit ", "-1s"},
      {[](auto& r) { r.sampling.temperature = -1; }, "temperature ", "-1"},
      {[](auto& r) {
         r.sampling.logit_bias = {{TokenId(100), 1.0f}};
       },
       "logit_bias ", "100"},
      {[](auto& r) {
         r.stopping.min_new_tokens = 1;
         for (int id = 0; id < 100; ++id) r.stopping.stop_token_ids.emplace_back(id);
       },
       "stop_token_ids ", "min_new_tokens, 1"},
      {[](auto& r) {
         r.stopping.min_new_tokens = 1;
         for (int id = 0; id < 100; ++id) {
           if (TokenId(id) == kEos) continue;
           r.sampling.logit_bias.emplace_back(TokenId(id), -std::numeric_limits<float>::infinity());
         }
       },
       "logit_bias ", "min_new_tokens, 1"},
  };
  for (const Case& one : cases) {
    GenerateRequest request = Valid();
    one.spoil(request);
    const absl::Status status = CheckRequest(request, kLimits);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << one.field;
    EXPECT_THAT(std::string(status.message()), AllOf(StartsWith(one.field), HasSubstr(one.detail)));
  }
}

// Before min_new_tokens eos is banned too, once: also where the request bans it already.
TEST(RequestCheckTest, OneTokenThatCanBeDrawnSuffices) {
  GenerateRequest request = Valid();
  request.stopping.min_new_tokens = 1;
  const auto ban_all_but = [&](TokenId left) {
    request.sampling.logit_bias.clear();
    for (int id = 0; id < 100; ++id) {
      if (TokenId(id) == left) continue;
      request.sampling.logit_bias.emplace_back(TokenId(id),
                                               -std::numeric_limits<float>::infinity());
    }
  };
  ban_all_but(TokenId(50));
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
  request.stopping.stop_token_ids = {TokenId(50)};
  EXPECT_FALSE(CheckRequest(request, kLimits).ok());
  request.stopping.stop_token_ids = {kEos};
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());

  ban_all_but(kEos);
  request.stopping.stop_token_ids.clear();
  EXPECT_FALSE(CheckRequest(request, kLimits).ok());
  request.stopping.ignore_eos = true;
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
  request.stopping.ignore_eos = false;
  RequestLimits without_eos = kLimits;
  without_eos.eos.reset();
  EXPECT_TRUE(CheckRequest(request, without_eos).ok());
  request.stopping.min_new_tokens = 0;
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
}

TEST(RequestCheckTest, ScoreRequestsAreCheckedToo) {
  EXPECT_THAT(std::string(CheckRequest(ScoreRequest(), kLimits).message()), StartsWith("tokens "));
  ScoreRequest request;
  request.tokens = {TokenId(1), TokenId(200)};
  EXPECT_THAT(std::string(CheckRequest(request, kLimits).message()), HasSubstr("token 1 is 200"));
  request.tokens = {TokenId(1)};
  request.top_logprobs = 30;
  EXPECT_EQ(CheckRequest(request, kLimits).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace bst
