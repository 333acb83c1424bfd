#include "engine/tensor/dtype.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace bst {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the bits of a small binary float mean, by the definition of the format.
double Value(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const bool negative = ((bits >> (exponent_bits + mantissa_bits)) & 1) != 0;
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double fraction = std::ldexp(bits & ((1u << mantissa_bits) - 1), -mantissa_bits);
  double magnitude = 0;
  if (exponent == (1 << exponent_bits) - 1) {
    magnitude = fraction == 0 ? std::numeric_limits<double>::infinity()
                              : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, 1 - bias);
  } else {
    magnitude = std::ldexp(1 + fraction, exponent - bias);
  }
  return negative ? -magnitude : magnitude;
}

TEST(DTypeTest, SizesAndNames) {
  EXPECT_EQ(SizeOf(DType::kF32), 4u);
  EXPECT_EQ(SizeOf(DType::kF16), 2u);
  EXPECT_EQ(SizeOf(DType::kBF16), 2u);
  EXPECT_EQ(SizeOf(DType::kU8), 1u);
  EXPECT_EQ(Name(DType::kF32), "F32");
  EXPECT_EQ(Name(DType::kF16), "F16");
  EXPECT_EQ(Name(DType::kBF16), "BF16");
  EXPECT_EQ(Name(DType::kU8), "U8");
}

TEST(DTypeTest, EveryFloat16HasTheValueOfItsBitsAndComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 x = {static_cast<uint16_t>(bits)};
    const double expected = Value(bits, 5, 10);
    const float actual = ToFloat(x);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << bits;
      ASSERT_TRUE(std::isnan(ToFloat(ToFloat16(actual)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(actual), expected) << bits;
    ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << bits;
    ASSERT_EQ(ToFloat16(actual).bits, bits);
  }
}

TEST(DTypeTest, EveryBFloat16HasTheValueOfItsBitsAndComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const BFloat16 x = {static_cast<uint16_t>(bits)};
    const double expected = Value(bits, 8, 7);
    const float actual = ToFloat(x);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << bits;
      ASSERT_TRUE(std::isnan(ToFloat(ToBFloat16(actual)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(actual), expected) << bits;
    ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << bits;
    ASSERT_EQ(ToBFloat16(actual).bits, bits);
  }
}

// Rounding by search: of the two neighbours of x among all values of the format, the nearer one, at
// a tie the one with the even last bit. Magnitudes ascend with the bits.
uint32_t RoundBySearch(double x, int exponent_bits, int mantissa_bits) {
  const uint32_t sign = std::signbit(x) ? 1u << (exponent_bits + mantissa_bits) : 0;
  const uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  uint32_t below = 0, above = infinity;
  const double magnitude = std::abs(x);
  while (above - below > 1) {
    const uint32_t middle = (below + above) / 2;
    (Value(middle, exponent_bits, mantissa_bits) <= magnitude ? below : above) = middle;
  }
  // Infinity stands for the next value that the format would have.
  const double low = Value(below, exponent_bits, mantissa_bits);
  const double high = above == infinity ? std::ldexp(1.0, 1 << (exponent_bits - 1))
                                        : Value(above, exponent_bits, mantissa_bits);
  const double to_low = magnitude - low, to_high = high - magnitude;
  if (to_low == to_high) return sign | (below % 2 == 0 ? below : above);
  return sign | (to_low < to_high ? below : above);
}

TEST(DTypeTest, RoundingIsToNearestAndTiesGoToEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    uint32_t bits = static_cast<uint32_t>(random());
    if (i % 4 == 0) bits &= 0xffff8000u;                        // ties of BF16
    if (i % 4 == 1) bits &= 0xfffff000u;                        // ties of F16
    if (i % 4 >= 1) bits = (bits & 0x87ffffffu) | 0x30000000u;  // about the range of F16
    if (i % 8 == 7) bits ^= 0x08000000u;
    const float x = std::bit_cast<float>(bits);
    if (!std::isfinite(x)) continue;
    ASSERT_EQ(ToBFloat16(x).bits, RoundBySearch(x, 8, 7)) << x;
    ASSERT_EQ(ToFloat16(x).bits, RoundBySearch(x, 5, 10)) << x;
  }
}

TEST(DTypeTest, RoundingAtTheEndsOfTheRanges) {
  EXPECT_EQ(ToFloat16(65519.996f).bits, 0x7bff);  // largest that rounds down
  EXPECT_EQ(ToFloat16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(ToFloat16(-1e30f).bits, 0xfc00);
  EXPECT_EQ(ToFloat16(0x1p-24f).bits, 0x0001);
  EXPECT_EQ(ToFloat16(0x1p-25f).bits, 0x0000);  // tie with zero, which is even
  EXPECT_EQ(ToFloat16(0x1.000002p-25f).bits, 0x0001);
  EXPECT_EQ(ToFloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(ToFloat16(kInfinity).bits, 0x7c00);
  EXPECT_EQ(ToBFloat16(kInfinity).bits, 0x7f80);
  EXPECT_EQ(ToBFloat16(-kInfinity).bits, 0xff80);
  EXPECT_EQ(ToBFloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  // A NaN whose upper mantissa bits are all 0 must not become an infinity.
  EXPECT_TRUE(std::isnan(ToFloat(ToBFloat16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(ToFloat(ToFloat16(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace bst
