// Scheduler under random calls, against a naive model that remembers everything. A failure prints
// the calls that led to it.
//
// Held after every call: each prompt token is fed exactly once and in order; chunks start where the
// prompt stands and end at a multiple of window or at its end; every decoding sequence gets one
// token per step; requests start only when those before them could too; steps keep to their token
// limits; the oldest prompt that can run advances, and may be passed over once where only a block
// fits or another one ends, whoever is the oldest in the steps between; long prompts keep to their
// slots; slots are neither shared nor leaked, and those of one prompt's sequences are copies, made
// as soon as slots are there; every request and every sequence ends once, for the right reason.
//
// One file, though long: it is one naive model and one loop of calls.
#include <algorithm>
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

constexpr int64_t kNever = 1'000'000'000;

// What the naive model knows of a request.
struct Known {
  uint64_t id = 0;
  std::vector<TokenId> prompt;
  bool complete = true;
  int max_new_tokens = 0;
  bool scores = false;
  int64_t order = 0;                                                  // virtual arrival, seconds
  int64_t start_by = kNever, finish_by = kNever, dry_since = kNever;  // seconds
  int64_t fed = 0;                                                    // prompt tokens
  std::map<int, std::vector<TokenId>> drawn;  // of each sequence that has not ended
  std::map<int, SlotId> slots;                // likewise, once it has started
  std::optional<SlotId> prompt_slot;          // until the last one starts in it
  bool started = false;
  bool has_drawn = false;
  bool passed_over = false;  // when it last was the oldest that could run, and nothing read since
  bool cancelled = false;
  std::set<int> stopped;  // to be ended by the next Plan
  bool ended = false;

  int unstarted() const { return static_cast<int>(drawn.size() - slots.size()); }
  int num_slots() const { return static_cast<int>(slots.size()) + (started && unstarted() > 0); }
  bool Pins() const { return !complete || unstarted() > 1; }
  int64_t left() const { return static_cast<int64_t>(prompt.size()) - fed; }
  bool decodes() const { return started && complete && left() == 0; }
  int64_t Readable(int window) const {
    if (complete) return left();
    int64_t readable = 0;
    while (readable + window < left()) readable += window;
    return readable;
  }
};

class Replay {
 public:
  explicit Replay(uint32_t seed) : random_(seed) {
    limits_.window = 1 + Below(6);
    limits_.chunk_tokens = limits_.window * (1 + Below(4));
    slots_ = 1 + Below(8);
    limits_.max_step_tokens = limits_.window + slots_ - 1 + Below(6 * limits_.window);
    limits_.long_prompt_tokens = 5 + Below(30);
    limits_.long_slots = 1 + Below(slots_);
    ageing_ = Below(6);
    limits_.priority_ageing = absl::Seconds(ageing_);
    upload_timeout_ = 1 + Below(10);
    limits_.upload_timeout = absl::Seconds(upload_timeout_);
    log_ = absl::StrCat("seed ", seed, " window ", limits_.window, " chunk ", limits_.chunk_tokens,
                        " slots ", slots_, " step ", limits_.max_step_tokens, " long ",
                        limits_.long_prompt_tokens, " in ", limits_.long_slots, "\n");
    StateLayout layout;
    layout.Add({"state", 8});
    pool_ = *StatePool::Create(*backend_, layout, slots_);
    scheduler_ = std::make_unique<Scheduler>(limits_, *pool_);
  }

  // Empty if all went well.
  std::string Run(int calls) {
    for (int call = 0; call < calls && error_.empty(); ++call) {
      switch (Below(10)) {
        case 0:
        case 1:
        case 2:
          Enqueue();
          break;
        case 3:
          CancelOne();
          break;
        case 4:
          StopOne();
          break;
        case 5:
          AppendToOne();
          break;
        default:
          Step();
          break;
      }
    }
    // Everything comes to an end when nothing new arrives; open prompts run into their timeout.
    for (int step = 0; step < 3000 && error_.empty() && !Live().empty(); ++step) Step();
    Expect(Live().empty(), "requests never ended");
    Expect(pool_->num_free() == slots_, "slots leaked");
    Expect(scheduler_->next_deadline() == absl::InfiniteFuture(), "a deadline is left");
    return error_.empty() ? "" : log_ + error_;
  }
  const std::string& log() const { return log_; }

 private:
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  template <typename... Parts>
  void Expect(bool condition, const Parts&... parts) {
    if (!condition && error_.empty()) error_ = absl::StrCat("FAILED: ", parts...);
  }

  // Requests that have not ended: oldest first, by virtual arrival.
  std::vector<Known*> Live() {
    std::vector<Known*> live;
    for (auto& [id, known] : known_) {
      if (!known.ended) live.push_back(&known);
    }
    std::stable_sort(live.begin(), live.end(),
                     [](const Known* a, const Known* b) { return a->order < b->order; });
    return live;
  }
  std::vector<Known*> Waiting() {
    std::vector<Known*> waiting = Live();
    std::erase_if(waiting, [](const Known* known) { return known->started; });
    return waiting;
  }
  bool IsLong(const Known& known) const {
    return !known.complete ||
           static_cast<int64_t>(known.prompt.size()) > limits_.long_prompt_tokens;
  }
  // Those that wait and may start, rule (3) of the policy word by word.
  std::set<const Known*> Startable() {
    std::set<const Known*> startable;
    int free = slots_, held_by_long = 0;
    // Of all, and of long ones: those that pin a slot, and those whose sequences need others.
    int pinned[2] = {}, several[2] = {};
    const auto count = [&](const Known& known) {
      for (int of_long = 0; of_long <= (IsLong(known) ? 1 : 0); ++of_long) {
        if (known.Pins()) ++pinned[of_long];
        if (known.unstarted() > 1) ++several[of_long];
      }
    };
    const auto may_pin = [&](const Known& known, int of_long, int slots) {
      return !known.Pins() || (known.unstarted() == 1 && several[of_long] == 0) ||
             pinned[of_long] + 1 < slots;
    };
    for (const Known* known : Live()) {
      if (!known->started) continue;
      count(*known);
      free -= known->num_slots();
      if (IsLong(*known)) held_by_long += known->num_slots();
    }
    int decode_rows = 0;
    for (const Known* known : Live()) {
      for (const auto& [index, slot] : known->slots) decode_rows += !known->drawn.at(index).empty();
    }
    int most_tokens = limits_.max_step_tokens - decode_rows;
    if (decode_rows > 0)
      most_tokens = std::min(most_tokens, std::max(limits_.window, short_step_ - decode_rows));
    most_tokens = std::min(most_tokens, limits_.chunk_tokens);
    // For sequences of a prompt that has been read, or may have been after this step.
    const auto take_for_copies = [&](const Known& known) {
      int without = known.unstarted() - 1;
      if (!known.complete || known.left() > most_tokens) return without;
      for (; without > 0 && free > 0; --without) {
        if (IsLong(known) && held_by_long >= std::max(limits_.long_slots, 2)) break;
        if (IsLong(known)) ++held_by_long;
        --free;
      }
      return without;
    };
    left_unstarted_.clear();
    bool a_long_one_waits = false, one_that_pins_waits = false, a_long_one_that_pins_waits = false;
    for (const Known* known : Live()) {
      if (known->started && known->unstarted() > 0) {
        const int without = take_for_copies(*known);
        if (known->decodes()) left_unstarted_[known] = without > 0 ? without + 1 : 0;
      }
      if (known->started || known->Readable(limits_.window) == 0) continue;
      if (IsLong(*known)) {
        a_long_one_waits |= held_by_long >= limits_.long_slots;
        if (a_long_one_waits) continue;
        a_long_one_that_pins_waits |= !may_pin(*known, 1, std::max(2, limits_.long_slots));
      }
      one_that_pins_waits |= !may_pin(*known, 0, slots_);
      if (known->Pins() &&
          (one_that_pins_waits || (IsLong(*known) && a_long_one_that_pins_waits))) {
        continue;
      }
      if (free-- == 0) break;  // Those that run give nothing to those that wait.
      if (IsLong(*known)) ++held_by_long;
      count(*known);
      take_for_copies(*known);
      startable.insert(known);
    }
    return startable;
  }

  void Enqueue() {
    Known known;
    known.id = ++last_id_;
    const int length = 1 + Below(Below(3) == 0 ? 60 : 12);
    for (int i = 0; i < length; ++i) known.prompt.push_back(TokenId(Below(1000)));
    known.max_new_tokens = Below(6);
    known.scores = known.max_new_tokens == 0;
    known.complete = known.scores || Below(4) != 0;
    if (!known.complete && Below(3) == 0) known.prompt.clear();
    const int sequences = known.scores ? 1 : 1 + Below(std::min(slots_, 3));
    for (int i = 0; i < sequences; ++i) known.drawn[i] = {};
    if (Below(4) == 0) known.start_by = now_ + Below(4);
    if (Below(4) == 0) known.finish_by = now_ + Below(12);
    const int level = Below(3) - 1;
    known.order = now_ - level * ageing_;
    if (known.Readable(limits_.window) == 0) known.dry_since = now_;
    absl::StrAppend(&log_, "enqueue ", known.id, known.complete ? " prompt " : " open ",
                    known.prompt.size(), " new ", known.max_new_tokens, " x ", sequences, " level ",
                    level, " start_by ", known.start_by, " finish_by ", known.finish_by, "\n");
    SequenceSpec spec;
    spec.id = SequenceId(known.id);
    spec.prompt = known.prompt;
    spec.prompt_open = !known.complete;
    spec.num_sequences = sequences;
    spec.max_new_tokens = known.max_new_tokens;
    spec.logits_everywhere = known.scores;
    spec.priority = static_cast<Priority>(level + 1);
    spec.arrival = At(now_);
    if (known.start_by != kNever) spec.start_by = At(known.start_by);
    if (known.finish_by != kNever) spec.finish_by = At(known.finish_by);
    scheduler_->Enqueue(std::move(spec));
    known_.emplace(known.id, known);
    Counters();
  }

  uint64_t AnyId() { return 1 + static_cast<uint64_t>(Below(static_cast<int>(last_id_) + 2)); }
  Known* FindLive(uint64_t id) {
    const auto it = known_.find(id);
    return it == known_.end() || it->second.ended ? nullptr : &it->second;
  }
  void CancelOne() {
    const uint64_t id = AnyId();
    absl::StrAppend(&log_, "cancel ", id, "\n");
    scheduler_->Cancel(SequenceId(id));
    if (Known* known = FindLive(id)) known->cancelled = true;
  }
  void StopOne() {
    const uint64_t id = AnyId();
    const int index = Below(4);
    absl::StrAppend(&log_, "stop ", id, "#", index, "\n");
    scheduler_->StopSequence(SequenceId(id), index);
    if (Known* known = FindLive(id); known != nullptr && known->drawn.contains(index)) {
      known->stopped.insert(index);
    }
  }
  void AppendToOne() {
    std::vector<Known*> open = Live();
    std::erase_if(open, [](const Known* known) { return known->complete; });
    if (open.empty()) return;
    Known& known = *open[static_cast<size_t>(Below(static_cast<int>(open.size())))];
    std::vector<TokenId> tokens;
    for (int i = Below(40); i > 0; --i) tokens.push_back(TokenId(Below(1000)));
    known.prompt.insert(known.prompt.end(), tokens.begin(), tokens.end());
    known.complete = !known.prompt.empty() && Below(3) == 0;
    absl::StrAppend(&log_, "append ", tokens.size(), " to ", known.id,
                    known.complete ? " and no more\n" : "\n");
    known.dry_since = known.Readable(limits_.window) > 0 ? kNever
                      : known.started && !tokens.empty() ? std::min(known.dry_since, now_)
                                                         : now_;
    scheduler_->Append(SequenceId(known.id), tokens,
                       known.complete ? PromptEnd::kComplete : PromptEnd::kMoreFollows, At(now_));
    Counters();
  }

  void Step() {
    now_ += Below(2);
    short_step_ = Below(3) == 0 ? limits_.max_step_tokens : Below(limits_.max_step_tokens + 1);
    std::vector<SequenceUpdate> updates;
    StepPlan plan = scheduler_->Plan(At(now_), short_step_, updates);
    absl::StrAppend(&log_, "plan at ", now_, " short ", short_step_, ":");
    for (const PlannedRow& row : plan.rows()) {
      absl::StrAppend(&log_, " ", row.id.value(), "[", row.row.position, "+", row.row.num_tokens(),
                      "]");
    }
    absl::StrAppend(&log_, "\n");
    UpdatesOfPlan(updates);
    if (!error_.empty()) return;
    CheckPlan(plan);
    Counters();
    if (!error_.empty()) return;
    if (Below(8) == 0) CancelOne();
    if (Below(8) == 0) StopOne();
    Commit(std::move(plan));
    Counters();
  }

  void Commit(StepPlan plan) {
    std::vector<SampledRow> sampled;
    std::vector<std::string> expected;
    for (const PlannedRow& row : plan.rows()) {
      Known& known = known_.at(row.id.value());
      if (!row.is_prompt) continue;
      known.fed += row.row.num_tokens();
      expected.push_back(absl::StrCat(known.id, " read ", known.fed));
      if (known.decodes() && known.scores) EndAll(known, SequenceEnd::kScored, expected);
    }
    for (const PlannedSample& sample : plan.samples()) {
      Known& known = known_.at(sample.id.value());
      const int index = sample.sequence_index;
      sampled.push_back({.token = TokenId(Below(1000)),
                         .ends_sequence = Below(10) == 0,
                         .failed = Below(30) == 0});
      if (known.ended) continue;
      known.drawn.at(index).push_back(sampled.back().token);
      known.has_drawn |= !sampled.back().failed;
      if (sampled.back().failed) {
        EndAll(known, SequenceEnd::kFailed, expected);
      } else if (sampled.back().ends_sequence) {
        EndOne(known, index, SequenceEnd::kStopped, expected);
      } else if (static_cast<int>(known.drawn.at(index).size()) == known.max_new_tokens) {
        EndOne(known, index, SequenceEnd::kMaxTokens, expected);
      }
    }
    std::vector<SequenceUpdate> updates;
    scheduler_->Commit(std::move(plan), sampled, updates);
    ExpectUpdates(updates, expected);
  }

  static std::string Tell(uint64_t id, SequenceEnd end) {
    return absl::StrCat(id, " ended ", static_cast<int>(end));
  }
  void EndAll(Known& known, SequenceEnd end, std::vector<std::string>& expected) {
    known.ended = true;
    known.drawn.clear();
    known.slots.clear();
    expected.push_back(Tell(known.id, end));
  }
  void EndOne(Known& known, int index, SequenceEnd end, std::vector<std::string>& expected) {
    expected.push_back(absl::StrCat("#", index, " of ", Tell(known.id, end)));
    known.drawn.erase(index);
    known.slots.erase(index);
    if (known.drawn.empty()) EndAll(known, end, expected);
  }
  void ExpectUpdates(const std::vector<SequenceUpdate>& updates,
                     const std::vector<std::string>& expected) {
    std::vector<std::string> told;
    for (const SequenceUpdate& update : updates) {
      const uint64_t id = update.id.value();
      switch (update.kind) {
        case SequenceUpdate::Kind::kStarted:
          told.push_back(absl::StrCat(id, " started"));
          break;
        case SequenceUpdate::Kind::kPrefilled:
          told.push_back(absl::StrCat(id, " read ", update.prompt_tokens_done));
          break;
        case SequenceUpdate::Kind::kSequenceEnded:
          told.push_back(absl::StrCat("#", update.sequence_index, " of ", Tell(id, update.end)));
          break;
        case SequenceUpdate::Kind::kEnded:
          told.push_back(Tell(id, update.end));
          break;
      }
    }
    std::string all = "updates:\n  ";
    for (const std::string& line : told) absl::StrAppend(&all, line, "; ");
    absl::StrAppend(&all, "\nexpected:\n  ");
    for (const std::string& line : expected) absl::StrAppend(&all, line, "; ");
    Expect(told == expected, all);
  }

  // Ends what was cancelled, stopped or is late; starts what the scheduler says it started.
  void UpdatesOfPlan(std::vector<SequenceUpdate> updates) {
    std::multiset<std::string> expected;
    const auto expect = [&expected](const std::vector<std::string>& lines) {
      expected.insert(lines.begin(), lines.end());
    };
    for (auto& [id, known] : known_) {
      if (known.ended) continue;
      std::vector<std::string> lines;
      if (known.cancelled) {
        EndAll(known, SequenceEnd::kCancelled, lines);
      } else {
        for (const int index : known.stopped) {
          if (known.drawn.contains(index)) {
            EndOne(known, index, SequenceEnd::kStoppedByCaller, lines);
          }
        }
        known.stopped.clear();
      }
      if (!known.ended) Expire(known, lines);
      expect(lines);
      if (!known.ended && known.started && !known.complete && known.Readable(limits_.window) == 0 &&
          known.dry_since == kNever) {
        known.dry_since = now_;
      }
    }
    const std::set<const Known*> startable = Startable();
    startable_ = startable;
    std::multiset<std::string> told;
    for (const SequenceUpdate& update : updates) {
      const uint64_t id = update.id.value();
      if (update.kind == SequenceUpdate::Kind::kStarted) {
        Expect(FindLive(id) != nullptr && startable.contains(&known_[id]), id, " must not start");
        known_[id].started = true;
      } else if (update.kind == SequenceUpdate::Kind::kSequenceEnded) {
        told.insert(absl::StrCat("#", update.sequence_index, " of ", Tell(id, update.end)));
      } else {
        Expect(update.kind == SequenceUpdate::Kind::kEnded, "a plan reported progress");
        told.insert(Tell(id, update.end));
      }
    }
    std::string all;
    for (const std::string& line : told) absl::StrAppend(&all, line, "; ");
    absl::StrAppend(&all, " expected ");
    for (const std::string& line : expected) absl::StrAppend(&all, line, "; ");
    Expect(told == expected, "ends in a plan: ", all);
  }
  void Expire(Known& known, std::vector<std::string>& lines) {
    const int64_t start_by = known.started ? kNever : known.start_by;
    const int64_t dry_until =
        known.dry_since == kNever ? kNever : known.dry_since + upload_timeout_;
    const int64_t first = std::min({start_by, known.finish_by, dry_until});
    if (first > now_) return;
    if (first == start_by) {
      EndAll(known, SequenceEnd::kStartTimeout, lines);
    } else if (first == known.finish_by && known.has_drawn) {
      while (!known.ended) {
        EndOne(known, known.drawn.begin()->first, SequenceEnd::kTimeLimit, lines);
      }
    } else {
      EndAll(known,
             first == known.finish_by ? SequenceEnd::kTimeLimit : SequenceEnd::kUploadTimeout,
             lines);
    }
  }

  void CheckPlan(const StepPlan& plan) {
    Expect(static_cast<int>(plan.tokens().size()) <= limits_.max_step_tokens, "step too large");
    std::set<SlotId> slots;
    std::map<uint64_t, int> rows_of;
    const bool has_late =
        std::any_of(plan.samples().begin(), plan.samples().end(),
                    [](const PlannedSample& sample) { return sample.kept_logits.has_value(); });
    int next = 0, decode_rows = 0, prompt_tokens = 0;
    size_t next_sample = 0, next_copy = 0;
    std::pair<int64_t, uint64_t> last_prompt = {-kNever, 0};
    for (const PlannedRow& row : plan.rows()) {
      if (!error_.empty()) return;
      const uint64_t id = row.id.value();
      Known& known = known_.at(id);
      Expect(row.row.begin == next && row.row.end > next, "rows of ", id, " are not packed");
      next = row.row.end;
      Expect(slots.insert(row.row.slot).second, "slot shared by ", id);
      ++rows_of[id];
      Expect(known.started && !known.ended, id, " must not run");
      const absl::Span<const TokenId> tokens = plan.tokens().subspan(
          static_cast<size_t>(row.row.begin), static_cast<size_t>(row.row.num_tokens()));
      if (row.is_prompt) {
        CheckChunk(row, known, tokens);
        prompt_tokens += row.row.num_tokens();
        Expect(std::make_pair(known.order, id) > last_prompt, "prompt of ", id, " out of order");
        last_prompt = {known.order, id};
        Expect(known.prompt_slot.value_or(row.row.slot) == row.row.slot, "slot of ", id,
               " changed");
        known.prompt_slot = row.row.slot;
        for (int i = 0; i < row.num_samples; ++i) {
          CheckStart(plan, plan.samples()[next_sample++], next_copy, std::nullopt);
        }
        const bool is_last = known.complete && row.row.num_tokens() == known.left();
        Expect(row.keeps_logits == (is_last && !known.scores && known.unstarted() > 0),
               "logits kept of ", id);
      } else {
        Expect(prompt_tokens == 0, "decode row of ", id, " after a prompt");
        ++decode_rows;
        Expect(next_sample < plan.samples().size() && row.num_samples == 1, "samples of ", id);
        if (!error_.empty()) return;
        Expect(plan.samples()[next_sample].slot == row.row.slot &&
                   plan.samples()[next_sample].id == row.id &&
                   !plan.samples()[next_sample].kept_logits.has_value(),
               "slot of a sample of ", id);
        const int index = plan.samples()[next_sample++].sequence_index;
        Expect(known.decodes() && !row.scores && tokens.size() == 1 &&
                   known.drawn.contains(index) && tokens[0] == known.drawn.at(index).back(),
               "decode row of ", id);
        if (!error_.empty()) return;
        Expect(known.slots.at(index) == row.row.slot, "slot of ", id, "#", index, " changed");
        Expect(row.row.position ==
                   static_cast<int64_t>(known.prompt.size() + known.drawn.at(index).size()) - 1,
               "position of ", id);
      }
    }
    Expect(next == static_cast<int>(plan.tokens().size()), "tokens beyond the last row");
    for (const Known* known : Live()) {
      const int rows = rows_of.contains(known->id) ? rows_of.at(known->id) : 0;
      int most = known->started && !known->decodes() ? 1 : 0;
      for (const auto& [index, slot] : known->slots) most += !known->drawn.at(index).empty();
      Expect(rows <= most && (rows == most || !known->decodes()), "rows of ", known->id);
    }
    while (error_.empty() && next_sample < plan.samples().size()) {
      const PlannedSample& sample = plan.samples()[next_sample++];
      const Known& known = known_.at(sample.id.value());
      Expect(known.decodes(), "late sample of ", known.id);
      CheckStart(plan, sample, next_copy, known.prompt_slot);
    }
    CheckLateStarts();
    Expect(next_sample == plan.samples().size() && next_copy == plan.copies().size(),
           "samples or copies of nobody");
    if (decode_rows > 0 || has_late) {
      Expect(prompt_tokens <= std::max(limits_.window, short_step_ - decode_rows),
             "a step that decodes is too long");
    }
    CheckOldest(plan, rows_of, decode_rows);
    CheckLongSlots();
  }

  // The next of a request's sequences starts: in a copy of the prompt's slot, the last one in that.
  void CheckStart(const StepPlan& plan, const PlannedSample& sample, size_t& next_copy,
                  std::optional<SlotId> kept_logits) {
    Known& known = known_.at(sample.id.value());
    const int index = sample.sequence_index;
    const auto next = std::find_if(known.drawn.begin(), known.drawn.end(), [&](const auto& drawn) {
      return !known.slots.contains(drawn.first);
    });
    Expect(next != known.drawn.end() && next->first == index && next->second.empty(),
           "first token of ", known.id, "#", index);
    Expect(sample.kept_logits == kept_logits, "logits of the first token of ", known.id);
    if (!error_.empty()) return;
    if (known.unstarted() == 1) {
      Expect(sample.slot == *known.prompt_slot, "slot of the last one of ", known.id);
    } else {
      Expect(next_copy < plan.copies().size() &&
                 plan.copies()[next_copy].from == *known.prompt_slot &&
                 plan.copies()[next_copy].to == sample.slot,
             "no copy for ", known.id, "#", index);
      ++next_copy;
    }
    known.slots[index] = sample.slot;
  }

  // Sequences for which there was no slot start as soon as there is one.
  void CheckLateStarts() {
    for (const auto& [known, unstarted] : left_unstarted_) {
      Expect(known->unstarted() == unstarted, known->unstarted(), " sequences of ", known->id,
             " wait, not ", unstarted);
    }
  }

  void CheckChunk(const PlannedRow& row, const Known& known, absl::Span<const TokenId> tokens) {
    const auto n = static_cast<int64_t>(tokens.size());
    const bool is_last = known.complete && n == known.left();
    Expect(row.row.position == known.fed, "chunk of ", row.id.value(), " starts elsewhere");
    Expect(n <= known.Readable(limits_.window) && n <= limits_.chunk_tokens, "chunk of ",
           row.id.value(), " too long");
    if (!error_.empty()) return;
    Expect(is_last || (known.fed + n) % limits_.window == 0, "chunk of ", row.id.value(),
           " ends inside a block");
    Expect(std::equal(tokens.begin(), tokens.end(), known.prompt.begin() + known.fed), "tokens of ",
           row.id.value());
    Expect(row.num_samples <= (is_last && !known.scores ? known.unstarted() : 0), "samples of ",
           row.id.value());
    Expect(row.scores == known.scores, "scores of ", row.id.value());
    Expect(row.following.has_value() == !is_last, "following of ", row.id.value());
    if (!is_last && row.following.has_value()) {
      Expect(*row.following == known.prompt[static_cast<size_t>(known.fed + n)], "following of ",
             row.id.value());
    }
  }

  // Somebody reads if anybody can; the oldest is passed over only for a reason and not twice.
  void CheckOldest(const StepPlan& plan, const std::map<uint64_t, int>& rows_of, int decode_rows) {
    Known* oldest = nullptr;
    bool anyone = false, ends_one = false;
    for (Known* known : Live()) {
      if (rows_of.contains(known->id)) known->passed_over = false;
      if (known->decodes() || known->Readable(limits_.window) == 0) continue;
      if (!known->started && !startable_.contains(known)) continue;
      if (oldest == nullptr) oldest = known;
      anyone |= rows_of.contains(known->id);
    }
    if (oldest == nullptr) return;
    Expect(anyone, "no prompt advances");
    for (const PlannedRow& row : plan.rows()) {
      const Known& known = known_.at(row.id.value());
      ends_one |= row.is_prompt && known.complete && row.row.num_tokens() == known.left();
    }
    const int room = std::min(limits_.max_step_tokens - decode_rows,
                              std::max(limits_.window, short_step_ - decode_rows));
    const bool advances = rows_of.contains(oldest->id);
    Expect(advances || ends_one || room < 2 * limits_.window, oldest->id,
           " is the oldest and does not advance");
    Expect(advances || oldest_advanced_, oldest->id, " is the oldest and waits for a second step");
    Expect(advances || !oldest->passed_over, oldest->id,
           " is the oldest again and is passed over again");
    oldest->passed_over = !advances;
    oldest_advanced_ = advances;
  }

  void CheckLongSlots() {
    int requests = 0, slots = 0;
    for (const Known* known : Live()) {
      if (!known->started || !IsLong(*known)) continue;
      ++requests;
      slots += known->num_slots();
    }
    Expect(slots <= limits_.long_slots || (requests == 1 && slots <= 2), "long prompts hold ",
           slots, " slots");
  }

  void Counters() {
    int running = 0, slots = 0;
    for (const Known* known : Live()) {
      if (!known->started) continue;
      ++running;
      slots += known->num_slots();
    }
    Expect(scheduler_->num_running() == running, "num_running ", scheduler_->num_running(),
           " expected ", running);
    Expect(scheduler_->num_waiting() == static_cast<int>(Waiting().size()), "num_waiting ",
           scheduler_->num_waiting());
    Expect(pool_->num_free() == slots_ - slots, "free slots ", pool_->num_free());
  }

  std::mt19937 random_;
  SchedulerLimits limits_;
  int slots_ = 1, short_step_ = 0;
  int64_t ageing_ = 0, upload_timeout_ = 0;  // seconds
  std::string log_;
  std::string error_;
  int64_t now_ = 100;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Known> known_;
  std::set<const Known*> startable_;            // at the last plan
  std::map<const Known*, int> left_unstarted_;  // after it, of those whose prompt had been read
  bool oldest_advanced_ = true;                 // in the last plan with prompts
  std::unique_ptr<Backend> backend_ = MakeReferenceBackend();
  std::unique_ptr<StatePool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST(SchedulerPropertyTest, InvariantsSurviveAnyOrderOfCalls) {
  for (uint32_t seed = 1; seed <= 1000; ++seed) {
    ASSERT_EQ(Replay(seed).Run(200), "");
  }
}

TEST(SchedulerPropertyTest, TheSameCallsGiveTheSamePlans) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    Replay first(seed), second(seed);
    first.Run(200);
    second.Run(200);
    ASSERT_EQ(first.log(), second.log());
  }
}

}  // namespace
}  // namespace bst
