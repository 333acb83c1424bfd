#include "server/held_text.h"

#include <gtest/gtest.h>

#include <optional>

namespace bst {
namespace {

constexpr int64_t kLimit = 1'000'000;

TEST(HeldTextTest, SharesSumToTheLimit) {
  HeldText all(kLimit);
  HeldText::Share first(all), second(all);
  EXPECT_TRUE(first.Hold(600'000).ok());
  EXPECT_TRUE(second.Hold(400'000).ok());
  EXPECT_EQ(second.Hold(400'001).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(all.bytes(), kLimit);
  EXPECT_TRUE(first.Hold(599'999).ok());
  EXPECT_TRUE(second.Hold(400'001).ok());
  EXPECT_EQ(all.bytes(), kLimit);
}

TEST(HeldTextTest, OneAloneMayHoldAnything) {
  HeldText all(kLimit);
  HeldText::Share first(all), second(all);
  EXPECT_TRUE(first.Hold(5 * kLimit).ok());
  EXPECT_EQ(second.Hold(HeldText::kWordBytes + 1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(first.Hold(4 * kLimit).ok());  // Less is always right.
}

TEST(HeldTextTest, AWordIsFree) {
  HeldText all(0);
  HeldText::Share first(all), second(all);
  EXPECT_TRUE(first.Hold(HeldText::kWordBytes).ok());
  EXPECT_TRUE(second.Hold(HeldText::kWordBytes).ok());
  EXPECT_EQ(all.bytes(), 0);
  EXPECT_TRUE(first.Hold(HeldText::kWordBytes + 1).ok());
  EXPECT_FALSE(second.Hold(HeldText::kWordBytes + 1).ok());
}

TEST(HeldTextTest, AShareIsGivenBack) {
  HeldText all(kLimit);
  HeldText::Share stays(all);
  std::optional<HeldText::Share> goes(all);
  EXPECT_TRUE(goes->Hold(kLimit).ok());
  EXPECT_FALSE(stays.Hold(kLimit).ok());
  goes->Release();
  EXPECT_EQ(all.bytes(), 0);
  EXPECT_TRUE(goes->Hold(10'000).ok());
  goes.reset();
  EXPECT_EQ(all.bytes(), 0);
  EXPECT_TRUE(stays.Hold(kLimit).ok());
}

}  // namespace
}  // namespace bst
