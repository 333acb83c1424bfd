#include "engine/step_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

std::vector<TokenLogprob> ToTop(const std::vector<std::pair<TokenId, float>>& likeliest) {
  std::vector<TokenLogprob> top;
  top.reserve(likeliest.size());
  for (const auto& [token, logprob] : likeliest) top.push_back({token, logprob});
  return top;
}

// In tokens.
int64_t LongestOf(const ActiveRequest& request) {
  int64_t longest = 0;
  for (const ContinuationRecord& continuation : request.continuations) {
    longest = std::max(longest, continuation.generated_tokens);
  }
  return longest;
}

RequestStats::Stage StageOf(const ActiveRequest& request) {
  if (!request.has_started()) return RequestStats::Stage::kQueued;
  return request.has_read_prompt() ? RequestStats::Stage::kDecode : RequestStats::Stage::kPrefill;
}

// `now`, the end. Zero for what has not happened; one that never started waited all the time.
Timings TimingsOf(const ActiveRequest& request, absl::Time now) {
  Timings timings;
  timings.queue = (request.has_started() ? request.started : now) - request.arrived;
  if (request.has_read_prompt()) timings.prefill = request.prompt_read - request.started;
  if (request.generated_tokens > 0) {
    timings.time_to_first_token = request.first_token - request.arrived;
    timings.decode = request.last_token - request.first_token;
  }
  return timings;
}

// How a continuation ended by itself, by its limits or by its caller.
FinishReason ReasonOf(const ActiveRequest& request, const ContinuationRecord& continuation,
                      SequenceEnd end) {
  switch (end) {
    case SequenceEnd::kStopped:
      return continuation.stop_token == request.eos ? FinishReason::kEos : FinishReason::kStopToken;
    case SequenceEnd::kTimeLimit:
      return FinishReason::kTimeLimit;
    case SequenceEnd::kStoppedByCaller:
      return FinishReason::kStopped;
    default:
      return FinishReason::kMaxTokens;
  }
}

struct Outcome {
  FinishReason reason;
  absl::Status status;
};

Outcome OutcomeOf(const ActiveRequest& request, SequenceEnd end, absl::Duration upload_timeout) {
  if (!request.failure.ok()) return {FinishReason::kError, request.failure};
  switch (end) {
    case SequenceEnd::kScored:
      return {FinishReason::kMaxTokens, absl::OkStatus()};
    case SequenceEnd::kTimeLimit:
      if (request.generated_tokens == 0) {
        return {FinishReason::kError,
                absl::DeadlineExceededError("time_limit passed before the first token")};
      }
      [[fallthrough]];
    case SequenceEnd::kMaxTokens:
    case SequenceEnd::kStopped:
    case SequenceEnd::kStoppedByCaller:
      return {request.continuations.front().ended.value_or(FinishReason::kError), absl::OkStatus()};
    case SequenceEnd::kUploadTimeout:
      return {FinishReason::kError,
              absl::DeadlineExceededError(absl::StrCat(
                  request.has_started() ? "no further block" : "no more",
                  " of the prompt came within ", absl::FormatDuration(upload_timeout)))};
    case SequenceEnd::kCancelled:
      return {FinishReason::kCancelled, absl::CancelledError("cancelled")};
    case SequenceEnd::kStartTimeout:
      return {FinishReason::kError,
              absl::DeadlineExceededError("queue_timeout passed before the request started")};
    case SequenceEnd::kFailed:
      break;
  }
  return {FinishReason::kError, absl::InternalError("sampling failed")};
}

// Whether the logits after its last token are drawn from, now or later.
bool SamplesAfter(const PlannedRow& row) { return row.num_samples > 0 || row.keeps_logits; }

StepStats StatsOf(const StepPlan& plan) {
  StepStats stats;
  stats.sequences = static_cast<int>(plan.rows().size());
  for (const PlannedSample& sample : plan.samples()) {
    if (sample.kept_logits.has_value()) ++stats.sequences;
  }
  stats.tokens = static_cast<int>(plan.tokens().size());
  for (const PlannedRow& row : plan.rows()) {
    if (row.is_prompt) stats.prompt_tokens += row.row.num_tokens();
  }
  stats.phase = stats.prompt_tokens == 0              ? StepStats::Phase::kDecode
                : stats.prompt_tokens == stats.tokens ? StepStats::Phase::kPrefill
                                                      : StepStats::Phase::kMixed;
  return stats;
}

}  // namespace

StepRunner::StepRunner(Backend& backend, std::unique_ptr<Model> model,
                       std::unique_ptr<StatePool> pool, std::unique_ptr<StepSampler> sampler,
                       const SchedulerLimits& limits, absl::Duration target_step,
                       const Clock& clock, Inbox& inbox, EngineObserver* observer)
    : backend_(backend),
      model_(std::move(model)),
      pool_(std::move(pool)),
      sampler_(std::move(sampler)),
      scheduler_(limits, *pool_),
      clock_(clock),
      inbox_(inbox),
      observer_(observer),
      window_(limits.window),
      max_step_tokens_(limits.max_step_tokens),
      upload_timeout_(limits.upload_timeout),
      target_step_(target_step) {}

absl::Status StepRunner::WarmUp() {
  const std::optional<SlotLease> lease = pool_->Acquire();
  BST_CHECK(lease.has_value(), "the pool is in use");
  const std::vector<TokenId> block(static_cast<size_t>(window_), TokenId(0));
  const auto run = [&](int64_t position, int tokens) {
    const Row row = {.slot = lease->id(), .begin = 0, .end = tokens, .position = position};
    // As of a prompt's last chunk.
    model_->Forward(absl::MakeConstSpan(block).first(static_cast<size_t>(tokens)), {row},
                    {tokens - 1}, *pool_);
    return sampler_->Score(model_->Logits({tokens - 1}), {TokenId(0)}, /*top_logprobs=*/1, tokens_);
  };
  absl::Status status = run(0, window_);
  const absl::Time warm = clock_.Now();
  status.Update(run(window_, window_));
  seconds_per_token_ = absl::ToDoubleSeconds(clock_.Now() - warm) / window_;
  status.Update(run(2 * int64_t{window_}, 1));
  if (!status.ok()) return absl::InternalError(absl::StrCat("warm-up step: ", status.message()));
  last_step_unix_nanos_ = absl::ToUnixNanos(absl::Now());
  return status;
}

void StepRunner::CheckThread() {
  if (thread_ == std::thread::id()) thread_ = std::this_thread::get_id();
  BST_DCHECK(thread_ == std::this_thread::get_id(), "called from two threads");
}

void StepRunner::Accept(std::unique_ptr<ActiveRequest> owned) {
  CheckThread();
  ActiveRequest& request = *owned;
  requests_.emplace(request.id, std::move(owned));
  const bool samples = request.kind == RequestStats::Kind::kGenerate;
  scheduler_.Enqueue({.id = request.id,
                      .prompt = std::move(request.prompt),
                      .prompt_open = request.prompt_open,
                      .num_sequences = samples ? static_cast<int>(request.continuations.size()) : 1,
                      .max_new_tokens = samples ? request.stopping.max_new_tokens : 0,
                      .logits_everywhere = !samples,
                      .priority = request.priority,
                      .arrival = request.arrived,
                      .start_by = request.start_by,
                      .finish_by = request.finish_by});
  request.sink->Push(AcceptedEvent{.prompt_tokens = request.prompt_tokens,
                                   .queue_position = scheduler_.QueuePosition(request.id)});
}

void StepRunner::AppendPrompt(const Inbox::PromptPart& part) {
  CheckThread();
  const auto it = requests_.find(part.id);
  if (it == requests_.end()) return;
  ActiveRequest& request = *it->second;
  request.prompt_tokens += static_cast<int64_t>(part.tokens.size());
  request.prompt_open = part.end == PromptEnd::kMoreFollows;
  request.sampler->AddPrompt(part.for_sampler);
  scheduler_.Append(part.id, part.tokens, part.end, clock_.Now());
}

void StepRunner::StopSequence(SequenceId id, int sequence_index) {
  CheckThread();
  scheduler_.StopSequence(id, sequence_index);
}

void StepRunner::Cancel(SequenceId id) {
  CheckThread();
  scheduler_.Cancel(id);
}

absl::Duration StepRunner::Patience() const {
  // A test's clock may pass a deadline at any moment of the real one.
  constexpr absl::Duration kLongest = absl::Milliseconds(50);
  if (requests_.empty()) return absl::InfiniteDuration();
  if (ran_) return absl::ZeroDuration();
  return std::clamp(scheduler_.next_deadline() - clock_.Now(), absl::ZeroDuration(), kLongest);
}

int StepRunner::ShortStepTokens() const {
  const double tokens = absl::ToDoubleSeconds(target_step_) / seconds_per_token_;
  return tokens < max_step_tokens_ ? static_cast<int>(tokens) : max_step_tokens_;  // inf: speed 0
}

void StepRunner::LearnSpeed(const StepStats& stats) {
  if (stats.prompt_tokens == 0) return;
  const double sample = absl::ToDoubleSeconds(stats.duration) / stats.tokens;
  if (seconds_per_token_ == 0) seconds_per_token_ = sample;
  // A step that the machine held up says little about the next: it counts as four times as slow.
  constexpr double kWeight = 0.125, kMostAtOnce = 4;
  seconds_per_token_ +=
      kWeight * (std::min(sample, kMostAtOnce * seconds_per_token_) - seconds_per_token_);
}

void StepRunner::Step() {
  CheckThread();
  if (!health_.ok()) {  // These came before the inbox heard of the failure.
    EndAll(health_);
    return;
  }
  const absl::Time begin = clock_.Now();
  updates_.clear();
  StepPlan plan = scheduler_.Plan(begin, ShortStepTokens(), updates_);
  ran_ = !plan.empty();
  UpdateLoad();
  ReportStartsAndEnds(begin);
  updates_.clear();
  if (!ran_) {
    scheduler_.Commit(std::move(plan), {}, updates_);
    return;
  }

  StepStats stats = StatsOf(plan);
  sampled_.clear();
  drawn_.clear();
  if (const absl::Status status = Run(plan); !status.ok()) {
    CommitFailed(std::move(plan),
                 absl::InternalError(absl::StrCat("the device failed: ", status.message())));
    return;
  }
  scheduler_.Commit(std::move(plan), sampled_, updates_);

  const absl::Time end = clock_.Now();
  stats.duration = end - begin;
  LearnSpeed(stats);
  UpdateLoad();
  ReportStep(stats);
  ReportProgress(end);
  ReportTokens(end);
  ReportStartsAndEnds(end);
}

absl::Status StepRunner::Run(const StepPlan& plan) {
  rows_.clear();
  wanted_.clear();
  for (const PlannedRow& row : plan.rows()) {
    rows_.push_back(row.row);
    // Of a scored row those with a target after them (ScoreRow); of another at most the last.
    const bool wants_last = SamplesAfter(row) || (row.scores && row.following.has_value());
    const int first = row.scores ? row.row.begin : row.row.end - 1;
    for (int t = first; t < row.row.end - 1; ++t) wanted_.push_back(t);
    if (wants_last) wanted_.push_back(row.row.end - 1);
  }
  if (!rows_.empty()) model_->Forward(plan.tokens(), rows_, wanted_, *pool_);
  for (const PlannedCopy& copy : plan.copies()) pool_->Copy(copy.from, copy.to);
  BST_RETURN_IF_ERROR(SampleRows(plan));
  for (const PlannedRow& row : plan.rows()) {
    if (row.scores) BST_RETURN_IF_ERROR(ScoreRow(plan, row));
  }
  return backend_.Sync();
}

absl::Status StepRunner::SampleRows(const StepPlan& plan) {
  sampled_rows_.clear();
  indices_.clear();
  for (const PlannedRow& row : plan.rows()) {
    if (!SamplesAfter(row)) continue;
    sampled_rows_.push_back(&row);
    indices_.push_back(row.row.end - 1);
  }
  for (const PlannedSample& sample : plan.samples()) {
    DrawnToken& drawn = drawn_.emplace_back();
    drawn.request = requests_.at(sample.id).get();
    drawn.event.sequence_index = sample.sequence_index;
  }
  const auto group_rows = static_cast<size_t>(model_->max_logit_rows());
  size_t next = 0;  // of plan.samples()
  for (size_t begin = 0; begin < indices_.size(); begin += group_rows) {
    const absl::Span<const int> group = absl::MakeConstSpan(indices_).subspan(begin, group_rows);
    const TensorView logits = model_->Logits(group);
    draws_.clear();
    for (size_t i = 0; i < group.size(); ++i) {
      const PlannedRow& row = *sampled_rows_[begin + i];
      if (row.keeps_logits) sampler_->KeepLogits(logits, static_cast<int>(i), row.row.slot);
      // Several at the end of a prompt.
      for (int k = 0; k < row.num_samples; ++k, ++next) {
        draws_.push_back(DrawOf(drawn_[next], static_cast<int>(i), plan.samples()[next].slot));
      }
    }
    BST_RETURN_IF_ERROR(DrawAll(logits));
  }
  draws_.clear();
  for (; next < drawn_.size(); ++next) {
    const PlannedSample& sample = plan.samples()[next];
    draws_.push_back(DrawOf(drawn_[next], sample.kept_logits->value(), sample.slot));
  }
  return draws_.empty() ? absl::OkStatus() : DrawAll(sampler_->kept_logits());
}

absl::Status StepRunner::DrawAll(TensorView logits) {
  BST_RETURN_IF_ERROR(sampler_->Sample(logits, draws_, tokens_));
  for (absl::StatusOr<SampledToken>& token : tokens_) {
    sampled_.push_back(Record(std::move(token), drawn_[sampled_.size()]));
  }
  return absl::OkStatus();
}

StepSampler::Draw StepRunner::DrawOf(const DrawnToken& drawn, int row, SlotId slot) {
  ActiveRequest& request = *drawn.request;
  const int index = drawn.event.sequence_index;
  ContinuationRecord& continuation = request.continuations[static_cast<size_t>(index)];
  if (!continuation.sampler.has_value()) {
    const auto sequence_index = static_cast<uint32_t>(index);
    if (request.continuations.size() == 1) {
      continuation.sampler = std::move(*request.sampler).ForSequence(sequence_index);
      request.sampler.reset();
    } else {
      continuation.sampler = request.sampler->ForSequence(sequence_index);
    }
  }
  const bool may_end = continuation.generated_tokens >= request.stopping.min_new_tokens;
  return {.sampler = &*continuation.sampler,
          .row = row,
          .slot = slot,
          .token_index = static_cast<uint64_t>(continuation.generated_tokens),
          .banned = may_end ? absl::Span<const TokenId>() : request.ending};
}

SampledRow StepRunner::Record(absl::StatusOr<SampledToken> sample, DrawnToken& drawn) {
  ActiveRequest& request = *drawn.request;
  if (!sample.ok()) {
    request.failure = absl::InternalError(sample.status().message());
    return {.failed = true};
  }
  drawn.event.token = {sample->token, sample->logprob};
  drawn.event.top = ToTop(sample->top);
  const bool ends = absl::c_linear_search(request.ending, sample->token);
  if (ends) {
    request.continuations[static_cast<size_t>(drawn.event.sequence_index)].stop_token =
        sample->token;
  }
  return {.token = sample->token, .ends_sequence = ends};
}

absl::Status StepRunner::ScoreRow(const StepPlan& plan, const PlannedRow& row) {
  ActiveRequest& request = *requests_.at(row.id);
  // The token after each one of the chunk; the last one's comes with the next chunk, or is none.
  const absl::Span<const TokenId> tokens = plan.tokens().subspan(
      static_cast<size_t>(row.row.begin), static_cast<size_t>(row.row.num_tokens()));
  targets_.assign(tokens.begin() + 1, tokens.end());
  if (row.following.has_value()) targets_.push_back(*row.following);

  const auto group_rows = static_cast<size_t>(model_->max_logit_rows());
  for (size_t begin = 0; begin < targets_.size(); begin += group_rows) {
    const absl::Span<const TokenId> targets =
        absl::MakeConstSpan(targets_).subspan(begin, group_rows);
    indices_.resize(targets.size());
    std::iota(indices_.begin(), indices_.end(), row.row.begin + static_cast<int>(begin));
    logprobs_.resize(targets.size());
    const TensorView logits = model_->Logits(indices_);
    backend_.TargetLogprobs(logits, targets, absl::MakeSpan(logprobs_));
    BST_RETURN_IF_ERROR(backend_.Sync());
    if (request.top_logprobs > 0) {
      BST_RETURN_IF_ERROR(sampler_->Score(logits, targets, request.top_logprobs, tokens_));
    }

    absl::StatusOr<ScoredEvent> event = Scored(targets, request.top_logprobs);
    if (!event.ok()) {
      request.failure = event.status();
      scheduler_.Cancel(row.id);
      return absl::OkStatus();
    }
    event->first_position = row.row.position + static_cast<int64_t>(begin) + 1;
    request.sink->Push(*std::move(event));
  }
  return absl::OkStatus();
}

absl::StatusOr<ScoredEvent> StepRunner::Scored(absl::Span<const TokenId> targets,
                                               int top_logprobs) {
  ScoredEvent event;
  event.tokens.reserve(targets.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    if (std::isnan(logprobs_[i])) return absl::InternalError("the model's logits are not numbers");
    event.tokens.push_back({targets[i], logprobs_[i]});
    if (top_logprobs == 0) continue;
    BST_RETURN_IF_ERROR(tokens_[i].status());
    event.tokens.back().logprob = tokens_[i]->logprob;  // the same normaliser as its alternatives
    event.top.push_back(ToTop(tokens_[i]->top));
  }
  return event;
}

void StepRunner::CommitFailed(StepPlan plan, const absl::Status& status) {
  Log(LogLevel::kError, "engine_failed", {{"status", status.ToString()}});
  health_ = status;
  healthy_ = false;
  inbox_.Fail(status);
  sampled_.assign(plan.samples().size(), {.failed = true});
  for (const auto& [id, request] : requests_) request->failure = status;
  scheduler_.Commit(std::move(plan), sampled_, updates_);
  UpdateLoad();
  ReportStartsAndEnds(clock_.Now());
  EndAll(status);
}

void StepRunner::EndAll(const absl::Status& status) {
  CheckThread();
  for (const auto& [id, request] : requests_) {
    if (request->failure.ok()) request->failure = status;
    scheduler_.Cancel(id);
  }
  updates_.clear();
  const absl::Time now = clock_.Now();
  StepPlan plan = scheduler_.Plan(now, max_step_tokens_, updates_);
  BST_CHECK(plan.empty() && requests_.size() == updates_.size(),
            "something runs that nobody knows");
  scheduler_.Commit(std::move(plan), {}, updates_);
  UpdateLoad();
  ReportStartsAndEnds(now);
}

void StepRunner::UpdateLoad() {
  running_ = scheduler_.num_running();
  awaiting_input_ = !ran_ && scheduler_.num_running() + scheduler_.num_waiting() > 0;
  slots_used_ = pool_->num_slots() - pool_->num_free();
}

EngineLoad StepRunner::load() const {
  return {.running = running_,
          .slots_total = pool_->num_slots(),
          .slots_used = slots_used_,
          .steps = steps_,
          .last_step = absl::FromUnixNanos(last_step_unix_nanos_),
          .awaiting_input = awaiting_input_,
          .healthy = healthy_};
}

void StepRunner::ReportStep(const StepStats& stats) {
  ++steps_;
  last_step_unix_nanos_ = absl::ToUnixNanos(absl::Now());
  if (observer_ != nullptr) observer_->OnStep(stats);
}

void StepRunner::ReportProgress(absl::Time now) {
  for (const SequenceUpdate& update : updates_) {
    if (update.kind != SequenceUpdate::Kind::kPrefilled) continue;
    ActiveRequest& request = *requests_.at(update.id);
    if (!request.prompt_open && update.prompt_tokens_done == request.prompt_tokens) {
      request.prompt_read = now;
    }
    if (request.prompt_progress) {
      request.sink->Push(PrefillProgressEvent{.processed_tokens = update.prompt_tokens_done,
                                              .total_tokens = request.prompt_tokens});
    }
  }
}

void StepRunner::ReportTokens(absl::Time now) {
  for (size_t i = 0; i < drawn_.size(); ++i) {
    if (sampled_[i].failed) continue;
    ActiveRequest& request = *drawn_[i].request;
    ContinuationRecord& continuation =
        request.continuations[static_cast<size_t>(drawn_[i].event.sequence_index)];
    if (observer_ != nullptr) {
      if (request.generated_tokens == 0) {
        observer_->OnFirstToken(request.id, now - request.arrived);
      }
      std::optional<absl::Duration> gap;
      if (continuation.generated_tokens > 0) gap = now - continuation.last_token;
      observer_->OnToken(request.id, gap);
    }
    if (request.generated_tokens == 0) request.first_token = now;
    request.last_token = now;
    ++request.generated_tokens;
    continuation.last_token = now;
    ++continuation.generated_tokens;
    request.sink->Push(std::move(drawn_[i].event));
  }
}

void StepRunner::ReportStartsAndEnds(absl::Time now) {
  // Starts first: who sees an end must not find a request that runs still counted as waiting.
  for (const SequenceUpdate& update : updates_) {
    if (update.kind != SequenceUpdate::Kind::kStarted) continue;
    ActiveRequest& request = *requests_.at(update.id);
    inbox_.Started(request);
    request.started = now;
  }
  for (const SequenceUpdate& update : updates_) {
    if (update.kind == SequenceUpdate::Kind::kSequenceEnded) {
      EndContinuation(*requests_.at(update.id), update);
    } else if (update.kind == SequenceUpdate::Kind::kEnded) {
      Finish(*requests_.at(update.id), update.end, now);
    }
  }
}

void StepRunner::EndContinuation(ActiveRequest& request, const SequenceUpdate& update) {
  ContinuationRecord& continuation =
      request.continuations[static_cast<size_t>(update.sequence_index)];
  const FinishReason reason = ReasonOf(request, continuation, update.end);
  continuation.ended = reason;
  continuation.sampler.reset();
  inbox_.SequenceEnded(request);
  request.sink->Push(SequenceEndedEvent{.sequence_index = update.sequence_index,
                                        .reason = reason,
                                        .stop_token = continuation.stop_token.value_or(TokenId(0)),
                                        .generated_tokens = continuation.generated_tokens});
}

void StepRunner::Finish(ActiveRequest& request, SequenceEnd end, absl::Time now) {
  inbox_.Finished(request);
  const Outcome outcome = OutcomeOf(request, end, upload_timeout_);
  FinishedEvent finished;
  finished.reason = outcome.reason;
  finished.status = outcome.status;
  if (outcome.status.ok() && !request.continuations.empty()) {
    finished.stop_token = request.continuations.front().stop_token.value_or(TokenId(0));
  }
  finished.prompt_tokens = request.prompt_tokens;
  finished.generated_tokens = request.generated_tokens;
  finished.timings = TimingsOf(request, now);
  if (observer_ != nullptr) {
    observer_->OnFinished(request.request_id, {.kind = request.kind,
                                               .stage = StageOf(request),
                                               .finished = finished,
                                               .longest_tokens = LongestOf(request),
                                               .total = now - request.arrived});
  }
  // The request is forgotten first: a sink may hold what its owner waits for.
  const std::unique_ptr<ActiveRequest> owned = std::move(requests_.extract(request.id).mapped());
  owned->sink->Push(std::move(finished));
}

}  // namespace bst
