#include "clients/stress/sweep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace bst::stress {
namespace {

using testing::ElementsAre;

// A server that holds the SLO up to `capacity`; notes what was tried.
RunLoad Server(double capacity, std::vector<double>& tried) {
  return [capacity, &tried](double load) {
    tried.push_back(load);
    return SweepPoint{load, load <= capacity, RunResult()};
  };
}

TEST(SweepTest, DoublesThenHalvesTheInterval) {
  std::vector<double> tried;
  SweepOptions options;
  options.precision = 0.1;
  const SweepResult sweep = Sweep(options, Server(11, tried));
  EXPECT_THAT(tried, ElementsAre(1, 2, 4, 8, 16, 12, 10, 11));
  ASSERT_NE(sweep.Highest(), nullptr);
  EXPECT_EQ(sweep.Highest()->load, 11);
  for (size_t i = 1; i < sweep.points.size(); ++i)
    EXPECT_LT(sweep.points[i - 1].load, sweep.points[i].load);
}

TEST(SweepTest, GoesDownWhenTheFirstLoadFails) {
  std::vector<double> tried;
  SweepOptions options;
  options.from = 8;
  options.precision = 0.25;
  EXPECT_EQ(Sweep(options, Server(1.5, tried)).Highest()->load, 1.5);
  EXPECT_THAT(tried, ElementsAre(8, 4, 2, 1, 1.5));
}

TEST(SweepTest, ConcurrencyIsWhole) {
  std::vector<double> tried;
  SweepOptions options;
  options.variable = SweepOptions::Variable::kConcurrency;
  options.from = 3;
  options.precision = 0.001;
  EXPECT_EQ(Sweep(options, Server(9, tried)).Highest()->load, 9);
  EXPECT_THAT(tried, ElementsAre(3, 6, 12, 9, 10));
}

TEST(SweepTest, StopsAtTheHighestLoadToTry) {
  std::vector<double> tried;
  SweepOptions options;
  options.to = 5;
  EXPECT_EQ(Sweep(options, Server(1000, tried)).Highest()->load, 5);
  EXPECT_THAT(tried, ElementsAre(1, 2, 4, 5));
}

TEST(SweepTest, NothingHolds) {
  std::vector<double> tried;
  SweepOptions options;
  options.variable = SweepOptions::Variable::kConcurrency;
  options.from = 4;
  EXPECT_EQ(Sweep(options, Server(0, tried)).Highest(), nullptr);
  EXPECT_THAT(tried, ElementsAre(4, 2, 1));
  options.variable = SweepOptions::Variable::kRate;
  tried.clear();
  EXPECT_EQ(Sweep(options, Server(0, tried)).Highest(), nullptr);
  EXPECT_LE(tried.size(), 11u);
}

TEST(SweepTest, StepsAreAllRunAndALoadAboveAFailureDoesNotCount) {
  SweepOptions options;
  options.steps = {8, 1, 4};
  const SweepResult sweep = Sweep(options, [](double load) {
    return SweepPoint{load, load != 4, RunResult()};
  });
  ASSERT_EQ(sweep.points.size(), 3u);
  EXPECT_EQ(sweep.Highest()->load, 1);
}

TEST(SweepTest, AnInterruptEndsIt) {
  int runs = 0;
  Sweep({}, [&runs](double load) {
    ++runs;
    SweepPoint point{load, true, RunResult()};
    point.result.was_interrupted = true;
    return point;
  });
  EXPECT_EQ(runs, 1);
}

}  // namespace
}  // namespace bst::stress
