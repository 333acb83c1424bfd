#include "engine/model/position_bias.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

// Where the logarithmic buckets of 32 up to 128 start, worked out by hand from the formula.
TEST(PositionBiasTest, BucketsOf32UpTo128StartWhereTheyShould) {
  const std::vector<int> starts = {16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113};
  for (size_t i = 0; i < starts.size(); ++i) {
    EXPECT_EQ(PositionBucket(starts[i], 32, 128), 16 + static_cast<int>(i)) << starts[i];
    EXPECT_EQ(PositionBucket(starts[i] - 1, 32, 128), 15 + static_cast<int>(i)) << starts[i];
  }
  for (int n = 0; n < 16; ++n) EXPECT_EQ(PositionBucket(n, 32, 128), n);
  EXPECT_EQ(PositionBucket(100'000, 32, 128), 31);
}

// ln(8 / 4) / ln(16 / 4) * 4 = 2 exactly, which floating point may round below.
TEST(PositionBiasTest, ADistanceOnABoundaryBelongsToTheUpperBucket) {
  EXPECT_EQ(PositionBucket(7, 8, 16), 5);
  EXPECT_EQ(PositionBucket(8, 8, 16), 6);
}

TEST(PositionBiasTest, ExpandsEachHeadByDistance) {
  std::vector<float> table = {0, 1, 2, 3, 10, 11, 12, 13};  // 2 heads, 4 buckets
  const std::vector<float> bias =
      BiasByDistance(TensorView(table.data(), DType::kF32, {2, 4}), 8, 5);
  // half = 2; bucket(n) = 2 + floor(ln(n / 2) / ln 4 * 2): 2 -> 2, 3 -> 2, 4 -> 3, 5 -> 3.
  EXPECT_THAT(bias, testing::ElementsAre(0, 1, 2, 2, 3, 3, 10, 11, 12, 12, 13, 13));
}

}  // namespace
}  // namespace bst
