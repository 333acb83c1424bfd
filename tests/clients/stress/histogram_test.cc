#include "clients/stress/histogram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "clients/stress/random.h"
#include "tests/support/statistics.h"

namespace bst::stress {
namespace {

TEST(HistogramTest, EmptyIsZero) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0u);
  EXPECT_EQ(histogram.Percentile(50), 0);
  EXPECT_EQ(histogram.mean(), 0);
  EXPECT_EQ(histogram.standard_deviation(), 0);
  EXPECT_TRUE(histogram.Buckets().empty());
}

TEST(HistogramTest, PercentilesOfAHundredMilliseconds) {
  Histogram histogram;
  for (int i = 100; i >= 1; --i) histogram.Add(i * 1e-3);
  EXPECT_EQ(histogram.min(), 1e-3);
  EXPECT_EQ(histogram.max(), 0.1);
  EXPECT_NEAR(histogram.mean(), 0.0505, 1e-12);
  EXPECT_NEAR(histogram.standard_deviation(), 0.0288661, 1e-6);
  for (const double percent : {50.0, 90.0, 95.0, 99.0})
    EXPECT_NEAR(histogram.Percentile(percent), percent * 1e-3, percent * 1e-3 * 0.004) << percent;
  EXPECT_EQ(histogram.Percentile(99.9), 0.1);  // the rank is the last
  EXPECT_EQ(histogram.Percentile(100), 0.1);
  EXPECT_EQ(histogram.Percentile(0), 1e-3);
}

TEST(HistogramTest, PercentilesAreWithinHalfAStepOverNineDecades) {
  Random random(3, 0);
  Histogram histogram;
  std::vector<double> values;
  for (int i = 0; i < 20'000; ++i) {
    values.push_back(std::pow(10.0, -5 + 9 * random.Uniform()));
    histogram.Add(values.back());
  }
  for (const double percent : {0.1, 10.0, 37.5, 50.0, 90.0, 99.0, 99.9, 99.99}) {
    const double exact = Percentile(values, percent);
    EXPECT_NEAR(histogram.Percentile(percent), exact, exact / 256 + 0.5e-6) << percent;
  }
}

TEST(HistogramTest, MergeIsTheSameAsAddingAll) {
  Histogram all, left, right;
  for (int i = 0; i < 1000; ++i) {
    const double seconds = 1e-6 * i * i;
    all.Add(seconds);
    (i % 3 == 0 ? left : right).Add(seconds);
  }
  left.Merge(right);
  left.Merge(Histogram());
  EXPECT_EQ(left.count(), all.count());
  EXPECT_EQ(left.min(), all.min());
  EXPECT_EQ(left.max(), all.max());
  EXPECT_NEAR(left.mean(), all.mean(), 1e-12);
  for (double percent = 0; percent <= 100; percent += 2.5)
    EXPECT_EQ(left.Percentile(percent), all.Percentile(percent)) << percent;
}

TEST(HistogramTest, BucketsHoldEveryDurationOnce) {
  Histogram histogram;
  for (int i = 0; i < 500; ++i) histogram.Add(1e-3 * (i % 7));
  uint64_t sum = 0;
  double last = -1;
  for (const Histogram::Bucket& bucket : histogram.Buckets()) {
    EXPECT_GT(bucket.seconds, last);
    last = bucket.seconds;
    sum += bucket.count;
  }
  EXPECT_EQ(sum, 500u);
  EXPECT_EQ(histogram.Buckets().size(), 7u);
}

TEST(HistogramTest, ClampsWhatIsNoDuration) {
  Histogram histogram;
  histogram.Add(-1);
  histogram.Add(1e30);
  EXPECT_EQ(histogram.min(), 0);
  EXPECT_EQ(histogram.max(), 1e6);
}

}  // namespace
}  // namespace bst::stress
