// Inbox: admission, delivery and the books it keeps.
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "engine/inbox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::unique_ptr<ActiveRequest> Request(std::string request_id, int64_t prompt_tokens = 1) {
  auto request = std::make_unique<ActiveRequest>();
  request->request_id = std::move(request_id);
  request->prompt_tokens = prompt_tokens;
  return request;
}

std::vector<std::string> Names(const Inbox::Delivery& delivery) {
  std::vector<std::string> names;
  for (const auto& request : delivery.requests) names.push_back(request->request_id);
  return names;
}

TEST(InboxTest, DeliversOnceInOrderOfArrival) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
  EXPECT_EQ(*inbox.Submit(Request("a")), SequenceId(1));
  EXPECT_EQ(*inbox.Submit(Request("b")), SequenceId(2));
  Inbox::Delivery delivery;
  inbox.Take(absl::InfiniteDuration(), delivery);
  EXPECT_THAT(Names(delivery), ElementsAre("a", "b"));
  EXPECT_EQ(delivery.requests[1]->id, SequenceId(2));
  EXPECT_FALSE(delivery.closed);
  inbox.Take(absl::ZeroDuration(), delivery);
  EXPECT_THAT(delivery.requests, IsEmpty());
}

TEST(InboxTest, LimitsRequestsInFlight) {
  Inbox inbox({.max_in_flight = 2, .max_waiting_tokens = 100});
  ASSERT_TRUE(inbox.Submit(Request("a")).ok());
  ASSERT_TRUE(inbox.Submit(Request("b")).ok());
  Inbox::Delivery delivery;
  inbox.Take(absl::ZeroDuration(), delivery);
  inbox.Started(*delivery.requests[0]);
  const absl::Status full = inbox.Submit(Request("c")).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("2 sequences"));
  EXPECT_EQ(inbox.num_in_flight(), 2);
  inbox.Finished(*delivery.requests[0]);
  EXPECT_EQ(inbox.num_in_flight(), 1);
  EXPECT_TRUE(inbox.Submit(Request("c")).ok());
}

// Each holds a slot: those that are left would wait, beside as many more as the queue may hold.
TEST(InboxTest, ARequestCountsAsItsSequences) {
  Inbox inbox({.max_in_flight = 8, .max_waiting_tokens = 100});
  const auto request = [](std::string id, size_t sequences) {
    std::unique_ptr<ActiveRequest> result = Request(std::move(id));
    result->continuations.resize(sequences);
    return result;
  };
  ASSERT_TRUE(inbox.Submit(request("seven", 7)).ok());
  ASSERT_TRUE(inbox.Submit(request("two", 2)).ok());  // beyond the limit, where one would fit
  EXPECT_EQ(inbox.num_in_flight(), 9);
  EXPECT_EQ(inbox.Submit(Request("more")).status().code(), absl::StatusCode::kResourceExhausted);
  Inbox::Delivery delivery;
  inbox.Take(absl::ZeroDuration(), delivery);
  inbox.Started(*delivery.requests[0]);
  inbox.SequenceEnded(*delivery.requests[0]);
  EXPECT_FALSE(inbox.Submit(Request("more")).ok());
  inbox.SequenceEnded(*delivery.requests[0]);
  EXPECT_TRUE(inbox.Submit(Request("more")).ok());
  inbox.Finished(*delivery.requests[0]);
  EXPECT_EQ(inbox.num_in_flight(), 3);
}

TEST(InboxTest, LimitsWaitingTokensButAnEmptyQueueTakesAnyPrompt) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
  ASSERT_TRUE(inbox.Submit(Request("a", 500)).ok());
  EXPECT_EQ(inbox.waiting_tokens(), 500);
  const absl::Status full = inbox.Submit(Request("b", 1)).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("500 prompt tokens"));
  Inbox::Delivery delivery;
  inbox.Take(absl::ZeroDuration(), delivery);
  delivery.requests[0]->started = absl::UnixEpoch();
  inbox.Started(*delivery.requests[0]);
  EXPECT_EQ(inbox.waiting_tokens(), 0);
  EXPECT_TRUE(inbox.Submit(Request("b", 99)).ok());
  EXPECT_TRUE(inbox.Submit(Request("c", 1)).ok());
  EXPECT_FALSE(inbox.Submit(Request("d", 1)).ok());
  EXPECT_EQ(inbox.num_waiting(), 2);
  inbox.Finished(*delivery.requests[0]);  // It ran: the queue's books do not change.
  EXPECT_EQ(inbox.num_waiting(), 2);
  EXPECT_EQ(inbox.waiting_tokens(), 100);
}

TEST(InboxTest, ARequestThatEndsInTheQueueLeavesTheBooks) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
  ASSERT_TRUE(inbox.Submit(Request("a", 7)).ok());
  Inbox::Delivery delivery;
  inbox.Take(absl::ZeroDuration(), delivery);
  inbox.Finished(*delivery.requests[0]);
  EXPECT_EQ(inbox.num_waiting(), 0);
  EXPECT_EQ(inbox.waiting_tokens(), 0);
}

TEST(InboxTest, ARequestIdIsUniqueWhileInFlight) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
  ASSERT_TRUE(inbox.Submit(Request("a")).ok());
  const absl::Status again = inbox.Submit(Request("a")).status();
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(again.message()), HasSubstr("\"a\""));
  Inbox::Delivery delivery;
  inbox.Take(absl::ZeroDuration(), delivery);
  inbox.Finished(*delivery.requests[0]);
  EXPECT_TRUE(inbox.Submit(Request("a")).ok());
  // Whoever gives no name wants no uniqueness.
  EXPECT_TRUE(inbox.Submit(Request("")).ok());
  EXPECT_TRUE(inbox.Submit(Request("")).ok());
}

TEST(InboxTest, ACancellationIsDeliveredOnceAndOnlyForRequestsInFlight) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
  const SequenceId id = *inbox.Submit(Request("a"));
  inbox.Cancel(id);
  inbox.Cancel(id);
  inbox.Cancel(SequenceId(99));
  Inbox::Delivery delivery;
  inbox.Take(absl::ZeroDuration(), delivery);
  EXPECT_THAT(delivery.cancelled, ElementsAre(id));
  const std::unique_ptr<ActiveRequest> request = std::move(delivery.requests[0]);
  inbox.Cancel(id);
  inbox.Take(absl::ZeroDuration(), delivery);
  EXPECT_THAT(delivery.cancelled, IsEmpty());
  inbox.Finished(*request);
  inbox.Cancel(id);
  inbox.Take(absl::ZeroDuration(), delivery);
  EXPECT_THAT(delivery.cancelled, IsEmpty());
}

TEST(InboxTest, AppendsToOpenPromptsOfRequestsInFlight) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100, .max_prompt_tokens = 10});
  const auto append = [&inbox](SequenceId id, size_t tokens, PromptEnd end) {
    return inbox.AppendPrompt({id, std::vector<TokenId>(tokens, TokenId(1)), end}).code();
  };
  const SequenceId whole = *inbox.Submit(Request("whole"));
  auto request = Request("open", 4);
  request->prompt_open = true;
  const SequenceId open = *inbox.Submit(std::move(request));
  EXPECT_EQ(append(SequenceId(99), 1, PromptEnd::kComplete), absl::StatusCode::kNotFound);
  EXPECT_EQ(append(whole, 1, PromptEnd::kComplete), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(append(open, 5, PromptEnd::kMoreFollows), absl::StatusCode::kOk);
  EXPECT_EQ(append(open, 2, PromptEnd::kComplete), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(append(open, 1, PromptEnd::kComplete), absl::StatusCode::kOk);
  EXPECT_EQ(append(open, 0, PromptEnd::kComplete), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(inbox.waiting_tokens(), 11);

  Inbox::Delivery delivery;
  inbox.Take(absl::InfiniteDuration(), delivery);
  ASSERT_EQ(delivery.prompt_parts.size(), 2u);
  EXPECT_EQ(delivery.prompt_parts[0].tokens.size(), 5u);
  EXPECT_EQ(delivery.prompt_parts[0].end, PromptEnd::kMoreFollows);
  EXPECT_EQ(delivery.prompt_parts[1].tokens.size(), 1u);
  EXPECT_EQ(delivery.prompt_parts[1].end, PromptEnd::kComplete);
  const std::unique_ptr<ActiveRequest> taken = std::move(delivery.requests[1]);
  inbox.Take(absl::ZeroDuration(), delivery);
  EXPECT_THAT(delivery.prompt_parts, IsEmpty());
  inbox.Finished(*taken);
  EXPECT_EQ(append(open, 1, PromptEnd::kComplete), absl::StatusCode::kNotFound);
}

// Else a thousand uploads that wait would each hold as much as their clients care to send.
TEST(InboxTest, WhatIsAppendedToAWaitingPromptCountsInTheQueue) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100, .max_prompt_tokens = 1000});
  const auto open = [&inbox](std::string request_id) {
    auto request = Request(std::move(request_id), 10);
    request->prompt_open = true;
    return *inbox.Submit(std::move(request));
  };
  const auto append = [&inbox](SequenceId id, size_t tokens, PromptEnd end) {
    return inbox.AppendPrompt({id, std::vector<TokenId>(tokens, TokenId(1)), end});
  };
  const SequenceId first = open("first");
  ASSERT_TRUE(append(first, 200, PromptEnd::kMoreFollows).ok());  // It waits alone.
  EXPECT_EQ(inbox.waiting_tokens(), 210);
  EXPECT_EQ(inbox.Submit(Request("b", 1)).status().code(), absl::StatusCode::kResourceExhausted);

  Inbox::Delivery delivery;
  inbox.Take(absl::ZeroDuration(), delivery);
  const std::unique_ptr<ActiveRequest> started = std::move(delivery.requests[0]);
  inbox.Started(*started);
  EXPECT_EQ(inbox.waiting_tokens(), 0);
  const SequenceId second = open("second"), third = open("third");
  ASSERT_TRUE(append(second, 40, PromptEnd::kMoreFollows).ok());
  EXPECT_EQ(inbox.waiting_tokens(), 60);
  const absl::Status full = append(third, 41, PromptEnd::kMoreFollows);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("60 prompt tokens wait, 41 more"));
  EXPECT_EQ(inbox.waiting_tokens(), 60);
  ASSERT_TRUE(append(third, 40, PromptEnd::kMoreFollows).ok());   // The error changed nothing.
  ASSERT_TRUE(append(third, 0, PromptEnd::kComplete).ok());       // The end takes no room,
  ASSERT_TRUE(append(first, 500, PromptEnd::kMoreFollows).ok());  // nor does what has started.
  EXPECT_EQ(inbox.waiting_tokens(), 100);

  inbox.Take(absl::ZeroDuration(), delivery);
  for (const auto& request : delivery.requests) inbox.Finished(*request);
  EXPECT_EQ(inbox.waiting_tokens(), 0);
  EXPECT_EQ(inbox.num_waiting(), 0);
  inbox.Finished(*started);
  EXPECT_EQ(inbox.waiting_tokens(), 0);
}

TEST(InboxTest, AnOpenPromptThatIsEmptyCannotBeComplete) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100, .max_prompt_tokens = 10});
  auto request = Request("open", 0);
  request->prompt_open = true;
  const SequenceId open = *inbox.Submit(std::move(request));
  EXPECT_EQ(inbox.AppendPrompt({open, {}, PromptEnd::kComplete}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(inbox.AppendPrompt({open, {}, PromptEnd::kMoreFollows}).ok());
  EXPECT_TRUE(inbox.AppendPrompt({open, {TokenId(1)}, PromptEnd::kComplete}).ok());
}

TEST(InboxTest, KnowsWhetherTheSamplerLooksAtThePrompt) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100, .max_prompt_tokens = 10});
  const auto submit = [&inbox](std::string request_id, float repetition_penalty) {
    auto request = Request(std::move(request_id));
    Sampler::Options options;
    options.vocab_size = 300;
    options.params.repetition_penalty = repetition_penalty;
    request->sampler = std::make_unique<Sampler>(options, absl::Span<const TokenId>());
    return *inbox.Submit(std::move(request));
  };
  const SequenceId scored = *inbox.Submit(Request("has none"));
  EXPECT_FALSE(inbox.SamplerLooksAtPrompt(scored));
  EXPECT_FALSE(inbox.SamplerLooksAtPrompt(submit("looks away", 1)));
  EXPECT_TRUE(inbox.SamplerLooksAtPrompt(submit("looks", 1.5)));
  EXPECT_FALSE(inbox.SamplerLooksAtPrompt(SequenceId(99)));
}

TEST(InboxTest, AStopIsDeliveredOnceAndOnlyForSequencesInFlight) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100, .max_prompt_tokens = 10});
  auto request = Request("a");
  request->continuations.resize(2);
  const SequenceId id = *inbox.Submit(std::move(request));
  for (const int index : {1, 1, 0, 2, -1}) inbox.StopSequence(id, index);
  inbox.StopSequence(SequenceId(99), 0);
  Inbox::Delivery delivery;
  inbox.Take(absl::InfiniteDuration(), delivery);
  EXPECT_THAT(delivery.stopped, ElementsAre(std::pair(id, 1), std::pair(id, 0)));
  inbox.StopSequence(id, 0);
  const std::unique_ptr<ActiveRequest> taken = std::move(delivery.requests[0]);
  inbox.Take(absl::ZeroDuration(), delivery);
  EXPECT_THAT(delivery.stopped, IsEmpty());
  inbox.Finished(*taken);
}

TEST(InboxTest, PatienceThatEndsIsNotIdleness) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100, .max_prompt_tokens = 10});
  Inbox::Delivery delivery;
  inbox.Take(absl::Milliseconds(1), delivery);
  EXPECT_FALSE(inbox.WaitIdle(absl::InfinitePast()));
}

TEST(InboxTest, DrainingClosedAndFailedInboxesTakeNothing) {
  for (const std::string how : {"drain", "close", "fail"}) {
    Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
    EXPECT_FALSE(inbox.draining());
    if (how == "drain") inbox.Drain();
    if (how == "close") inbox.Close();
    if (how == "fail") inbox.Fail(absl::InternalError("no bus"));
    const absl::Status status = inbox.Submit(Request("a")).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << how;
    EXPECT_EQ(inbox.draining(), how != "fail");
    Inbox::Delivery delivery;
    inbox.Take(absl::ZeroDuration(), delivery);
    EXPECT_EQ(delivery.closed, how == "close");
    EXPECT_THAT(delivery.requests, IsEmpty());
  }
}

TEST(InboxTest, WhatCameBeforeTheCloseIsStillDelivered) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
  ASSERT_TRUE(inbox.Submit(Request("a")).ok());
  inbox.Close();
  Inbox::Delivery delivery;
  inbox.Take(absl::InfiniteDuration(), delivery);
  EXPECT_TRUE(delivery.closed);
  EXPECT_THAT(Names(delivery), ElementsAre("a"));
}

TEST(InboxTest, IdleMeansThatTheEngineThreadWaitsOrIsGone) {
  Inbox inbox({.max_in_flight = 10, .max_waiting_tokens = 100});
  EXPECT_FALSE(inbox.WaitIdle(absl::InfinitePast()));  // No engine thread has looked yet.
  ASSERT_TRUE(inbox.Submit(Request("a")).ok());
  std::thread engine([&inbox] {
    Inbox::Delivery delivery;
    while (!delivery.closed) {
      inbox.Take(absl::InfiniteDuration(), delivery);
      for (const auto& request : delivery.requests) inbox.Finished(*request);
    }
    inbox.Retire();
  });
  EXPECT_TRUE(inbox.WaitIdle(absl::InfiniteFuture()));
  EXPECT_EQ(inbox.num_waiting(), 0);
  inbox.Close();
  engine.join();
  EXPECT_TRUE(inbox.WaitIdle(absl::InfinitePast()));
}

}  // namespace
}  // namespace bst
