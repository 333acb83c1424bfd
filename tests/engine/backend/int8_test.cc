// The quantisation that all backends share, and that their INT8 linear layers are the same bits.
#include "engine/backend/int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/cpu/cpu_isa.h"
#include "engine/backend/cpu/kernels.h"
#include "gtest/gtest.h"
#include "tests/engine/backend/operator_fixture.h"

namespace bst {
namespace {

using Quantize = float (*)(absl::Span<const float>, int8_t*);
// Weights; keys and values, whose scale is a BF16.
constexpr Quantize kSymmetric[] = {QuantizeSymmetric, QuantizeKeyOrValue};

TEST(QuantizeSymmetricTest, HalfAStepIsTheLargestError) {
  for (const double deviation : {1e-20, 1.0, 1e20}) {
    const std::vector<float> x = RandomVector(301, 1, deviation);
    for (const Quantize quantize : kSymmetric) {
      std::vector<int8_t> q(x.size());
      const float scale = quantize(x, q.data());
      int largest = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_LE(std::fabs(double{scale} * q[i] - x[i]), 0.501 * scale);
        largest = std::max(largest, std::abs(int{q[i]}));
      }
      EXPECT_GE(largest, quantize == QuantizeSymmetric ? 127 : 126);
    }
  }
}

TEST(QuantizeSymmetricTest, ZerosAndNonFiniteNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const Quantize quantize : kSymmetric) {
    std::vector<int8_t> q(2, 99);
    EXPECT_EQ(quantize({0.0f, -0.0f}, q.data()), 0.0f);
    EXPECT_EQ(q, (std::vector<int8_t>{0, 0}));
    EXPECT_TRUE(std::isnan(quantize({1.0f, std::nanf("")}, q.data())));
    EXPECT_TRUE(std::isnan(quantize({1.0f, std::bit_cast<float>(0x7fffffffu)}, q.data())));
    EXPECT_TRUE(std::isnan(quantize({kInfinity, 1.0f}, q.data())));
  }
}

TEST(QuantizeSymmetricTest, WeightsHaveAScaleOfFloat32) {
  std::vector<int8_t> q(2);
  EXPECT_EQ(QuantizeSymmetric({1.0f, -2.0f}, q.data()), 2.0f / 127.0f);
  EXPECT_EQ(q, (std::vector<int8_t>{64, -127}));
}

TEST(QuantizeSymmetricTest, AKeysScaleIsTheNextBFloat16) {
  std::vector<int8_t> q(2);
  EXPECT_EQ(QuantizeKeyOrValue({1.0f, -127.0f}, q.data()), 1.0f);
  EXPECT_EQ(q, (std::vector<int8_t>{1, -127}));
  // A float32 above 1: up, not to the nearest.
  EXPECT_EQ(QuantizeKeyOrValue({127.001f, -64.0f}, q.data()), 1.0f + 0x1p-7f);
  EXPECT_EQ(q, (std::vector<int8_t>{126, -64}));
  EXPECT_EQ(RoundUpToBFloat16(0x1.01p0f), 0x1.02p0f);
  EXPECT_EQ(RoundUpToBFloat16(0x1.02p0f), 0x1.02p0f);
}

// In a ring a head's key lies sixteen numbers apart.
TEST(QuantizeSymmetricTest, VectorKernelsGiveTheSameBits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<const CpuKernels*> levels;
  if (Supports(DetectCpuIsa(), CpuIsa::kAvx2)) levels.push_back(&Avx2Kernels());
  if (Supports(DetectCpuIsa(), CpuIsa::kAvx512)) levels.push_back(&Avx512Kernels());
  if (levels.empty()) GTEST_SKIP() << "this processor has no AVX2";
  for (const CpuKernels* kernels : levels) {
    for (const int n : {1, 8, 15, 16, 17, 64, 100}) {
      const auto size = static_cast<size_t>(n);
      std::vector<std::vector<float>> rows(6, RandomVector(size, 7));
      for (size_t i = 0; i < size; ++i) {
        rows[1][i] = 0;
        rows[2][i] *= 1e-36f;                                  // no reciprocal
        rows[3][i] = static_cast<float>(i % 254) / 2 - 63.5f;  // ties
        if (i == 0) rows[3][i] = 127;
      }
      rows[4][size / 2] = std::nanf("");
      rows[5][size / 2] = -kInfinity;
      for (const std::vector<float>& x : rows) {
        std::vector<int8_t> expected(size);
        const float scale = QuantizeKeyOrValue(x, expected.data());
        for (const int stride : {1, 16}) {
          const auto step = static_cast<size_t>(stride);
          std::vector<int8_t> q(size * step, 99);
          std::vector<float> floats(size * step, 99);
          for (const float got :
               {kernels->quantize_key_or_value(x.data(), n, q.data(), stride),
                kernels->quantize_key_or_value_as_floats(x.data(), n, floats.data(), stride)})
            ASSERT_TRUE(got == scale || (std::isnan(got) && std::isnan(scale))) << n;
          if (std::isnan(scale)) continue;  // whatever the numbers are
          for (size_t i = 0; i < q.size(); ++i) {
            const int number = i % step == 0 ? expected[i / step] : 99;
            ASSERT_EQ(int{q[i]}, number) << n << ", stride " << stride << ", " << i;
            ASSERT_EQ(floats[i], static_cast<float>(number)) << n << ", stride " << stride;
          }
        }
      }
    }
  }
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
