#include "clients/cli/generate_output.h"

#include <string>
#include <utility>

namespace bst::cli {

GenerateOutput::GenerateOutput(Format format, uint32_t num_sequences, Write write)
    : format_(format), num_sequences_(num_sequences), write_(std::move(write)), continuations_(1) {}

GenerateOutput::Continuation* GenerateOutput::At(uint32_t index) {
  if (index > 0 && index >= num_sequences_) return nullptr;
  if (index >= continuations_.size()) continuations_.resize(index + size_t{1});
  return &continuations_[index];
}

void GenerateOutput::Add(const v1::Tokens& tokens) {
  if (tokens.is_prompt()) {
    prompt_text_ += tokens.text();
    if (format_ == Format::kText) write_(tokens.text());
    return;
  }
  if (format_ == Format::kText && num_sequences_ <= 1) {
    write_(tokens.text());
    return;
  }
  Continuation* const found = At(tokens.sequence_index());
  if (found == nullptr) return;
  Continuation& continuation = *found;
  continuation.text += tokens.text();
  if (format_ == Format::kText) return;
  for (const uint32_t id : tokens.token_ids()) continuation.token_ids.push_back(id);
  for (const v1::TokenLogprob& logprob : tokens.logprobs()) {
    continuation.logprobs.push_back(Number(logprob.logprob()));
    continuation.top_logprobs.push_back(TopTokensJson(logprob.top()));
  }
}

void GenerateOutput::Add(const v1::SequenceFinished& finished) {
  Continuation* const continuation = At(finished.sequence_index());
  if (continuation == nullptr) return;
  continuation->reason = finished.reason();
  while (written_ < continuations_.size() && continuations_[written_].reason.has_value()) {
    WriteNext();
  }
}

void GenerateOutput::Finish() {
  while (num_sequences_ > 1 && written_ < continuations_.size()) WriteNext();
}

void GenerateOutput::WriteNext() {
  const Continuation& continuation = continuations_[written_];
  const std::string index = std::to_string(written_++);
  if (format_ == Format::kJson) return;
  if (!continuation.reason.has_value() && continuation.text.empty()) return;
  const std::string end = continuation.reason.has_value()
                              ? v1::FinishReason_Name(*continuation.reason)
                              : std::string("cut off");
  write_("--- continuation " + index + ": " + end + "\n" + continuation.text + "\n");
}

Json GenerateOutput::ToJson(const v1::Finished& finished, const ShownFields& shown) const {
  const auto add_logprobs = [&shown](const Continuation& continuation, Json& object) {
    if (shown.logprobs) object["logprobs"] = continuation.logprobs;
    if (shown.top_logprobs) object["top_logprobs"] = continuation.top_logprobs;
  };
  const Continuation& first = continuations_.front();
  Json result = {{"token_ids", first.token_ids},
                 {"text", first.text},
                 {"finish_reason", v1::FinishReason_Name(finished.reason())},
                 {"usage", UsageJson(finished.usage())},
                 {"timings", TimingsJson(finished.timings())},
                 {"request_id", accepted_.request_id()},
                 {"seed", std::to_string(accepted_.seed())}};
  const auto add_stop = [](const auto& end, Json& object) {
    if (end.has_stop_string()) object["stop_string"] = end.stop_string();
    if (end.has_stop_token_id()) object["stop_token_id"] = end.stop_token_id();
  };
  add_stop(finished, result);
  if (shown.prompt_text) result["prompt_text"] = prompt_text_;
  add_logprobs(first, result);
  if (num_sequences_ <= 1) return result;
  Json& list = result["continuations"] = Json::array();
  for (const v1::SequenceFinished& end : finished.sequences()) {
    if (end.sequence_index() >= continuations_.size()) continue;
    const Continuation& continuation = continuations_[end.sequence_index()];
    Json object = {{"sequence_index", end.sequence_index()},
                   {"token_ids", continuation.token_ids},
                   {"text", continuation.text},
                   {"finish_reason", v1::FinishReason_Name(end.reason())},
                   {"generated_tokens", end.generated_tokens()}};
    add_stop(end, object);
    add_logprobs(continuation, object);
    list.push_back(std::move(object));
  }
  return result;
}

}  // namespace bst::cli
