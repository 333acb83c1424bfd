// Scheduler: decides, for each engine step, which sequences run and on how many tokens.
//
// Pure bookkeeping: no tensors, no threads, no I/O, no clock of its own. Every decision can be
// replayed in a test from the calls alone.
//
//   Enqueue -> waiting --Plan--> prefill --Commit--> decode --Commit--> done
//                 └------ Cancel, StopSequence, deadline --------------^
//
// A request is one prompt and its num_sequences continuations, each in a slot of its own. One slot
// reads the prompt and keeps its state; continuations start in copies of it, the last one in it.
//
// Policy, in order of precedence
//   (1) Every decoding sequence runs one token: an admitted stream never stalls behind prompts.
//   (2) Requests are in order of their virtual arrival: arrival, less priority_ageing for kHigh,
//       plus it for kLow; then by id. So a request can only be overtaken by those that come within
//       a fixed time after it.
//   (3) Free slots go by age: to a request that waits one for its prompt, with its first chunk; to
//       one whose prompt has been read, or may have been after this step, one for each continuation
//       but the last. Continuations for which there is none start later, from the state and the
//       logits that are kept. So that everybody's turn comes, where one waits for such slots those
//       that do, and those that wait for their clients, never hold all slots: one that would
//       complete their number lets others pass, but none that would take its place. Long prompts
//       together hold no more than long_slots, but where that is one a second for copies; one that
//       waits for that lets short ones pass.
//       Nothing is ever preempted: state is constant-size, so a running sequence cannot run out of
//       memory.
//   (4) Half of the tokens left for prompts goes to those with the fewest tokens left, the rest to
//       the oldest; what one half does not use is the other's. Chunks end at a multiple of `window`
//       or at the prompt's end; the answer does not depend on where.
//   (5) A step that decodes, or may end one of several prompts, is kept short: to the token limit
//       that Plan is given, though never below a block of prompt. One that does end a short prompt
//       may pass over the oldest, as may one in which only one block fits: never twice in a row,
//       nor the same one twice before it has read, though others were the oldest in between. In
//       its turn the oldest has a block, or as much as the short ones.
//   So of two steps that read prompts at least one advances the oldest that can run, by a block or
//   to its end, and nobody starves.
//
// Cost       A step is O(slots + tokens), however many wait, but for those of rule (3) that let
//            others pass.
// Protocol   Plan(), run it, Commit(), strictly alternating. The plan is move-only and goes back
//            into Commit(), so that a step cannot be lost or counted twice.
// Ownership  Holds the leases of running sequences. The pool must outlive the scheduler.
// Threads    Thread-compatible; engine thread only.
// Tested by  tests/engine/scheduler/scheduler_test.cc, scheduler_property_test.cc
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/backend/row.h"
#include "engine/base/ids.h"
#include "engine/scheduler/priority.h"
#include "engine/scheduler/prompt_end.h"
#include "engine/scheduler/step_plan.h"
#include "engine/state/state_pool.h"

namespace bst {

struct SchedulerLimits {
  // >= window + slots - 1: a block of a prompt fits beside the decode rows of all other slots, so
  // that neither can starve the other.
  int max_step_tokens = 2048;
  int chunk_tokens = 1024;  // largest prompt chunk, a multiple of window
  int window = 1;           // W
  // A prompt of more tokens is long, and so is an open one: nobody knows its length.
  int64_t long_prompt_tokens = std::numeric_limits<int64_t>::max();
  // That long prompts may hold together, >= 1; of one, the first may have a second for copies.
  int long_slots = std::numeric_limits<int>::max();
  absl::Duration priority_ageing = absl::Seconds(30);
  // An open prompt that can run nothing ends after so long: since the last of it came while it
  // waits, since it could run last, or Append without tokens, while it holds its slot.
  absl::Duration upload_timeout = absl::InfiniteDuration();
};

struct SequenceSpec {
  SequenceId id;
  std::vector<TokenId> prompt;     // not empty unless prompt_open
  bool prompt_open = false;        // Append brings more
  int num_sequences = 1;           // at most the pool's slots; 1 if nothing is sampled
  int max_new_tokens = 0;          // of each; 0: the prompt is only scored, nothing is sampled
  bool logits_everywhere = false;  // scoring: the logits after every prompt token are wanted
  Priority priority = Priority::kNormal;
  absl::Time arrival = absl::UnixEpoch();
  absl::Time start_by = absl::InfiniteFuture();   // queue timeout
  absl::Time finish_by = absl::InfiniteFuture();  // time limit, text kept
};

// Why a sequence ended, as far as the scheduler decides it.
enum class SequenceEnd {
  kMaxTokens,
  kCancelled,
  kStartTimeout,
  kTimeLimit,
  kScored,
  kStopped,          // drew an ending token
  kStoppedByCaller,  // StopSequence
  kUploadTimeout,
  kFailed
};

// What became of a request.
struct SequenceUpdate {
  enum class Kind {
    kStarted,
    kPrefilled,
    kSequenceEnded,  // one continuation is complete, its slot free if it had one; it goes on or
                     // kEnded follows
    kEnded           // the whole request; nothing of it follows
  };
  Kind kind = Kind::kEnded;
  SequenceId id;
  int64_t prompt_tokens_done = 0;  // kPrefilled: so far, after each chunk
  int sequence_index = 0;          // kSequenceEnded
  // kSequenceEnded: kMaxTokens, kStopped, kStoppedByCaller, kTimeLimit. kEnded: what ended it all,
  // or if its continuations ended one by one, how the last one did.
  SequenceEnd end = SequenceEnd::kFailed;
};

// The outcome of one sample.
struct SampledRow {
  TokenId token = TokenId(0);
  bool ends_sequence = false;  // an eos or stop token was drawn
  bool failed = false;         // nothing was drawn; the request ends with kFailed
};

class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, StatePool& pool);
  ~Scheduler();

  // How many may wait is for the caller to bound. REQUIRES: the id is new.
  void Enqueue(SequenceSpec spec);

  // More of an open prompt. Of an incomplete one whole blocks are read, and never its last token,
  // whose logits are wanted if it turns out to be the end. No-op if the request is unknown.
  // Without tokens it is a sign of life: enough has come that is no tokens yet.
  // REQUIRES: the prompt is open; complete it is not empty.
  void Append(SequenceId id, absl::Span<const TokenId> tokens, PromptEnd end, absl::Time now);

  // Ends the request and frees its slots at the next Plan(). No-op if it is unknown or done.
  void Cancel(SequenceId id);
  // Ends one continuation at the next Plan(). No-op if it is unknown or done.
  void StopSequence(SequenceId id, int sequence_index);

  // The next step; empty when nothing can run. Requests whose deadline is `now` or earlier are
  // ended first. `short_step_tokens`: how many tokens a step may have that must be short.
  // What happened to requests in between (started, stopped, cancelled, expired) is appended to
  // `updates`. REQUIRES: the previous plan was committed.
  StepPlan Plan(absl::Time now, int short_step_tokens, std::vector<SequenceUpdate>& updates);

  // Records what a step produced: one outcome for each of plan.samples(), in order. Appends
  // kPrefilled, kSequenceEnded and kEnded updates.
  void Commit(StepPlan plan, absl::Span<const SampledRow> sampled,
              std::vector<SequenceUpdate>& updates);

  // When Plan() will end something by itself, at the earliest.
  absl::Time next_deadline() const;
  int num_running() const;  // requests, as all of these
  int num_waiting() const;
  // How many start before this one as things are. REQUIRES: it waits.
  int QueuePosition(SequenceId id) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bst
