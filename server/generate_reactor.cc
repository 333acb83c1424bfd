#include "server/generate_reactor.h"

#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "server/output_assembler.h"
#include "server/request_validation.h"
#include "server/stream_reactor.h"

namespace bst {
namespace {

v1::Finished FinishedMessage(const Ending& ending, const FinishedEvent& finished,
                             const OutputAssembler& output) {
  v1::Finished message;
  message.set_reason(ending.reason);
  if (ending.reason == v1::STOP_STRING) message.set_stop_string(*output.stop_match());
  if (ending.reason == v1::STOP_TOKEN || ending.reason == v1::EOS) {
    message.set_stop_token_id(static_cast<uint32_t>(finished.stop_token.value()));
  }
  *message.mutable_usage() = UsageOf(finished, output.num_tokens());
  *message.mutable_timings() = TimingsOf(finished);
  return message;
}

// A request that passed the gate and validation, and the model it is for.
struct Prepared {
  const ServedModel* model;
  ValidGenerate valid;
};

absl::StatusOr<Prepared> Prepare(Frontend& frontend, const grpc::CallbackServerContext& context,
                                 const v1::GenerateRequest& request) {
  const absl::StatusOr<const ServedModel*> model = frontend.AdmitToQueue(context);
  if (!model.ok()) return model.status();
  absl::StatusOr<ValidGenerate> valid =
      ValidateGenerate(request, (*model)->engine->info(), *(*model)->tokenizer);
  if (!valid.ok()) return valid.status();
  return Prepared{*model, *std::move(valid)};
}

class GenerateReactor final : public StreamReactor<v1::GenerateEvent> {
 public:
  GenerateReactor(Frontend& frontend, grpc::CallbackServerContext& context)
      : StreamReactor(frontend, context, "Generate") {}

  void Start(std::shared_ptr<GenerateReactor> self, const v1::GenerateRequest& request) {
    OwnItself(std::move(self));
    absl::StatusOr<Prepared> prepared = Prepare(frontend(), context(), request);
    if (!prepared.ok()) return Reject(prepared.status());
    GenerateRequest& engine_request = prepared->valid.request;
    seed_ = engine_request.sampling.seed;
    output_.emplace(*prepared->model->tokenizer, std::move(prepared->valid.output),
                    engine_request.prompt);
    const absl::Status status = Submit(*prepared->model, std::move(engine_request));
    if (!status.ok()) Reject(status);
  }

 private:
  void Handle(SequenceEvent event) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
      accepted_ = AcceptedOf(*accepted, request_id());
      accepted_->set_seed(seed_);
    } else if (const auto* progress = std::get_if<PrefillProgressEvent>(&event)) {
      progress_ = ProgressOf(*progress);
    } else if (const auto* generated = std::get_if<GeneratedEvent>(&event)) {
      output_->Add(*generated);
      if (output_->stop_match().has_value()) Cancel(CancelCause::kStopString);
    } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      output_->Finish();
      const Ending ending = EndingOf(*finished, output_->stop_match().has_value());
      finished_ = FinishedMessage(ending, *finished, *output_);
      AccountFinished(ending, *finished, output_->num_tokens());
      End(ending.status);
    }
  }

  size_t PendingBytes() const override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    return output_.has_value() ? output_->pending_bytes() : 0;
  }

  // In the order of the stream; what the reader is behind on is merged already.
  std::optional<v1::GenerateEvent> NextMessage() override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    if (!output_.has_value()) return std::nullopt;
    v1::GenerateEvent event;
    if (accepted_.has_value()) {
      *event.mutable_accepted() = *std::exchange(accepted_, std::nullopt);
      may_echo_ = true;
      return event;
    }
    if (std::optional<v1::Tokens> echo; may_echo_ && (echo = output_->TakeEcho()).has_value()) {
      *event.mutable_tokens() = *std::move(echo);
    } else if (progress_.has_value()) {
      *event.mutable_prefill_progress() = *std::exchange(progress_, std::nullopt);
    } else if (std::optional<v1::Tokens> tokens = output_->TakeOutput(); tokens.has_value()) {
      *event.mutable_tokens() = *std::move(tokens);
    } else if (finished_.has_value()) {
      *event.mutable_finished() = *std::exchange(finished_, std::nullopt);
    } else {
      return std::nullopt;
    }
    return event;
  }

  uint64_t seed_ = 0;                      // constant after Start
  std::optional<OutputAssembler> output_;  // set by Start, before the first event
  bool may_echo_ = false;                  // not before Accepted was sent
  std::optional<v1::Accepted> accepted_;
  std::optional<v1::PrefillProgress> progress_;
  std::optional<v1::Finished> finished_;
};

class GenerateOnceReactor final : public grpc::ServerUnaryReactor, public EngineCall {
 public:
  GenerateOnceReactor(Frontend& frontend, grpc::CallbackServerContext& context,
                      v1::GenerateResult& response)
      : EngineCall(frontend, "GenerateOnce"), context_(context), response_(response) {
    frontend.active().OpenRpc();
  }

  void Start(std::shared_ptr<GenerateOnceReactor> self, const v1::GenerateRequest& request) {
    self_ = std::move(self);
    absl::StatusOr<Prepared> prepared = Prepare(frontend(), context_, request);
    if (!prepared.ok()) return Reject(prepared.status());
    GenerateRequest& engine_request = prepared->valid.request;
    engine_request.prompt_progress = false;
    response_.set_request_id(engine_request.request_id);
    response_.set_seed(engine_request.sampling.seed);
    output_.emplace(*prepared->model->tokenizer, std::move(prepared->valid.output),
                    engine_request.prompt);
    while (const std::optional<v1::Tokens> echo = output_->TakeEcho())
      response_.mutable_prompt_text()->append(echo->text());
    const absl::Status status = Submit(*prepared->model, std::move(engine_request));
    if (!status.ok()) Reject(status);
  }

  void Advance() override {
    std::optional<absl::Status> end;
    {
      absl::MutexLock lock(&handle_mutex_);
      for (const SequenceEvent& event : TakeEvents()) {
        if (const auto* generated = std::get_if<GeneratedEvent>(&event)) {
          output_->Add(*generated);
          if (output_->stop_match().has_value()) Cancel(CancelCause::kStopString);
        } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
          end = Complete(*finished);
        }
      }
      BoundOutbox(output_->pending_bytes());
    }
    if (end.has_value()) Finish(ToGrpcStatus(*end, context_));
  }

  void OnCancel() override { Cancel(CauseOfCancellation(context_)); }

  void OnDone() override {
    frontend().active().CloseRpc();
    self_.reset();
  }

 private:
  void Reject(const absl::Status& status) {
    AccountRejected(status);
    Finish(ToGrpcStatus(status, context_));
  }

  absl::Status Complete(const FinishedEvent& finished)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(handle_mutex_) {
    output_->Finish();
    while (std::optional<v1::Tokens> tokens = output_->TakeOutput()) {
      response_.mutable_token_ids()->MergeFrom(tokens->token_ids());
      response_.mutable_logprobs()->MergeFrom(tokens->logprobs());
      response_.mutable_text()->append(tokens->text());
    }
    const Ending ending = EndingOf(finished, output_->stop_match().has_value());
    *response_.mutable_finished() = FinishedMessage(ending, finished, *output_);
    AccountFinished(ending, finished, output_->num_tokens());
    return ending.status;
  }

  grpc::CallbackServerContext& context_;
  v1::GenerateResult& response_;
  std::shared_ptr<GenerateOnceReactor> self_;
  absl::Mutex handle_mutex_;
  std::optional<OutputAssembler> output_;  // set by Start, before the first event
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateEvent>* StartGenerate(Frontend& frontend,
                                                           grpc::CallbackServerContext& context,
                                                           const v1::GenerateRequest& request) {
  auto reactor = std::make_shared<GenerateReactor>(frontend, context);
  reactor->Start(reactor, request);
  return reactor.get();
}

grpc::ServerUnaryReactor* StartGenerateOnce(Frontend& frontend,
                                            grpc::CallbackServerContext& context,
                                            const v1::GenerateRequest& request,
                                            v1::GenerateResult& response) {
  auto reactor = std::make_shared<GenerateOnceReactor>(frontend, context, response);
  reactor->Start(reactor, request);
  return reactor.get();
}

}  // namespace bst
