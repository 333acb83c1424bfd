// Scheduler: each rule of the policy on its own, by replaying calls.
//
// One file, though long: it mirrors one class, in the order of its policy.
#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <cstdint>
#include <ctime>
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
#include "tests/support/sanitized.h"

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
                                row.num_samples == 0   ? ""
                                : row.num_samples == 1 ? " samples"
                                                       : absl::StrCat(" samples ", row.num_samples),
                                row.keeps_logits ? " keeps" : "", row.scores ? " scores" : ""));
  }
  for (const PlannedSample& sample : plan.samples()) {
    if (!sample.kept_logits.has_value()) continue;
    rows.push_back(absl::StrCat(sample.id.value(), ": late sample of #", sample.sequence_index));
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
    case SequenceEnd::kStoppedByCaller:
      return "stopped by caller";
    case SequenceEnd::kUploadTimeout:
      return "upload timeout";
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
      case SequenceUpdate::Kind::kSequenceEnded:
        out.push_back(
            absl::StrCat(update.id.value(), "#", update.sequence_index, " ", Name(update.end)));
        break;
      case SequenceUpdate::Kind::kEnded:
        out.push_back(absl::StrCat(update.id.value(), " ended: ", Name(update.end)));
        break;
    }
  }
  return out;
}

absl::Time At(int seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

std::vector<TokenId> Numbers(int begin, int end) {
  std::vector<TokenId> tokens;
  for (int i = begin; i < end; ++i) tokens.push_back(TokenId(i));
  return tokens;
}

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
  static SequenceSpec Spec(uint64_t id, int prompt_tokens, int max_new_tokens, int num_sequences) {
    SequenceSpec spec = Spec(id, prompt_tokens, max_new_tokens);
    spec.num_sequences = num_sequences;
    return spec;
  }
  void Enqueue(uint64_t id, int prompt_tokens, int max_new_tokens, int num_sequences = 1) {
    scheduler_->Enqueue(Spec(id, prompt_tokens, max_new_tokens, num_sequences));
  }
  void EnqueueOpen(uint64_t id, int prompt_tokens, int max_new_tokens, int num_sequences = 1) {
    SequenceSpec spec = Spec(id, prompt_tokens, max_new_tokens, num_sequences);
    spec.prompt_open = true;
    scheduler_->Enqueue(std::move(spec));
  }
  StepPlan Plan(int seconds = 0) {
    updates_.clear();
    return scheduler_->Plan(At(seconds), short_step_tokens_, updates_);
  }
  // Every sample draws token 7 unless `outcome` says otherwise.
  void Commit(StepPlan plan, SampledRow outcome = {.token = TokenId(7)}) {
    const std::vector<SampledRow> sampled(plan.samples().size(), outcome);
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
  int short_step_tokens_ = std::numeric_limits<int>::max();
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

  StepPlan plan = Plan();
  EXPECT_THAT(Describe(updates_), ElementsAre("1 started"));
  EXPECT_EQ(scheduler_->num_running(), 1);
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
  EXPECT_THAT(Describe(updates_), ElementsAre("1#0 max tokens", "1 ended: max tokens"));
  EXPECT_EQ(pool_->num_free(), 2);
  EXPECT_THAT(Step(), IsEmpty());
}

TEST_F(SchedulerTest, OneNewTokenNeedsNoDecodeStep) {
  Make(1, {.max_step_tokens = 4, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 4, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4 samples"));
  EXPECT_THAT(Describe(updates_),
              ElementsAre("1 prefilled 4", "1#0 max tokens", "1 ended: max tokens"));
}

// ---- Who reads how much ----

TEST_F(SchedulerTest, DecodeRowsComeFirstAndPromptsShareTheRest) {
  Make(4, {.max_step_tokens = 17, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 2, 9);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..2 samples"));
  Enqueue(2, 20, 9);
  Enqueue(3, 20, 9);
  // 17 - 1 decode = 16: half to the one with the fewest left, of equals the oldest; what that half
  // leaves of a chunk is the oldest's, then the next one's.
  EXPECT_THAT(Step(), ElementsAre("1: decode 2..3 samples", "2: prompt 0..8", "3: prompt 0..8"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples", "2: prompt 8..16", "3: prompt 8..16"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 4..5 samples", "2: prompt 16..20 samples",
                                  "3: prompt 16..20 samples"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 5..6 samples", "2: decode 20..21 samples",
                                  "3: decode 20..21 samples"));
}

TEST_F(SchedulerTest, AShortPromptPassesALongOne) {
  Make(3, {.max_step_tokens = 16, .chunk_tokens = 16, .window = 4});
  Enqueue(1, 400, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..16"));  // Alone it has the whole step.
  Enqueue(2, 12, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 16..24", "2: prompt 0..8"));
  // The short one ends: the step is short too and passes over the long one, but not twice.
  EXPECT_THAT(Step(), ElementsAre("2: prompt 8..12 samples"));
  Enqueue(3, 4, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 24..28", "3: prompt 0..4 samples"));
  EXPECT_THAT(Step(), ElementsAre("1: prompt 28..44"));
}

TEST_F(SchedulerTest, ShortPromptsDoNotStarveALongOne) {
  Make(4, {.max_step_tokens = 16, .chunk_tokens = 8, .window = 4});
  Enqueue(1, 40, 1);
  int steps = 0;
  for (uint64_t id = 2; scheduler_->num_running() > 0 || steps == 0; ++id, ++steps) {
    if (id < 1000) Enqueue(id, 4, 1);  // One more in every step, and two after the other.
    if (id < 1000 && id % 2 == 0) Enqueue(1000 + id, 4, 1);
    Step();
    for (const SequenceUpdate& update : updates_) {
      if (update.kind == SequenceUpdate::Kind::kEnded && update.id == SequenceId(1)) return;
    }
    ASSERT_LT(steps, 20) << "a block in every second step ends 40 tokens in 20";
  }
}

TEST_F(SchedulerTest, WhereOneBlockFitsTheHalvesTakeTurns) {
  Make(2, {.max_step_tokens = 5, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 40, 1);
  Enqueue(2, 12, 1);
  std::vector<std::string> firsts;
  for (int i = 0; i < 6; ++i) {
    const std::vector<std::string> rows = Step();
    ASSERT_EQ(rows.size(), 1u);
    firsts.push_back(rows[0].substr(0, 1));
  }
  EXPECT_THAT(firsts, ElementsAre("1", "2", "1", "2", "1", "2"));
}

TEST_F(SchedulerTest, AStepThatDecodesIsKeptShort) {
  Make(3, {.max_step_tokens = 100, .chunk_tokens = 40, .window = 4});
  Enqueue(1, 2, 90);
  Step();
  Enqueue(2, 400, 1);
  short_step_tokens_ = 22;  // 21 beside the decode row, in whole blocks.
  EXPECT_THAT(Step(), ElementsAre("1: decode 2..3 samples", "2: prompt 0..20"));
  short_step_tokens_ = 1;  // A block runs nevertheless.
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples", "2: prompt 20..24"));
  scheduler_->Cancel(SequenceId(1));
  EXPECT_THAT(Step(), ElementsAre("2: prompt 24..64"));  // Nobody waits.
}

TEST_F(SchedulerTest, AStepInWhichOneOfTwoPromptsMayEndIsKeptShort) {
  Make(3, {.max_step_tokens = 100, .chunk_tokens = 40, .window = 4});
  short_step_tokens_ = 16;
  Enqueue(1, 40, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..40 samples"));  // Alone: nobody else waits.
  Enqueue(2, 400, 1);
  Enqueue(3, 8, 1);
  EXPECT_THAT(Step(), ElementsAre("3: prompt 0..8 samples"));
  EXPECT_THAT(Step(), ElementsAre("2: prompt 0..40"));
}

TEST_F(SchedulerTest, ASequenceThatReadsNothingYetTakesNoSlot) {
  Make(4, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  for (uint64_t id = 1; id <= 3; ++id) Enqueue(id, 40, 1);
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 0..4", "2: prompt 0..4"));
  EXPECT_THAT(Describe(updates_), ElementsAre("1 started", "2 started"));
  EXPECT_EQ(pool_->num_free(), 2);
  Commit(std::move(plan));
}

// ---- Who starts ----

TEST_F(SchedulerTest, PriorityIsWorthSoMuchWaiting) {
  Make(
      1,
      {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4, .priority_ageing = absl::Seconds(30)});
  const auto enqueue = [this](uint64_t id, Priority priority, int arrival) {
    SequenceSpec spec = Spec(id, 2, 1);
    spec.priority = priority;
    spec.arrival = At(arrival);
    scheduler_->Enqueue(std::move(spec));
  };
  enqueue(1, Priority::kLow, 100);
  enqueue(2, Priority::kNormal, 129);
  enqueue(3, Priority::kNormal, 131);
  enqueue(4, Priority::kHigh, 158);
  enqueue(5, Priority::kHigh, 162);
  EXPECT_EQ(scheduler_->QueuePosition(SequenceId(4)), 0);  // As if it had come at 128.
  EXPECT_EQ(scheduler_->QueuePosition(SequenceId(1)), 2);  // 130
  EXPECT_EQ(scheduler_->QueuePosition(SequenceId(5)), 4);  // 132
  std::vector<std::string> order;
  while (scheduler_->num_waiting() > 0) order.push_back(Step()[0].substr(0, 1));
  EXPECT_THAT(order, ElementsAre("4", "2", "1", "3", "5"));
}

TEST_F(SchedulerTest, PriorityHoldsAmongPromptsThatRunToo) {
  Make(2, {.max_step_tokens = 12,
           .chunk_tokens = 8,
           .window = 4,
           .priority_ageing = absl::Seconds(30)});
  Enqueue(1, 40, 1);
  Step();
  SequenceSpec spec = Spec(2, 40, 1);
  spec.priority = Priority::kHigh;
  scheduler_->Enqueue(std::move(spec));
  // 12: half, one block, to the one with fewer left, the rest to the high one.
  EXPECT_THAT(Step(), ElementsAre("2: prompt 0..8", "1: prompt 8..12"));
}

TEST_F(SchedulerTest, LongPromptsLeaveSlotsToShortOnes) {
  Make(4, {.max_step_tokens = 32,
           .chunk_tokens = 4,
           .window = 4,
           .long_prompt_tokens = 10,
           .long_slots = 2});
  for (uint64_t id = 1; id <= 3; ++id) Enqueue(id, 40, 1);
  Enqueue(4, 8, 1);  // Passes the third long one.
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4", "2: prompt 0..4", "4: prompt 0..4"));
  EXPECT_EQ(scheduler_->QueuePosition(SequenceId(3)), 0);
  scheduler_->Cancel(SequenceId(1));
  EXPECT_THAT(Step(), ElementsAre("4: prompt 4..8 samples"));
  EXPECT_THAT(Step(), ElementsAre("2: prompt 4..8", "3: prompt 0..4"));
}

TEST_F(SchedulerTest, SequencesOfALongPromptKeepToTheSlotsOfLongOnes) {
  Make(4, {.max_step_tokens = 32,
           .chunk_tokens = 40,
           .window = 4,
           .long_prompt_tokens = 10,
           .long_slots = 2});
  Enqueue(1, 20, 2, 3);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..20 samples keeps"));
  EXPECT_EQ(pool_->num_free(), 2);
  EXPECT_THAT(Step(), ElementsAre("1: decode 20..21 samples"));
  EXPECT_THAT(Step(), ElementsAre("1: late sample of #1", "1: late sample of #2"));
  EXPECT_EQ(pool_->num_free(), 2);
}

TEST_F(SchedulerTest, WhereLongPromptsMayHoldOneSlotTheirSequencesMayHaveASecond) {
  Make(4, {.max_step_tokens = 32,
           .chunk_tokens = 40,
           .window = 4,
           .long_prompt_tokens = 10,
           .long_slots = 1});
  Enqueue(1, 20, 1, 3);
  Enqueue(2, 20, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..20 samples keeps"));
  EXPECT_THAT(Step(), ElementsAre("1: late sample of #1", "1: late sample of #2"));
  EXPECT_THAT(Step(), ElementsAre("2: prompt 0..20 samples"));
}

// ---- Several sequences from one prompt ----

TEST_F(SchedulerTest, SequencesOfOnePromptStartWhenItHasBeenRead) {
  Make(4, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 9, 2, 3);
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 0..4"));
  EXPECT_EQ(pool_->num_free(), 3);
  EXPECT_EQ(scheduler_->num_running(), 1);
  EXPECT_THAT(plan.copies(), IsEmpty());
  Commit(std::move(plan));
  Step();

  plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 8..9 samples 3"));
  EXPECT_EQ(pool_->num_free(), 1);
  const SlotId reader = plan.rows()[0].row.slot;
  ASSERT_EQ(plan.copies().size(), 2u);
  for (const PlannedCopy& copy : plan.copies()) EXPECT_EQ(copy.from, reader);
  EXPECT_NE(plan.copies()[0].to, plan.copies()[1].to);
  ASSERT_EQ(plan.samples().size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(plan.samples()[static_cast<size_t>(i)].sequence_index, i);
  EXPECT_EQ(plan.samples()[2].slot, reader);
  updates_.clear();
  scheduler_->Commit(
      std::move(plan),
      {SampledRow{.token = TokenId(5)}, SampledRow{.token = TokenId(6), .ends_sequence = true},
       SampledRow{.token = TokenId(7)}},
      updates_);
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 9", "1#1 stopped"));
  EXPECT_EQ(pool_->num_free(), 2);

  plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: decode 9..10 samples", "1: decode 9..10 samples"));
  EXPECT_THAT(plan.tokens(), ElementsAre(TokenId(5), TokenId(7)));
  EXPECT_EQ(plan.rows()[1].row.slot, reader);
  Commit(std::move(plan));
  EXPECT_THAT(Describe(updates_),
              ElementsAre("1#0 max tokens", "1#2 max tokens", "1 ended: max tokens"));
  EXPECT_EQ(pool_->num_free(), 4);
}

TEST_F(SchedulerTest, SequencesThatFindNoSlotStartFromThePromptsLater) {
  Make(3, {.max_step_tokens = 16, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 100);
  Step();
  Enqueue(2, 2, 2, 3);
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(plan),
              ElementsAre("1: decode 2..3 samples", "2: prompt 0..2 samples keeps"));
  const SlotId prompt = plan.rows()[1].row.slot;
  Commit(std::move(plan));
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples", "2: decode 2..3 samples"));
  EXPECT_THAT(Describe(updates_), ElementsAre("2#0 max tokens"));

  Enqueue(3, 2, 1);  // Younger than the sequences that wait.
  plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: decode 4..5 samples", "2: late sample of #1",
                                          "2: late sample of #2"));
  ASSERT_EQ(plan.copies().size(), 1u);
  EXPECT_EQ(plan.copies()[0].from, prompt);
  EXPECT_EQ(plan.copies()[0].to, plan.samples()[1].slot);
  EXPECT_EQ(plan.samples()[2].slot, prompt);  // The last one takes it.
  for (size_t i = 1; i <= 2; ++i) EXPECT_EQ(plan.samples()[i].kept_logits, prompt);
  Commit(std::move(plan));
  EXPECT_THAT(Step(), ElementsAre("1: decode 5..6 samples", "2: decode 2..3 samples",
                                  "2: decode 2..3 samples"));
  EXPECT_THAT(Describe(updates_),
              ElementsAre("2#1 max tokens", "2#2 max tokens", "2 ended: max tokens"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 6..7 samples", "3: prompt 0..2 samples"));
  EXPECT_EQ(pool_->num_free(), 2);
}

TEST_F(SchedulerTest, ALateSampleAloneIsAStep) {
  Make(2, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 1, 2);
  EnqueueOpen(2, 2, 1);
  scheduler_->Append(SequenceId(2), Numbers(2, 6), PromptEnd::kMoreFollows, At(0));
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..2 samples 2"));
  EXPECT_THAT(Step(), ElementsAre("2: prompt 0..4"));
  Enqueue(3, 2, 1, 2);
  scheduler_->Append(SequenceId(2), {}, PromptEnd::kComplete, At(0));
  EXPECT_THAT(Step(), ElementsAre("2: prompt 4..6 samples", "3: prompt 0..2 keeps"));
  StepPlan plan = Plan();
  EXPECT_FALSE(plan.empty());
  EXPECT_THAT(Describe(plan), ElementsAre("3: late sample of #0", "3: late sample of #1"));
  Commit(std::move(plan));
  EXPECT_EQ(pool_->num_free(), 2);
}

TEST_F(SchedulerTest, LateSequencesTakeTheirTurnByAge) {
  Make(2, {.max_step_tokens = 16,
           .chunk_tokens = 4,
           .window = 4,
           .priority_ageing = absl::Seconds(30)});
  Enqueue(1, 2, 3);
  Step();
  Enqueue(2, 2, 1, 2);
  EXPECT_THAT(Step(), ElementsAre("1: decode 2..3 samples", "2: prompt 0..2 keeps"));
  SequenceSpec urgent = Spec(3, 2, 1);
  urgent.priority = Priority::kHigh;
  scheduler_->Enqueue(std::move(urgent));
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples"));
  EXPECT_THAT(Step(), ElementsAre("3: prompt 0..2 samples"));
  EXPECT_THAT(Step(), ElementsAre("2: late sample of #0", "2: late sample of #1"));
}

// Each holds one slot for its prompt: were these all, nobody could ever start a copy.
TEST_F(SchedulerTest, OneSlotIsNeverHeldByAPromptWhoseSequencesWait) {
  Make(3, {.max_step_tokens = 16, .chunk_tokens = 4, .window = 4});
  for (uint64_t id = 1; id <= 4; ++id) Enqueue(id, 8, 2, 3);
  Enqueue(5, 8, 2);  // One sequence waits for nobody.
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4", "2: prompt 0..4", "5: prompt 0..4"));
  EXPECT_EQ(scheduler_->num_waiting(), 2);
  int steps = 0;
  while (scheduler_->num_running() + scheduler_->num_waiting() > 0 && ++steps < 100) Step();
  EXPECT_LT(steps, 100);
  EXPECT_EQ(pool_->num_free(), 3);
}

TEST_F(SchedulerTest, AStopBeforeItsStartFreesWhatWasKeptForIt) {
  Make(2, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 100);
  Step();
  Enqueue(2, 2, 5, 2);
  EXPECT_THAT(Step(), ElementsAre("1: decode 2..3 samples", "2: prompt 0..2 keeps"));
  scheduler_->StopSequence(SequenceId(2), 0);  // Of the two that wait; the other takes the slot.
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples", "2: late sample of #1"));
  scheduler_->StopSequence(SequenceId(2), 1);
  Step();
  EXPECT_EQ(pool_->num_free(), 1);

  scheduler_->Cancel(SequenceId(1));
  Enqueue(3, 2, 9, 2);
  Enqueue(4, 2, 9, 2);
  Step();
  EXPECT_EQ(pool_->num_free(), 0);
  scheduler_->Cancel(SequenceId(3));
  scheduler_->Cancel(SequenceId(4));
  EXPECT_THAT(Step(), IsEmpty());
  EXPECT_EQ(pool_->num_free(), 2);
}

TEST_F(SchedulerTest, ATimeLimitEndsSequencesThatWaitForTheirSlots) {
  Make(2, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  SequenceSpec spec = Spec(1, 2, 100, 2);
  spec.finish_by = At(5);
  Enqueue(2, 2, 100);
  Step();
  scheduler_->Enqueue(std::move(spec));
  EXPECT_THAT(Step(), ElementsAre("2: decode 2..3 samples", "1: prompt 0..2 keeps"));
  Commit(Plan(5));
  EXPECT_EQ(pool_->num_free(), 1);
  EXPECT_EQ(scheduler_->num_running(), 1);
}

TEST_F(SchedulerTest, ATimeLimitKeepsWhatOneOfSeveralHasDrawn) {
  Make(3, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(2, 2, 100);
  Step();
  SequenceSpec spec = Spec(1, 2, 100, 3);
  spec.finish_by = At(5);
  scheduler_->Enqueue(std::move(spec));
  EXPECT_THAT(Step(), ElementsAre("2: decode 2..3 samples", "1: prompt 0..2 samples keeps"));
  Plan(5);
  EXPECT_THAT(Describe(updates_), ElementsAre("1#0 time limit", "1#1 time limit", "1#2 time limit",
                                              "1 ended: time limit"));
  EXPECT_EQ(pool_->num_free(), 2);
}

// Nobody waits for such a step: there is nothing that a short one would bring sooner.
TEST_F(SchedulerTest, ContinuationsWithoutASlotKeepNoStepShort) {
  Make(2, {.max_step_tokens = 16,
           .chunk_tokens = 8,
           .window = 4,
           .priority_ageing = absl::Seconds(30)});
  Enqueue(1, 2, 2);
  Step();
  Enqueue(2, 2, 1, 2);
  EXPECT_THAT(Step(), ElementsAre("1: decode 2..3 samples", "2: prompt 0..2 keeps"));
  SequenceSpec urgent = Spec(3, 40, 1);
  urgent.priority = Priority::kHigh;
  scheduler_->Enqueue(std::move(urgent));
  short_step_tokens_ = 4;
  EXPECT_THAT(Step(), ElementsAre("3: prompt 0..8"));
}

TEST_F(SchedulerTest, SlotsForCopiesWaitForTheLastChunk) {
  Make(4, {.max_step_tokens = 32, .chunk_tokens = 16, .window = 4});
  Enqueue(1, 2, 100);
  Step();
  short_step_tokens_ = 5;  // Beside the stream four tokens of prompts.
  Enqueue(2, 12, 1, 3);
  Enqueue(3, 100, 1);
  Enqueue(4, 100, 1);
  EXPECT_THAT(Step(), ElementsAre("1: decode 2..3 samples", "2: prompt 0..4"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 3..4 samples", "2: prompt 4..8"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 4..5 samples", "2: prompt 8..12 samples 3"));
}

TEST_F(SchedulerTest, AStoppedSequenceLeavesTheOthersTheirSlots) {
  Make(3, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 6, 9, 3);
  scheduler_->StopSequence(SequenceId(1), 2);  // In the queue,
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(updates_), ElementsAre("1#2 stopped by caller", "1 started"));
  const SlotId reader = plan.rows()[0].row.slot;
  Commit(std::move(plan));
  scheduler_->StopSequence(SequenceId(1), 0);  // in the prompt,
  scheduler_->StopSequence(SequenceId(1), 7);
  plan = Plan();
  EXPECT_THAT(Describe(updates_), ElementsAre("1#0 stopped by caller"));
  EXPECT_EQ(plan.rows()[0].row.slot, reader);
  EXPECT_THAT(plan.copies(), IsEmpty());
  EXPECT_EQ(plan.samples()[0].sequence_index, 1);
  EXPECT_EQ(pool_->num_free(), 2);
  Commit(std::move(plan));
  scheduler_->StopSequence(SequenceId(1), 1);  // and while it decodes.
  EXPECT_THAT(Step(), IsEmpty());
  EXPECT_EQ(pool_->num_free(), 3);
  EXPECT_EQ(scheduler_->num_running(), 0);
}

TEST_F(SchedulerTest, AFailedSequenceEndsThoseOfItsRequest) {
  Make(3, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 9, 3);
  Step();
  updates_.clear();
  std::vector<SequenceUpdate> of_plan;
  scheduler_->Commit(scheduler_->Plan(At(0), 100, of_plan),
                     {SampledRow{.ends_sequence = true}, SampledRow{.failed = true},
                      SampledRow{.ends_sequence = true}},
                     updates_);
  EXPECT_THAT(Describe(updates_), ElementsAre("1#0 stopped", "1 ended: failed"));
  EXPECT_EQ(pool_->num_free(), 3);
}

// ---- Open prompts ----

TEST_F(SchedulerTest, AnOpenPromptIsReadByWholeBlocksAndNeverToItsEnd) {
  Make(2, {.max_step_tokens = 16, .chunk_tokens = 8, .window = 4});
  EnqueueOpen(1, 0, 5);
  EXPECT_THAT(Step(), IsEmpty());
  EXPECT_EQ(pool_->num_free(), 2);
  scheduler_->Append(SequenceId(1), Numbers(0, 4), PromptEnd::kMoreFollows, At(0));
  EXPECT_THAT(Step(), IsEmpty());  // The fourth may be the last: its logits would be wanted.
  EXPECT_EQ(pool_->num_free(), 2);
  scheduler_->Append(SequenceId(1), Numbers(4, 5), PromptEnd::kMoreFollows, At(0));
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4"));
  scheduler_->Append(SequenceId(1), Numbers(5, 18), PromptEnd::kMoreFollows, At(0));
  EXPECT_THAT(Step(), ElementsAre("1: prompt 4..12"));
  EXPECT_THAT(Step(), ElementsAre("1: prompt 12..16"));
  EXPECT_THAT(Step(), IsEmpty());
  scheduler_->Append(SequenceId(1), {}, PromptEnd::kComplete, At(0));
  StepPlan plan = Plan();
  EXPECT_THAT(Describe(plan), ElementsAre("1: prompt 16..18 samples"));
  EXPECT_THAT(plan.tokens(), ElementsAre(TokenId(16), TokenId(17)));
  Commit(std::move(plan));
  EXPECT_THAT(Step(), ElementsAre("1: decode 18..19 samples"));
}

TEST_F(SchedulerTest, AnOpenPromptThatNothingComesOfEnds) {
  Make(
      2,
      {.max_step_tokens = 16, .chunk_tokens = 8, .window = 4, .upload_timeout = absl::Seconds(60)});
  SequenceSpec spec = Spec(1, 0, 5);
  spec.prompt_open = true;
  spec.arrival = At(100);
  scheduler_->Enqueue(std::move(spec));
  EXPECT_EQ(scheduler_->next_deadline(), At(160));
  scheduler_->Append(SequenceId(1), Numbers(0, 9), PromptEnd::kMoreFollows, At(150));
  EXPECT_EQ(scheduler_->next_deadline(), absl::InfiniteFuture());  // Now it waits for us.
  EXPECT_THAT(Step(500), ElementsAre("1: prompt 0..8"));
  EXPECT_THAT(Step(510), IsEmpty());
  EXPECT_EQ(scheduler_->next_deadline(), At(570));
  scheduler_->Append(SequenceId(1), Numbers(9, 10), PromptEnd::kMoreFollows, At(560));
  EXPECT_EQ(scheduler_->next_deadline(), At(570));  // Less than a block buys no time.
  scheduler_->Append(SequenceId(1), {}, PromptEnd::kMoreFollows, At(565));
  EXPECT_EQ(scheduler_->next_deadline(), At(625));  // But a sign of life does.
  StepPlan plan = Plan(625);
  EXPECT_THAT(Describe(updates_), ElementsAre("1 ended: upload timeout"));
  EXPECT_EQ(pool_->num_free(), 2);
  Commit(std::move(plan));
}

TEST_F(SchedulerTest, NoSlotIsKeptForOneThatWaitsForOpenPrompts) {
  Make(3, {.max_step_tokens = 32, .chunk_tokens = 8, .window = 4});
  EnqueueOpen(1, 6, 1);
  EnqueueOpen(2, 6, 1);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4", "2: prompt 0..4"));
  Enqueue(3, 2, 1, 2);   // With it all slots would wait, for clients or for one another;
  EnqueueOpen(4, 6, 1);  // and it would never start if others came before it.
  Enqueue(5, 2, 1);
  EXPECT_THAT(Step(), ElementsAre("5: prompt 0..2 samples"));
  EXPECT_THAT(Step(), IsEmpty());
  scheduler_->Append(SequenceId(1), {}, PromptEnd::kComplete, At(0));
  EXPECT_THAT(Step(), ElementsAre("1: prompt 4..6 samples", "3: prompt 0..2 keeps"));
  EXPECT_THAT(Step(), ElementsAre("3: late sample of #0", "3: late sample of #1"));
  EXPECT_THAT(Step(), ElementsAre("4: prompt 0..4"));
}

TEST_F(SchedulerTest, LongPromptsPassUploadsThatMayNotStart) {
  Make(3, {.max_step_tokens = 32,
           .chunk_tokens = 8,
           .window = 4,
           .long_prompt_tokens = 10,
           .long_slots = 3});
  EnqueueOpen(1, 6, 1);
  EnqueueOpen(2, 6, 1, 2);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4", "2: prompt 0..4"));
  EnqueueOpen(3, 6, 1);
  Enqueue(4, 12, 1);
  EXPECT_THAT(Step(), ElementsAre("4: prompt 0..8"));
}

TEST_F(SchedulerTest, AnOpenPromptCountsAsLongUntilItIsComplete) {
  Make(4, {.max_step_tokens = 32,
           .chunk_tokens = 8,
           .window = 4,
           .long_prompt_tokens = 100,
           .long_slots = 1});
  for (uint64_t id = 1; id <= 2; ++id) EnqueueOpen(id, 6, 5);
  EXPECT_THAT(Step(), ElementsAre("1: prompt 0..4"));
  scheduler_->Append(SequenceId(1), {}, PromptEnd::kComplete, At(0));
  EXPECT_THAT(Step(), ElementsAre("1: prompt 4..6 samples"));
  EXPECT_THAT(Step(), ElementsAre("1: decode 6..7 samples", "2: prompt 0..4"));
}

TEST_F(SchedulerTest, WhatHasBeenReadOfAnOpenPromptIsDropped) {
  Make(1, {.max_step_tokens = 16, .chunk_tokens = 16, .window = 4});
  EnqueueOpen(1, 0, 1);
  std::vector<TokenId> read;
  for (int i = 0; i < 100; ++i) {
    scheduler_->Append(SequenceId(1), Numbers(7 * i, 7 * i + 7),
                       i == 99 ? PromptEnd::kComplete : PromptEnd::kMoreFollows, At(0));
    StepPlan plan = Plan();
    read.insert(read.end(), plan.tokens().begin(), plan.tokens().end());
    Commit(std::move(plan));
  }
  EXPECT_EQ(read, Numbers(0, 700));
}

// ---- Slots, ends, deadlines ----

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
  scheduler_->Enqueue(std::move(spec));
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
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 2", "1#0 stopped", "1 ended: stopped"));
  EXPECT_EQ(pool_->num_free(), 1);
}

TEST_F(SchedulerTest, AnEndingTokenThatIsTheLastAllowedCountsAsStopped) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 1);
  Commit(Plan(), {.token = TokenId(0), .ends_sequence = true});
  EXPECT_THAT(Describe(updates_), ElementsAre("1 prefilled 2", "1#0 stopped", "1 ended: stopped"));
}

TEST_F(SchedulerTest, AFailedRowEndsItsSequenceAlone) {
  Make(2, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 5);
  Enqueue(2, 2, 5);
  updates_.clear();
  scheduler_->Commit(Plan(), {SampledRow{.failed = true}, SampledRow{.token = TokenId(3)}},
                     updates_);
  EXPECT_THAT(Describe(updates_), ElementsAre("1 started", "2 started", "1 prefilled 2",
                                              "2 prefilled 2", "1 ended: failed"));
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
  EXPECT_THAT(Describe(updates_),
              ElementsAre("1 prefilled 2", "1#0 max tokens", "1 ended: max tokens"));
  plan = Plan();
  EXPECT_THAT(updates_, IsEmpty());
}

TEST_F(SchedulerTest, StartTimeoutCountsOnlyUntilTheStart) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  for (uint64_t id : {1, 2}) {
    SequenceSpec spec = Spec(id, 2, 5);
    spec.start_by = At(10);
    scheduler_->Enqueue(std::move(spec));
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
    scheduler_->Enqueue(std::move(spec));
  }
  Step(9);
  EXPECT_TRUE(Plan(11).empty());
  EXPECT_THAT(Describe(updates_),
              ElementsAre("1#0 time limit", "1 ended: time limit", "2 ended: time limit"));
  EXPECT_EQ(pool_->num_free(), 1);
}

TEST_F(SchedulerTest, TheEarlierDeadlineOfAWaitingSequenceDecides) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  SequenceSpec spec = Spec(1, 2, 50);
  spec.start_by = At(5);
  spec.finish_by = At(4);
  scheduler_->Enqueue(std::move(spec));
  EXPECT_TRUE(Plan(6).empty());
  EXPECT_THAT(Describe(updates_), ElementsAre("1 ended: time limit"));
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

// Eight times the sequences of one request take eight times as long, not sixty-four times: neither
// a step of them all nor the one in which all of them end.
TEST_F(SchedulerTest, AStepIsLinearInTheSequencesOfARequest) {
  if (kSanitized) GTEST_SKIP() << "times under a sanitizer say nothing of others";
  const auto seconds_of = [this](int sequences) {
    Make(sequences, {.max_step_tokens = sequences + 4, .chunk_tokens = 4, .window = 4});
    Enqueue(1, 4, 4, sequences);
    Step();
    const std::clock_t begin = std::clock();
    for (int step = 0; step < 3; ++step) Step();
    const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    EXPECT_EQ(updates_.size(), static_cast<size_t>(sequences) + 1);
    EXPECT_EQ(scheduler_->num_running(), 0);
    return seconds;
  };
  // Another process may slow some of them down, hardly all.
  double few = seconds_of(4'000), many = seconds_of(32'000);
  for (int i = 0; i < 4; ++i) {
    few = std::min(few, seconds_of(4'000));
    many = std::min(many, seconds_of(32'000));
  }
  EXPECT_LT(many, 24 * few);
}

TEST_F(SchedulerTest, MisuseOfTheProtocolIsABug) {
  Make(1, {.max_step_tokens = 8, .chunk_tokens = 4, .window = 4});
  Enqueue(1, 2, 5);
  EXPECT_DEATH(Enqueue(1, 2, 5), "is here already");
  EXPECT_DEATH(scheduler_->Enqueue(Spec(2, 0, 5)), "has no prompt");
  StepPlan plan = Plan();
  EXPECT_DEATH(Plan(), "was not committed");
  EXPECT_DEATH(scheduler_->Commit(std::move(plan), {}, updates_), "0 outcomes for 1 samples");
}

TEST_F(SchedulerTest, LimitsThatCouldStarvePromptsAreABug) {
  EXPECT_DEATH(Make(3, {.max_step_tokens = 5, .chunk_tokens = 4, .window = 4}),
               "max_step_tokens is 5");
  EXPECT_DEATH(Make(1, {.max_step_tokens = 8, .chunk_tokens = 6, .window = 4}),
               "chunk_tokens is 6");
}

}  // namespace
}  // namespace bst
