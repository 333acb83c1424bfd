#include "engine/checkpoint/finite_scan.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace bst {
namespace {

// Around the block length of the scan, where it changes its stride.
constexpr int64_t kLengths[] = {0, 1, 3, 4095, 4096, 4097, 8192, 10'001};

template <typename Bits>
void ExpectFoundEverywhere(DType dtype, Bits finite, const std::vector<Bits>& bad) {
  for (const int64_t length : kLengths) {
    std::vector<Bits> data(static_cast<size_t>(length), finite);
    const TensorView view(data.data(), dtype, {length});
    ASSERT_EQ(FirstNonFinite(view), std::nullopt) << length;
    for (size_t at = 0; at < data.size(); at += 1 + data.size() / 50) {
      data[at] = bad[at % bad.size()];
      ASSERT_EQ(FirstNonFinite(view), static_cast<int64_t>(at)) << length;
      data.back() = bad[0];  // a later one is not the first
      ASSERT_EQ(FirstNonFinite(view), static_cast<int64_t>(at)) << length;
      data[at] = data.back() = finite;
    }
  }
}

TEST(FiniteScanTest, FindsTheFirstBadElementWhereverItIs) {
  using Limits = std::numeric_limits<float>;
  const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
  ExpectFoundEverywhere<uint32_t>(DType::kF32, bits(Limits::max()),
                                  {bits(Limits::infinity()), bits(-Limits::infinity()),
                                   bits(Limits::quiet_NaN()), 0x7f800001u, 0xffffffffu});
  ExpectFoundEverywhere<uint16_t>(DType::kF16, 0x7bff, {0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff});
  ExpectFoundEverywhere<uint16_t>(DType::kBF16, 0x7f7f, {0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff});
}

TEST(FiniteScanTest, AgreesWithTheValueOfEveryHalf) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    auto bits = static_cast<uint16_t>(i);
    const bool f16_finite = std::isfinite(ToFloat(Float16{bits}));
    const bool bf16_finite = std::isfinite(ToFloat(BFloat16{bits}));
    ASSERT_EQ(FirstNonFinite(TensorView(&bits, DType::kF16, {1})).has_value(), !f16_finite) << i;
    ASSERT_EQ(FirstNonFinite(TensorView(&bits, DType::kBF16, {1})).has_value(), !bf16_finite) << i;
  }
}

}  // namespace
}  // namespace bst
