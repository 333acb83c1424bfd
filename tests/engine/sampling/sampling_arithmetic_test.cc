#include "engine/backend/sampling_arithmetic.h"

#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace bst {
namespace {

TEST(MassTest, AllOfThemFitAndReachTheirTarget) {
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  constexpr float kMost = 1 - 0x1p-24f;
  for (const size_t vocab_size : {size_t{1}, size_t{2}, size_t{3}, size_t{1} << 15, size_t{1} << 18,
                                  (size_t{1} << 18) + 1, (size_t{1} << 31) - 1}) {
    const uint64_t mass = MassOf(1.0f, MassScale(vocab_size));
    EXPECT_GT(mass, 0u) << vocab_size;
    ASSERT_LE(mass, (uint64_t{1} << 62) / vocab_size) << vocab_size;
    const uint64_t total = mass * vocab_size;
    EXPECT_GE(MassTarget(kLeast, total), 1u) << vocab_size;
    EXPECT_LE(MassTarget(kMost, total), total) << vocab_size;
    EXPECT_EQ(MassTarget(0.5f, 2 * mass), mass);
  }
  EXPECT_EQ(MassOf(0.0f, MassScale(100)), 0u);
  EXPECT_EQ(MassTarget(0.5f, 3), 2u);  // two of three are the least that is half or more
}

TEST(LogitTest, BiasAndPenaltiesStayFiniteUpwards) {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(AddBias(kMax, 1e38f), kMax);
  EXPECT_EQ(AddBias(-kMax, -1e38f), -kInfinity);
  EXPECT_EQ(AddBias(1, -kInfinity), -kInfinity);
  EXPECT_EQ(Penalize(kMax, 0, 0.5f, 0, 0), kMax);
  EXPECT_EQ(Penalize(2, 3, 2, 0.5f, 0.25f), 2.0f / 2 - 0.5f - 0.75f);
  EXPECT_EQ(Penalize(-2, 0, 2, 0.5f, 0.25f), -4);
}

}  // namespace
}  // namespace bst
