#include "engine/base/annotate.h"

#include "gtest/gtest.h"

namespace bst {
namespace {

TEST(AnnotateTest, TheMessageSaysWhereAndTheCodeStays) {
  const absl::Status status = Annotate(absl::ResourceExhaustedError("no memory"), "layer 3");
  EXPECT_EQ(status, absl::ResourceExhaustedError("layer 3: no memory"));
}

TEST(AnnotateTest, OkStaysOk) {
  EXPECT_EQ(Annotate(absl::OkStatus(), "layer 3"), absl::OkStatus());
}

}  // namespace
}  // namespace bst
