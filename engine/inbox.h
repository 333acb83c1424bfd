// Inbox: where the callers' threads meet the engine thread. Requests, parts of prompts, stops and
// cancellations go in, many to one; the engine thread takes all of them between two steps and
// sleeps here without work.
//
// It also keeps the books that admission needs: which requests are in flight, and how many prompt
// tokens wait. They are kept here, not in the scheduler, so that Submit can answer at once.
//
// Invariants  (1) A request is taken while fewer than max_in_flight sequences are in flight: of
//                 requests that are submitted and not finished, and not ended themselves.
//             (2) A request that Submit accepted is delivered exactly once, and its cancellation
//                 and the stop of a continuation at most once, not before it.
//             (3) The prompt tokens of all waiting requests together, parts that came later
//                 included, are at most max_waiting_tokens, or one request's. What callers append
//                 to a request that has started is theirs to bound.
// Threads     Thread-safe; Take, Started, SequenceEnded, Finished, Retire and Fail are the engine
//             thread's.
//             No lock is held outside a call.
// Tested by   tests/engine/engine_inbox_test.cc
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/active_request.h"
#include "engine/base/ids.h"

namespace bst {

struct InboxLimits {
  int64_t max_in_flight = 0;  // sequences that run and wait, from which on requests are refused
  // Prompt tokens that may wait; a prompt that waits alone may have any number.
  int64_t max_waiting_tokens = 0;
  int64_t max_prompt_tokens = 0;  // of an open prompt, all parts together
};

class Inbox {
 public:
  explicit Inbox(const InboxLimits& limits) : limits_(limits) {}

  // Takes the request in and numbers it.
  // Errors: kResourceExhausted, kAlreadyExists (request_id in flight; an empty one is never),
  //         kUnavailable (draining, closed or failed).
  absl::StatusOr<SequenceId> Submit(std::unique_ptr<ActiveRequest> request)
      ABSL_LOCKS_EXCLUDED(mutex_);
  struct PromptPart {
    SequenceId id;
    std::vector<TokenId> tokens;
    PromptEnd end = PromptEnd::kMoreFollows;
    std::vector<TokenId> for_sampler = {};  // what Sampler::AddPrompt needs of them
  };
  // More of an open prompt. Errors: kNotFound (not in flight), kFailedPrecondition (complete),
  // kInvalidArgument (too long, or complete and empty), kResourceExhausted (it waits, and too many
  // tokens would); nothing has changed then.
  absl::Status AppendPrompt(PromptPart part) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether the request's sampler looks at its prompt; false too if it is not in flight.
  bool SamplerLooksAtPrompt(SequenceId id) const ABSL_LOCKS_EXCLUDED(mutex_);
  // No-op if the request or the continuation is not in flight.
  void StopSequence(SequenceId id, int sequence_index) ABSL_LOCKS_EXCLUDED(mutex_);
  // No-op if the request is not in flight.
  void Cancel(SequenceId id) ABSL_LOCKS_EXCLUDED(mutex_);
  // Submit answers kUnavailable from now on.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);
  // Drain, and tell the engine thread to end.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until the engine thread has nothing left to do, its last event pushed. False: `deadline`
  // (of the wall clock) passed first.
  bool WaitIdle(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

  int64_t num_in_flight() const ABSL_LOCKS_EXCLUDED(mutex_);  // sequences
  int num_waiting() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t waiting_tokens() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool draining() const ABSL_LOCKS_EXCLUDED(mutex_);

  // ---- Engine thread ----

  // To be taken in this order.
  struct Delivery {
    std::vector<std::unique_ptr<ActiveRequest>> requests;  // in order of arrival
    std::vector<PromptPart> prompt_parts;                  // likewise
    std::vector<std::pair<SequenceId, int>> stopped;       // continuations
    std::vector<SequenceId> cancelled;
    bool closed = false;
  };
  // What came since the last call. Waits up to `patience` for something to come; infinite: the
  // engine thread has nothing left to do.
  void Take(absl::Duration patience, Delivery& delivery) ABSL_LOCKS_EXCLUDED(mutex_);
  // The request waits no longer.
  void Started(const ActiveRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // One of several sequences of the request needs no slot any more.
  void SequenceEnded(const ActiveRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // The request is not in flight any more: its request_id may come again. Once per request.
  void Finished(const ActiveRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // The last call of the engine thread: nothing will happen any more, WaitIdle is true.
  void Retire() ABSL_LOCKS_EXCLUDED(mutex_);
  // The device failed: Submit answers kUnavailable with `why`.
  void Fail(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !pending_.requests.empty() || !pending_.prompt_parts.empty() ||
           !pending_.stopped.empty() || !pending_.cancelled.empty() || pending_.closed;
  }

  struct InFlight {
    int64_t sequences = 1;      // that have not ended
    int64_t prompt_tokens = 0;  // that have come
    bool prompt_open = false;
    bool waits = true;  // prompt_tokens are in waiting_tokens_
    bool sampler_looks_at_prompt = false;
    bool cancelled = false;
    std::vector<bool> stopped;  // by sequence index
  };

  // Whether `more` tokens may wait of a prompt of which `own` do. Errors: kResourceExhausted.
  absl::Status CheckRoom(int64_t more, int64_t own) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopWaiting(InFlight& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const InboxLimits limits_;
  mutable absl::Mutex mutex_;
  Delivery pending_ ABSL_GUARDED_BY(mutex_);  // not delivered yet
  absl::flat_hash_map<SequenceId, InFlight> in_flight_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::string> request_ids_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t sequences_ ABSL_GUARDED_BY(mutex_) = 0;  // of all in flight
  int num_waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool asleep_ ABSL_GUARDED_BY(mutex_) = false;  // the engine thread waits for work, or is gone
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace bst
