// GenerateStream: the answers of Generate and GenerateUpload.
//
// Threads     As StreamReactor.
// Tested by   tests/server/generation_service_test.cc, tests/server/upload_service_test.cc
#pragma once

#include <optional>
#include <utility>
#include <variant>

#include "server/generation_output.h"
#include "server/request_validation.h"
#include "server/stream_reactor.h"

namespace bst {

template <typename Base>
class GenerateStream : public StreamReactor<v1::GenerateEvent, Base> {
 protected:
  using Reactor = StreamReactor<v1::GenerateEvent, Base>;
  using Reactor::Reactor;
  using Reactor::write_mutex_;

  // Checks the request and hands it to the engine, or refuses it. With kMoreFollows its prompt is
  // the beginning. False: refused.
  bool Begin(const ServedModel& model, const v1::GenerateRequest& request, PromptReader& prompt,
             PromptEnd end) {
    this->NoteRequestId(request.request_id());
    absl::StatusOr<ValidGenerate> valid =
        ValidateGenerate(request, model.engine->info(), prompt, end);
    if (!valid.ok()) return Refused(valid.status());
    {
      absl::MutexLock lock(&write_mutex_);
      output_.emplace(*model.tokenizer, std::move(valid->output), valid->request);
      output_->AddPrompt(valid->request.prompt, end);
    }
    const absl::Status status = this->Submit(model, std::move(valid->request));
    return status.ok() || Refused(status);
  }

  void Handle(SequenceEvent event) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      const Ending ending = this->EndingOf(*finished, output_->completeness());
      const v1::Finished& message = output_->Finish(ending, *finished);
      this->AccountFinished({message.reason(), ending.status}, *finished,
                            static_cast<int64_t>(message.usage().generated_tokens()));
      this->End(ending.status);
    } else if (const std::optional<int> stopped = output_->Add(event); stopped.has_value()) {
      this->StopSequence(*stopped);
    }
  }

  size_t PendingBytes() const override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    return output_.has_value() ? output_->pending_bytes() : 0;
  }

  size_t UnreadBytes() const override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    return PendingBytes() + (output_.has_value() ? output_->pending_echo_bytes() : 0);
  }

  void DropOutput() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) { output_->Drop(); }

  std::optional<v1::GenerateEvent> NextMessage() override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    return output_.has_value() ? output_->Next() : std::nullopt;
  }

  // Set by Begin, before the first event.
  std::optional<GenerationOutput> output_ ABSL_GUARDED_BY(write_mutex_);

 private:
  bool Refused(const absl::Status& status) {
    this->Reject(status);
    return false;
  }
};

}  // namespace bst
