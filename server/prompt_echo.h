// PromptEcho: the tokens of a prompt -> Tokens messages, as they come.
//
// Invariants  The text of all messages, joined, is the text of the prompt; each is whole
//             characters.
// Memory      The prompt's tokens until they are taken.
// Threads     Thread-compatible.
// Tested by   tests/server/output_assembler_test.cc
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "bst/v1/generation.pb.h"
#include "engine/engine.h"
#include "engine/tokenizer/tokenizer.h"

namespace bst {

class PromptEcho {
 public:
  // `tokenizer` outlives the echo.
  explicit PromptEcho(const Tokenizer& tokenizer) : decoder_(tokenizer) {}

  void Add(absl::Span<const TokenId> tokens, PromptEnd end);
  // The next message; nullopt when nothing is ready.
  std::optional<v1::Tokens> Take();
  size_t pending_bytes() const { return tokens_.size() * sizeof(TokenId); }
  // Forgets what was not taken; nothing more comes. REQUIRES: the prompt is complete.
  void Drop();

 private:
  StreamDecoder decoder_;
  std::vector<TokenId> tokens_;
  size_t taken_ = 0;
  bool complete_ = false;
  bool ended_ = false;  // the last message was taken
};

}  // namespace bst
