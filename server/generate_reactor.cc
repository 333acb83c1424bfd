#include "server/generate_reactor.h"

#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "engine/base/status_macros.h"
#include "server/generate_stream.h"
#include "server/wire_message.h"

namespace bst {
namespace {

class GenerateReactor final : public GenerateStream<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  GenerateReactor(Frontend& frontend, grpc::CallbackServerContext& context)
      : GenerateStream(frontend, context, "Generate") {}

  void Start(std::shared_ptr<GenerateReactor> self, const grpc::ByteBuffer& message) {
    OwnItself(std::move(self));
    ReadRequest(message, [this](const ServedModel& model, const grpc::ByteBuffer& bytes) {
      Read(model, bytes);
    });
  }

 private:
  void Read(const ServedModel& model, const grpc::ByteBuffer& bytes) {
    const auto request = ParseMessage<v1::GenerateRequest>(bytes, "request");
    if (!request.ok()) return Reject(request.status());
    PromptReader prompt(model.engine->info(), *model.tokenizer, [this] { return CheckWanted(); });
    Begin(model, *request, prompt, PromptEnd::kComplete);
  }
};

// Puts the messages of a stream together. `result` has as many continuations as it shall have.
void Collect(v1::GenerateEvent event, v1::GenerateResult& result) {
  const auto add = [](const v1::Tokens& tokens, auto& output) {
    output.mutable_token_ids()->MergeFrom(tokens.token_ids());
    output.mutable_logprobs()->MergeFrom(tokens.logprobs());
    output.mutable_text()->append(tokens.text());
  };
  if (event.has_accepted()) {
    result.set_request_id(event.accepted().request_id());
    result.set_seed(event.accepted().seed());
  } else if (event.has_tokens()) {
    const auto index = static_cast<int>(event.tokens().sequence_index());
    if (index == 0) add(event.tokens(), result);
    if (index < result.continuations_size()) {
      add(event.tokens(), *result.mutable_continuations(index));
    }
  } else if (event.has_finished()) {
    *result.mutable_finished() = std::move(*event.mutable_finished());
    for (int i = 0; i < result.continuations_size(); ++i) {
      v1::Continuation& continuation = *result.mutable_continuations(i);
      continuation.set_sequence_index(static_cast<uint32_t>(i));
      *continuation.mutable_finished() = result.finished().sequences(i);
    }
  }
}

class GenerateOnceReactor final : public grpc::ServerUnaryReactor, public EngineCall {
 public:
  GenerateOnceReactor(Frontend& frontend, grpc::CallbackServerContext& context,
                      grpc::ByteBuffer& response)
      : EngineCall(frontend, context, "GenerateOnce"), response_(response) {}

  void Start(std::shared_ptr<GenerateOnceReactor> self, const grpc::ByteBuffer& message) {
    self_ = std::move(self);
    ReadRequest(message, [this](const ServedModel& model, const grpc::ByteBuffer& bytes) {
      const absl::Status status = Submit(model, bytes);
      if (!status.ok()) Reject(status);
    });
  }

  void Advance() override {
    std::optional<FinishedEvent> finish;
    size_t bytes;
    {
      absl::MutexLock lock(&handle_mutex_);
      for (const SequenceEvent& event : TakeEvents()) {
        if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
          finish = *finished;
        } else if (const std::optional<int> stopped = output_->Add(event); stopped.has_value()) {
          StopSequence(*stopped);
        }
      }
      if (BoundOutbox(output_->pending_bytes())) output_->Drop();
      bytes = output_->pending_bytes();
    }
    if (!finish.has_value()) return;
    if (bytes <= kLargeAnswerBytes) return Answer(*finish);
    AccountUnread(bytes, Readable::kNotYet);
    frontend().slow_delivery().Post(std::make_shared<LargeAnswer>(self_, *std::move(finish)));
  }

  void OnCancel() override { Cancel(CauseOfCancellation()); }

  void OnDone() override {
    CloseRpc();
    self_.reset();
  }

 private:
  // Some milliseconds of putting it together.
  static constexpr size_t kLargeAnswerBytes = size_t{256} << 10;

  // The end of a call that takes long: 64 MB of alternatives are millions of messages.
  class LargeAnswer final : public Deliverable {
   public:
    LargeAnswer(std::shared_ptr<GenerateOnceReactor> call, FinishedEvent finished)
        : call_(std::move(call)), finished_(std::move(finished)) {}
    void Advance() override { call_->Answer(finished_); }

   private:
    const std::shared_ptr<GenerateOnceReactor> call_;
    const FinishedEvent finished_;
  };

  void Answer(const FinishedEvent& finished) {
    absl::Status status;
    {
      absl::MutexLock lock(&handle_mutex_);
      status = Complete(finished);
    }
    AccountUnread(response_.Length());
    watch().Begin();  // this writes the answer
    Finish(ToGrpcStatus(status, context()));
  }

  absl::Status Submit(const ServedModel& model, const grpc::ByteBuffer& bytes) {
    BST_ASSIGN_OR_RETURN(const v1::GenerateRequest request,
                         ParseMessage<v1::GenerateRequest>(bytes, "request"));
    NoteRequestId(request.request_id());
    const ModelInfo& info = model.engine->info();
    PromptReader prompt(info, *model.tokenizer, [this] { return CheckWanted(); });
    BST_ASSIGN_OR_RETURN(ValidGenerate valid,
                         ValidateGenerate(request, info, prompt, PromptEnd::kComplete));
    valid.request.prompt_progress = false;
    const int count = valid.request.num_sequences;
    {
      absl::MutexLock lock(&handle_mutex_);
      for (int i = 0; count > 1 && i < count; ++i) result_.add_continuations();
      output_.emplace(*model.tokenizer, std::move(valid.output), valid.request);
      output_->AddPrompt(valid.request.prompt, PromptEnd::kComplete);
      // Here, where nobody waits for this thread: it may take long.
      while (const std::optional<v1::Tokens> echo = output_->TakeEcho()) {
        result_.mutable_prompt_text()->append(echo->text());
      }
    }
    return EngineCall::Submit(model, std::move(valid.request));
  }

  void Reject(const absl::Status& status) override {
    AccountRejected(status);
    Finish(ToGrpcStatus(status, context()));
  }

  absl::Status Complete(const FinishedEvent& finished)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(handle_mutex_) {
    const Ending ending = EndingOf(finished, output_->completeness());
    const v1::Finished& message = output_->Finish(ending, finished);
    const v1::FinishReason reason = message.reason();
    const auto generated = static_cast<int64_t>(message.usage().generated_tokens());
    // Nobody waits for the work of a client that has left meanwhile.
    if (ending.status.ok() && !context().IsCancelled()) {
      while (std::optional<v1::GenerateEvent> event = output_->Next()) {
        Collect(*std::move(event), result_);
      }
      response_ = BytesOf(result_);
    }
    result_ = {};  // may be unread for long, and the bytes are enough
    AccountFinished({reason, ending.status}, finished, generated);
    return ending.status;
  }

  grpc::ByteBuffer& response_;
  std::shared_ptr<GenerateOnceReactor> self_;
  absl::Mutex handle_mutex_;
  // Set by Submit, before the first event.
  std::optional<GenerationOutput> output_ ABSL_GUARDED_BY(handle_mutex_);
  v1::GenerateResult result_ ABSL_GUARDED_BY(handle_mutex_);
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerate(Frontend& frontend,
                                                          grpc::CallbackServerContext& context,
                                                          const grpc::ByteBuffer& request) {
  const auto reactor = std::make_shared<GenerateReactor>(frontend, context);
  reactor->Start(reactor, request);
  return reactor.get();
}

grpc::ServerUnaryReactor* StartGenerateOnce(Frontend& frontend,
                                            grpc::CallbackServerContext& context,
                                            const grpc::ByteBuffer& request,
                                            grpc::ByteBuffer& response) {
  auto reactor = std::make_shared<GenerateOnceReactor>(frontend, context, response);
  reactor->Start(reactor, request);
  return reactor.get();
}

}  // namespace bst
