#include "server/score_reactor.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "server/output_assembler.h"
#include "server/request_validation.h"
#include "server/stream_reactor.h"
#include "server/wire_message.h"

namespace bst {
namespace {

class ScoreReactor final : public StreamReactor<v1::ScoreEvent> {
 public:
  ScoreReactor(Frontend& frontend, grpc::CallbackServerContext& context)
      : StreamReactor(frontend, context, "Score") {}

  void Start(std::shared_ptr<ScoreReactor> self, const grpc::ByteBuffer& message) {
    OwnItself(std::move(self));
    ReadRequest(message, [this](const ServedModel& model, const grpc::ByteBuffer& bytes) {
      Read(model, bytes);
    });
  }

 private:
  void Read(const ServedModel& model, const grpc::ByteBuffer& bytes) {
    const auto request = ParseMessage<v1::ScoreRequest>(bytes, "request");
    if (!request.ok()) return Reject(request.status());
    NoteRequestId(request->request_id());
    absl::StatusOr<ScoreRequest> valid = ValidateScore(
        *request, model.engine->info(), *model.tokenizer, [this] { return CheckWanted(); });
    if (!valid.ok()) return Reject(valid.status());
    first_token_ = valid->tokens.front();
    has_top_ = valid->top_logprobs > 0;
    const absl::Status status = Submit(model, *std::move(valid));
    if (!status.ok()) Reject(status);
  }

  void Handle(SequenceEvent event) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
      accepted_ = AcceptedOf(*accepted, request_id());
      accepted_->set_first_token_id(static_cast<uint32_t>(first_token_.value()));
    } else if (const auto* progress = std::get_if<PrefillProgressEvent>(&event)) {
      progress_ = ProgressOf(*progress);
    } else if (auto* scored = std::get_if<ScoredEvent>(&event)) {
      Add(std::move(*scored));
    } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      const Ending ending = EndingOf(*finished, Completeness::kIncomplete);
      v1::ScoreFinished& message = finished_.emplace();
      message.set_reason(ending.reason);
      *message.mutable_usage() = UsageOf(*finished, 0);
      *message.mutable_timings() = TimingsOf(*finished);
      if (ending.status.ok() && num_scored_ > 0) {
        const double mean_nll = -sum_logprobs_ / static_cast<double>(num_scored_);
        message.set_mean_nll(mean_nll);
        message.set_perplexity(std::exp(mean_nll));
      }
      AccountFinished(ending, *finished, 0);
      End(ending.status);
    }
  }

  void Add(ScoredEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    if (event.tokens.empty() || dropped_) return;
    for (const TokenLogprob& token : event.tokens) sum_logprobs_ += token.logprob;
    num_scored_ += static_cast<int64_t>(event.tokens.size());
    pending_bytes_ += MemoryOfRun(event);
    pending_.push_back(std::move(event));
  }

  static size_t MemoryOfRun(const ScoredEvent& event) {
    const size_t tokens = sizeof(event) + event.tokens.size() * sizeof(TokenLogprob);
    return event.top.empty() ? tokens : tokens + event.top.size() * MemoryOf(event.top.front());
  }

  size_t PendingBytes() const override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    return pending_bytes_;
  }

  void DropOutput() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    dropped_ = true;
    pending_.clear();
    pending_bytes_ = 0;
  }

  // Moves what waits into `run`, as much as a message holds.
  void TakeRun(v1::Scored& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    run.set_first_position(static_cast<uint64_t>(pending_.front().first_position) + taken_);
    while (!pending_.empty() && run.token_ids_size() < kMaxTokensPerMessage) {
      const ScoredEvent& event = pending_.front();
      const auto room = static_cast<size_t>(kMaxTokensPerMessage - run.token_ids_size());
      const size_t end = std::min(event.tokens.size(), taken_ + room);
      for (; taken_ < end; ++taken_) {
        run.add_token_ids(static_cast<uint32_t>(event.tokens[taken_].token.value()));
        run.add_logprobs(event.tokens[taken_].logprob);
        if (has_top_) AddTopTokens(event.top[taken_], *run.add_top()->mutable_tokens());
      }
      if (taken_ < event.tokens.size()) return;
      pending_bytes_ -= MemoryOfRun(event);
      pending_.pop_front();
      taken_ = 0;
    }
  }

  std::optional<v1::ScoreEvent> NextMessage() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    v1::ScoreEvent event;
    if (accepted_.has_value()) {
      *event.mutable_accepted() = *std::exchange(accepted_, std::nullopt);
    } else if (progress_.has_value()) {
      *event.mutable_prefill_progress() = *std::exchange(progress_, std::nullopt);
    } else if (!pending_.empty()) {
      TakeRun(*event.mutable_scored());
    } else if (finished_.has_value()) {
      *event.mutable_finished() = *std::exchange(finished_, std::nullopt);
    } else {
      return std::nullopt;
    }
    return event;
  }

  TokenId first_token_;  // constant after Read, as is has_top_
  bool has_top_ = false;
  double sum_logprobs_ ABSL_GUARDED_BY(write_mutex_) = 0;
  int64_t num_scored_ ABSL_GUARDED_BY(write_mutex_) = 0;
  std::optional<v1::Accepted> accepted_ ABSL_GUARDED_BY(write_mutex_);
  std::optional<v1::PrefillProgress> progress_ ABSL_GUARDED_BY(write_mutex_);
  // Not as messages: those take six times the memory.
  std::deque<ScoredEvent> pending_ ABSL_GUARDED_BY(write_mutex_);
  size_t taken_ ABSL_GUARDED_BY(write_mutex_) = 0;  // tokens of the first of them that were sent
  size_t pending_bytes_ ABSL_GUARDED_BY(write_mutex_) = 0;
  bool dropped_ ABSL_GUARDED_BY(write_mutex_) = false;
  std::optional<v1::ScoreFinished> finished_ ABSL_GUARDED_BY(write_mutex_);
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartScore(Frontend& frontend,
                                                       grpc::CallbackServerContext& context,
                                                       const grpc::ByteBuffer& request) {
  const auto reactor = std::make_shared<ScoreReactor>(frontend, context);
  reactor->Start(reactor, request);
  return reactor.get();
}

}  // namespace bst
