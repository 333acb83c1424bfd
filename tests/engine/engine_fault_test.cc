// What if the n-th call fails? For n = 1, 2, ... until nothing fails any more: the engine is not
// made, or every stream gets its end, no slot leaks and the engine says that it is unhealthy.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cpu/cpu_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_fixture.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class EngineFaultTest : public testing::Test {
 protected:
  EngineOptions Options() const {
    EngineOptions options = TinyOptions(model_);
    options.max_sequences = 2;
    options.chunk_tokens = 8;
    return options;
  }
  // An engine on a backend whose `arm` has been called.
  template <typename Arm>
  absl::StatusOr<std::unique_ptr<Engine>> Create(Arm arm) {
    auto backend = std::make_unique<FaultyBackend>(*MakeCpuBackend());
    arm(*backend);
    backend_ = backend.get();
    EngineParts parts;
    parts.backend = std::move(backend);
    return CreateEngine(Options(), nullptr, std::move(parts));
  }

  const TinyModel model_;
  FaultyBackend* backend_ = nullptr;  // the engine's
};

TEST_F(EngineFaultTest, WithoutMemoryThereIsNoEngine) {
  int n = 1;
  for (; n < 1000; ++n) {
    const auto engine = Create([n](FaultyBackend& backend) { backend.FailAllocation(n); });
    if (engine.ok()) break;
    EXPECT_EQ(engine.status().code(), absl::StatusCode::kResourceExhausted)
        << n << ": " << engine.status();
  }
  EXPECT_GT(n, 10);  // Weights, workspace, state: many allocations were tried.
  EXPECT_LT(n, 1000);
}

TEST_F(EngineFaultTest, SlotsThatDoNotFitAreRefusedByTheOptionsName) {
  const auto engine = Create([](FaultyBackend& backend) { backend.SetAvailableBytes(1); });
  EXPECT_THAT(engine,
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(StartsWith("max_sequences is 2: state: 2 slots of "),
                             HasSubstr("but 1 bytes of memory are available: enough for 0"))));
}

TEST_F(EngineFaultTest, ADeviceFailureEndsEveryStreamWithInternal) {
  GenerateRequest generate = Greedy(LongPrompt(20), 4);
  generate.stopping.ignore_eos = true;
  generate.num_sequences = 2;  // Copying a state may fail as well.
  ScoreRequest score;
  score.tokens = LongPrompt(20);
  score.top_logprobs = 1;

  int n = 1;
  bool failed_in_warm_up = false, failed_later = false;
  for (; n < 10'000; ++n) {
    auto engine = Create([n](FaultyBackend& backend) { backend.FailOperator(n); });
    if (!engine.ok()) {
      EXPECT_EQ(engine.status().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(engine.status().message()), HasSubstr("warm-up"));
      failed_in_warm_up = true;
      continue;
    }
    // Two slots: the third and fourth wait at first, or come too late.
    int errors = 0;
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (int i = 0; i < 4; ++i) {
      auto sink = std::make_shared<RecordingSink>();
      const absl::StatusOr<SequenceId> id =
          i % 2 == 0 ? (*engine)->Submit(generate, sink) : (*engine)->Submit(score, sink);
      if (id.ok()) {
        sinks.push_back(sink);
      } else {
        EXPECT_EQ(id.status().code(), absl::StatusCode::kUnavailable) << n;
        ++errors;
      }
    }
    for (const auto& sink : sinks) {
      const FinishedEvent finished = sink->WaitFinished();
      EXPECT_EQ(sink->violation(), "") << n;
      if (finished.status.ok()) continue;
      ++errors;
      EXPECT_EQ(finished.reason, FinishReason::kError);
      EXPECT_EQ(finished.status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(finished.status.message()), HasSubstr("fallen off the bus"));
    }
    ASSERT_TRUE((*engine)->WaitIdle(absl::InfiniteFuture()));
    const EngineLoad load = (*engine)->load();
    EXPECT_EQ(load.slots_used, 0) << n;
    EXPECT_EQ(load.running, 0) << n;
    EXPECT_EQ(load.waiting, 0) << n;
    EXPECT_EQ(load.healthy, errors == 0) << n;
    EXPECT_EQ(backend_->broken(), errors > 0) << n;
    if (errors == 0) break;
    failed_later = true;
    const absl::Status refused =
        (*engine)->Submit(generate, std::make_shared<RecordingSink>()).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("fallen off the bus"));
  }
  EXPECT_TRUE(failed_in_warm_up);
  EXPECT_TRUE(failed_later);
  EXPECT_LT(n, 10'000);
}

TEST_F(EngineFaultTest, WhatWasGeneratedBeforeTheFailureIsRight) {
  GenerateRequest request = Greedy(LongPrompt(20), 12);
  request.stopping.ignore_eos = true;
  auto healthy = Create([](FaultyBackend&) {});
  const Stream whole = Start(**healthy, request);
  whole.sink->WaitFinished();
  const std::vector<TokenId> expected = TokensOf(whole);

  auto engine = Create([](FaultyBackend&) {});
  int tokens = 0;
  const Stream stream = Start(**engine, request, [this, &tokens](const SequenceEvent& event) {
    if (std::holds_alternative<GeneratedEvent>(event) && ++tokens == 5) backend_->FailOperator(3);
  });
  EXPECT_EQ(stream.sink->WaitFinished().status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(TokensOf(stream), std::vector<TokenId>(expected.begin(), expected.begin() + 5));
}

}  // namespace
}  // namespace bst
