#include "clients/stress/traffic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

using client::UsageError;
using testing::ElementsAre;
using testing::HasSubstr;

ModelLimits SmallModel() { return {16, {0, 1}, 1000, 500}; }

std::string ErrorOf(const auto& action) {
  try {
    action();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(TrafficTest, ARequestDependsOnSeedAndIndexAlone) {
  TrafficOptions options;
  options.prompt_tokens = {10, 50};
  options.new_tokens = {1, 500};
  options.cancel_rate = 0.5;
  const Traffic one(options, SmallModel()), same(options, SmallModel());
  options.seed = 2;
  const Traffic other(options, SmallModel());
  one.Plan(3);  // no memory of what was asked before
  for (uint64_t i = 0; i < 50; ++i) {
    const RequestPlan a = one.Plan(i), b = same.Plan(i);
    EXPECT_EQ(a.request.SerializeAsString(), b.request.SerializeAsString());
    EXPECT_EQ(a.cancel_after_tokens, b.cancel_after_tokens);
    EXPECT_EQ(a.cancel_after_seconds, b.cancel_after_seconds);
    EXPECT_NE(a.request.sampling().seed(), other.Plan(i).request.sampling().seed());
    EXPECT_NE(a.request.sampling().seed(), one.Plan(i + 1).request.sampling().seed());
  }
}

TEST(TrafficTest, RequestsThatAreLargerThanAMessageAreWrongUsage) {
  ModelLimits model = SmallModel();
  model.vocab_size = 4096;  // two bytes for most ids
  model.max_message_bytes = 1024;
  TrafficOptions options;
  options.prompt_tokens = {10, 400};
  EXPECT_NO_THROW(Traffic(options, model));
  options.prompt_tokens = {10, 600};
  EXPECT_THAT(ErrorOf([&] { Traffic(options, model); }),
              HasSubstr("bytes are above the server's message limit of 1024"));
  options.prompt_tokens = {10, 10};
  options.prefix_tokens = 600;
  EXPECT_THROW(Traffic(options, model), UsageError);
  options.prefix_tokens = 0;
  options.json_prompts = {{std::string(900, 'x'), {}, {}}, {"short", {}, {}}};
  EXPECT_NO_THROW(Traffic(options, model));
  options.json_prompts.push_back({std::string(1000, 'x'), {}, {}});
  EXPECT_THROW(Traffic(options, model), UsageError);
}

TEST(TrafficTest, LengthsStayInTheirRangeAndReachItsEnds) {
  TrafficOptions options;
  options.prompt_tokens = {3, 5};
  options.new_tokens = {7, 8};
  options.ignore_eos = true;
  const Traffic traffic(options, SmallModel());
  std::set<int> lengths;
  std::set<uint32_t> outputs;
  for (uint64_t i = 0; i < 200; ++i) {
    const v1::GenerateRequest request = traffic.Plan(i).request;
    lengths.insert(request.token_ids().ids_size());
    outputs.insert(request.stopping().max_new_tokens());
    EXPECT_TRUE(request.stopping().ignore_eos());
    for (const uint32_t id : request.token_ids().ids()) {
      EXPECT_GE(id, 2u);  // 0 and 1 are special
      EXPECT_LT(id, 16u);
    }
  }
  EXPECT_THAT(lengths, ElementsAre(3, 4, 5));
  EXPECT_THAT(outputs, ElementsAre(7u, 8u));
}

TEST(TrafficTest, AMixHasItsShares) {
  TrafficOptions options;
  options.mix = ParseMix("90:10-20,10:400:5");
  const Traffic traffic(options, SmallModel());
  int long_ones = 0;
  for (uint64_t i = 0; i < 5000; ++i) {
    const v1::GenerateRequest request = traffic.Plan(i).request;
    const int length = request.token_ids().ids_size();
    if (length == 400) {
      ++long_ones;
      EXPECT_EQ(request.stopping().max_new_tokens(), 5u);
    } else {
      EXPECT_GE(length, 10);
      EXPECT_LE(length, 20);
      EXPECT_EQ(request.stopping().max_new_tokens(), 64u);
    }
  }
  EXPECT_NEAR(long_ones, 500, 110);  // five standard deviations
}

TEST(TrafficTest, GroupsShareAPrefix) {
  TrafficOptions options;
  options.prompt_tokens = {4, 4};
  options.prefix_tokens = 30;
  options.num_prefixes = 3;
  const Traffic traffic(options, SmallModel());
  std::set<std::string> prefixes, suffixes;
  for (uint64_t i = 0; i < 100; ++i) {
    const auto plan = traffic.Plan(i);
    const auto& ids = plan.request.token_ids().ids();
    ASSERT_EQ(ids.size(), 34);
    prefixes.insert(std::string(ids.begin(), ids.begin() + 30));
    suffixes.insert(std::string(ids.begin() + 30, ids.end()));
  }
  EXPECT_EQ(prefixes.size(), 3u);
  EXPECT_GT(suffixes.size(), 90u);
}

TEST(TrafficTest, PiecesOfATextKeepItsOrder) {
  TrafficOptions options;
  options.prompt_tokens = {6, 6};
  options.text_tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const Traffic traffic(options, SmallModel());
  std::set<uint32_t> starts;
  for (uint64_t i = 0; i < 200; ++i) {
    const auto plan = traffic.Plan(i);
    const auto& ids = plan.request.token_ids().ids();
    starts.insert(ids[0]);
    for (int k = 1; k < ids.size(); ++k) EXPECT_EQ(ids[k], (ids[k - 1] + 1) % 10);
  }
  EXPECT_EQ(starts.size(), 10u);
}

TEST(TrafficTest, JsonLinesGoRound) {
  TrafficOptions options;
  options.json_prompts = ParseJsonLines(
      "{\"prompt\": \"one\"}\n\n  {\"token_ids\": [5, 6], \"max_new_tokens\": 9}\r\n", "f");
  const Traffic traffic(options, SmallModel());
  EXPECT_EQ(traffic.Plan(0).request.text(), "one");
  EXPECT_EQ(traffic.Plan(0).request.stopping().max_new_tokens(), 64u);
  EXPECT_THAT(traffic.Plan(1).request.token_ids().ids(), ElementsAre(5u, 6u));
  EXPECT_EQ(traffic.Plan(1).request.stopping().max_new_tokens(), 9u);
  EXPECT_EQ(traffic.Plan(2).request.text(), "one");
}

TEST(TrafficTest, JsonLinesNameTheLineThatIsWrong) {
  const auto error = [](const char* lines) {
    return ErrorOf([lines] { ParseJsonLines(lines, "f"); });
  };
  EXPECT_THAT(error("{\"prompt\": \"x\"}\nnonsense"), HasSubstr("f, line 2 is not a JSON object"));
  EXPECT_THAT(error("{}"), HasSubstr("needs either"));
  EXPECT_THAT(error("{\"prompt\": \"x\", \"token_ids\": [1]}"), HasSubstr("needs either"));
  EXPECT_THAT(error("{\"token_ids\": [-1]}"), HasSubstr("token_ids holds -1"));
  EXPECT_THAT(error("{\"prompt\": \"x\", \"max_new_tokens\": 1.5}"), HasSubstr("is 1.5"));
  EXPECT_THAT(error("\n"), HasSubstr("holds no prompts"));
}

TEST(TrafficTest, WhatAClientDoesToItsRequestsHasItsShare) {
  TrafficOptions options;
  options.prompt_tokens = {1, 1};
  options.cancel_rate = 0.3;
  options.slow_reader_rate = 0.2;
  options.deadline_rate = 0.5;
  options.deadline_seconds = 2;
  const Traffic traffic(options, SmallModel());
  int cancelled = 0, early = 0, slow = 0, deadlines = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    const RequestPlan plan = traffic.Plan(i);
    cancelled += plan.is_cancelled();
    early += plan.cancel_after_seconds.has_value();
    EXPECT_FALSE(plan.cancel_after_seconds.has_value() && plan.cancel_after_tokens.has_value());
    EXPECT_LE(plan.cancel_after_tokens.value_or(1), 64u);
    slow += plan.read_delay_seconds > 0;
    deadlines += plan.deadline_seconds == 2;
  }
  EXPECT_NEAR(cancelled, 1200, 150);
  EXPECT_NEAR(early, 400, 100);
  EXPECT_NEAR(slow, 800, 130);
  EXPECT_NEAR(deadlines, 2000, 160);
}

TEST(TrafficTest, AProbeAsksForOneToken) {
  const RequestPlan plan = Traffic({}, SmallModel()).PlanProbe(4);
  EXPECT_TRUE(plan.is_probe);
  EXPECT_EQ(plan.request.stopping().max_new_tokens(), 1u);
  EXPECT_EQ(static_cast<uint32_t>(plan.request.token_ids().ids_size()),
            Traffic::kProbePromptTokens);
}

TEST(TrafficTest, RefusesWhatTheServerCannotServe) {
  TrafficOptions options;
  options.prompt_tokens = {900, 950};
  options.prefix_tokens = 51;
  EXPECT_THAT(ErrorOf([&] { Traffic(options, SmallModel()); }),
              HasSubstr("prompts of 1001 tokens are above the server's limit of 1000"));
  options = {};
  options.new_tokens = {1, 501};
  EXPECT_THAT(ErrorOf([&] { Traffic(options, SmallModel()); }), HasSubstr("outputs of 501"));
}

TEST(TrafficTest, RangesAndMixesSayWhatIsWrong) {
  for (const char* const bad : {"", "0", "5-", "-5", "9-3", "1-2-3", "x", "99999999999"})
    EXPECT_THAT(ErrorOf([bad] { ParseRange(bad, "--flag"); }), HasSubstr("--flag")) << bad;
  for (const char* const bad : {"", "10", "0:5", "-1:5", "nan:5", "1:5:6:7", "1:5,", "1:0"})
    EXPECT_THAT(ErrorOf([bad] { ParseMix(bad); }), HasSubstr("--mix")) << bad;
}

}  // namespace
}  // namespace bst::stress
