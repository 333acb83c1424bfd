#include "server/active_requests.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace bst {
namespace {

class FakeCall : public Abortable {
 public:
  void Abort() override { cause_ = CancelCause::kAbort; }
  CancelCause cancel_cause() const override { return cause_; }

 private:
  CancelCause cause_ = CancelCause::kNone;
};

TEST(ActiveRequests, AnIdIsTakenUntilItIsRemoved) {
  ActiveRequests active;
  const auto first = std::make_shared<FakeCall>(), second = std::make_shared<FakeCall>();
  EXPECT_TRUE(active.Add("a", first));
  EXPECT_FALSE(active.Add("a", second));
  active.Remove("a");
  EXPECT_TRUE(active.Add("a", second));
  active.Remove("unknown");
}

TEST(ActiveRequests, AbortReachesTheCallAndTellsTheCause) {
  ActiveRequests active;
  const auto call = std::make_shared<FakeCall>();
  active.Add("a", call);
  EXPECT_FALSE(active.Abort("b"));
  EXPECT_EQ(active.CauseOf("a"), CancelCause::kNone);
  EXPECT_TRUE(active.Abort("a"));
  EXPECT_EQ(active.CauseOf("a"), CancelCause::kAbort);
  EXPECT_EQ(active.CauseOf("b"), CancelCause::kNone);
}

TEST(ActiveRequests, ACallThatIsGoneCannotBeAborted) {
  ActiveRequests active;
  active.Add("a", std::make_shared<FakeCall>());
  EXPECT_FALSE(active.Abort("a"));
  EXPECT_EQ(active.CauseOf("a"), CancelCause::kNone);
}

class FakeAwaiting : public AwaitsRequest {
 public:
  void GiveUp(const absl::Status& why) override { gave_up = why; }
  absl::Status gave_up;
};

TEST(ActiveRequests, GivesUpThoseWhoseRequestHasNotCome) {
  ActiveRequests active;
  const auto waits = std::make_shared<FakeAwaiting>(), came = std::make_shared<FakeAwaiting>();
  active.AddAwaiting(waits);
  active.AddAwaiting(came);
  active.AddAwaiting(std::make_shared<FakeAwaiting>());  // is gone
  active.RemoveAwaiting(*came);
  active.GiveUpAwaiting(absl::UnavailableError("draining"));
  EXPECT_EQ(waits->gave_up.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(came->gave_up.ok());
}

TEST(ActiveRequests, CountsTheUnread) {
  ActiveRequests active;
  active.EnterUnread();
  active.EnterUnread();
  EXPECT_EQ(active.unread(), 2);
  active.LeaveUnread();
  EXPECT_EQ(active.unread(), 1);
}

TEST(ActiveRequests, ARequestIsUnfinishedUntilItsAnswerIsRead) {
  ActiveRequests active;
  const auto call = std::make_shared<FakeCall>();
  active.Add("a", call);
  EXPECT_EQ(active.unfinished(), 1);
  active.EnterUnread();
  active.Remove("a");
  EXPECT_EQ(active.unfinished(), 1);
  active.LeaveUnread();
  EXPECT_EQ(active.unfinished(), 0);
}

TEST(ActiveRequests, WaitsUntilNoRpcIsOpen) {
  ActiveRequests active;
  EXPECT_TRUE(active.WaitUntilNoneOpen(absl::ZeroDuration()));
  active.OpenRpc();
  active.OpenRpc();
  EXPECT_FALSE(active.WaitUntilNoneOpen(absl::ZeroDuration()));
  active.CloseRpc();
  EXPECT_FALSE(active.WaitUntilNoneOpen(absl::ZeroDuration()));
  std::thread closer([&active] { active.CloseRpc(); });
  EXPECT_TRUE(active.WaitUntilNoneOpen(absl::InfiniteDuration()));
  closer.join();
}

}  // namespace
}  // namespace bst
