#include "clients/stress/slo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

using client::UsageError;
using testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  try {
    ParseSlo(text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(SloTest, ParsesMetricsBoundsAndPercentiles) {
  const Slo slo = ParseSlo("ttft:200ms,itl:1.5ms@p95,e2e:5s,tpot:800us@p99.9");
  ASSERT_EQ(slo.size(), 4u);
  EXPECT_EQ(slo[0].metric, Metric::kTtft);
  EXPECT_DOUBLE_EQ(slo[0].bound_seconds, 0.2);
  EXPECT_EQ(slo[0].percent, 99);
  EXPECT_EQ(slo[1].metric, Metric::kItl);
  EXPECT_DOUBLE_EQ(slo[1].bound_seconds, 0.0015);
  EXPECT_EQ(slo[1].percent, 95);
  EXPECT_EQ(slo[2].metric, Metric::kE2e);
  EXPECT_DOUBLE_EQ(slo[2].bound_seconds, 5);
  EXPECT_EQ(slo[3].metric, Metric::kTpot);
  EXPECT_DOUBLE_EQ(slo[3].bound_seconds, 0.0008);
  EXPECT_EQ(slo[3].percent, 99.9);
  EXPECT_EQ(slo[0].ToString(), "ttft p99 <= 200 ms");
}

TEST(SloTest, SaysWhatIsWrong) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("is not METRIC:BOUND"));
  EXPECT_THAT(ErrorOf("ttft"), HasSubstr("'ttft' is not METRIC:BOUND"));
  EXPECT_THAT(ErrorOf("latency:5s"), HasSubstr("ttft, tpot, itl and e2e"));
  EXPECT_THAT(ErrorOf("ttft:200"), HasSubstr("with its unit"));
  EXPECT_THAT(ErrorOf("ttft:0ms"), HasSubstr("above 0"));
  EXPECT_THAT(ErrorOf("ttft:-5ms"), HasSubstr("above 0"));
  EXPECT_THAT(ErrorOf("ttft:infs"), HasSubstr("no duration"));
  EXPECT_THAT(ErrorOf("ttft:5parsecs"), HasSubstr("'5parsecs'"));
  EXPECT_THAT(ErrorOf("ttft:1s,ttft:2s"), HasSubstr("twice"));
  EXPECT_THAT(ErrorOf("ttft:1s,"), HasSubstr("is not METRIC:BOUND"));
  for (const char* const bad :
       {"ttft:1s@", "ttft:1s@95", "ttft:1s@p", "ttft:1s@p0", "ttft:1s@p101", "ttft:1s@p95x"})
    EXPECT_THAT(ErrorOf(bad), HasSubstr("percentile")) << bad;
}

TEST(SloTest, Durations) {
  EXPECT_DOUBLE_EQ(ParseDuration("500us"), 0.0005);
  EXPECT_DOUBLE_EQ(ParseDuration("2m"), 120);
  EXPECT_DOUBLE_EQ(ParseDuration("0.5h"), 1800);
}

TEST(SloTest, HoldsAtThePercentile) {
  const SloClause p99{Metric::kTtft, 1, 99};
  EXPECT_TRUE(Holds(p99, 99, 100));
  EXPECT_FALSE(Holds(p99, 98, 100));
  EXPECT_FALSE(Holds(p99, 0, 0));
  EXPECT_TRUE(Holds({Metric::kTtft, 1, 99.9}, 999, 1000));
  const SloClause p100{Metric::kTtft, 1, 100};
  EXPECT_TRUE(Holds(p100, 7, 7));
  EXPECT_FALSE(Holds(p100, 6, 7));
}

}  // namespace
}  // namespace bst::stress
