#include "server/generation_output.h"

#include <algorithm>
#include <utility>
#include <variant>

namespace bst {
namespace {

// Finished or SequenceFinished.
template <typename Message>
void SetStopToken(v1::FinishReason reason, TokenId stop_token, Message& message) {
  if (reason == v1::STOP_TOKEN || reason == v1::EOS) {
    message.set_stop_token_id(static_cast<uint32_t>(stop_token.value()));
  }
}

}  // namespace

GenerationOutput::GenerationOutput(const Tokenizer& tokenizer, OutputOptions options,
                                   const GenerateRequest& request)
    : tokenizer_(tokenizer),
      options_(std::move(options)),
      request_id_(request.request_id),
      seed_(request.sampling.seed),
      num_sequences_(static_cast<size_t>(request.num_sequences)),
      shows_progress_(request.prompt_progress),
      echo_(tokenizer) {}

void GenerationOutput::AddPrompt(absl::Span<const TokenId> tokens, PromptEnd end) {
  if (options_.echo) echo_.Add(tokens, end);
  for (const TokenId token : tokens) {
    if (position_ == StreamDecoder::Position::kContinuation) break;
    if (!tokenizer_.TokenBytes(token, /*at_start=*/false).empty()) {
      position_ = StreamDecoder::Position::kContinuation;
    }
  }
}

// Made when the first is needed: by then the prompt is complete, or cut off.
GenerationOutput::Continuation& GenerationOutput::At(size_t index) {
  while (continuations_.size() < num_sequences_) {
    continuations_.push_back({OutputAssembler(tokenizer_, options_, position_), {}, false, 0});
  }
  return continuations_[index];
}

std::optional<int> GenerationOutput::Add(const SequenceEvent& event) {
  if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
    accepted_ = AcceptedOf(*accepted, request_id_);
    accepted_->set_seed(seed_);
  } else if (const auto* progress = std::get_if<PrefillProgressEvent>(&event)) {
    if (shows_progress_) progress_ = ProgressOf(*progress);
  } else if (const auto* generated = std::get_if<GeneratedEvent>(&event)) {
    return AddToken(*generated);
  } else if (const auto* ended = std::get_if<SequenceEndedEvent>(&event);
             ended != nullptr && !dropped_) {
    End(static_cast<size_t>(ended->sequence_index), WireReason(ended->reason), ended->stop_token);
  }
  return std::nullopt;
}

std::optional<int> GenerationOutput::AddToken(const GeneratedEvent& event) {
  const auto index = static_cast<size_t>(event.sequence_index);
  Continuation& continuation = At(index);
  ++continuation.engine_tokens;
  // Over already: what came before the engine knew.
  if (continuation.ended.has_value() || dropped_) return std::nullopt;
  continuation.output.Add(event);
  if (!continuation.output.stop_match().has_value()) return std::nullopt;
  End(index, v1::STOP_STRING, TokenId());
  return event.sequence_index;
}

void GenerationOutput::End(size_t index, v1::FinishReason reason, TokenId stop_token) {
  Continuation& continuation = At(index);
  if (continuation.ended.has_value()) return;
  if (!dropped_) continuation.output.Finish();
  // What was held back may have completed a stop string: half a character, now U+FFFD.
  const bool is_cut_off = reason == v1::CANCELLED || reason == v1::ERROR;
  if (!is_cut_off && continuation.output.stop_match().has_value()) reason = v1::STOP_STRING;
  v1::SequenceFinished& ended = continuation.ended.emplace();
  ended.set_sequence_index(static_cast<uint32_t>(index));
  ended.set_reason(reason);
  if (reason == v1::STOP_STRING && continuation.output.stop_match().has_value()) {
    ended.set_stop_string(*continuation.output.stop_match());
  }
  SetStopToken(reason, stop_token, ended);
  ended.set_generated_tokens(static_cast<uint64_t>(continuation.output.num_tokens()));
  ++num_ended_;
}

const v1::Finished& GenerationOutput::Finish(const Ending& ending, const FinishedEvent& finished) {
  int64_t generated = 0;
  Continuations decoded = {.longest = 0, .count = 0};
  for (size_t i = 0; i < num_sequences_; ++i) {
    Continuation& continuation = At(i);
    if (!continuation.ended.has_value()) {
      End(i, ending.reason, finished.stop_token);
      continuation.announced = true;  // it was cut off, not completed
    }
    generated += continuation.output.num_tokens();
    decoded.longest = std::max(decoded.longest, continuation.engine_tokens);
    decoded.count += continuation.engine_tokens > 0 ? 1 : 0;
    if (num_sequences_ > 1) *finished_.add_sequences() = *continuation.ended;
  }
  const v1::SequenceFinished& first = *continuations_.front().ended;
  finished_.set_reason(ending.status.ok() ? first.reason() : ending.reason);
  if (finished_.reason() == first.reason()) {
    if (first.has_stop_string()) finished_.set_stop_string(first.stop_string());
    if (first.has_stop_token_id()) finished_.set_stop_token_id(first.stop_token_id());
  }
  *finished_.mutable_usage() = UsageOf(finished, generated);
  *finished_.mutable_timings() = TimingsOf(finished, decoded);
  finish_ready_ = true;
  return finished_;
}

size_t GenerationOutput::pending_bytes() const {
  size_t bytes = 0;
  for (const Continuation& continuation : continuations_) {
    bytes += continuation.output.pending_bytes();
  }
  return bytes;
}

void GenerationOutput::Drop() {
  dropped_ = true;
  echo_.Drop();
  for (Continuation& continuation : continuations_) {
    continuation.output.DropPending();
    if (continuation.ended.has_value() && !continuation.announced) {
      continuation.ended.reset();
      --num_ended_;
    }
  }
}

std::optional<v1::GenerateEvent> GenerationOutput::Next() {
  v1::GenerateEvent event;
  if (accepted_.has_value()) {
    *event.mutable_accepted() = *std::exchange(accepted_, std::nullopt);
    was_accepted_ = true;
    return event;
  }
  if (was_accepted_) {
    if (std::optional<v1::Tokens> echo = echo_.Take(); echo.has_value()) {
      *event.mutable_tokens() = *std::move(echo);
      return event;
    }
  }
  if (progress_.has_value()) {
    *event.mutable_prefill_progress() = *std::exchange(progress_, std::nullopt);
    return event;
  }
  if (std::optional<v1::GenerateEvent> next = NextOfContinuations(); next.has_value()) return next;
  if (!finish_ready_) return std::nullopt;
  finish_ready_ = false;
  *event.mutable_finished() = std::move(finished_);
  return event;
}

std::optional<v1::GenerateEvent> GenerationOutput::NextOfContinuations() {
  for (size_t i = 0; i < continuations_.size(); ++i) {
    const size_t index = (turn_ + i) % continuations_.size();
    Continuation& continuation = continuations_[index];
    v1::GenerateEvent event;
    if (std::optional<v1::Tokens> tokens = continuation.output.TakeOutput(); tokens.has_value()) {
      tokens->set_sequence_index(static_cast<uint32_t>(index));
      *event.mutable_tokens() = *std::move(tokens);
    } else if (continuation.ended.has_value() && !continuation.announced && num_sequences_ > 1) {
      continuation.announced = true;
      *event.mutable_sequence_finished() = *continuation.ended;
    } else {
      continue;
    }
    turn_ = index + 1;
    return event;
  }
  return std::nullopt;
}

}  // namespace bst
