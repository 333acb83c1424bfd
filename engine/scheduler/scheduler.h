// Scheduler: decides, for each engine step, which sequences run and on how many tokens.
//
// Pure bookkeeping: no tensors, no threads, no I/O, no clock of its own. Every decision can be
// replayed in a test from the calls alone.
//
//   Enqueue -> waiting --Plan--> prefill --Commit--> decode --Commit--> done
//                 └---------------- Cancel, deadline -------------------^
//
// Policy, in order of precedence
//   (1) Every decoding sequence runs one token: an admitted stream never stalls behind prompts.
//   (2) What is left of max_step_tokens goes to prompts, oldest first, in chunks that end at a
//       multiple of `window` (a document position) or at the prompt's end. Operators compute each
//       token in the same way wherever its row is cut, so the answer does not change with the load.
//   (3) A waiting sequence starts, in order of arrival, when a slot can be leased. Nothing is ever
//       preempted: state is constant-size, so a running sequence cannot run out of memory.
//       It starts when its first chunk fits too, so every prompt that has started advances in every
//       step, by a block at least or to its end.
//
// Cost       A step is O(sequences that run + tokens), however many wait.
// Protocol   Plan(), run it, Commit(), strictly alternating. The plan is move-only and goes back
//            into Commit(), so that a step cannot be lost or counted twice.
// Ownership  Holds the leases of running sequences. The pool must outlive the scheduler.
// Threads    Thread-compatible; engine thread only.
// Tested by  tests/engine/scheduler/scheduler_test.cc, scheduler_property_test.cc
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/backend/row.h"
#include "engine/base/ids.h"
#include "engine/state/state_pool.h"

namespace bst {

struct SchedulerLimits {
  // >= window + slots - 1: a block of a prompt fits beside the decode rows of all other slots, so
  // that neither can starve the other.
  int max_step_tokens = 2048;
  int chunk_tokens = 1024;                  // largest prompt chunk, a multiple of window
  int window = 1;                           // W
  int max_waiting = 1024;                   // sequences
  int64_t max_waiting_tokens = 16'000'000;  // of prompts; an empty queue takes any prompt
};

struct SequenceSpec {
  SequenceId id;
  std::vector<TokenId> prompt;     // not empty
  int max_new_tokens = 0;          // 0: the prompt is only scored, nothing is sampled
  bool logits_everywhere = false;  // scoring: the logits after every prompt token are wanted
  absl::Time start_by = absl::InfiniteFuture();   // queue timeout
  absl::Time finish_by = absl::InfiniteFuture();  // time limit, text kept
};

// One row of a plan: what the model needs (row) and what is to be done with its logits.
struct PlannedRow {
  SequenceId id;
  Row row;                 // tokens are plan.tokens()[row.begin .. row.end)
  bool is_prompt = false;  // a prompt chunk, not a decode row
  bool samples = false;    // the logits after its last token give the next token
  bool scores = false;     // the logits after every token are wanted
  // Of a prompt chunk: the prompt's next token; none at its end.
  std::optional<TokenId> following = std::nullopt;
};

// What one step runs. Decode rows first.
class StepPlan {
 public:
  StepPlan(StepPlan&&) = default;
  StepPlan& operator=(StepPlan&&) = default;

  bool empty() const { return rows_.empty(); }
  absl::Span<const TokenId> tokens() const { return tokens_; }
  absl::Span<const PlannedRow> rows() const { return rows_; }

 private:
  friend class Scheduler;
  StepPlan() = default;
  std::vector<TokenId> tokens_;
  std::vector<PlannedRow> rows_;
};

// Why a sequence ended, as far as the scheduler decides it.
enum class SequenceEnd {
  kMaxTokens,
  kCancelled,
  kStartTimeout,
  kTimeLimit,
  kScored,
  kStopped,
  kFailed
};

// What became of a sequence.
struct SequenceUpdate {
  enum class Kind { kStarted, kPrefilled, kEnded };
  Kind kind = Kind::kEnded;
  SequenceId id;
  int64_t prompt_tokens_done = 0;          // kPrefilled: so far, after each chunk
  SequenceEnd end = SequenceEnd::kFailed;  // kEnded
};

// The outcome of one sampled row.
struct SampledRow {
  TokenId token = TokenId(0);
  bool ends_sequence = false;  // an eos or stop token was drawn
  bool failed = false;         // nothing was drawn; the sequence ends with kFailed
};

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, StatePool& pool);
  ~Scheduler();

  // Errors: kResourceExhausted when max_waiting sequences wait already, or when some wait and this
  // prompt would take them past max_waiting_tokens. REQUIRES: the id is new.
  absl::Status Enqueue(SequenceSpec spec);

  // Ends the sequence and frees its slot at the next Plan(). No-op if it is unknown or done.
  void Cancel(SequenceId id);

  // The next step; empty when nothing runs or waits. Sequences whose deadline is `now` or earlier
  // are ended first. What happened to sequences in between (started, cancelled, expired) is
  // appended to `updates`. REQUIRES: the previous plan was committed.
  StepPlan Plan(absl::Time now, std::vector<SequenceUpdate>& updates);

  // Records what a step produced: one outcome for each plan.rows()[i] with samples == true, in
  // order. Appends kPrefilled and kEnded updates.
  void Commit(StepPlan plan, absl::Span<const SampledRow> sampled,
              std::vector<SequenceUpdate>& updates);

  int num_running() const;
  int num_waiting() const;
  int64_t waiting_tokens() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bst
