// StepRunner: one step of the engine after another; everything that the engine thread owns.
//
//   Scheduler::Plan -> Model::Forward -> StatePool::Copy -> Model::Logits -> StepSampler ->
//   Scheduler::Commit -> sinks
//
// Events     Those of one step are pushed after its Commit, when slots, counters and request ids
//            are released already: who sees a FinishedEvent may build on that. Scored positions are
//            pushed as they are computed, since a chunk's would need a copy of its logits.
// Failures   NaN in a row's logits ends that request with kInternal. A device failure ends all of
//            them: the results of that step are dropped, and whoever comes later ends at once.
// Ownership  Owns model, pool, sampler, scheduler and the accepted requests; the rest outlives it.
// Threads    Engine thread only (WarmUp before it starts), but load() is thread-safe.
// Tested by  tests/engine/engine_test.cc, tests/engine/engine_fault_test.cc
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/active_request.h"
#include "engine/backend/backend.h"
#include "engine/base/clock.h"
#include "engine/base/ids.h"
#include "engine/engine.h"
#include "engine/inbox.h"
#include "engine/model/model.h"
#include "engine/sampling/step_sampler.h"
#include "engine/scheduler/scheduler.h"
#include "engine/state/state_pool.h"

namespace bst {

class StepRunner {
 public:
  // `observer` may be null.
  StepRunner(Backend& backend, std::unique_ptr<Model> model, std::unique_ptr<StatePool> pool,
             std::unique_ptr<StepSampler> sampler, const SchedulerLimits& limits,
             absl::Duration target_step, const Clock& clock, Inbox& inbox,
             EngineObserver* observer);

  // Runs two blocks and a single token through the model, so that the first request does not pay
  // for cold memory and threads; leaves nothing behind but a first idea of the model's speed.
  // Errors: kInternal when the device fails.
  absl::Status WarmUp();

  // Takes a request over from the inbox.
  void Accept(std::unique_ptr<ActiveRequest> request);
  // More of the request's open prompt. No-op if it is unknown or done.
  void AppendPrompt(const Inbox::PromptPart& part);
  // Ends the continuation in the next Step(). No-op if it is unknown or done.
  void StopSequence(SequenceId id, int sequence_index);
  // Ends the request with kCancelled in the next Step(). No-op if it is unknown or done.
  void Cancel(SequenceId id);
  // Runs one step, if there is anything to run, and pushes what came of it.
  void Step();
  // Ends every request with `status`, which is not OK.
  void EndAll(const absl::Status& status);

  // How long nothing will happen unless something comes from the inbox: infinite without requests,
  // zero while steps run. All requests may wait for more of their prompts, or for slots that such
  // ones hold; then until a deadline, but never long, for deadlines are the engine clock's.
  absl::Duration Patience() const;
  // The part of EngineLoad that is the runner's: all but what waits and draining.
  EngineLoad load() const;

 private:
  struct DrawnToken {
    ActiveRequest* request = nullptr;
    GeneratedEvent event;  // its sequence_index is set from the beginning
  };

  void CheckThread();
  // How many tokens take target_step, as recent steps went.
  int ShortStepTokens() const;
  void LearnSpeed(const StepStats& stats);
  absl::Status Run(const StepPlan& plan);
  absl::Status SampleRows(const StepPlan& plan);
  // draws_, the next of drawn_.
  absl::Status DrawAll(TensorView logits);
  StepSampler::Draw DrawOf(const DrawnToken& drawn, int row, SlotId slot);
  SampledRow Record(absl::StatusOr<SampledToken> sample, DrawnToken& drawn);
  absl::Status ScoreRow(const StepPlan& plan, const PlannedRow& row);
  // Of logprobs_ and, with alternatives, tokens_.
  absl::StatusOr<ScoredEvent> Scored(absl::Span<const TokenId> targets, int top_logprobs);
  void CommitFailed(StepPlan plan, const absl::Status& status);
  void UpdateLoad();
  void ReportStep(const StepStats& stats);
  void ReportProgress(absl::Time now);
  void ReportTokens(absl::Time now);
  void ReportStartsAndEnds(absl::Time now);
  void EndContinuation(ActiveRequest& request, const SequenceUpdate& update);
  void Finish(ActiveRequest& request, SequenceEnd end, absl::Time now);

  Backend& backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<StatePool> pool_;
  std::unique_ptr<StepSampler> sampler_;
  Scheduler scheduler_;
  const Clock& clock_;
  Inbox& inbox_;
  EngineObserver* observer_;
  const int window_;
  const int max_step_tokens_;
  const absl::Duration upload_timeout_;
  const absl::Duration target_step_;
  double seconds_per_token_ = 0;  // of recent steps with prompt chunks; 0: not known
  absl::flat_hash_map<SequenceId, std::unique_ptr<ActiveRequest>> requests_;
  bool ran_ = false;        // the last Step() had something to run
  absl::Status health_;     // OK until the device fails
  std::thread::id thread_;  // the engine thread, from its first call on; checked in debug builds

  // Of the step that runs; members only to keep their memory.
  std::vector<SequenceUpdate> updates_;
  std::vector<Row> rows_;
  std::vector<int> indices_;
  std::vector<int> wanted_;                      // tokens whose logits are read
  std::vector<const PlannedRow*> sampled_rows_;  // those whose last token is among them
  std::vector<TokenId> targets_;
  std::vector<float> logprobs_;
  std::vector<SampledRow> sampled_;
  std::vector<DrawnToken> drawn_;  // one for each of sampled_
  std::vector<StepSampler::Draw> draws_;
  std::vector<absl::StatusOr<SampledToken>> tokens_;

  std::atomic<int> running_ = 0;
  std::atomic<int> slots_used_ = 0;
  std::atomic<int64_t> steps_ = 0;
  std::atomic<int64_t> last_step_unix_nanos_ = 0;  // wall clock
  std::atomic<bool> awaiting_input_ = false;
  std::atomic<bool> healthy_ = true;
};

}  // namespace bst
