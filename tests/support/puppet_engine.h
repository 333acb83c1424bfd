// PuppetEngine: an Engine without a model, which does what a test says when the test says it.
//
// Submit records the request and sends Accepted; the test then pulls the strings: Generate, Score,
// Finish. The test's thread plays the engine thread. A request can also be answered at once by a
// script (AnswerWith). Cancel ends a request at once and StopSequence a continuation, unless the
// test wants to do that itself.
//
// Invariant   Every request it accepted gets exactly one FinishedEvent, as Engine promises.
// Threads     Thread-safe.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/check.h"
#include "engine/engine.h"

namespace bst {

// A byte model with bos 256, eos 257 and pad 258.
inline ModelInfo PuppetModelInfo() {
  ModelInfo info;
  info.name = "puppet";
  info.backend = "puppet (strings)";
  info.weights = info.kv = "f32";
  info.config_json = "{}";
  info.vocab_size = 259;
  info.window = 8;
  info.layers = {"transformer", "bst single_head s4d N=8 zoh"};
  info.num_parameters = 12345;
  info.state_bytes_per_sequence = 1000;
  info.max_sequences = 4;
  info.max_step_tokens = 64;
  info.chunk_tokens = 32;
  info.max_prompt_tokens = 100'000;
  info.tokenizer_type = "byte";
  info.bos = {TokenId(256)};
  info.eos = {TokenId(257)};
  info.pad = {TokenId(258)};
  info.load_seconds = 1.5;
  return info;
}

class PuppetEngine final : public Engine {
 public:
  struct Request {
    SequenceId id;
    std::string request_id;
    std::optional<GenerateRequest> generate;
    std::optional<ScoreRequest> score;
    std::shared_ptr<TokenSink> sink;
  };
  struct Appended {
    std::vector<TokenId> tokens;
    PromptEnd end = PromptEnd::kMoreFollows;
  };
  enum class OnCancel { kFinish, kLeaveToTest };

  explicit PuppetEngine(EngineObserver* observer = nullptr, ModelInfo info = PuppetModelInfo())
      : observer_(observer), info_(std::move(info)) {}
  ~PuppetEngine() override { PuppetEngine::Shutdown(); }

  // ---- Strings ----

  // The n-th request of the test, from 0, once it has come.
  Request WaitForRequest(size_t n) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto came = [this, n]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return requests_.size() > n; };
    mutex_.Await(absl::Condition(&came));
    return requests_[n];
  }
  size_t num_requests() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return requests_.size();
  }
  // Blocks until Cancel(id) was called.
  void WaitForCancel(SequenceId id) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto came = [this, id]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return WasCancelledLocked(id); };
    mutex_.Await(absl::Condition(&came));
  }
  bool was_cancelled(SequenceId id) const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return WasCancelledLocked(id);
  }

  // What AppendPrompt brought, in order.
  // Blocks until AppendPrompt was called `calls` times, or completed the prompt.
  std::vector<Appended> WaitForAppended(SequenceId id, size_t calls) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto came = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      const std::vector<Appended>& appended = appended_[id];
      return appended.size() >= calls ||
             (!appended.empty() && appended.back().end == PromptEnd::kComplete);
    };
    mutex_.Await(absl::Condition(&came));
    return appended_[id];
  }
  std::vector<Appended> AppendedTo(SequenceId id) const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto it = appended_.find(id);
    return it == appended_.end() ? std::vector<Appended>() : it->second;
  }
  // Blocks until StopSequence(id, sequence_index) was called.
  void WaitForStop(SequenceId id, int sequence_index) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto came = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return std::find(stopped_.begin(), stopped_.end(), std::pair(id, sequence_index)) !=
             stopped_.end();
    };
    mutex_.Await(absl::Condition(&came));
  }
  // The continuations that StopSequence named, in order.
  std::vector<std::pair<SequenceId, int>> stopped() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return stopped_;
  }

  void Progress(SequenceId id, int64_t processed, int64_t total) {
    SinkOf(id)->Push(PrefillProgressEvent{processed, total});
  }
  void Generate(SequenceId id, int32_t token, float logprob = -1,
                std::vector<TokenLogprob> top = {}, int sequence_index = 0) {
    const std::shared_ptr<TokenSink> sink = SinkOf(id);
    {
      absl::MutexLock lock(&mutex_);
      State& state = active_.at(id);
      ++steps_;
      int64_t& of_sequence = state.generated_by_sequence[sequence_index];
      ++of_sequence;
      if (++state.generated == 1 && observer_ != nullptr) {
        observer_->OnFirstToken(id, absl::Milliseconds(20));
      }
      if (observer_ != nullptr) {
        observer_->OnToken(id,
                           of_sequence == 1 ? std::nullopt : std::optional(absl::Milliseconds(10)));
      }
    }
    sink->Push(GeneratedEvent{{TokenId(token), logprob}, std::move(top), sequence_index});
  }
  void GenerateText(SequenceId id, const std::string& bytes, int sequence_index = 0) {
    for (const char byte : bytes)
      Generate(id, static_cast<unsigned char>(byte), -1, {}, sequence_index);
  }
  // Ends one continuation, and with the last of them the request. No-op if it has ended.
  void EndSequence(SequenceId id, int sequence_index, FinishReason reason, int32_t stop_token = 0)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    std::optional<SequenceEndedEvent> first;
    {
      absl::MutexLock lock(&mutex_);
      const auto found = active_.find(id);
      if (found == active_.end()) return;
      State& state = found->second;
      SequenceEndedEvent ended;
      ended.sequence_index = sequence_index;
      ended.reason = reason;
      ended.stop_token = TokenId(stop_token);
      if (!state.ended.emplace(sequence_index, ended).second) return;
      requests_[state.index].sink->Push(ended);
      const auto& request = requests_[state.index].generate;
      if (state.ended.size() == static_cast<size_t>(request->num_sequences))
        first = state.ended.at(0);
    }
    if (first.has_value()) Finish(id, first->reason, absl::OkStatus(), first->stop_token.value());
  }
  void Score(SequenceId id, int64_t first_position, const std::vector<float>& logprobs,
             const std::vector<std::vector<TokenLogprob>>& top = {}) {
    const Request request = RequestOf(id);
    ScoredEvent event;
    event.first_position = first_position;
    for (size_t i = 0; i < logprobs.size(); ++i) {
      const TokenId token = request.score->tokens[static_cast<size_t>(first_position) + i];
      event.tokens.push_back({token, logprobs[i]});
    }
    event.top = top;
    request.sink->Push(std::move(event));
  }
  // No-op if the request has finished (a Cancel may have come first).
  void Finish(SequenceId id, FinishReason reason, absl::Status status = absl::OkStatus(),
              int32_t stop_token = 0) ABSL_LOCKS_EXCLUDED(mutex_) {
    Request request;
    RequestStats stats;
    {
      absl::MutexLock lock(&mutex_);
      const auto found = active_.find(id);
      if (found == active_.end()) return;
      request = requests_[found->second.index];
      if (request.generate.has_value() && status.ok()) {
        for (int i = 0; i < request.generate->num_sequences; ++i) {
          SequenceEndedEvent ended;
          ended.sequence_index = i;
          ended.reason = reason;
          ended.stop_token = TokenId(stop_token);
          if (!found->second.ended.contains(i)) request.sink->Push(ended);
        }
      }
      stats.kind =
          request.score.has_value() ? RequestStats::Kind::kScore : RequestStats::Kind::kGenerate;
      stats.stage =
          found->second.generated > 0 ? RequestStats::Stage::kDecode : stage_before_tokens_;
      for (const auto& [index, tokens] : found->second.generated_by_sequence) {
        stats.longest_tokens = std::max(stats.longest_tokens, tokens);
      }
      stats.total = absl::Milliseconds(100);
      FinishedEvent& finished = stats.finished;
      finished.reason = reason;
      finished.status = std::move(status);
      finished.stop_token = TokenId(stop_token);
      finished.prompt_tokens =
          static_cast<int64_t>(request.score.has_value() ? request.score->tokens.size()
                                                         : request.generate->prompt.size());
      finished.generated_tokens = found->second.generated;
      finished.timings = {absl::Milliseconds(5), absl::Milliseconds(15), absl::Milliseconds(20),
                          absl::Milliseconds(40)};
      active_.erase(found);
    }
    if (observer_ != nullptr) observer_->OnFinished(request.request_id, stats);
    request.sink->Push(std::move(stats.finished));
  }

  // Every request from now on gets `tokens` and finishes with kMaxTokens, within Submit.
  void AnswerWith(std::vector<int32_t> tokens) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    script_ = std::move(tokens);
  }
  // What Submit answers from now on; OK: it accepts.
  void RefuseWith(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    refusal_ = std::move(status);
  }
  // What AppendPrompt answers from now on, and changes nothing; OK: it appends.
  void RefuseToAppendWith(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    append_refusal_ = std::move(status);
  }
  // Called at the start of every Submit, on its thread.
  void set_before_submit(std::function<void()> before_submit) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    before_submit_ = std::move(before_submit);
  }
  void set_queue_tokens(int64_t queue_tokens) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    queue_tokens_ = queue_tokens;
  }
  void set_on_cancel(OnCancel on_cancel) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    on_cancel_ = on_cancel;
  }
  void set_healthy(bool healthy) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    healthy_ = healthy;
  }
  void set_device_memory(const DeviceMemory& memory) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    device_memory_ = memory;
  }
  // Where requests are reported to have been that end without a token.
  void set_stage_before_tokens(RequestStats::Stage stage) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    stage_before_tokens_ = stage;
  }

  // ---- Engine ----

  absl::StatusOr<SequenceId> Submit(GenerateRequest request,
                                    std::shared_ptr<TokenSink> sink) override {
    Request record;
    record.request_id = request.request_id;
    const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
    record.generate = std::move(request);
    record.sink = std::move(sink);
    return Accept(std::move(record), prompt_tokens);
  }
  absl::StatusOr<SequenceId> Submit(ScoreRequest request,
                                    std::shared_ptr<TokenSink> sink) override {
    Request record;
    record.request_id = request.request_id;
    const auto prompt_tokens = static_cast<int64_t>(request.tokens.size());
    record.score = std::move(request);
    record.sink = std::move(sink);
    return Accept(std::move(record), prompt_tokens);
  }
  absl::Status AppendPrompt(SequenceId id, std::vector<TokenId> tokens, PromptEnd end) override
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (!active_.contains(id)) return absl::NotFoundError("not in flight");
    if (!append_refusal_.ok()) return append_refusal_;
    appended_[id].push_back({std::move(tokens), end});
    return absl::OkStatus();
  }
  void StopSequence(SequenceId id, int sequence_index) override ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      stopped_.push_back({id, sequence_index});
      if (on_cancel_ == OnCancel::kLeaveToTest) return;
    }
    EndSequence(id, sequence_index, FinishReason::kStopped);
  }
  void Cancel(SequenceId id) override ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_.push_back(id);
      if (on_cancel_ == OnCancel::kLeaveToTest) return;
    }
    Finish(id, FinishReason::kCancelled, absl::CancelledError("cancelled"));
  }
  void Drain() override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
  }
  bool WaitIdle(absl::Time deadline) override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return active_.empty(); };
    return mutex_.AwaitWithDeadline(absl::Condition(&idle), deadline);
  }
  void Shutdown() override ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<SequenceId> ids;
    {
      absl::MutexLock lock(&mutex_);
      draining_ = true;
      for (const auto& [id, state] : active_) ids.push_back(id);
    }
    for (const SequenceId id : ids) {
      Finish(id, FinishReason::kError, absl::UnavailableError("the engine is shutting down"));
    }
  }
  const ModelInfo& info() const override { return info_; }
  std::optional<DeviceMemory> device_memory() const override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return device_memory_;
  }
  EngineLoad load() const override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    EngineLoad load;
    load.running = load.slots_used = static_cast<int>(active_.size());
    load.in_flight = load.running;
    load.queue_tokens = queue_tokens_;
    load.slots_total = info_.max_sequences;
    load.steps = steps_;
    load.last_step = absl::UnixEpoch() + absl::Seconds(1'700'000'000);
    load.healthy = healthy_;
    load.draining = draining_;
    return load;
  }

 private:
  struct State {
    size_t index = 0;  // into requests_
    int64_t generated = 0;
    std::map<int, int64_t> generated_by_sequence;
    std::map<int, SequenceEndedEvent> ended;
  };

  absl::StatusOr<SequenceId> Accept(Request record, int64_t prompt_tokens)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    std::optional<std::vector<int32_t>> script;
    SequenceId id;
    std::function<void()> before_submit;
    {
      absl::MutexLock lock(&mutex_);
      before_submit = before_submit_;
    }
    if (before_submit) before_submit();
    {
      absl::MutexLock lock(&mutex_);
      if (draining_) return absl::UnavailableError("draining");
      if (!refusal_.ok()) return refusal_;
      id = record.id = SequenceId(++last_id_);
      script = script_;
      // Before anybody sees the request: WaitForRequest lets the test go on with it at once.
      record.sink->Push(AcceptedEvent{prompt_tokens, 0});
      active_[id].index = requests_.size();
      if (record.request_id == "warm-up") {  // the server's own; no test sees it
        active_.erase(id);
      } else {
        requests_.push_back(record);
      }
    }
    if (record.request_id == "warm-up") {
      FinishedEvent finished;
      finished.reason = FinishReason::kMaxTokens;
      record.sink->Push(std::move(finished));
    } else if (script.has_value()) {
      for (const int32_t token : *script) Generate(id, token);
      Finish(id, FinishReason::kMaxTokens);
    }
    return id;
  }

  bool WasCancelledLocked(SequenceId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::find(cancelled_.begin(), cancelled_.end(), id) != cancelled_.end();
  }
  Request RequestOf(SequenceId id) const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto found = active_.find(id);
    BST_CHECK(found != active_.end(), "request ", id.value(), " is not active");
    return requests_[found->second.index];
  }
  std::shared_ptr<TokenSink> SinkOf(SequenceId id) const { return RequestOf(id).sink; }

  EngineObserver* const observer_;
  const ModelInfo info_;
  mutable absl::Mutex mutex_;
  std::vector<Request> requests_ ABSL_GUARDED_BY(mutex_);
  std::map<SequenceId, State> active_ ABSL_GUARDED_BY(mutex_);
  std::vector<SequenceId> cancelled_ ABSL_GUARDED_BY(mutex_);
  std::map<SequenceId, std::vector<Appended>> appended_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<SequenceId, int>> stopped_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::vector<int32_t>> script_ ABSL_GUARDED_BY(mutex_);
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> before_submit_ ABSL_GUARDED_BY(mutex_);
  absl::Status append_refusal_ ABSL_GUARDED_BY(mutex_);
  int64_t queue_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  OnCancel on_cancel_ ABSL_GUARDED_BY(mutex_) = OnCancel::kFinish;
  RequestStats::Stage stage_before_tokens_ ABSL_GUARDED_BY(mutex_) = RequestStats::Stage::kQueued;
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;
  bool healthy_ ABSL_GUARDED_BY(mutex_) = true;
  std::optional<DeviceMemory> device_memory_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace bst
