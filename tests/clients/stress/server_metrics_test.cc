#include "clients/stress/server_metrics.h"

#include <gtest/gtest.h>

#include "clients/stress/server_facts.h"

namespace bst::stress {
namespace {

constexpr char kBefore[] =
    "# HELP done_total What was done.\n"
    "# TYPE done_total counter\n"
    "done_total{code=\"OK\",name=\"a b\"} 5\n"
    "done_total{code=\"NO\"} 2\n"
    "# TYPE running gauge\n"
    "running 3\n"
    "# TYPE build_info gauge\n"
    "build_info{version=\"1\"} 1\n"
    "# TYPE wait_seconds histogram\n"
    "wait_seconds_bucket{phase=\"x\",le=\"1\"} 10\n"
    "wait_seconds_bucket{phase=\"x\",le=\"2\"} 10\n"
    "wait_seconds_bucket{phase=\"x\",le=\"+Inf\"} 10\n"
    "wait_seconds_sum{phase=\"x\"} 1\n"
    "wait_seconds_count{phase=\"x\"} 10\n";

constexpr char kAfter[] =
    "# TYPE done_total counter\n"
    "done_total{code=\"OK\",name=\"a b\"} 9\n"
    "done_total{code=\"NO\"} 2\n"
    "# TYPE running gauge\n"
    "running 0\n"
    "# TYPE build_info gauge\n"
    "build_info{version=\"1\"} 1\n"
    "# TYPE wait_seconds histogram\n"
    "wait_seconds_bucket{phase=\"x\",le=\"1\"} 13\n"
    "wait_seconds_bucket{phase=\"x\",le=\"2\"} 14\n"
    "wait_seconds_bucket{phase=\"x\",le=\"+Inf\"} 14\n"
    "wait_seconds_sum{phase=\"x\"} 4\n"
    "wait_seconds_count{phase=\"x\"} 14\n"
    "wait_seconds_bucket{phase=\"y\",le=\"1\"} 2\n"
    "wait_seconds_bucket{phase=\"y\",le=\"2\"} 5\n"
    "wait_seconds_bucket{phase=\"y\",le=\"+Inf\"} 6\n"
    "wait_seconds_sum{phase=\"y\"} 12\n"
    "wait_seconds_count{phase=\"y\"} 6\n";

TEST(ServerMetricsTest, ReadsSamplesAndTypes) {
  const ServerMetrics metrics = ParseMetrics(kBefore);
  EXPECT_EQ(metrics.samples.at("done_total{code=\"OK\",name=\"a b\"}"), 5);
  EXPECT_EQ(metrics.samples.at("running"), 3);
  EXPECT_EQ(metrics.types.at("wait_seconds"), "histogram");
  EXPECT_TRUE(ParseMetrics("no value\n\n#\nhalf").samples.empty());
}

TEST(ServerMetricsTest, CountersThatMoved) {
  const auto changes = CounterChanges(ParseMetrics(kBefore), ParseMetrics(kAfter));
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].sample, "done_total{code=\"OK\",name=\"a b\"}");
  EXPECT_EQ(changes[0].after - changes[0].before, 4);
}

TEST(ServerMetricsTest, GaugesWithoutDescriptions) {
  const auto changes = GaugeChanges(ParseMetrics(kBefore), ParseMetrics(kAfter));
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].sample, "running");
  EXPECT_EQ(changes[0].before, 3);
  EXPECT_EQ(changes[0].after, 0);
}

TEST(ServerMetricsTest, HistogramsAreSummedOverLabelsAndLabelsThatAreNew) {
  const auto deltas = HistogramDeltas(ParseMetrics(kBefore), ParseMetrics(kAfter));
  ASSERT_EQ(deltas.size(), 1u);
  EXPECT_EQ(deltas[0].family, "wait_seconds");
  EXPECT_EQ(deltas[0].count, 10);
  EXPECT_DOUBLE_EQ(deltas[0].mean, 1.5);
  EXPECT_DOUBLE_EQ(deltas[0].p50, 1);  // five of ten are up to 1
  EXPECT_DOUBLE_EQ(deltas[0].p99, 2);  // in the last bucket: its lower end
}

TEST(ServerMetricsTest, NobodyThereIsAnError) {
  EXPECT_THROW(ScrapeMetrics("127.0.0.1:1"), ServerError);
}

}  // namespace
}  // namespace bst::stress
