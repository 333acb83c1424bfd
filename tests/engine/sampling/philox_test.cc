#include "engine/sampling/philox.h"

#include <cmath>
#include <set>

#include "gtest/gtest.h"

namespace bst {
namespace {

using Words = std::array<uint32_t, 4>;

// From the known-answer file of the authors' library, Random123.
TEST(PhiloxTest, KnownAnswers) {
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The number is made as the header says, so that another program can make it too.
TEST(PhiloxTest, TokenUniformFollowsItsDefinition) {
  // Words 0 and 1 of the first known answer.
  EXPECT_EQ(TokenUniform(0, 0, 0), std::ldexp(static_cast<double>(0xe169c58d6627e8d5u >> 11), -53));
  const uint64_t seed = 0x0123456789abcdef, token = 0xfedcba9876543210;
  const Words words = Philox4x32({0x76543210, 0xfedcba98, 42, 0}, {0x89abcdef, 0x01234567});
  const uint64_t bits = static_cast<uint64_t>(words[1]) << 32 | words[0];
  EXPECT_EQ(TokenUniform(seed, 42, token), std::ldexp(static_cast<double>(bits >> 11), -53));
}

TEST(PhiloxTest, NumbersAreUniformAndDiffer) {
  std::set<double> seen;
  int bins[16] = {};
  constexpr int kNumbers = 40'000;
  for (int i = 0; i < kNumbers; ++i) {
    const double u = TokenUniform(static_cast<uint64_t>(i % 10), static_cast<uint32_t>(i / 10 % 4),
                                  static_cast<uint64_t>(i / 40));
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    seen.insert(u);
    ++bins[static_cast<int>(u * 16)];
  }
  EXPECT_EQ(seen.size(), static_cast<size_t>(kNumbers));  // 2^-53 apart: a repetition is a bug
  double chi_square = 0;
  for (const int count : bins) {
    const double difference = count - kNumbers / 16.0;
    chi_square += difference * difference / (kNumbers / 16.0);
  }
  EXPECT_LT(chi_square, 44.3);  // 15 degrees of freedom, probability 1e-4
}

}  // namespace
}  // namespace bst
