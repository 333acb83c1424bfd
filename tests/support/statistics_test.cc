#include "tests/support/statistics.h"

#include <numeric>

#include "gtest/gtest.h"

namespace bst {
namespace {

TEST(StatisticsTest, MedianIsTheMiddleOrTheMeanOfTwo) {
  EXPECT_EQ(Median({7}), 7);
  EXPECT_EQ(Median({9, 1}), 5);
  EXPECT_EQ(Median({9, 1, 2}), 2);
  EXPECT_EQ(Median({9, 1, 2, 4}), 3);
}

TEST(StatisticsTest, PercentileIsTheNearestRank) {
  for (const double percent : {0.0, 50.0, 100.0}) EXPECT_EQ(Percentile({7}, percent), 7);
  const std::vector<double> four = {40, 10, 30, 20};
  EXPECT_EQ(Percentile(four, 0), 10);
  EXPECT_EQ(Percentile(four, 25), 10);
  EXPECT_EQ(Percentile(four, 26), 20);
  EXPECT_EQ(Percentile(four, 50), 20);
  EXPECT_EQ(Percentile(four, 90), 40);  // three of four are only 75 %
  EXPECT_EQ(Percentile(four, 100), 40);
  std::vector<double> thousand(1000);
  std::iota(thousand.begin(), thousand.end(), 1);
  EXPECT_EQ(Percentile(thousand, 99), 990);
  EXPECT_EQ(Percentile(thousand, 99.9), 999);
}

}  // namespace
}  // namespace bst
