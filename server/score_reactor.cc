#include "server/score_reactor.h"

#include <cmath>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "server/output_assembler.h"
#include "server/request_validation.h"
#include "server/stream_reactor.h"

namespace bst {
namespace {

class ScoreReactor final : public StreamReactor<v1::ScoreEvent> {
 public:
  ScoreReactor(Frontend& frontend, grpc::CallbackServerContext& context)
      : StreamReactor(frontend, context, "Score") {}

  void Start(std::shared_ptr<ScoreReactor> self, const v1::ScoreRequest& request) {
    OwnItself(std::move(self));
    const absl::StatusOr<const ServedModel*> model = frontend().AdmitToQueue(context());
    if (!model.ok()) return Reject(model.status());
    absl::StatusOr<ScoreRequest> valid =
        ValidateScore(request, (*model)->engine->info(), *(*model)->tokenizer);
    if (!valid.ok()) return Reject(valid.status());
    first_token_ = valid->tokens.front();
    has_top_ = valid->top_logprobs > 0;
    const absl::Status status = Submit(**model, *std::move(valid));
    if (!status.ok()) Reject(status);
  }

 private:
  void Handle(SequenceEvent event) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
      accepted_ = AcceptedOf(*accepted, request_id());
      accepted_->set_first_token_id(static_cast<uint32_t>(first_token_.value()));
    } else if (const auto* progress = std::get_if<PrefillProgressEvent>(&event)) {
      progress_ = ProgressOf(*progress);
    } else if (const auto* scored = std::get_if<ScoredEvent>(&event)) {
      Add(*scored);
    } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      const Ending ending = EndingOf(*finished, false);
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

  void Add(const ScoredEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    for (size_t i = 0; i < event.tokens.size(); ++i) {
      if (pending_.empty() || pending_.back().token_ids_size() == kMaxTokensPerMessage) {
        pending_.emplace_back().set_first_position(static_cast<uint64_t>(event.first_position) + i);
      }
      v1::Scored& run = pending_.back();
      run.add_token_ids(static_cast<uint32_t>(event.tokens[i].token.value()));
      run.add_logprobs(event.tokens[i].logprob);
      if (has_top_) AddTopTokens(event.top[i], *run.add_top()->mutable_tokens());
      sum_logprobs_ += event.tokens[i].logprob;
      ++num_scored_;
    }
  }

  std::optional<v1::ScoreEvent> NextMessage() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    v1::ScoreEvent event;
    if (accepted_.has_value()) {
      *event.mutable_accepted() = *std::exchange(accepted_, std::nullopt);
    } else if (progress_.has_value()) {
      *event.mutable_prefill_progress() = *std::exchange(progress_, std::nullopt);
    } else if (!pending_.empty()) {
      *event.mutable_scored() = std::move(pending_.front());
      pending_.pop_front();
    } else if (finished_.has_value()) {
      *event.mutable_finished() = *std::exchange(finished_, std::nullopt);
    } else {
      return std::nullopt;
    }
    return event;
  }

  TokenId first_token_;  // constant after Start, as is has_top_
  bool has_top_ = false;
  double sum_logprobs_ = 0;
  int64_t num_scored_ = 0;
  std::optional<v1::Accepted> accepted_;
  std::optional<v1::PrefillProgress> progress_;
  std::deque<v1::Scored> pending_;  // all but the last are full
  std::optional<v1::ScoreFinished> finished_;
};

}  // namespace

grpc::ServerWriteReactor<v1::ScoreEvent>* StartScore(Frontend& frontend,
                                                     grpc::CallbackServerContext& context,
                                                     const v1::ScoreRequest& request) {
  auto reactor = std::make_shared<ScoreReactor>(frontend, context);
  reactor->Start(reactor, request);
  return reactor.get();
}

}  // namespace bst
