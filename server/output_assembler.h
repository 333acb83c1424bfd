// OutputAssembler: the generated tokens of one continuation -> Tokens messages.
//
//   token -> StreamDecoder (whole characters) -> StopStringMatcher -> text of the pending message
//
// Invariants  (1) Every token added before a stop string was found is in exactly one message, in
//                 order.
//             (2) The text of all messages, joined, is the text of these tokens, cut at the stop
//                 string.
//             (3) A message holds at most kMaxTokensPerMessage tokens: about 1 MB with all
//                 alternatives, under the 4 MB that clients accept by default.
// Memory      Bounded by the tokens added, hence by the request's max_new_tokens; pending_bytes().
// Threads     Thread-compatible.
// Tested by   tests/server/output_assembler_test.cc
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bst/v1/generation.pb.h"
#include "engine/base/ids.h"
#include "engine/token_sink.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/stop_string_matcher.h"

namespace bst {

inline constexpr int kMaxTokensPerMessage = 4096;

// The memory of a token's alternatives, while they wait for the reader.
inline size_t MemoryOf(const std::vector<TokenLogprob>& top) {
  constexpr size_t kMallocOverhead = 16;
  return sizeof(std::vector<TokenLogprob>) + kMallocOverhead + top.size() * sizeof(TokenLogprob);
}

// What the messages hold.
struct OutputOptions {
  StopStringOptions stop;
  bool logprobs = false;  // for every token; `top` as the engine gives it
  bool echo = false;      // the prompt first
};

class OutputAssembler {
 public:
  // `tokenizer` outlives the assembler. `position`: kContinuation after a prompt with text.
  OutputAssembler(const Tokenizer& tokenizer, const OutputOptions& options,
                  StreamDecoder::Position position);

  // Takes one token. After a stop string was found tokens are dropped.
  void Add(const GeneratedEvent& event);

  // The end: releases the text that was held back.
  void Finish();

  // The next message; nullopt when nothing is ready.
  std::optional<v1::Tokens> TakeOutput();

  // The memory of the output that was not taken yet.
  size_t pending_bytes() const { return pending_bytes_; }
  // Forgets it. Nothing may be added afterwards.
  void DropPending();

  // The stop string that was found, if any.
  const std::optional<std::string>& stop_match() const { return matcher_.match(); }
  // Tokens taken, up to the one that completed the stop string.
  int64_t num_tokens() const { return num_tokens_; }

 private:
  // What becomes a message. Not as one yet: alternatives take six times the memory there.
  struct Pending {
    std::vector<TokenLogprob> tokens;
    std::vector<std::vector<TokenLogprob>> top;  // empty without alternatives
    std::string text;
  };

  static size_t MemoryOfMessage(const Pending& pending);
  void AppendText(std::string_view text);

  const bool logprobs_;
  StreamDecoder decoder_;
  StopStringMatcher matcher_;
  std::deque<Pending> pending_;  // all but the last are full
  size_t pending_bytes_ = 0;
  int64_t num_tokens_ = 0;
};

// `top` as the wire has it.
void AddTopTokens(const std::vector<TokenLogprob>& top,
                  google::protobuf::RepeatedPtrField<v1::TopToken>& out);

}  // namespace bst
