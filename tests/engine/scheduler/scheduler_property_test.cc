// Scheduler under random calls, against a naive model that remembers everything. A failure prints
// the calls that led to it.
//
// Held after every call: each prompt token is fed exactly once and in order; chunks start where the
// prompt stands and end at a multiple of window or at its end; every decoding sequence gets one
// token per step; sequences start in order of arrival; a prompt that has started advances in every
// step; no room for another chunk is left unused; slots are neither shared nor leaked; nothing
// comes after an end.
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/reference/reference_backend.h"
#include "engine/scheduler/scheduler.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

absl::Time At(int64_t seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

// What the naive model knows of a sequence.
struct Known {
  std::vector<TokenId> prompt;
  int max_new_tokens = 0;
  bool scores = false;
  int64_t start_by = 0;  // seconds; 0: never
  int64_t finish_by = 0;
  int64_t fed = 0;  // prompt tokens
  std::vector<TokenId> drawn;
  bool started = false;
  bool cancelled = false;
  std::optional<SequenceEnd> ended;

  int64_t left() const { return static_cast<int64_t>(prompt.size()) - fed; }
  bool decodes() const { return started && left() == 0; }
};

class Replay {
 public:
  explicit Replay(uint32_t seed) : random_(seed) {
    limits_.window = 1 + Below(6);
    limits_.chunk_tokens = limits_.window * (1 + Below(4));
    slots_ = 1 + Below(8);
    limits_.max_step_tokens = limits_.window + slots_ - 1 + Below(6 * limits_.window);
    limits_.max_waiting = 1 + Below(8);
    limits_.max_waiting_tokens = 10 + Below(100);
    log_ = absl::StrCat("seed ", seed, " window ", limits_.window, " chunk ", limits_.chunk_tokens,
                        " slots ", slots_, " step ", limits_.max_step_tokens, " waiting ",
                        limits_.max_waiting, "/", limits_.max_waiting_tokens, "\n");
    StateLayout layout;
    layout.Add({"state", 8});
    pool_ = *StatePool::Create(*backend_, layout, slots_);
    scheduler_ = std::make_unique<Scheduler>(limits_, *pool_);
  }

  // Empty if all went well.
  std::string Run(int calls) {
    for (int call = 0; call < calls && error_.empty(); ++call) {
      switch (Below(6)) {
        case 0:
        case 1:
          Enqueue();
          break;
        case 2:
          CancelOne();
          break;
        default:
          Step();
          break;
      }
    }
    // Everything comes to an end when nothing new arrives.
    for (int step = 0; step < 2000 && error_.empty() && !Live().empty(); ++step) Step();
    Expect(Live().empty(), "sequences never ended");
    Expect(pool_->num_free() == slots_, "slots leaked");
    return error_.empty() ? "" : log_ + error_;
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  template <typename... Parts>
  void Expect(bool condition, const Parts&... parts) {
    if (!condition && error_.empty()) error_ = absl::StrCat("FAILED: ", parts...);
  }

  // Sequences that have not ended, in order of arrival (ids ascend).
  std::vector<Known*> Live() {
    std::vector<Known*> live;
    for (auto& [id, known] : known_) {
      if (!known.ended.has_value()) live.push_back(&known);
    }
    return live;
  }
  std::vector<Known*> Waiting() {
    std::vector<Known*> waiting;
    for (Known* known : Live()) {
      if (!known->started) waiting.push_back(known);
    }
    return waiting;
  }
  int64_t WaitingTokens() {
    int64_t tokens = 0;
    for (const Known* known : Waiting()) tokens += static_cast<int64_t>(known->prompt.size());
    return tokens;
  }

  void Enqueue() {
    const uint64_t id = ++last_id_;
    Known known;
    const int length = 1 + Below(Below(3) == 0 ? 60 : 12);
    for (int i = 0; i < length; ++i) known.prompt.push_back(TokenId(Below(1000)));
    known.max_new_tokens = Below(6);
    known.scores = known.max_new_tokens == 0;
    if (Below(4) == 0) known.start_by = now_ + Below(4);
    if (Below(4) == 0) known.finish_by = now_ + Below(12);
    absl::StrAppend(&log_, "enqueue ", id, " prompt ", length, " new ", known.max_new_tokens,
                    " start_by ", known.start_by, " finish_by ", known.finish_by, "\n");
    SequenceSpec spec;
    spec.id = SequenceId(id);
    spec.prompt = known.prompt;
    spec.max_new_tokens = known.max_new_tokens;
    spec.logits_everywhere = known.scores;
    if (known.start_by != 0) spec.start_by = At(known.start_by);
    if (known.finish_by != 0) spec.finish_by = At(known.finish_by);
    const bool full =
        static_cast<int>(Waiting().size()) >= limits_.max_waiting ||
        (WaitingTokens() > 0 && WaitingTokens() + length > limits_.max_waiting_tokens);
    const absl::Status status = scheduler_->Enqueue(std::move(spec));
    Expect(status.ok() == !full, "enqueue: ", status.ToString());
    if (status.ok()) known_.emplace(id, std::move(known));
    Counters();
  }

  void CancelOne() {
    const uint64_t id = 1 + static_cast<uint64_t>(Below(static_cast<int>(last_id_) + 2));
    absl::StrAppend(&log_, "cancel ", id, "\n");
    scheduler_->Cancel(SequenceId(id));
    const auto it = known_.find(id);
    if (it != known_.end() && !it->second.ended.has_value()) it->second.cancelled = true;
  }

  void Step() {
    now_ += Below(2);
    std::vector<SequenceUpdate> updates;
    StepPlan plan = scheduler_->Plan(At(now_), updates);
    absl::StrAppend(&log_, "plan at ", now_, ":");
    for (const PlannedRow& row : plan.rows()) {
      absl::StrAppend(&log_, " ", row.id.value(), "[", row.row.position, "+", row.row.num_tokens(),
                      "]");
    }
    absl::StrAppend(&log_, "\n");
    UpdatesOfPlan(updates);
    CheckPlan(plan);
    Counters();
    if (!error_.empty()) return;
    if (Below(8) == 0) CancelOne();

    std::vector<SampledRow> sampled;
    std::vector<SequenceUpdate> expected;
    for (const PlannedRow& row : plan.rows()) {
      Known& known = known_.at(row.id.value());
      if (row.is_prompt) {
        known.fed += row.row.num_tokens();
        expected.push_back({.kind = SequenceUpdate::Kind::kPrefilled,
                            .id = row.id,
                            .prompt_tokens_done = known.fed});
        if (known.left() == 0 && known.max_new_tokens == 0) known.ended = SequenceEnd::kScored;
      }
      if (row.samples) {
        const SampledRow outcome = {.token = TokenId(Below(1000)),
                                    .ends_sequence = Below(10) == 0,
                                    .failed = Below(20) == 0};
        sampled.push_back(outcome);
        known.drawn.push_back(outcome.token);
        if (outcome.failed) {
          known.ended = SequenceEnd::kFailed;
        } else if (outcome.ends_sequence) {
          known.ended = SequenceEnd::kStopped;
        } else if (static_cast<int>(known.drawn.size()) == known.max_new_tokens) {
          known.ended = SequenceEnd::kMaxTokens;
        }
      }
      if (known.ended.has_value()) {
        expected.push_back(
            {.kind = SequenceUpdate::Kind::kEnded, .id = row.id, .end = *known.ended});
      }
    }
    updates.clear();
    scheduler_->Commit(std::move(plan), sampled, updates);
    Expect(updates.size() == expected.size(), updates.size(), " updates of commit, expected ",
           expected.size());
    for (size_t i = 0; i < updates.size() && error_.empty(); ++i) {
      const SequenceUpdate& want = expected[i];
      Expect(updates[i].id == want.id && updates[i].kind == want.kind, "update ", i, " of commit");
      if (want.kind == SequenceUpdate::Kind::kEnded) {
        Expect(updates[i].end == want.end, "end of ", want.id.value());
      } else {
        Expect(updates[i].prompt_tokens_done == want.prompt_tokens_done, "progress of ",
               want.id.value());
      }
    }
    Counters();
  }

  // Ends what was cancelled or is late, starts what the scheduler says it started.
  void UpdatesOfPlan(const std::vector<SequenceUpdate>& updates) {
    std::map<uint64_t, SequenceEnd> ends;
    for (auto& [id, known] : known_) {
      if (known.ended.has_value()) continue;
      const bool start_late = !known.started && known.start_by != 0 && known.start_by <= now_;
      const bool finish_late = known.finish_by != 0 && known.finish_by <= now_;
      const bool start_first = known.finish_by == 0 || known.start_by <= known.finish_by;
      if (known.cancelled) {
        ends[id] = SequenceEnd::kCancelled;
      } else if (start_late && start_first) {
        ends[id] = SequenceEnd::kStartTimeout;
      } else if (finish_late) {
        ends[id] = SequenceEnd::kTimeLimit;
      } else if (start_late) {
        ends[id] = SequenceEnd::kTimeLimit;  // Its time limit was earlier still.
      }
    }
    for (const SequenceUpdate& update : updates) {
      const uint64_t id = update.id.value();
      Expect(known_.contains(id) && !known_[id].ended.has_value(), "an update after the end of ",
             id);
      if (update.kind == SequenceUpdate::Kind::kEnded) {
        Expect(ends.contains(id) && ends[id] == update.end, "unexpected end of ", id);
        known_[id].ended = update.end;
      } else {
        Expect(update.kind == SequenceUpdate::Kind::kStarted, "a plan reported progress");
        Expect(!Waiting().empty() && Waiting().front() == &known_[id], id, " did not wait longest");
        known_[id].started = true;
      }
    }
    for (const auto& [id, end] : ends) Expect(known_[id].ended.has_value(), id, " was not ended");
  }

  void CheckPlan(const StepPlan& plan) {
    Expect(static_cast<int>(plan.tokens().size()) <= limits_.max_step_tokens, "step too large");
    std::set<SlotId> slots;
    std::set<uint64_t> ids;
    int next = 0;
    uint64_t last_prompt = 0;
    for (const PlannedRow& row : plan.rows()) {
      if (!error_.empty()) return;
      const uint64_t id = row.id.value();
      const Known& known = known_.at(id);
      Expect(row.row.begin == next && row.row.end > next, "rows of ", id, " are not packed");
      next = row.row.end;
      Expect(slots.insert(row.row.slot).second, "slot shared by ", id);
      Expect(ids.insert(id).second, "two rows of ", id);
      Expect(!slot_of_.contains(id) || slot_of_[id] == row.row.slot, "slot of ", id, " changed");
      slot_of_[id] = row.row.slot;
      Expect(known.started && !known.ended.has_value(), id, " must not run");
      const absl::Span<const TokenId> tokens = plan.tokens().subspan(
          static_cast<size_t>(row.row.begin), static_cast<size_t>(row.row.num_tokens()));
      if (row.is_prompt) {
        CheckChunk(row, known, tokens);
        Expect(id > last_prompt, "prompt of ", id, " out of order");
        last_prompt = id;
      } else {
        Expect(last_prompt == 0, "decode row of ", id, " after a prompt");
        Expect(known.decodes() && row.samples && !row.scores && tokens.size() == 1 &&
                   tokens[0] == known.drawn.back(),
               "decode row of ", id);
        Expect(
            row.row.position == static_cast<int64_t>(known.prompt.size() + known.drawn.size()) - 1,
            "position of ", id);
      }
    }
    Expect(next == static_cast<int>(plan.tokens().size()), "tokens beyond the last row");
    CheckNobodyWasForgotten(plan, ids);
  }

  void CheckChunk(const PlannedRow& row, const Known& known, absl::Span<const TokenId> tokens) {
    const auto n = static_cast<int64_t>(tokens.size());
    const bool is_last = n == known.left();
    Expect(row.row.position == known.fed, "chunk of ", row.id.value(), " starts elsewhere");
    Expect(n <= known.left() && n <= limits_.chunk_tokens, "chunk of ", row.id.value(),
           " too long");
    if (!error_.empty()) return;
    Expect(is_last || (known.fed + n) % limits_.window == 0, "chunk of ", row.id.value(),
           " ends inside a block");
    Expect(std::equal(tokens.begin(), tokens.end(), known.prompt.begin() + known.fed), "tokens of ",
           row.id.value());
    Expect(row.samples == (is_last && known.max_new_tokens > 0), "samples of ", row.id.value());
    Expect(row.scores == known.scores, "scores of ", row.id.value());
    Expect(row.following.has_value() == !is_last, "following of ", row.id.value());
    if (!is_last && row.following.has_value()) {
      Expect(*row.following == known.prompt[static_cast<size_t>(known.fed + n)], "following of ",
             row.id.value());
    }
  }

  void CheckNobodyWasForgotten(const StepPlan& plan, const std::set<uint64_t>& ids) {
    const int64_t room = limits_.max_step_tokens - static_cast<int64_t>(plan.tokens().size());
    bool is_oldest_waiting = true;
    for (const auto& [id, known] : known_) {
      if (known.ended.has_value()) continue;
      const bool planned = ids.contains(id);
      const bool fits = std::min<int64_t>(known.left(), limits_.window) <= room;
      if (known.decodes()) {
        Expect(planned, id, " decodes but has no row");
      } else if (known.started) {
        Expect(planned, "prompt of ", id, " does not advance");
      } else if (is_oldest_waiting) {
        Expect(pool_->num_free() == 0 || !fits, id, " could start");
        is_oldest_waiting = false;
      }
    }
  }

  void Counters() {
    int running = 0;
    for (const Known* known : Live()) running += known->started ? 1 : 0;
    Expect(scheduler_->num_running() == running, "num_running ", scheduler_->num_running(),
           " expected ", running);
    Expect(scheduler_->num_waiting() == static_cast<int>(Waiting().size()), "num_waiting ",
           scheduler_->num_waiting());
    Expect(scheduler_->waiting_tokens() == WaitingTokens(), "waiting_tokens ",
           scheduler_->waiting_tokens());
    Expect(pool_->num_free() == slots_ - running, "free slots ", pool_->num_free());
  }

  std::mt19937 random_;
  SchedulerLimits limits_;
  int slots_ = 1;
  std::string log_;
  std::string error_;
  int64_t now_ = 100;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Known> known_;
  std::map<uint64_t, SlotId> slot_of_;
  std::unique_ptr<Backend> backend_ = MakeReferenceBackend();
  std::unique_ptr<StatePool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST(SchedulerPropertyTest, InvariantsSurviveAnyOrderOfCalls) {
  for (uint32_t seed = 1; seed <= 250; ++seed) {
    ASSERT_EQ(Replay(seed).Run(150), "");
  }
}

}  // namespace
}  // namespace bst
