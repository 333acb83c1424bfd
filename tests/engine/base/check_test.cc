#include "engine/base/check.h"

#include "gtest/gtest.h"

namespace bst {
namespace {

TEST(CheckTest, TrueConditionEvaluatesNoMessage) {
  int evaluated = 0;
  BST_CHECK(1 + 1 == 2, ++evaluated);
  EXPECT_EQ(evaluated, 0);
}

TEST(CheckDeathTest, FalseConditionAbortsWithPlaceConditionAndValues) {
  const int a = 3;
  EXPECT_DEATH(BST_CHECK(a == 4, "a is ", a), "check_test.cc:[0-9]+: check failed: a == 4 a is 3");
}

TEST(CheckDeathTest, MessageIsOptional) { EXPECT_DEATH(BST_CHECK(false), "check failed: false"); }

TEST(CheckDeathTest, DebugCheckIsACheckInDebugBuildsOnly) {
#ifdef NDEBUG
  int evaluated = 0;
  BST_DCHECK(++evaluated > 100, "unused");
  EXPECT_EQ(evaluated, 0);
#else
  EXPECT_DEATH(BST_DCHECK(1 > 100, "in debug"), "in debug");
#endif
}

}  // namespace
}  // namespace bst
