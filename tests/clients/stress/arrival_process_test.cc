#include "clients/stress/arrival_process.h"

#include <gtest/gtest.h>

#include <vector>

namespace bst::stress {
namespace {

constexpr int kGaps = 200'000;

struct Moments {
  double mean = 0, variance = 0;
};

Moments MomentsOf(ArrivalProcess process) {
  double sum = 0, sum_of_squares = 0;
  for (int i = 0; i < kGaps; ++i) {
    const double gap = process.NextGap();
    EXPECT_GE(gap, 0);
    sum += gap;
    sum_of_squares += gap * gap;
  }
  const double mean = sum / kGaps;
  return {mean, sum_of_squares / kGaps - mean * mean};
}

TEST(ArrivalProcessTest, ConstantGapsAreAllTheSame) {
  const Moments moments = MomentsOf(ArrivalProcess(Arrivals::kConstant, 20, 1, 1));
  EXPECT_NEAR(moments.mean, 0.05, 1e-9);
  EXPECT_NEAR(moments.variance, 0, 1e-9);
}

TEST(ArrivalProcessTest, PoissonGapsAreExponential) {
  const Moments moments = MomentsOf(ArrivalProcess(Arrivals::kPoisson, 20, 1, 1));
  // Five standard errors of the estimates.
  EXPECT_NEAR(moments.mean, 0.05, 0.05 * 0.0112);
  EXPECT_NEAR(moments.variance, 0.0025, 0.0025 * 0.032);
}

TEST(ArrivalProcessTest, BurstinessSetsTheVarianceOfGammaGaps) {
  for (const double burstiness : {0.25, 1.0, 4.0}) {
    const Moments moments = MomentsOf(ArrivalProcess(Arrivals::kGamma, 20, burstiness, 1));
    EXPECT_NEAR(moments.mean, 0.05, 0.05 * 0.025) << burstiness;
    const double variance = 0.0025 / burstiness;
    EXPECT_NEAR(moments.variance, variance, variance * 0.07) << burstiness;
  }
}

TEST(ArrivalProcessTest, TheSeedDecides) {
  for (const Arrivals kind : {Arrivals::kPoisson, Arrivals::kGamma}) {
    ArrivalProcess one(kind, 5, 0.5, 7), same(kind, 5, 0.5, 7), other(kind, 5, 0.5, 8);
    bool differs = false;
    for (int i = 0; i < 100; ++i) {
      const double gap = one.NextGap();
      EXPECT_EQ(gap, same.NextGap());
      differs |= gap != other.NextGap();
    }
    EXPECT_TRUE(differs);
  }
}

TEST(RandomTest, BetweenReachesBothEndsEvenly) {
  Random random(5, 9);
  std::vector<int> seen(6);
  for (int i = 0; i < 60'000; ++i) ++seen[random.Between(0, 5)];
  for (const int count : seen) EXPECT_NEAR(count, 10'000, 500);
  EXPECT_EQ(Random(5, 9).Between(4, 4), 4u);
}

}  // namespace
}  // namespace bst::stress
