#include <gtest/gtest.h>

#include "absl/time/time.h"
#include "server/health_service.h"

namespace bst {
namespace {

class ProgressJudgeTest : public testing::Test {
 protected:
  bool ServingAfter(absl::Duration elapsed) {
    now_ += elapsed;
    return judge_.IsServing(load_, now_);
  }

  absl::Time now_ = absl::UnixEpoch();
  EngineLoad load_;
  ProgressJudge judge_{absl::Seconds(10)};
};

TEST_F(ProgressJudgeTest, AnIdleEngineServesHoweverLong) {
  EXPECT_TRUE(ServingAfter(absl::ZeroDuration()));
  EXPECT_TRUE(ServingAfter(absl::Hours(10)));
}

TEST_F(ProgressJudgeTest, NotWhileUnhealthyOrDraining) {
  load_.healthy = false;
  EXPECT_FALSE(ServingAfter(absl::ZeroDuration()));
  load_.healthy = true;
  EXPECT_TRUE(ServingAfter(absl::ZeroDuration()));
  load_.draining = true;
  EXPECT_FALSE(ServingAfter(absl::ZeroDuration()));
}

TEST_F(ProgressJudgeTest, WaitingForTheRestOfAPromptIsNoStall) {
  load_.in_flight = 1;
  load_.awaiting_input = true;
  EXPECT_TRUE(ServingAfter(absl::Hours(1)));
  load_.awaiting_input = false;
  EXPECT_TRUE(ServingAfter(absl::Seconds(10)));
  EXPECT_FALSE(ServingAfter(absl::Milliseconds(1)));
}

TEST_F(ProgressJudgeTest, StepsThatStopWhileSomethingIsInFlight) {
  EXPECT_TRUE(ServingAfter(absl::Hours(1)));
  load_.in_flight = 1;
  EXPECT_TRUE(ServingAfter(absl::Seconds(10)));
  EXPECT_FALSE(ServingAfter(absl::Milliseconds(1)));
  ++load_.steps;
  EXPECT_TRUE(ServingAfter(absl::Seconds(10)));
  EXPECT_TRUE(ServingAfter(absl::Seconds(10)));
  EXPECT_FALSE(ServingAfter(absl::Milliseconds(1)));
  load_.in_flight = 0;
  EXPECT_TRUE(ServingAfter(absl::Hours(1)));
}

}  // namespace
}  // namespace bst
