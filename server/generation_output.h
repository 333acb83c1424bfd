// GenerationOutput: the events of one generate request -> the messages of its stream, in order:
// Accepted, the prompt's echo, PrefillProgress, the Tokens of every continuation, SequenceFinished,
// Finished.
//
// What its reader is behind on is merged: it gets fewer, fuller messages. Continuations take turns.
//
// Memory      Bounded by the request: its prompt where it is echoed, and num_sequences times
//             max_new_tokens.
// Threads     Thread-compatible.
// Tested by   tests/server/generation_service_test.cc, tests/server/upload_service_test.cc
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "bst/v1/generation.pb.h"
#include "engine/engine.h"
#include "engine/token_sink.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/engine_call.h"
#include "server/output_assembler.h"
#include "server/prompt_echo.h"

namespace bst {

class GenerationOutput {
 public:
  // What it needs to know of `request`; its prompt comes by AddPrompt. `tokenizer` outlives it.
  GenerationOutput(const Tokenizer& tokenizer, OutputOptions options,
                   const GenerateRequest& request);

  // More of the prompt, which is complete before the first token.
  void AddPrompt(absl::Span<const TokenId> tokens, PromptEnd end);

  // Takes in any event but FinishedEvent. Returns the continuation that has reached a stop string
  // with it, if any: the engine is to stop it.
  std::optional<int> Add(const SequenceEvent& event);
  // Complete when every continuation is, also where the engine does not know yet.
  Completeness completeness() const {
    return num_ended_ == num_sequences_ ? Completeness::kComplete : Completeness::kIncomplete;
  }
  // Takes in the end; `ending` is how the request ended. Returns the last message.
  const v1::Finished& Finish(const Ending& ending, const FinishedEvent& finished);

  // The memory of the output that was not taken yet; of the prompt's echo, which the prompt bounds.
  size_t pending_bytes() const;
  size_t pending_echo_bytes() const { return echo_.pending_bytes(); }
  // Forgets it and adds no more: of its messages only Accepted, PrefillProgress and Finished still
  // come. A continuation whose end was not taken is not complete any more. REQUIRES: before Finish.
  void Drop();

  // The next message; nullopt when nothing is ready.
  std::optional<v1::GenerateEvent> Next();
  // The next of the echo alone, before its time.
  std::optional<v1::Tokens> TakeEcho() { return echo_.Take(); }

 private:
  struct Continuation {
    OutputAssembler output;
    std::optional<v1::SequenceFinished> ended;
    bool announced = false;     // `ended` was sent
    int64_t engine_tokens = 0;  // those behind a stop string too
  };

  Continuation& At(size_t index);
  std::optional<int> AddToken(const GeneratedEvent& event);
  // No-op for a continuation that has ended.
  void End(size_t index, v1::FinishReason reason, TokenId stop_token);
  std::optional<v1::GenerateEvent> NextOfContinuations();

  const Tokenizer& tokenizer_;
  const OutputOptions options_;
  const std::string request_id_;
  const uint64_t seed_;
  const size_t num_sequences_;
  const bool shows_progress_;

  PromptEcho echo_;
  // Whether the output goes on after text of the prompt: a space in front of its first word stays.
  StreamDecoder::Position position_ = StreamDecoder::Position::kStartOfText;
  std::vector<Continuation> continuations_;  // none, or num_sequences
  size_t num_ended_ = 0;
  size_t turn_ = 0;  // the continuation that is asked first
  bool dropped_ = false;

  std::optional<v1::Accepted> accepted_;
  bool was_accepted_ = false;
  std::optional<v1::PrefillProgress> progress_;
  v1::Finished finished_;
  bool finish_ready_ = false;  // and not yet taken
};

}  // namespace bst
