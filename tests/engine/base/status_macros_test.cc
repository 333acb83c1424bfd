#include "engine/base/status_macros.h"

#include <memory>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;
using testing::Not;

absl::Status Twice(const absl::Status& first, const absl::Status& second, int& reached) {
  BST_RETURN_IF_ERROR(first);
  ++reached;
  BST_RETURN_IF_ERROR(second);
  ++reached;
  return absl::OkStatus();
}

TEST(StatusMacrosTest, ReturnIfErrorReturnsTheFirstErrorAtOnce) {
  int reached = 0;
  EXPECT_THAT(Twice(absl::OkStatus(), absl::OkStatus(), reached), IsOk());
  EXPECT_EQ(reached, 2);
  reached = 0;
  EXPECT_THAT(Twice(absl::OkStatus(), absl::InternalError("second"), reached),
              StatusIs(absl::StatusCode::kInternal, "second"));
  EXPECT_EQ(reached, 1);
  reached = 0;
  EXPECT_THAT(Twice(absl::NotFoundError("first"), absl::InternalError("second"), reached),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("first")));
  EXPECT_EQ(reached, 0);
}

absl::StatusOr<int> Sum(absl::StatusOr<std::unique_ptr<int>> a, absl::StatusOr<int> b) {
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<int> x, std::move(a));  // a type that only moves
  int y = 0;
  BST_ASSIGN_OR_RETURN(y, b);
  return *x + y;
}

TEST(StatusMacrosTest, AssignOrReturnUnwrapsOrReturnsTheStatus) {
  EXPECT_THAT(Sum(std::make_unique<int>(3), 4), IsOkAndHolds(7));
  EXPECT_THAT(Sum(absl::DataLossError("a"), 4), StatusIs(absl::StatusCode::kDataLoss, "a"));
  EXPECT_THAT(Sum(std::make_unique<int>(3), absl::AbortedError("b")),
              StatusIs(absl::StatusCode::kAborted));
}

// The matchers that every test leans on can fail.
TEST(StatusMatchersTest, TellStatusesApart) {
  EXPECT_THAT(absl::InternalError("x"), Not(IsOk()));
  EXPECT_THAT(absl::InternalError("x"), Not(StatusIs(absl::StatusCode::kNotFound)));
  EXPECT_THAT(absl::InternalError("x"), Not(StatusIs(absl::StatusCode::kInternal, HasSubstr("y"))));
  EXPECT_THAT(absl::StatusOr<int>(3), Not(IsOkAndHolds(4)));
  EXPECT_THAT(absl::StatusOr<int>(absl::InternalError("x")), Not(IsOkAndHolds(3)));
}

}  // namespace
}  // namespace bst
