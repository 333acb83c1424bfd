// The engine's life: admission, cancellation in every phase, deadlines, draining, shutdown, and
// what an observer is told.
//
// Hooks run on the engine thread inside TokenSink::Push, so that a test acts at an exact moment:
// nothing here depends on speed. That the engine has gone to sleep no hook can tell; two tests ask
// until it has (wait_until.h).
//
// One file, though long: the phases of one life, which share the observer and the hooks.
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_fixture.h"
#include "tests/support/fake_clock.h"
#include "tests/support/wait_until.h"

namespace bst {
namespace {

using ::testing::AnyOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// Counts what the engine reports. All of it comes from the engine thread; it is read when that is
// idle.
class CountingObserver final : public EngineObserver {
 public:
  void OnStep(const StepStats& step) override { steps.push_back(step); }
  void OnToken(SequenceId id, std::optional<absl::Duration> since_previous) override {
    ++num_tokens;
    if (since_previous.has_value()) gaps[id].push_back(*since_previous);
  }
  void OnFirstToken(SequenceId id, absl::Duration since_arrival) override {
    first_tokens[id] = since_arrival;
    ++num_first_tokens;
  }
  void OnFinished(const std::string& request_id, const RequestStats& request) override {
    finished[request_id].push_back(request);
  }

  std::vector<StepStats> steps;
  std::map<SequenceId, std::vector<absl::Duration>> gaps;
  std::map<SequenceId, absl::Duration> first_tokens;
  int num_first_tokens = 0, num_tokens = 0;
  std::map<std::string, std::vector<RequestStats>> finished;
};

class EngineLifecycleTest : public testing::Test {
 protected:
  // `edit` changes the options.
  template <typename Edit>
  void Make(Edit edit) {
    EngineOptions options = TinyOptions(model_);
    edit(options);
    EngineParts parts;
    parts.clock = &clock_;
    engine_ = MakeEngine(options, &observer_, std::move(parts));
  }
  void Make() {
    Make([](EngineOptions&) {});
  }
  void OneSlot() {
    Make([](EngineOptions& options) { options.max_sequences = 1; });
  }
  // A request that would run for very long, and holds the engine thread at its first event until
  // the gate opens.
  Stream StartHeld(Gate& gate, std::string request_id = "held") {
    GenerateRequest request = Greedy(Tokens("held"), 1'000'000);
    request.request_id = std::move(request_id);
    request.stopping.ignore_eos = true;
    return Start(*engine_, request, [&gate](const SequenceEvent& event) {
      if (std::holds_alternative<AcceptedEvent>(event)) gate.Pass();
    });
  }
  static GenerateRequest Named(std::string request_id, GenerateRequest request) {
    request.request_id = std::move(request_id);
    return request;
  }
  absl::Status SubmitStatus(GenerateRequest request) {
    return engine_->Submit(std::move(request), std::make_shared<RecordingSink>()).status();
  }
  // The one RequestStats of a request.
  RequestStats StatsOf(const std::string& request_id) {
    EXPECT_TRUE(engine_->WaitIdle(absl::InfiniteFuture()));
    EXPECT_THAT(observer_.finished[request_id], SizeIs(1)) << request_id;
    return observer_.finished[request_id].at(0);
  }

  const TinyModel model_;
  FakeClock clock_;
  CountingObserver observer_;
  std::unique_ptr<Engine> engine_;
};

// ---- Admission ----

TEST_F(EngineLifecycleTest, AnInvalidRequestIsRefusedAndNothingIsPushed) {
  Make([](EngineOptions& options) { options.max_prompt_tokens = 10; });
  const auto sink = std::make_shared<RecordingSink>();
  const absl::Status status = engine_->Submit(Greedy(LongPrompt(11), 1), sink).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("11 tokens, limit 10"));
  EXPECT_EQ(engine_->Submit(ScoreRequest(), sink).status().code(),
            absl::StatusCode::kInvalidArgument);
  engine_->Shutdown();
  EXPECT_THAT(sink->Events<AcceptedEvent>(), IsEmpty());
  EXPECT_THAT(sink->Events<FinishedEvent>(), IsEmpty());
}

TEST_F(EngineLifecycleTest, TheQueueIsBoundedInRequests) {
  Make([](EngineOptions& options) {
    options.max_sequences = 1;
    options.max_queue = 2;
  });
  Gate gate;
  const Stream held = StartHeld(gate);
  const Stream second = Start(*engine_, Greedy(Tokens("2"), 1));
  const Stream third = Start(*engine_, Greedy(Tokens("3"), 1));
  const absl::Status full = SubmitStatus(Greedy(Tokens("4"), 1));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("limit 3"));
  engine_->Cancel(held.id);
  gate.Open();
  EXPECT_EQ(held.sink->WaitFinished().reason, FinishReason::kCancelled);
  EXPECT_EQ(third.sink->WaitFinished().reason, FinishReason::kMaxTokens);
  EXPECT_TRUE(SubmitStatus(Greedy(Tokens("4"), 1)).ok());
}

TEST_F(EngineLifecycleTest, WhoSeesTheEndOfARequestMaySendTheNext) {
  Make([](EngineOptions& options) {
    options.max_sequences = 1;
    options.max_queue = 0;
  });
  for (int i = 0; i < 50; ++i) {
    const Stream stream = Start(*engine_, Named("again", Greedy(Tokens("x"), 1)));
    EXPECT_EQ(stream.sink->WaitFinished().reason, FinishReason::kMaxTokens);
    EXPECT_EQ(engine_->load().slots_used, 0);
  }
}

TEST_F(EngineLifecycleTest, TheQueueIsBoundedInPromptTokens) {
  Make([](EngineOptions& options) {
    options.max_sequences = 1;
    options.max_queue_tokens = 100;
  });
  Gate gate;
  const Stream held = StartHeld(gate);  // Waits itself until the gate opens: 4 tokens.
  const Stream second = Start(*engine_, Greedy(LongPrompt(96), 1));
  EXPECT_EQ(engine_->load().queue_tokens, 100);
  EXPECT_EQ(engine_->load().waiting, 2);
  const absl::Status full = SubmitStatus(Greedy(Tokens("x"), 1));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("100 prompt tokens wait"));
  engine_->Cancel(held.id);
  gate.Open();
  second.sink->WaitFinished();
  EXPECT_TRUE(SubmitStatus(Greedy(LongPrompt(200), 1)).ok());  // Into an empty queue, any prompt.
}

TEST_F(EngineLifecycleTest, ARequestIdInFlightIsRefused) {
  OneSlot();
  Gate gate;
  const Stream held = StartHeld(gate, "name");
  EXPECT_EQ(SubmitStatus(Named("name", Greedy(Tokens("x"), 1))).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(
      engine_
          ->Submit(ScoreRequest{.request_id = "name", .tokens = Tokens("x"), .top_logprobs = 0},
                   std::make_shared<RecordingSink>())
          .status()
          .code(),
      absl::StatusCode::kAlreadyExists);
  engine_->Cancel(held.id);
  gate.Open();
  held.sink->WaitFinished();
  EXPECT_TRUE(SubmitStatus(Named("name", Greedy(Tokens("x"), 1))).ok());
}

TEST_F(EngineLifecycleTest, AcceptedTellsThePlaceInTheQueue) {
  OneSlot();
  Gate gate;
  const Stream held = StartHeld(gate);
  std::vector<Stream> streams;
  for (int i = 0; i < 3; ++i) streams.push_back(Start(*engine_, Greedy(Tokens("x"), 1)));
  engine_->Cancel(held.id);
  gate.Open();
  std::vector<int64_t> positions;
  for (const Stream& stream : streams) {
    stream.sink->WaitFinished();
    positions.push_back(stream.sink->Events<AcceptedEvent>().at(0).queue_position);
  }
  // How many were taken in, and how many had started, when each arrived depends on the threads: at
  // most those before it wait, the held one among them, and nobody is told a better place than its
  // predecessor's.
  for (size_t i = 0; i < positions.size(); ++i) {
    EXPECT_GE(positions[i], i == 0 ? 0 : positions[i - 1]);
    EXPECT_LE(positions[i], static_cast<int64_t>(i) + 1);
  }
}

// ---- Cancellation ----

TEST_F(EngineLifecycleTest, CancelInTheQueue) {
  OneSlot();
  Gate gate;
  const Stream held = StartHeld(gate);
  const Stream queued = Start(*engine_, Named("queued", Greedy(Tokens("x"), 5)));
  engine_->Cancel(queued.id);
  gate.Open();
  // It ends while the other goes on: no slot is needed to leave the queue.
  const FinishedEvent finished = queued.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kCancelled);
  EXPECT_EQ(finished.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(finished.generated_tokens, 0);
  EXPECT_FALSE(held.sink->finished());
  EXPECT_EQ(engine_->load().waiting, 0);
  engine_->Cancel(held.id);
  EXPECT_EQ(StatsOf("queued").stage, RequestStats::Stage::kQueued);
}

TEST_F(EngineLifecycleTest, CancelInThePrompt) {
  OneSlot();
  GenerateRequest request = Named("prompt", Greedy(LongPrompt(500), 5));
  request.prompt_progress = true;
  SequenceId id;
  Gate gate;
  const Stream stream = Start(*engine_, request, [&](const SequenceEvent& event) {
    if (std::holds_alternative<AcceptedEvent>(event)) gate.Pass();  // Until `id` is known here.
    const auto* progress = std::get_if<PrefillProgressEvent>(&event);
    if (progress != nullptr && progress->processed_tokens == 64) engine_->Cancel(id);
  });
  id = stream.id;
  gate.Open();
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kCancelled);
  // Cancelled after the second chunk of 32: there is no third.
  EXPECT_THAT(stream.sink->Events<PrefillProgressEvent>(), SizeIs(2));
  EXPECT_THAT(TokensOf(stream), IsEmpty());
  EXPECT_EQ(engine_->load().slots_used, 0);
  EXPECT_EQ(StatsOf("prompt").stage, RequestStats::Stage::kPrefill);
}

TEST_F(EngineLifecycleTest, CancelWhileGenerating) {
  OneSlot();
  SequenceId id;
  Gate gate;
  int tokens = 0;
  const Stream stream =
      Start(*engine_, Named("decode", Greedy(Tokens("x"), 500)), [&](const SequenceEvent& event) {
        if (std::holds_alternative<AcceptedEvent>(event)) gate.Pass();
        if (std::holds_alternative<GeneratedEvent>(event) && ++tokens == 7) engine_->Cancel(id);
      });
  id = stream.id;
  gate.Open();
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kCancelled);
  EXPECT_EQ(finished.generated_tokens, 7);
  EXPECT_THAT(TokensOf(stream), SizeIs(7));  // Within one step: there is no eighth.
  EXPECT_EQ(StatsOf("decode").stage, RequestStats::Stage::kDecode);
}

TEST_F(EngineLifecycleTest, CancelWhileScoring) {
  Make([](EngineOptions& options) { options.chunk_tokens = 8; });
  SequenceId id;
  Gate gate;
  const Stream stream =
      Start(*engine_, ScoreRequest{.request_id = "", .tokens = LongPrompt(200), .top_logprobs = 0},
            [&](const SequenceEvent& event) {
              if (std::holds_alternative<AcceptedEvent>(event)) gate.Pass();
              if (std::holds_alternative<ScoredEvent>(event)) engine_->Cancel(id);
            });
  id = stream.id;
  gate.Open();
  EXPECT_EQ(stream.sink->WaitFinished().reason, FinishReason::kCancelled);
  EXPECT_THAT(stream.sink->Events<ScoredEvent>(), SizeIs(1));
}

TEST_F(EngineLifecycleTest, CancelOfTheUnknownAndTheDoneIsNothing) {
  Make();
  const Stream stream = Start(*engine_, Greedy(Tokens("x"), 3));
  EXPECT_EQ(stream.sink->WaitFinished().reason, FinishReason::kMaxTokens);
  engine_->Cancel(stream.id);
  engine_->Cancel(SequenceId(12345));
  EXPECT_EQ(Start(*engine_, Greedy(Tokens("x"), 3)).sink->WaitFinished().reason,
            FinishReason::kMaxTokens);
}

// ---- Several sequences ----

// Three sequences that would run for very long; `hook` runs for each event, with the request's id.
class EngineSequencesTest : public EngineLifecycleTest {
 protected:
  using Hook = std::function<void(SequenceId, const SequenceEvent&)>;
  Stream StartThree(Hook hook, GenerateRequest request = Greedy(LongPrompt(80), 500)) {
    request.request_id = "three";
    request.num_sequences = 3;
    request.stopping.ignore_eos = true;
    request.prompt_progress = true;
    const auto gate = std::make_shared<Gate>();
    Stream stream =
        Start(*engine_, std::move(request), [this, gate, hook](const SequenceEvent& event) {
          if (std::holds_alternative<AcceptedEvent>(event)) gate->Pass();
          hook(id_, event);
        });
    id_ = stream.id;
    gate->Open();
    return stream;
  }

  SequenceId id_;
};

TEST_F(EngineSequencesTest, MoreThanThePoolHoldsAreRefused) {
  Make();
  GenerateRequest request = Greedy(Tokens("x"), 1);
  request.num_sequences = 5;
  const absl::Status status = SubmitStatus(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("num_sequences is 5, not in 1 .. 4"));
  request.num_sequences = 4;
  EXPECT_TRUE(SubmitStatus(request).ok());
}

TEST_F(EngineSequencesTest, CancelEndsAllOfThemInEveryStage) {
  for (const std::string stage : {"queue", "prompt", "decode"}) {
    observer_.finished.clear();
    Make();
    GenerateRequest request = Greedy(Tokens("x"), 1'000'000);
    request.stopping.ignore_eos = true;
    request.num_sequences = 4;  // All slots.
    std::optional<Stream> before;
    if (stage == "queue") {
      before = Start(*engine_, request);
      before->sink->WaitEvents(5);
    }
    int tokens = 0, progress = 0;
    const Stream stream = StartThree([&](SequenceId id, const SequenceEvent& event) {
      if (std::holds_alternative<AcceptedEvent>(event) && stage == "queue") engine_->Cancel(id);
      if (std::holds_alternative<PrefillProgressEvent>(event) && ++progress == 1) {
        EXPECT_EQ(engine_->load().slots_used, 1);  // The others come when it has been read.
        EXPECT_EQ(engine_->load().running, 1);
        if (stage == "prompt") engine_->Cancel(id);
      }
      if (std::holds_alternative<GeneratedEvent>(event) && ++tokens == 4) engine_->Cancel(id);
    });
    EXPECT_EQ(stream.sink->WaitFinished().reason, FinishReason::kCancelled);
    EXPECT_EQ(stream.sink->violation(), "");
    EXPECT_THAT(stream.sink->Events<SequenceEndedEvent>(), IsEmpty());
    // Within one step: what the step of the fourth token drew, and no more.
    EXPECT_THAT(TokensOf(stream), SizeIs(stage == "decode" ? 6 : 0));
    EXPECT_THAT(stream.sink->Events<PrefillProgressEvent>(), SizeIs(stage == "queue"    ? 0
                                                                    : stage == "prompt" ? 1
                                                                                        : 3));
    EXPECT_EQ(engine_->load().slots_used, stage == "queue" ? 4 : 0);
    if (before.has_value()) engine_->Cancel(before->id);
    EXPECT_EQ(StatsOf("three").stage, stage == "queue"    ? RequestStats::Stage::kQueued
                                      : stage == "prompt" ? RequestStats::Stage::kPrefill
                                                          : RequestStats::Stage::kDecode);
  }
}

// A stream that holds a slot for long keeps nobody waiting who needs several.
TEST_F(EngineSequencesTest, TheyRunOneAfterAnotherWhereFewSlotsAreFree) {
  Make();
  GenerateRequest endless = Greedy(Tokens("x"), 1'000'000);
  endless.stopping.ignore_eos = true;
  endless.num_sequences = 3;
  const Stream before = Start(*engine_, endless);
  before.sink->WaitEvents(4);
  const Stream three =
      StartThree([](SequenceId, const SequenceEvent&) {}, Greedy(LongPrompt(20), 9));
  GenerateRequest one_alone = Greedy(LongPrompt(30), 9);
  one_alone.stopping.ignore_eos = true;
  const Stream one = Start(*engine_, one_alone);
  engine_->StopSequence(before.id, 2);
  EXPECT_EQ(three.sink->WaitFinished().generated_tokens, 27);
  EXPECT_EQ(one.sink->WaitFinished().generated_tokens, 9);
  for (int index = 1; index < 3; ++index) EXPECT_EQ(TokensOf(three, index), TokensOf(three, 0));
  EXPECT_EQ(engine_->load().slots_used, 2);
  engine_->Cancel(before.id);
}

TEST_F(EngineSequencesTest, AStoppedOneLeavesTheOthersRunning) {
  Make();
  int tokens = 0, of_last = 0;
  const Stream stream = StartThree(
      [&](SequenceId id, const SequenceEvent& event) {
        if (const auto* generated = std::get_if<GeneratedEvent>(&event)) {
          if (++tokens == 6) engine_->StopSequence(id, 1);
          if (generated->sequence_index == 2 && ++of_last == 5) engine_->StopSequence(id, 2);
        }
        if (const auto* ended = std::get_if<SequenceEndedEvent>(&event)) {
          // Its slot is free already.
          EXPECT_EQ(engine_->load().slots_used, ended->sequence_index == 1   ? 2
                                                : ended->sequence_index == 2 ? 1
                                                                             : 0);
          EXPECT_EQ(engine_->load().in_flight, engine_->load().slots_used);  // Nor does it count.
        }
      },
      Greedy(LongPrompt(20), 9));
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(stream.sink->violation(), "");
  EXPECT_TRUE(finished.status.ok());
  EXPECT_EQ(finished.reason, FinishReason::kMaxTokens);  // Sequence 0's.
  EXPECT_EQ(finished.generated_tokens, 9 + 2 + 5);
  EXPECT_EQ(StatsOf("three").longest_tokens, 9);
  std::vector<std::pair<int, FinishReason>> ends;
  for (const SequenceEndedEvent& event : stream.sink->Events<SequenceEndedEvent>()) {
    ends.push_back({event.sequence_index, event.reason});
    EXPECT_EQ(event.generated_tokens,
              static_cast<int64_t>(TokensOf(stream, event.sequence_index).size()));
  }
  EXPECT_THAT(
      ends, ElementsAre(std::pair(1, FinishReason::kStopped), std::pair(2, FinishReason::kStopped),
                        std::pair(0, FinishReason::kMaxTokens)));
}

TEST_F(EngineSequencesTest, WhenAllAreStoppedTheRequestIsComplete) {
  Make();
  const Stream stream = StartThree([&](SequenceId id, const SequenceEvent& event) {
    if (!std::holds_alternative<GeneratedEvent>(event)) return;
    for (int index = 0; index < 4; ++index) engine_->StopSequence(id, index);
  });
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_TRUE(finished.status.ok()) << finished.status;
  EXPECT_EQ(finished.reason, FinishReason::kStopped);
  EXPECT_EQ(finished.generated_tokens, 3);
  engine_->StopSequence(stream.id, 0);  // Done: nothing.
}

TEST_F(EngineSequencesTest, TheTimeLimitEndsEachOfThem) {
  Make();
  GenerateRequest request = Greedy(LongPrompt(20), 500);
  request.time_limit = absl::Seconds(10);
  int tokens = 0;
  const Stream stream = StartThree(
      [&](SequenceId, const SequenceEvent& event) {
        if (std::holds_alternative<GeneratedEvent>(event) && ++tokens == 6)
          clock_.Advance(absl::Seconds(10));
      },
      request);
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kTimeLimit);
  EXPECT_TRUE(finished.status.ok());
  EXPECT_EQ(finished.generated_tokens, 6);
  const auto ends = stream.sink->Events<SequenceEndedEvent>();
  ASSERT_THAT(ends, SizeIs(3));
  for (const SequenceEndedEvent& end : ends) EXPECT_EQ(end.reason, FinishReason::kTimeLimit);
}

TEST_F(EngineSequencesTest, EachIsASequenceToTheObserver) {
  Make();
  const Stream stream =
      StartThree([](SequenceId, const SequenceEvent&) {}, Greedy(LongPrompt(20), 4));
  stream.sink->WaitFinished();
  ASSERT_TRUE(engine_->WaitIdle(absl::InfiniteFuture()));
  EXPECT_EQ(observer_.num_first_tokens, 1);
  EXPECT_EQ(observer_.num_tokens, 12);
  EXPECT_THAT(observer_.gaps[stream.id], SizeIs(9));
  EXPECT_EQ(StatsOf("three").finished.generated_tokens, 12);
  EXPECT_EQ(observer_.steps.back().sequences, 3);
  EXPECT_EQ(observer_.steps.back().tokens, 3);
}

// ---- Open prompts ----

class EngineUploadTest : public EngineLifecycleTest {
 protected:
  Stream StartOpen(std::vector<TokenId> prompt = {}, std::string request_id = "open") {
    GenerateRequest request = Greedy(std::move(prompt), 3);
    request.request_id = std::move(request_id);
    request.prompt_open = true;
    return Start(*engine_, std::move(request));
  }
  absl::Status Append(const Stream& stream, std::vector<TokenId> tokens,
                      PromptEnd end = PromptEnd::kMoreFollows) {
    return engine_->AppendPrompt(stream.id, std::move(tokens), end);
  }
};

TEST_F(EngineUploadTest, WhatCannotBeAppendedChangesNothing) {
  Make([](EngineOptions& options) { options.max_prompt_tokens = 20; });
  const Stream stream = StartOpen();
  EXPECT_EQ(Append(stream, {}, PromptEnd::kComplete).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Append(stream, LongPrompt(15)).ok());
  const absl::Status too_long = Append(stream, LongPrompt(6));
  EXPECT_EQ(too_long.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(too_long.message()), HasSubstr("21 tokens, limit 20"));
  const absl::Status unknown = Append(stream, {TokenId(1), TokenId(259)});
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("token 1 is 259"));
  EXPECT_TRUE(Append(stream, LongPrompt(5), PromptEnd::kComplete).ok());
  EXPECT_THAT(Append(stream, {}).code(),
              AnyOf(absl::StatusCode::kFailedPrecondition, absl::StatusCode::kNotFound));
  EXPECT_EQ(stream.sink->WaitFinished().prompt_tokens, 20);
  EXPECT_EQ(Append(stream, {}).code(), absl::StatusCode::kNotFound);
  const Stream whole = Start(*engine_, Greedy(Tokens("x"), 1'000'000));
  EXPECT_EQ(Append(whole, {}).code(), absl::StatusCode::kFailedPrecondition);
  engine_->Cancel(whole.id);
}

TEST_F(EngineUploadTest, AClientThatStopsSendingIsGivenUp) {
  Make([](EngineOptions& options) { options.upload_timeout = absl::Seconds(60); });
  const Stream stream = StartOpen(LongPrompt(20));
  stream.sink->WaitEvents(2);  // 16 tokens are read.
  EXPECT_EQ(engine_->load().slots_used, 1);
  // The engine sleeps; it must see that it has read all before the clock moves.
  ASSERT_TRUE(WaitUntil([this] { return engine_->load().awaiting_input; }));
  clock_.Advance(absl::Seconds(60));
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kError);
  EXPECT_EQ(finished.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(finished.status.message()),
              HasSubstr("no further block of the prompt came within 1m"));
  EXPECT_EQ(engine_->load().slots_used, 0);
  EXPECT_FALSE(engine_->load().awaiting_input);
  EXPECT_EQ(StatsOf("open").stage, RequestStats::Stage::kPrefill);
}

TEST_F(EngineUploadTest, AnOpenPromptTakesNoSlotBeforeItsFirstBlockAndMayTimeOutInTheQueue) {
  OneSlot();
  GenerateRequest request = Named("late", Greedy(LongPrompt(8), 3));
  request.prompt_open = true;
  request.queue_timeout = absl::Seconds(10);
  const Stream late = Start(*engine_, request);
  late.sink->WaitEvents(1);
  EXPECT_EQ(Start(*engine_, Greedy(Tokens("passes"), 3)).sink->WaitFinished().reason,
            FinishReason::kMaxTokens);
  clock_.Advance(absl::Seconds(10));
  EXPECT_EQ(late.sink->WaitFinished().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(StatsOf("late").stage, RequestStats::Stage::kQueued);
}

TEST_F(EngineUploadTest, AnUnfinishedPromptCanBeCancelledAndDoesNotKeepTheThreadBusy) {
  Make();
  const Stream stream = StartOpen(LongPrompt(20));
  stream.sink->WaitEvents(2);
  ASSERT_TRUE(WaitUntil([this] { return engine_->load().awaiting_input; }));
  EXPECT_EQ(engine_->load().steps, 1);
  EXPECT_FALSE(engine_->WaitIdle(absl::InfinitePast()));  // It waits, but not without a request.
  engine_->Cancel(stream.id);
  EXPECT_EQ(stream.sink->WaitFinished().reason, FinishReason::kCancelled);
  EXPECT_EQ(StatsOf("open").stage, RequestStats::Stage::kPrefill);
}

TEST_F(EngineUploadTest, ShutdownEndsUnfinishedPrompts) {
  Make();
  const Stream empty = StartOpen({}, "empty"), begun = StartOpen(LongPrompt(20), "begun");
  engine_->Shutdown();
  for (const Stream* stream : {&empty, &begun}) {
    EXPECT_EQ(stream->sink->WaitFinished().status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(Append(*stream, {}).code(), absl::StatusCode::kNotFound);
  }
}

TEST_F(EngineUploadTest, WhatHasComeCountsInTheQueueUntilItStarts) {
  Make();
  const Stream stream = StartOpen(LongPrompt(5));
  EXPECT_TRUE(Append(stream, LongPrompt(3)).ok());
  EXPECT_EQ(engine_->load().queue_tokens, 8);
  EXPECT_TRUE(Append(stream, LongPrompt(30), PromptEnd::kComplete).ok());
  EXPECT_EQ(stream.sink->WaitFinished().prompt_tokens, 38);
  EXPECT_EQ(engine_->load().queue_tokens, 0);
}

// None of them waits for another's room in the queue for ever.
TEST_F(EngineUploadTest, UploadsInAFullQueueAreRefusedAndTheOthersFinish) {
  Make([](EngineOptions& options) {
    options.max_sequences = 1;
    options.max_queue_tokens = 50;
  });
  Gate gate;
  const Stream held = StartHeld(gate);  // 4 tokens, which wait until the gate opens
  const Stream first = StartOpen(LongPrompt(20), "first");
  const Stream second = StartOpen(LongPrompt(20), "second");
  EXPECT_EQ(Append(first, LongPrompt(7)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Append(second, LongPrompt(6), PromptEnd::kComplete).code(), absl::StatusCode::kOk);
  engine_->Cancel(held.id);
  gate.Open();
  EXPECT_EQ(held.sink->WaitFinished().reason, FinishReason::kCancelled);
  first.sink->WaitEvents(2);  // 16 tokens are read, so it has started:
  EXPECT_TRUE(Append(first, LongPrompt(100), PromptEnd::kComplete).ok());
  EXPECT_EQ(first.sink->WaitFinished().prompt_tokens, 120);
  EXPECT_EQ(second.sink->WaitFinished().prompt_tokens, 26);
  EXPECT_EQ(engine_->load().queue_tokens, 0);
}

// ---- Priorities and reserved slots ----

TEST_F(EngineLifecycleTest, TheHigherPriorityStartsFirst) {
  OneSlot();
  Gate gate;
  const Stream held = StartHeld(gate);
  std::vector<std::string> order;
  const auto start = [&](std::string name, Priority priority) {
    GenerateRequest request = Named(name, Greedy(Tokens("x"), 1));
    request.priority = priority;
    return Start(*engine_, request, [&order, name](const SequenceEvent& event) {
      if (std::holds_alternative<FinishedEvent>(event)) order.push_back(name);
    });
  };
  const std::vector<Stream> streams = {start("low", Priority::kLow),
                                       start("normal", Priority::kNormal),
                                       start("high", Priority::kHigh)};
  engine_->Cancel(held.id);
  gate.Open();
  for (const Stream& stream : streams) stream.sink->WaitFinished();
  EXPECT_THAT(order, ElementsAre("high", "normal", "low"));
}

TEST_F(EngineLifecycleTest, LongPromptsLeaveASlotToAShortOne) {
  Make([](EngineOptions& options) {
    options.max_sequences = 2;
    options.long_prompt_tokens = 30;
  });
  Gate gate;
  const Stream held = StartHeld(gate);
  GenerateRequest request = Greedy(LongPrompt(31), 1'000'000);
  request.stopping.ignore_eos = true;
  const Stream first = Start(*engine_, request), second = Start(*engine_, request);
  engine_->Cancel(held.id);
  gate.Open();
  first.sink->WaitEvents(3);
  // The second long one waits, a short one does not.
  EXPECT_EQ(Start(*engine_, Greedy(LongPrompt(30), 2)).sink->WaitFinished().reason,
            FinishReason::kMaxTokens);
  EXPECT_EQ(engine_->load().waiting, 1);
  EXPECT_THAT(TokensOf(second), IsEmpty());
  engine_->Cancel(first.id);
  second.sink->WaitEvents(3);
  EXPECT_THAT(TokensOf(second), Not(IsEmpty()));
  engine_->Cancel(second.id);
}

// ---- Deadlines ----

TEST_F(EngineLifecycleTest, QueueTimeoutEndsWhatHasNotStarted) {
  OneSlot();
  Gate gate;
  const Stream held = StartHeld(gate);
  GenerateRequest request = Named("late", Greedy(Tokens("x"), 3));
  request.queue_timeout = absl::Seconds(10);
  const Stream late = Start(*engine_, request);
  clock_.Advance(absl::Seconds(10));
  gate.Open();
  const FinishedEvent finished = late.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kError);
  EXPECT_EQ(finished.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(TokensOf(late), IsEmpty());
  engine_->Cancel(held.id);
  EXPECT_EQ(StatsOf("late").stage, RequestStats::Stage::kQueued);
}

TEST_F(EngineLifecycleTest, TimesCountFromArrivalHoweverLongTheSubmissionTook) {
  OneSlot();
  const auto start = [this](const std::string& name, absl::Duration age) {
    GenerateRequest request = Named(name, Greedy(Tokens("x"), 1));
    request.queue_timeout = absl::Seconds(10);
    request.age = age;
    return Start(*engine_, request);
  };
  const FinishedEvent in_time = start("in time", absl::Seconds(9)).sink->WaitFinished();
  EXPECT_TRUE(in_time.status.ok());
  EXPECT_EQ(in_time.timings.queue, absl::Seconds(9));
  EXPECT_EQ(in_time.timings.time_to_first_token, absl::Seconds(9));
  const FinishedEvent late = start("late", absl::Seconds(10)).sink->WaitFinished();
  EXPECT_EQ(late.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late.timings.queue, absl::Seconds(10));
  EXPECT_EQ(StatsOf("late").stage, RequestStats::Stage::kQueued);
  EXPECT_EQ(StatsOf("in time").total, absl::Seconds(9));
}

TEST_F(EngineLifecycleTest, QueueTimeoutDoesNotTouchWhatRuns) {
  OneSlot();
  GenerateRequest request = Greedy(Tokens("x"), 5);
  request.queue_timeout = absl::Seconds(10);
  const Stream stream = Start(*engine_, request, [this](const SequenceEvent& event) {
    if (std::holds_alternative<GeneratedEvent>(event)) clock_.Advance(absl::Seconds(10));
  });
  EXPECT_EQ(stream.sink->WaitFinished().reason, FinishReason::kMaxTokens);
}

TEST_F(EngineLifecycleTest, TimeLimitKeepsTheTextAndIsNoError) {
  OneSlot();
  GenerateRequest request = Greedy(Tokens("x"), 500);
  request.time_limit = absl::Seconds(35);
  const Stream stream = Start(*engine_, request, [this](const SequenceEvent& event) {
    if (std::holds_alternative<GeneratedEvent>(event)) clock_.Advance(absl::Seconds(10));
  });
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kTimeLimit);
  EXPECT_TRUE(finished.status.ok());
  EXPECT_THAT(TokensOf(stream), SizeIs(4));  // At 0, 10, 20, 30 seconds; 40 is over the limit.
}

TEST_F(EngineLifecycleTest, TimeLimitBeforeTheFirstTokenIsAnErrorInTheQueue) {
  OneSlot();
  Gate gate;
  const Stream held = StartHeld(gate);
  GenerateRequest request = Named("late", Greedy(Tokens("x"), 3));
  request.time_limit = absl::Seconds(10);
  const Stream late = Start(*engine_, request);
  clock_.Advance(absl::Seconds(10));
  gate.Open();
  const FinishedEvent finished = late.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kError);
  EXPECT_EQ(finished.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(finished.timings.queue, absl::Seconds(10));  // All its life.
  engine_->Cancel(held.id);
  EXPECT_EQ(StatsOf("late").stage, RequestStats::Stage::kQueued);
}

TEST_F(EngineLifecycleTest, TimeLimitBeforeTheFirstTokenIsAnErrorInThePrompt) {
  OneSlot();
  GenerateRequest request = Named("late", Greedy(LongPrompt(50), 3));  // Chunks of 32 and 18.
  request.prompt_progress = true;
  request.time_limit = absl::Seconds(10);
  const Stream stream = Start(*engine_, request, [this](const SequenceEvent& event) {
    if (std::holds_alternative<PrefillProgressEvent>(event)) clock_.Advance(absl::Seconds(10));
  });
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kError);
  EXPECT_EQ(finished.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(finished.status.message()), HasSubstr("before the first token"));
  EXPECT_THAT(TokensOf(stream), IsEmpty());
  EXPECT_EQ(StatsOf("late").stage, RequestStats::Stage::kPrefill);
}

// ---- Draining and shutting down ----

TEST_F(EngineLifecycleTest, DrainLetsRunningAndWaitingRequestsEnd) {
  OneSlot();
  Gate gate;
  GenerateRequest request = Greedy(Tokens("running"), 10);
  const Stream running = Start(*engine_, request, [&gate](const SequenceEvent& event) {
    if (std::holds_alternative<AcceptedEvent>(event)) gate.Pass();
  });
  const Stream waiting = Start(*engine_, request);
  engine_->Drain();
  EXPECT_TRUE(engine_->load().draining);
  const absl::Status refused = SubmitStatus(request);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("draining"));
  EXPECT_FALSE(engine_->WaitIdle(absl::InfinitePast()));
  gate.Open();
  EXPECT_TRUE(engine_->WaitIdle(absl::InfiniteFuture()));
  for (const Stream* stream : {&running, &waiting}) {
    ASSERT_TRUE(stream->sink->finished());  // Idle comes after the last event.
    EXPECT_EQ(stream->sink->WaitFinished().reason, FinishReason::kMaxTokens);
  }
}

TEST_F(EngineLifecycleTest, ShutdownEndsEverythingWithUnavailable) {
  OneSlot();
  GenerateRequest request = Greedy(LongPrompt(40), 1'000'000);
  request.stopping.ignore_eos = true;
  const Stream running = Start(*engine_, Named("running", request));
  running.sink->WaitEvents(5);
  const Stream waiting = Start(*engine_, Named("waiting", request));
  engine_->Shutdown();
  for (const Stream* stream : {&running, &waiting}) {
    ASSERT_TRUE(stream->sink->finished());
    const FinishedEvent finished = stream->sink->WaitFinished();
    EXPECT_EQ(finished.reason, FinishReason::kError);
    EXPECT_EQ(finished.status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(stream->sink->violation(), "");
  }
  EXPECT_EQ(running.sink->WaitFinished().generated_tokens,
            static_cast<int64_t>(TokensOf(running).size()));
  EXPECT_EQ(engine_->load().slots_used, 0);
  EXPECT_EQ(SubmitStatus(request).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(engine_->WaitIdle(absl::InfinitePast()));
  engine_->Cancel(running.id);
  engine_->Shutdown();  // Again: nothing.
}

TEST_F(EngineLifecycleTest, TheDestructorShutsDown) {
  OneSlot();
  GenerateRequest request = Greedy(Tokens("x"), 1'000'000);
  request.stopping.ignore_eos = true;
  const Stream stream = Start(*engine_, request);
  engine_.reset();
  ASSERT_TRUE(stream.sink->finished());
  EXPECT_EQ(stream.sink->WaitFinished().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineLifecycleTest, TheEngineLetsGoOfTheSink) {
  Make();
  Stream stream = Start(*engine_, Greedy(Tokens("x"), 3));
  stream.sink->WaitFinished();
  EXPECT_TRUE(engine_->WaitIdle(absl::InfiniteFuture()));
  EXPECT_EQ(stream.sink.use_count(), 1);
}

// ---- What is told ----

TEST_F(EngineLifecycleTest, TimingsAndCountsAreThoseOfTheClock) {
  OneSlot();
  Gate gate;
  // Meanwhile the other waits 5 seconds.
  const Stream held = StartHeld(gate);
  engine_->Cancel(held.id);
  GenerateRequest request = Named("timed", Greedy(LongPrompt(50), 4));  // Chunks of 32 and 18.
  request.prompt_progress = true;
  const Stream stream = Start(*engine_, request, [this](const SequenceEvent& event) {
    if (std::holds_alternative<PrefillProgressEvent>(event)) clock_.Advance(absl::Seconds(2));
    if (std::holds_alternative<GeneratedEvent>(event)) clock_.Advance(absl::Seconds(1));
  });
  clock_.Advance(absl::Seconds(5));
  gate.Open();
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.timings.queue, absl::Seconds(5));
  EXPECT_EQ(finished.timings.prefill, absl::Seconds(2));  // After the first chunk.
  EXPECT_EQ(finished.timings.time_to_first_token, absl::Seconds(7));
  // The second chunk's progress event precedes the first token by 2 seconds of the test's clock,
  // but both belong to the moment when their step ended.
  EXPECT_EQ(finished.timings.decode, absl::Seconds(2 + 3 * 1));

  const RequestStats stats = StatsOf("timed");
  EXPECT_EQ(stats.kind, RequestStats::Kind::kGenerate);
  EXPECT_EQ(stats.stage, RequestStats::Stage::kDecode);
  EXPECT_EQ(stats.finished.generated_tokens, 4);
  EXPECT_EQ(stats.longest_tokens, 4);
  EXPECT_EQ(stats.finished.prompt_tokens, 50);
  EXPECT_EQ(stats.total, absl::Seconds(12));
  EXPECT_EQ(observer_.first_tokens[stream.id], absl::Seconds(7));
  EXPECT_THAT(observer_.gaps[stream.id],
              ElementsAre(absl::Seconds(3), absl::Seconds(1), absl::Seconds(1)));

  // Before these five there may be one of the held request.
  std::vector<StepStats> steps = observer_.steps;
  ASSERT_THAT(steps, AnyOf(SizeIs(5), SizeIs(6)));
  const EngineLoad load = engine_->load();
  EXPECT_EQ(load.steps, static_cast<int64_t>(steps.size()));
  steps.erase(steps.begin(), steps.end() - 5);
  EXPECT_EQ(steps[0].tokens, 32);
  EXPECT_EQ(steps[0].prompt_tokens, 32);
  EXPECT_EQ(steps[0].phase, StepStats::Phase::kPrefill);
  EXPECT_EQ(steps[1].tokens, 18);
  EXPECT_EQ(steps[2].tokens, 1);
  EXPECT_EQ(steps[2].prompt_tokens, 0);
  EXPECT_EQ(steps[2].phase, StepStats::Phase::kDecode);
  EXPECT_EQ(steps[2].sequences, 1);
  EXPECT_LT(absl::AbsDuration(absl::Now() - load.last_step),
            absl::Hours(1));  // A date, not an interval.
}

TEST_F(EngineLifecycleTest, AStepWithBothKindsOfRowsIsMixed) {
  Make();
  Gate gate;
  Stream second;
  int tokens = 0;
  const Stream first = Start(*engine_, Greedy(Tokens("first"), 4), [&](const SequenceEvent& event) {
    if (std::holds_alternative<GeneratedEvent>(event) && ++tokens == 2) gate.Pass();
  });
  second = Start(*engine_, Greedy(LongPrompt(10), 1));
  gate.Open();
  first.sink->WaitFinished();
  second.sink->WaitFinished();
  ASSERT_TRUE(engine_->WaitIdle(absl::InfiniteFuture()));
  int prompt_tokens = 0;
  bool mixed = false;
  for (const StepStats& step : observer_.steps) {
    prompt_tokens += step.prompt_tokens;
    if (step.phase != StepStats::Phase::kMixed) continue;
    mixed = true;
    EXPECT_EQ(step.tokens, 11);
    EXPECT_EQ(step.sequences, 2);
  }
  EXPECT_EQ(prompt_tokens, 15);
  // Submitted before the first one's third token at the latest, unless it came before its first
  // step.
  EXPECT_TRUE(mixed || observer_.steps[0].sequences == 2);
}

TEST_F(EngineLifecycleTest, EveryRequestIsReportedOnce) {
  Make();
  std::vector<Stream> streams;
  for (int i = 0; i < 10; ++i)
    streams.push_back(Start(*engine_, Named(absl::StrCat("r", i), Greedy(Tokens("x"), i + 1))));
  const Stream scored = Start(
      *engine_, ScoreRequest{.request_id = "s", .tokens = Tokens("score"), .top_logprobs = 0});
  for (const Stream& stream : streams) stream.sink->WaitFinished();
  scored.sink->WaitFinished();
  EXPECT_EQ(StatsOf("s").kind, RequestStats::Kind::kScore);
  EXPECT_THAT(observer_.finished, SizeIs(11));
  EXPECT_THAT(observer_.first_tokens, SizeIs(10));
  size_t gaps = 0;
  for (const auto& [id, of_one] : observer_.gaps) gaps += of_one.size();
  EXPECT_EQ(gaps, 45u);
}

}  // namespace
}  // namespace bst
