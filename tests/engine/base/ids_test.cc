#include "engine/base/ids.h"

#include <sstream>
#include <type_traits>
#include <unordered_set>

#include "absl/container/flat_hash_set.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

// The point of the type: nothing converts into or out of it, or from one kind to another.
static_assert(!std::is_convertible_v<int32_t, TokenId>);
static_assert(!std::is_convertible_v<TokenId, int32_t>);
static_assert(!std::is_convertible_v<TokenId, SlotId>);
static_assert(!std::is_constructible_v<TokenId, SlotId>);
static_assert(!std::is_same_v<TokenId, SlotId>);

TEST(StrongIdTest, HoldsItsValueAndIsZeroByDefault) {
  EXPECT_EQ(TokenId(7).value(), 7);
  EXPECT_EQ(TokenId().value(), 0);
  EXPECT_EQ(SequenceId(~uint64_t{0}).value(), ~uint64_t{0});
}

TEST(StrongIdTest, IsOrderedByValue) {
  EXPECT_EQ(TokenId(3), TokenId(3));
  EXPECT_NE(TokenId(3), TokenId(4));
  EXPECT_LT(TokenId(-1), TokenId(0));
  EXPECT_GE(SlotId(5), SlotId(5));
}

TEST(StrongIdTest, EqualIdsAreOneElementOfHashSets) {
  const absl::flat_hash_set<TokenId> absl_set = {TokenId(1), TokenId(2), TokenId(1)};
  const std::unordered_set<TokenId> std_set = {TokenId(1), TokenId(2), TokenId(1)};
  EXPECT_EQ(absl_set.size(), 2u);
  EXPECT_EQ(std_set.size(), 2u);
  EXPECT_TRUE(absl_set.contains(TokenId(2)));
  EXPECT_FALSE(std_set.contains(TokenId(3)));
}

TEST(StrongIdTest, PrintsItsValue) {
  std::ostringstream out;
  out << SlotId(12) << " " << SequenceId(34);
  EXPECT_EQ(out.str(), "12 34");
}

}  // namespace
}  // namespace bst
