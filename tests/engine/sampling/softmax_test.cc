#include "engine/sampling/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace bst {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(ScanLogitsTest, FindsTheMaximumAndAnyNan) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 10);
  for (size_t size = 1; size < 70; ++size) {
    std::vector<float> logits(size);
    for (float& x : logits) x = normal(random);
    LogitRange range = ScanLogits(logits);
    EXPECT_EQ(range.max, *std::max_element(logits.begin(), logits.end()));
    EXPECT_FALSE(range.has_nan);
    for (size_t at = 0; at < size; ++at) {
      const float kept = logits[at];
      for (const float bad : {kNan, -kNan}) {
        logits[at] = bad;
        EXPECT_TRUE(ScanLogits(logits).has_nan) << at;
      }
      logits[at] = kInfinity;
      EXPECT_EQ(ScanLogits(logits).max, kInfinity);
      logits[at] = -kInfinity;
      EXPECT_FALSE(ScanLogits(logits).has_nan);
      logits[at] = kept;
    }
  }
  EXPECT_EQ(ScanLogits({}).max, -kInfinity);
  EXPECT_EQ(ScanLogits({-kInfinity, -kInfinity}).max, -kInfinity);
  EXPECT_EQ(ScanLogits({-2.0f, -1.5f, -7.0f}).max, -1.5f);
  EXPECT_EQ(ScanLogits({-0.0f, -1.0f}).max, 0.0f);
}

TEST(ComputeWeightsTest, IsTheExponentialToTwoUnitsInTheLastPlace) {
  std::vector<float> logits = {0.0f};
  for (float x = -1e-8f; x > -100; x *= 1.0001f) logits.push_back(x);
  std::vector<float> weights;
  ComputeWeights(logits, 0, 1, weights);
  double worst = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double exact = std::exp(static_cast<double>(logits[i]));
    if (logits[i] < -87.3f) {
      EXPECT_EQ(weights[i], 0) << logits[i];
      continue;
    }
    const auto rounded = static_cast<float>(exact);
    const double unit = std::nextafter(rounded, kInfinity) - rounded;
    worst = std::max(worst, std::abs(static_cast<double>(weights[i]) - exact) / unit);
  }
  EXPECT_LE(worst, 2.0);
  EXPECT_EQ(weights[0], 1.0f);
}

TEST(ComputeWeightsTest, MaximumTemperatureAndPadding) {
  std::vector<float> weights(3 * kSumBlock, 9.0f);  // what an earlier call left
  const std::vector<float> logits = {1, 3, -kInfinity, 2, std::numeric_limits<float>::lowest()};
  ComputeWeights(logits, 3, 0.5f, weights);
  ASSERT_EQ(weights.size(), kSumBlock);
  EXPECT_FLOAT_EQ(weights[0], std::exp(-4.0f));
  EXPECT_EQ(weights[1], 1.0f);
  EXPECT_EQ(weights[2], 0.0f);
  EXPECT_FLOAT_EQ(weights[3], std::exp(-2.0f));
  EXPECT_EQ(weights[4], 0.0f);
  EXPECT_TRUE(std::all_of(weights.begin() + 5, weights.end(), [](float w) { return w == 0; }));
  // The smallest temperature there is: the largest logit keeps its weight, others lose theirs.
  ComputeWeights(logits, 3, std::numeric_limits<float>::denorm_min(), weights);
  EXPECT_EQ(weights[1], 1.0f);
  EXPECT_EQ(std::count(weights.begin(), weights.end(), 0.0f),
            static_cast<ptrdiff_t>(kSumBlock) - 1);
}

TEST(SumWeightsTest, AddsInTheOrderTheHeaderNames) {
  std::mt19937 random(5);
  std::vector<float> weights(3 * kSumBlock);
  for (float& w : weights)
    w = std::ldexp(static_cast<float>(random() % 1000), -static_cast<int>(random() % 60));
  std::vector<double> sums;
  const double total = SumWeights(weights, sums);
  ASSERT_EQ(sums.size(), 3u);
  double expected_total = 0;
  for (size_t block = 0; block < 3; ++block) {
    double partial[8] = {};
    for (size_t i = 0; i < kSumBlock; ++i) partial[i % 8] += weights[block * kSumBlock + i];
    double expected = 0;
    for (const double sum : partial) expected += sum;
    EXPECT_EQ(sums[block], expected);  // bit for bit
    expected_total += expected;
  }
  EXPECT_EQ(total, expected_total);
}

}  // namespace
}  // namespace bst
