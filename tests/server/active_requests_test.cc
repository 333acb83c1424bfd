#include "server/active_requests.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"

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

class FakeUnread : public UnreadCall {
 public:
  void Cut() override { was_cut = true; }
  bool was_cut = false;
};

TEST(ActiveRequests, CountsTheUnread) {
  ActiveRequests active;
  const auto first = std::make_shared<FakeUnread>(), second = std::make_shared<FakeUnread>();
  active.SetUnreadBytes(*first, 100, Readable::kYes);  // not yet
  EXPECT_EQ(active.unread_bytes(), 0);
  active.EnterUnread(first);
  active.EnterUnread(second);
  active.SetUnreadBytes(*first, 100, Readable::kYes);
  active.SetUnreadBytes(*second, 20, Readable::kYes);
  active.SetUnreadBytes(*first, 50, Readable::kYes);
  EXPECT_EQ(active.unread(), 2);
  EXPECT_EQ(active.unread_bytes(), 70);
  active.LeaveUnread(*first);
  active.LeaveUnread(*first);
  active.SetUnreadBytes(*first, 100, Readable::kYes);  // no longer
  EXPECT_EQ(active.unread(), 1);
  EXPECT_EQ(active.unread_bytes(), 20);
}

TEST(ActiveRequests, CutsTheLargestOfTheOverdueAsFarAsNeeded) {
  ActiveRequests active;
  std::vector<std::shared_ptr<FakeUnread>> calls;
  for (const int64_t bytes : {10, 50, 40, 30}) {
    calls.push_back(std::make_shared<FakeUnread>());
    active.EnterUnread(calls.back());
    active.SetUnreadBytes(*calls.back(), bytes, Readable::kYes);
  }
  active.EnterUnread(std::make_shared<FakeUnread>());  // is gone
  const auto empty = std::make_shared<FakeUnread>(), unready = std::make_shared<FakeUnread>();
  active.EnterUnread(empty);
  active.SetUnreadBytes(*empty, 0, Readable::kYes);
  active.EnterUnread(unready);
  active.SetUnreadBytes(*unready, 1000, Readable::kNotYet);
  const auto cut = [&calls] {
    std::vector<bool> result;
    for (const auto& call : calls) result.push_back(std::exchange(call->was_cut, false));
    return result;
  };
  active.CutUnread(absl::Hours(1), 0);
  EXPECT_EQ(cut(), std::vector<bool>({false, false, false, false}));
  absl::SleepFor(absl::Milliseconds(2));
  active.CutUnread(absl::Milliseconds(1), 1130);
  EXPECT_EQ(cut(), std::vector<bool>({false, false, false, false}));
  active.CutUnread(absl::Milliseconds(1), 1060);
  EXPECT_EQ(cut(), std::vector<bool>({false, true, true, false}));
  active.CutUnread(absl::Milliseconds(1), 0);  // not reached: what is not overdue is more
  EXPECT_EQ(cut(), std::vector<bool>({true, true, true, true}));
  EXPECT_FALSE(empty->was_cut);
  EXPECT_FALSE(unready->was_cut);
}

TEST(ActiveRequests, ARequestIsUnfinishedUntilItsAnswerIsRead) {
  ActiveRequests active;
  const auto call = std::make_shared<FakeCall>();
  active.Add("a", call);
  EXPECT_EQ(active.unfinished(), 1);
  const auto unread = std::make_shared<FakeUnread>();
  active.EnterUnread(unread);
  active.Remove("a");
  EXPECT_EQ(active.unfinished(), 1);
  active.LeaveUnread(*unread);
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
