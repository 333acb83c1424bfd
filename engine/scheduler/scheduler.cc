#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <list>
#include <utility>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace bst {
namespace {

enum class Stage { kWaiting, kPrefill, kDecode };

struct Sequence {
  explicit Sequence(SequenceSpec s)
      : spec(std::move(s)), prompt_tokens(static_cast<int64_t>(spec.prompt.size())) {}

  SequenceSpec spec;      // the prompt is dropped once it has been read
  int64_t prompt_tokens;  // its length
  Stage stage = Stage::kWaiting;
  std::list<Sequence*>::iterator waiting_at;  // kWaiting
  std::optional<SlotLease> lease;             // kPrefill, kDecode
  int64_t prompt_done = 0;                    // tokens of the prompt in committed steps
  int generated = 0;
  TokenId last_token;  // kDecode: drawn, not yet seen by the model

  // When the sequence ends by itself unless something happens before.
  absl::Time deadline() const {
    return stage == Stage::kWaiting ? std::min(spec.start_by, spec.finish_by) : spec.finish_by;
  }
  SequenceEnd end_at_deadline() const {
    return stage == Stage::kWaiting && spec.start_by <= spec.finish_by ? SequenceEnd::kStartTimeout
                                                                       : SequenceEnd::kTimeLimit;
  }
};

}  // namespace

struct Scheduler::Impl {
  Impl(const SchedulerLimits& l, StatePool& p) : limits(l), pool(p) {}

  Sequence* Find(SequenceId id) {
    const auto it = sequences.find(id);
    return it == sequences.end() ? nullptr : it->second.get();
  }
  void WatchDeadline(const Sequence& sequence) {
    if (sequence.deadline() != absl::InfiniteFuture()) {
      deadlines.insert({sequence.deadline(), sequence.spec.id});
    }
  }
  void End(Sequence& sequence, SequenceEnd end, std::vector<SequenceUpdate>& updates);
  void EndCancelledAndExpired(absl::Time now, std::vector<SequenceUpdate>& updates);
  int ChunkTokens(const Sequence& sequence, int budget) const;
  void Start(Sequence& sequence, SlotLease lease, std::vector<SequenceUpdate>& updates);
  void PlanDecode(Sequence& sequence);
  void PlanChunk(Sequence& sequence, int tokens);
  void CommitChunk(Sequence& sequence, const PlannedRow& row, std::vector<SequenceUpdate>& updates);
  void CommitToken(Sequence& sequence, const SampledRow& sampled,
                   std::vector<SequenceUpdate>& updates);

  SchedulerLimits limits;
  StatePool& pool;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences;  // waiting and running
  std::list<Sequence*> waiting;                                          // in order of arrival
  std::vector<Sequence*> prefill;                                        // in order of arrival
  std::vector<Sequence*> decode;  // in the order in which their prompts ended
  int64_t waiting_tokens = 0;
  // An ordered set, not a look at every sequence: a step costs O(running), however many wait.
  absl::btree_set<std::pair<absl::Time, SequenceId>> deadlines;
  std::vector<SequenceId> cancelled;  // to be ended by the next Plan
  bool plan_outstanding = false;
  std::vector<TokenId> tokens;  // the plan under construction; its memory comes back with Commit
  std::vector<PlannedRow> rows;
};

void Scheduler::Impl::End(Sequence& sequence, SequenceEnd end,
                          std::vector<SequenceUpdate>& updates) {
  switch (sequence.stage) {
    case Stage::kWaiting:
      waiting.erase(sequence.waiting_at);
      waiting_tokens -= sequence.prompt_tokens;
      break;
    case Stage::kPrefill:
      prefill.erase(std::find(prefill.begin(), prefill.end(), &sequence));
      break;
    case Stage::kDecode:
      decode.erase(std::find(decode.begin(), decode.end(), &sequence));
      break;
  }
  deadlines.erase({sequence.deadline(), sequence.spec.id});
  const SequenceId id = sequence.spec.id;
  updates.push_back({.kind = SequenceUpdate::Kind::kEnded,
                     .id = id,
                     .prompt_tokens_done = sequence.prompt_done,
                     .end = end});
  sequences.erase(id);  // The lease goes with it.
}

void Scheduler::Impl::EndCancelledAndExpired(absl::Time now, std::vector<SequenceUpdate>& updates) {
  for (const SequenceId id : cancelled) {
    if (Sequence* sequence = Find(id)) End(*sequence, SequenceEnd::kCancelled, updates);
  }
  cancelled.clear();
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    Sequence* sequence = Find(deadlines.begin()->second);
    End(*sequence, sequence->end_at_deadline(), updates);
  }
}

// The next chunk of a prompt when `budget` tokens of the step are left; 0: none fits.
int Scheduler::Impl::ChunkTokens(const Sequence& sequence, int budget) const {
  const int64_t left = sequence.prompt_tokens - sequence.prompt_done;
  const int most = std::min(budget, limits.chunk_tokens);
  if (left <= most) return static_cast<int>(left);
  // A chunk that does not end the prompt starts and ends at a multiple of window.
  return most / limits.window * limits.window;
}

void Scheduler::Impl::Start(Sequence& sequence, SlotLease lease,
                            std::vector<SequenceUpdate>& updates) {
  deadlines.erase({sequence.deadline(), sequence.spec.id});
  waiting.erase(sequence.waiting_at);
  waiting_tokens -= sequence.prompt_tokens;
  sequence.stage = Stage::kPrefill;
  sequence.lease.emplace(std::move(lease));
  prefill.push_back(&sequence);
  WatchDeadline(sequence);
  updates.push_back({.kind = SequenceUpdate::Kind::kStarted, .id = sequence.spec.id});
}

void Scheduler::Impl::PlanDecode(Sequence& sequence) {
  const int begin = static_cast<int>(tokens.size());
  tokens.push_back(sequence.last_token);
  rows.push_back({.id = sequence.spec.id,
                  .row = {.slot = sequence.lease->id(),
                          .begin = begin,
                          .end = begin + 1,
                          .position = sequence.prompt_tokens + sequence.generated - 1},
                  .samples = true});
}

void Scheduler::Impl::PlanChunk(Sequence& sequence, int chunk_tokens) {
  const int begin = static_cast<int>(tokens.size());
  const std::vector<TokenId>& prompt = sequence.spec.prompt;
  const auto from = prompt.begin() + sequence.prompt_done;
  tokens.insert(tokens.end(), from, from + chunk_tokens);
  const bool is_last = sequence.prompt_done + chunk_tokens == sequence.prompt_tokens;
  std::optional<TokenId> following;
  if (!is_last) following = from[chunk_tokens];
  rows.push_back({.id = sequence.spec.id,
                  .row = {.slot = sequence.lease->id(),
                          .begin = begin,
                          .end = begin + chunk_tokens,
                          .position = sequence.prompt_done},
                  .is_prompt = true,
                  .samples = is_last && sequence.spec.max_new_tokens > 0,
                  .scores = sequence.spec.logits_everywhere,
                  .following = following});
}

void Scheduler::Impl::CommitChunk(Sequence& sequence, const PlannedRow& row,
                                  std::vector<SequenceUpdate>& updates) {
  sequence.prompt_done += row.row.num_tokens();
  updates.push_back({.kind = SequenceUpdate::Kind::kPrefilled,
                     .id = row.id,
                     .prompt_tokens_done = sequence.prompt_done});
  if (sequence.prompt_done < sequence.prompt_tokens) return;
  if (sequence.spec.max_new_tokens == 0) {
    End(sequence, SequenceEnd::kScored, updates);
    return;
  }
  prefill.erase(std::find(prefill.begin(), prefill.end(), &sequence));
  decode.push_back(&sequence);
  sequence.stage = Stage::kDecode;
  sequence.spec.prompt = std::vector<TokenId>();  // `= {}` would keep the memory
}

void Scheduler::Impl::CommitToken(Sequence& sequence, const SampledRow& sampled,
                                  std::vector<SequenceUpdate>& updates) {
  if (sampled.failed) {
    End(sequence, SequenceEnd::kFailed, updates);
    return;
  }
  sequence.last_token = sampled.token;
  ++sequence.generated;
  if (sampled.ends_sequence) {
    End(sequence, SequenceEnd::kStopped, updates);
  } else if (sequence.generated == sequence.spec.max_new_tokens) {
    End(sequence, SequenceEnd::kMaxTokens, updates);
  }
}

Scheduler::Scheduler(const SchedulerLimits& limits, StatePool& pool)
    : impl_(std::make_unique<Impl>(limits, pool)) {
  BST_CHECK(limits.window >= 1, "window is ", limits.window);
  BST_CHECK(limits.chunk_tokens >= limits.window && limits.chunk_tokens % limits.window == 0,
            "chunk_tokens is ", limits.chunk_tokens, ", window is ", limits.window);
  BST_CHECK(limits.max_step_tokens >= limits.window + pool.num_slots() - 1, "max_step_tokens is ",
            limits.max_step_tokens, ", window is ", limits.window, ", slots are ",
            pool.num_slots());
}

Scheduler::~Scheduler() = default;

absl::Status Scheduler::Enqueue(SequenceSpec spec) {
  BST_CHECK(!spec.prompt.empty(), "sequence ", spec.id.value(), " has no prompt");
  const auto prompt_tokens = static_cast<int64_t>(spec.prompt.size());
  if (num_waiting() >= impl_->limits.max_waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat(num_waiting(), " requests wait already, limit ", impl_->limits.max_waiting));
  }
  if (impl_->waiting_tokens > 0 &&
      impl_->waiting_tokens + prompt_tokens > impl_->limits.max_waiting_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat(impl_->waiting_tokens, " prompt tokens wait already, ", prompt_tokens,
                     " more exceed the limit of ", impl_->limits.max_waiting_tokens));
  }
  const SequenceId id = spec.id;
  auto owned = std::make_unique<Sequence>(std::move(spec));
  Sequence& sequence = *owned;
  const bool is_new = impl_->sequences.emplace(id, std::move(owned)).second;
  BST_CHECK(is_new, "sequence ", id.value(), " is here already");
  sequence.waiting_at = impl_->waiting.insert(impl_->waiting.end(), &sequence);
  impl_->waiting_tokens += prompt_tokens;
  impl_->WatchDeadline(sequence);
  return absl::OkStatus();
}

void Scheduler::Cancel(SequenceId id) {
  if (impl_->Find(id) != nullptr) impl_->cancelled.push_back(id);
}

StepPlan Scheduler::Plan(absl::Time now, std::vector<SequenceUpdate>& updates) {
  BST_CHECK(!impl_->plan_outstanding, "the previous plan was not committed");
  impl_->plan_outstanding = true;
  impl_->EndCancelledAndExpired(now, updates);

  for (Sequence* sequence : impl_->decode) impl_->PlanDecode(*sequence);

  // Every prompt that has started advances: it started because its first chunk fitted beside all
  // that ran then, and what ran then needs no more tokens now (a prompt before it takes the same
  // chunk, or its last tokens, or one token per step; only the last in line is ever given less than
  // a chunk).
  int budget = impl_->limits.max_step_tokens - static_cast<int>(impl_->tokens.size());
  for (Sequence* sequence : impl_->prefill) {
    const int chunk_tokens = impl_->ChunkTokens(*sequence, budget);
    BST_CHECK(chunk_tokens > 0, "a prompt does not advance with ", budget, " tokens left");
    impl_->PlanChunk(*sequence, chunk_tokens);
    budget -= chunk_tokens;
  }
  // Strictly in order of arrival: who does not fit lets nobody pass, and takes no slot before it
  // can use it. If all that runs decodes, a block fits: max_step_tokens >= window + slots - 1.
  while (!impl_->waiting.empty()) {
    Sequence& sequence = *impl_->waiting.front();
    const int chunk_tokens = impl_->ChunkTokens(sequence, budget);
    if (chunk_tokens == 0) break;
    std::optional<SlotLease> lease = impl_->pool.Acquire();
    if (!lease.has_value()) break;
    impl_->Start(sequence, *std::move(lease), updates);
    impl_->PlanChunk(sequence, chunk_tokens);
    budget -= chunk_tokens;
  }

  StepPlan plan;
  plan.tokens_.swap(impl_->tokens);
  plan.rows_.swap(impl_->rows);
  return plan;
}

void Scheduler::Commit(StepPlan plan, absl::Span<const SampledRow> sampled,
                       std::vector<SequenceUpdate>& updates) {
  BST_CHECK(impl_->plan_outstanding, "there is no plan to commit");
  impl_->plan_outstanding = false;
  size_t next = 0;
  for (const PlannedRow& row : plan.rows_) {
    Sequence& sequence = *impl_->Find(row.id);  // Nothing ends between Plan and Commit.
    if (row.is_prompt) impl_->CommitChunk(sequence, row, updates);
    if (row.samples) {
      BST_CHECK(next < sampled.size(), "only ", sampled.size(), " outcomes");
      impl_->CommitToken(sequence, sampled[next++], updates);
    }
  }
  BST_CHECK(next == sampled.size(), sampled.size(), " outcomes for ", next, " sampled rows");
  impl_->tokens.swap(plan.tokens_);
  impl_->rows.swap(plan.rows_);
  impl_->tokens.clear();
  impl_->rows.clear();
}

int Scheduler::num_running() const {
  return static_cast<int>(impl_->prefill.size() + impl_->decode.size());
}
int Scheduler::num_waiting() const { return static_cast<int>(impl_->waiting.size()); }
int64_t Scheduler::waiting_tokens() const { return impl_->waiting_tokens; }

}  // namespace bst
