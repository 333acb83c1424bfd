// Scheduler: each rule of the policy on its own, by replaying calls.
#include "engine/scheduler/scheduler.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/reference/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// "3: prompt 0..8" and the like, so that expectations read as the plan would be told.
std::vector<std::string> Describe(const StepPlan& plan) {
  std::vector<std::string> rows;
  for (const PlannedRow& row : plan.rows()) {
    rows.push_back(absl::StrCat(row.id.value(), row.is_prompt ? ": prompt " : ": decode ",
                                row.row.position, "..", row.row.position + row.row.num_tokens(),
                                row.samples ? " samples" : "", row.scores ? " scores" : ""));
  }
  return rows;
}

std::string Name(SequenceEnd end) {
  switch (end) {
    case SequenceEnd::kMaxTokens:
      return "max tokens";
    case SequenceEnd::kCancelled:
      return "cancelled";
    case SequenceEnd::kStartTimeout:
      return "start timeout";
    case SequenceEnd::kTimeLimit:
      return "time limit";
    case SequenceEnd::kScored:
      return "scored";
    case SequenceEnd::kStopped:
      return "stopped";
    case SequenceEnd::kFailed:
      return "failed";
  }
  return "?";
}

std::vector<std::string> Describe(const std::vector<SequenceUpdate>& updates) {
  std::vector<std::string> out;
  for (const SequenceUpdate& update : updates) {
    switch (update.kind) {
      case SequenceUpdate::Kind::kStarted:
        out.push_back(absl::StrCat(update.id.value(), " started"));
        break;
      case SequenceUpdate::Kind::kPrefilled:
        out.push_back(absl::StrCat(update.id.value(), " prefilled ", update.prompt_tokens_done));
        break;
      case SequenceUpdate::Kind::kEnded:
        out.push_back(absl::StrCat(update.id.value(), " ended: ", Name(update.end)));
        break;
    }
  }
  return out;
}

absl::Time At(int seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

class SchedulerTest : public testing::Test {
 protected:
  void Make(int num_slots, const SchedulerLimits& limits) {
    StateLayout layout;
    layout.Add({"state", 8});
    auto pool = StatePool::Create(*backend_, layout, num_slots);
    ASSERT_TRUE(pool.ok());
    pool_ = *std::move(pool);
    scheduler_ = std::make_unique<Scheduler>(limits, *pool_);
  }

  // Token i of sequence `id` is 1000 id + i.
  static SequenceSpec Spec(uint64_t id, int prompt_tokens, int max_new_tokens) {
    SequenceSpec spec;
    spec.id = SequenceId(id);
    for (int i = 0; i < prompt_tokens; ++i)
      spec.prompt.push_back(TokenId(static_cast<int32_t>(id) * 1000 + i));
    spec.max_new_tokens = max_new_tokens;
    return spec;
  }
  void Enqueue(uint64_t id, int prompt_tokens, int max_new_tokens) {
    const absl::Status status = scheduler_->Enqueue(Spec(id, prompt_tokens, max_new_tokens));
    ASSERT_TRUE(status.ok()) << status;
  }
  StepPlan Plan(int seconds = 0) {
    updates_.clear();
    return scheduler_->Plan(At(seconds), updates_);
  }
  // Every sampled row draws token 7 unless `outcome` says otherwise.
  void Commit(StepPlan plan, SampledRow outcome = {.token = TokenId(7)}) {
    std::vector<SampledRow> sampled;
    for (const PlannedRow& row : plan.rows()) {
      if (row.samples) sampled.push_back(outcome);
    }
    updates_.clear();
    scheduler_->Commit(std::move(plan), sampled, updates_);
  }
  std::vector<std::string> Step(int seconds = 0) {
    StepPlan plan = Plan(seconds);
    std::vector<std::string> rows = Describe(plan);
    Commit(std::move(plan));
    return rows;
  }

  std::unique_ptr<Backend> backend_ = MakeReferenceBackend();
  std::unique_ptr<StatePool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<SequenceUpdate> updates_;
};

TEST_F(SchedulerTest, NothingToDoIsAnEmptyPlan) {
  Make(2, {.max_step_tokens = 16, .chunk_tokens = 8, .window = 4});
  StepPlan plan = Plan();
  EXPECT_TRUE(plan.empty());
  EXPECT_THAT(plan.tokens(), IsEmpty());
  Commit(std::move(plan));
  EXPECT_THAT(updates_, IsEmpty());
}

TEST_F(SchedulerTest, APromptIsReadInChunksThenOneTokenPerStep) {
  Make(2, {.max_step_tokens = 16, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 19, 3);
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  EXPECT_EQ(scheduler_->waiting_tokens(), 19);

  StepPlan plan = Plan();
  EXPECT_THAT(Describe(updates_), ElementsAre("1 started"));
  EXPECT_EQ(scheduler_->num_running(), 1);
  EXPECT_EQ(scheduler_->waiting_tokens(), 0);
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 0..8"));
  EXPECT_EQ(plan.tokens().front(), TokenId(1000));
  EXPECT_EQ(plan.tokens().back(), TokenId(1007));
  EXPECT_EQ(plan.rows()[0].following, TokenId(1008));
  Commit(std::move(plan));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 8"));

  EXPECT_THAT(Step(), ElementsAre("1: prompt 8..16"));
  plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 16..19 samples"));
  EXPECT_EQ(plan.rows()[0].following, std::nullopt);
  Commit(std::move(plan), {.token = TokenId(42)});
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 19"));

  plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: decode 19..20 samples"));
  EXPECT_THAT(plan.tokens(), ElementsAre(TokenId(42)));
  Commit(std::move(plan), {.token = TokenId(43)});
  plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: decode 20..21 samples"));
  EXPECT_THAT(plan.tokens(), ElementsAre(TokenId(43)));
  Commit(std::move(plan));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 ended: max tokens"));
  EXPECT_EQ(pool_->num_free(), 2);
  EXPECT_THAT(Step(), IsEmpty());
}

TEST_F(SchedulerTest, OneNewTokenNeedsNoDecodeStep) {
  Make(1, {.max_step_tokens = 4, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 4, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4 samples"));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 4", "1 ended: max tokens"));
}

TEST_F(SchedulerTest, DecodeRowsComeFirstAndPromptsShareTheRestOldestFirst) {
  Make(4, {.max_step_tokens = 15, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 2, 9);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..2 samples"));
  Enqueue(2, 12, 9);
  Enqueue(3, 12, 9);
  // 15 - 1 decode = 14: a chunk of 8, then 6 left, which is one block of 4.
  EXPECT_THAT(Step(), ElementsAre("1: decode 2..3 samples", "2: prompt 0..8", "3: prompt 0..4"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples", "2: prompt 8..12 samples",
                                  "3: prompt 4..12 samples"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 4..5 samples", "2: decode 12..13 samples",
                                  "3: decode 12..13 samples"));
}

TEST_F(SchedulerTest, ASequenceWhoseFirstChunkDoesNotFitTakesNoSlot) {
  Make(3, {.max_step_tokens = 10, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 24, 1);
  Enqueue(2, 6, 1);
  // 2 could take no block of 4 in the 2 tokens left, and does not start.
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 0..8"));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 started"));
  EXPECT_EQ(pool_->num_free(), 2);
  Commit(std::move(plan));
}

TEST_F(SchedulerTest, AShortPromptFillsWhatIsLeft) {
  Make(4, {.max_step_tokens = 14, .chunk_tokens = 4, .window = 4});
  for (uint64_t id = 1; id <= 3; ++id) Enqueue(id, 40, 1);
  Enqueue(4, 2, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4", "2: prompt 0..4", "3: prompt 0..4",
                                  "4: prompt 0..2 samples"));
}

TEST_F(SchedulerTest, AWaitingSequenceLetsNobodyPass) {
  Make(4, {.max_step_tokens = 10, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 40, 1);
  Enqueue(2, 40, 1);
  Enqueue(3, 1, 1);  // Would fit, but 2 came first.
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..8"));
}

TEST_F(SchedulerTest, PromptsAdvanceBesideAsManyDecodeRowsAsThereCanBe) {
  Make(4, {.max_step_tokens = 7, .chunk_tokens = 4, .window = 4});
  for (uint64_t id = 1; id <= 3; ++id) Enqueue(id, 1, 100);
  EXPECT_EQ(Step().size(), 3u);
  Enqueue(4, 12, 1);
  for (const char* chunk : {"4: prompt 0..4", "4: prompt 4..8", "4: prompt 8..12 samples"}) {
    const std::vector<std::string> rows = Step();
    ASSERT_EQ(rows.size(), 4u);
    EXPECT_EQ(rows.back(), chunk);
  }
}

TEST_F(SchedulerTest, SequencesStartInOrderWhenASlotIsFree) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 3, 2);
  Enqueue(2, 3, 1);
  Enqueue(3, 3, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..3 samples"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples"));
  EXPECT_THAT(Step(), ElementsAre("2: prompt 0..3 samples"));
  EXPECT_THAT(Step(), ElementsAre("3: prompt 0..3 samples"));
  EXPECT_THAT(Step(), IsEmpty());
}

TEST_F(SchedulerTest, ScoringRowsSampleNothingAndEndWithThePrompt) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  SequenceSpec spec = Spec(1, 6, 0);
  spec.logits_everywhere = true;
  ASSERT_TRUE(scheduler_->Enqueue(std::move(spec)).ok());
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 0..4 scores"));
  EXPECT_EQ(plan.rows()[0].following, TokenId(1004));
  Commit(std::move(plan));
  plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 4..6 scores"));
  EXPECT_EQ(plan.rows()[0].following, std::nullopt);
  Commit(std::move(plan));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 6", "1 ended: scored"));
}

TEST_F(SchedulerTest, AnEndingTokenEndsTheSequence) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 5);
  Commit(Plan(), {.token = TokenId(0), .ends_sequence = true});
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 2", "1 ended: stopped"));
  EXPECT_EQ(pool_->num_free(), 1);
}

TEST_F(SchedulerTest, AnEndingTokenThatIsTheLastAllowedCountsAsStopped) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 1);
  Commit(Plan(), {.token = TokenId(0), .ends_sequence = true});
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 2", "1 ended: stopped"));
}

TEST_F(SchedulerTest, AFailedRowEndsItsSequenceAlone) {
  Make(2, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 5);
  Enqueue(2, 2, 5);
  updates_.clear();
  scheduler_->Commit(Plan(), {SampledRow{.failed = true}, SampledRow{.token = TokenId(3)}},
                     updates_);
  EXPECT_THAT(Describe(updates_), ElementsAre("1 started", "2 started", "1 prefilled 2",
                                              "1 ended: failed", "2 prefilled 2"));
  EXPECT_THAT(Step(), ElementsAre("2: decode 2..3 samples"));
}

TEST_F(SchedulerTest, CancelEndsAtTheNextPlanInEveryStage) {
  Make(2, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 50);
  Step();  // 1 decodes
  Enqueue(2, 20, 5);
  Step();            // 2 is in its prompt
  Enqueue(3, 2, 5);  // 3 waits
  for (uint64_t id : {3, 2, 1, 1, 99}) scheduler_->Cancel(SequenceId(id));
  const StepPlan plan = Plan();
  EXPECT_TRUE(plan.empty());
  EXPECT_THAT(Describe(updates_),
              ElementsAre("3 ended: cancelled", "2 ended: cancelled", "1 ended: cancelled"));
  EXPECT_EQ(pool_->num_free(), 2);
  EXPECT_EQ(scheduler_->num_running(), 0);
  EXPECT_EQ(scheduler_->num_waiting(), 0);
  EXPECT_EQ(scheduler_->waiting_tokens(), 0);
}

TEST_F(SchedulerTest, ASlotFreedByCancelIsUsedInTheSamePlan) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 20, 5);
  Step();
  Enqueue(2, 2, 5);
  scheduler_->Cancel(SequenceId(1));
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(updates_), ElementsAre("1 ended: cancelled", "2 started"));
  EXPECT_THAT(Describe(plan), ElementsAre("2: prompt 0..2 samples"));
  Commit(std::move(plan));
}

TEST_F(SchedulerTest, CancelDuringAStepTakesEffectAfterIt) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 5);
  StepPlan plan = Plan();
  scheduler_->Cancel(SequenceId(1));
  Commit(std::move(plan));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 2"));
  EXPECT_THAT(Step(), IsEmpty());
  EXPECT_EQ(pool_->num_free(), 1);
}

TEST_F(SchedulerTest, ASequenceThatEndsInTheStepIsNotCancelledAfterwards) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 1);
  StepPlan plan = Plan();
  scheduler_->Cancel(SequenceId(1));
  Commit(std::move(plan));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 2", "1 ended: max tokens"));
  plan = Plan();
  EXPECT_THAT(updates_, IsEmpty());
}

TEST_F(SchedulerTest, StartTimeoutCountsOnlyUntilTheStart) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  for (uint64_t id : {1, 2}) {
    SequenceSpec spec = Spec(id, 2, 5);
    spec.start_by = At(10);
    ASSERT_TRUE(scheduler_->Enqueue(std::move(spec)).ok());
  }
  Step(9);
  StepPlan plan = Plan(10);
  EXPECT_THAT(Describe(updates_), ElementsAre("2 ended: start timeout"));
  EXPECT_THAT(Describe(plan), ElementsAre("1: decode 2..3 samples"));
  Commit(std::move(plan));
}

TEST_F(SchedulerTest, TimeLimitEndsWaitingAndRunningSequences) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  for (uint64_t id : {1, 2}) {
    SequenceSpec spec = Spec(id, 2, 50);
    spec.finish_by = At(10);
    ASSERT_TRUE(scheduler_->Enqueue(std::move(spec)).ok());
  }
  Step(9);
  EXPECT_TRUE(Plan(11).empty());
  EXPECT_THAT(Describe(updates_), ElementsAre("1 ended: time limit", "2 ended: time limit"));
  EXPECT_EQ(pool_->num_free(), 1);
}

TEST_F(SchedulerTest, TheEarlierDeadlineOfAWaitingSequenceDecides) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  SequenceSpec spec = Spec(1, 2, 50);
  spec.start_by = At(5);
  spec.finish_by = At(4);
  ASSERT_TRUE(scheduler_->Enqueue(std::move(spec)).ok());
  EXPECT_TRUE(Plan(6).empty());
  EXPECT_THAT(Describe(updates_), ElementsAre("1 ended: time limit"));
}

TEST_F(SchedulerTest, TheQueueIsBoundedInSequences) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4, .max_waiting = 2});
  Enqueue(1, 1, 1);
  Enqueue(2, 1, 1);
  const absl::Status status = scheduler_->Enqueue(Spec(3, 1, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("limit 2"));
  Step();
  Enqueue(3, 1, 1);
}

TEST_F(SchedulerTest, TheQueueIsBoundedInTokensButAnEmptyOneTakesAnyPrompt) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4, .max_waiting_tokens = 10});
  Enqueue(1, 11, 1);
  EXPECT_EQ(scheduler_->Enqueue(Spec(2, 1, 1)).code(), absl::StatusCode::kResourceExhausted);
  scheduler_->Cancel(SequenceId(1));
  Step();
  Enqueue(3, 9, 1);
  Enqueue(4, 1, 1);
  EXPECT_EQ(scheduler_->Enqueue(Spec(5, 1, 1)).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SchedulerTest, ThePlansMemoryIsReused) {
  Make(2, {.max_step_tokens = 16, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 8, 100);
  Enqueue(2, 8, 100);
  Step();
  StepPlan plan = Plan();
  const TokenId* tokens = plan.tokens().data();
  const PlannedRow* rows = plan.rows().data();
  Commit(std::move(plan));
  plan = Plan();
  EXPECT_EQ(plan.tokens().data(), tokens);
  EXPECT_EQ(plan.rows().data(), rows);
  Commit(std::move(plan));
}

TEST_F(SchedulerTest, MisuseOfTheProtocolIsABug) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 5);
  EXPECT_DEATH(Enqueue(1, 2, 5), "is here already");
  EXPECT_DEATH((void)scheduler_->Enqueue(Spec(2, 0, 5)), "has no prompt");
  StepPlan plan = Plan();
  EXPECT_DEATH(Plan(), "was not committed");
  EXPECT_DEATH(scheduler_->Commit(std::move(plan), {}, updates_), "only 0 outcomes");
}

TEST_F(SchedulerTest, LimitsThatCouldStarvePromptsAreABug) {
  EXPECT_DEATH(Make(3, {.max_step_tokens = 5, .chunk_tokens = 4, .window = 4}),
               "max_step_tokens is 5");
  EXPECT_DEATH(Make(1, {.max_step_tokens = 8, .chunk_tokens = 6, .window = 4}),
               "chunk_tokens is 6");
}

}  // namespace
}  // namespace bst
