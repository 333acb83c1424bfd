// The quantisation that all backends share, and that their INT8 linear layers are the same bits.
#include "engine/backend/int8.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/backend/operator_fixture.h"

namespace bst {
namespace {

TEST(QuantizeSymmetricTest, HalfAStepIsTheLargestError) {
  for (const double deviation : {1e-20, 1.0, 1e20}) {
    const std::vector<float> x = RandomVector(301, 1, deviation);
    std::vector<int8_t> q(x.size());
    const float scale = QuantizeSymmetric(x, q.data());
    int largest = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_LE(std::fabs(double{scale} * q[i] - x[i]), 0.501 * scale);
      largest = std::max(largest, std::abs(int{q[i]}));
    }
    EXPECT_EQ(largest, 127);
  }
}

TEST(QuantizeSymmetricTest, StridesZerosAndNonFiniteNumbers) {
  std::vector<int8_t> q(6, 99);
  EXPECT_EQ(QuantizeSymmetric({1.0f, -2.0f}, q.data(), 3), 2.0f / 127.0f);
  EXPECT_EQ(q, (std::vector<int8_t>{64, 99, 99, -127, 99, 99}));
  EXPECT_EQ(QuantizeSymmetric({0.0f, -0.0f}, q.data()), 0.0f);
  EXPECT_EQ(q[0], 0);
  EXPECT_EQ(q[1], 0);
  EXPECT_TRUE(std::isnan(QuantizeSymmetric({1.0f, std::nanf("")}, q.data())));
  EXPECT_TRUE(
      std::isnan(QuantizeSymmetric({std::numeric_limits<float>::infinity(), 1.0f}, q.data())));
}

TEST(QuantizeInputsTest, TheRangeOfTheNumbersAndZeroIsCovered) {
  std::vector<uint8_t> q(3);
  const QuantizedRow both = QuantizeInputs({-55.0f, 0.0f, 200.0f}, q.data());
  EXPECT_EQ(both.scale, 1.0f);
  EXPECT_EQ(both.zero, 55);
  EXPECT_EQ(q, (std::vector<uint8_t>{0, 55, 255}));
  const QuantizedRow positive = QuantizeInputs({51.0f, 255.0f, 102.0f}, q.data());
  EXPECT_EQ(positive.zero, 0);
  EXPECT_EQ(q, (std::vector<uint8_t>{51, 255, 102}));
  const QuantizedRow negative = QuantizeInputs({-51.0f, -255.0f, -102.0f}, q.data());
  EXPECT_EQ(negative.zero, 255);
  EXPECT_EQ(q, (std::vector<uint8_t>{204, 0, 153}));
}

TEST(QuantizeInputsTest, AStepIsTheLargestError) {
  for (const double deviation : {1e-20, 1.0, 1e20}) {
    const std::vector<float> x = RandomVector(301, 2, deviation);
    std::vector<uint8_t> q(x.size());
    const QuantizedRow row = QuantizeInputs(x, q.data());
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_LE(std::fabs(double{row.scale} * (q[i] - row.zero) - x[i]), 1.001 * row.scale);
  }
}

using Int8LinearTest = OperatorTest;

// Every sum is exact and every factor is applied in one order: not close, equal.
TEST_P(Int8LinearTest, BitsAreThoseOfTheReference) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  unsigned int number = 0;
  for (const int in : {1, 4, 63, 64, 65, 300, 3072}) {
    for (const int out : {1, 17, 64, 150}) {
      if (in * out > 60'000 || LeftOutUnderSanitizers(number++)) continue;
      std::vector<float> w = RandomVector(static_cast<size_t>(in * out), 3);
      for (int i = 0; i < in; ++i) w[static_cast<size_t>(i)] = 0;  // the first output's weights
      for (const LinearEpilogue epilogue :
           {LinearEpilogue::kStore, LinearEpilogue::kRelu, LinearEpilogue::kAdd}) {
        const auto apply = [&](Backend& backend) {
          const auto packed = *backend.PackLinear({Contiguous(w, {out, in})}, DType::kI8);
          constexpr int kRows = 260;  // more than the CPU backend prepares at once
          Matrix x = Matrix::Random(kRows, in, 4), y = Matrix::Random(kRows, out, 5);
          for (int c = 0; c < in; ++c) {
            x.at(1, c) = 0;                      // no range
            x.at(2, c) *= 1e-36f;                // no reciprocal
            x.at(3, c) = std::fabs(x.at(3, c));  // all 256 steps above zero
            x.at(4, c) *= 1e30f;
          }
          x.at(5, in / 2) = std::nanf("");
          x.at(6, in / 2) = -kInfinity;
          backend.Linear(x.view(), *packed, {.epilogue = epilogue}, y.view());
          return y;
        };
        Matrix expected = apply(*reference_), got = apply(*tested_);
        EXPECT_TRUE(got.SentinelsIntact());
        for (int r = 0; r < 260; ++r) {
          for (int o = 0; o < out; ++o) {
            if (r == 5 || r == 6) {
              ASSERT_TRUE(std::isnan(got.at(r, o))) << "in " << in << " row " << r << " " << o;
              ASSERT_TRUE(std::isnan(expected.at(r, o))) << "in " << in << " row " << r;
              continue;
            }
            ASSERT_EQ(got.at(r, o), expected.at(r, o)) << "in " << in << " row " << r << " " << o;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Int8LinearTest, testing::ValuesIn(CpuBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace bst
