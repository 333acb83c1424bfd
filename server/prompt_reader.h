// PromptReader: the prompt of a request, in one message or in many, -> its tokens, checked.
//
// A text gets the model's bos in front and is tokenised while it arrives: the tokens are those of
// the whole text. Token ids are taken as they are.
//
// Errors      Violations that name the field, its value and the limit; nothing may be added after
//             one. Texts of more than max_prompt_tokens times max_token_bytes() bytes are refused
//             before they are tokenised: no token covers more, and so what a request can cost is
//             bounded before any work. So is the memory for what the tokenizer holds back; of
//             many prompts together HeldText bounds it. What else ends the reading, GoOn among it,
//             is a failure of the Violations.
// Threads     Thread-compatible.
// Tested by   tests/server/prompt_reader_test.cc, tests/server/request_validation_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bst/v1/generation.pb.h"
#include "engine/engine.h"
#include "engine/tokenizer/stream_encoder.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/violations.h"

namespace bst {

class PromptReader {
 public:
  using GoOn = StreamEncoder::GoOn;

  // `info` and `tokenizer` outlive the reader. A long text asks `go_on` now and then.
  PromptReader(const ModelInfo& info, const Tokenizer& tokenizer,
               GoOn go_on = StreamEncoder::Always)
      : info_(info), tokenizer_(tokenizer), encoder_(tokenizer, std::move(go_on)) {}

  // Takes the prompt in `part`, if it has one: a GenerateRequest, ScoreRequest or
  // GenerateUploadPart. Returns the tokens that are certain now; with kComplete all the rest.
  template <typename Part>
  std::vector<TokenId> Add(const Part& part, PromptEnd end, Violations& violations) {
    if (part.has_text()) return AddText(part.text(), end, violations);
    if (part.has_token_ids()) return AddIds(part.token_ids(), end, violations);
    return end == PromptEnd::kComplete ? Finish(violations) : std::vector<TokenId>();
  }
  // The end of the prompt: the tokens of what was held back.
  std::vector<TokenId> Finish(Violations& violations);

  // Tokens returned so far.
  int64_t num_tokens() const { return static_cast<int64_t>(num_tokens_); }
  // Bytes of text held back that are no tokens yet.
  int64_t held_bytes() const { return static_cast<int64_t>(encoder_.held_bytes()); }

 private:
  enum class Kind { kNone, kText, kIds };

  std::vector<TokenId> AddText(const std::string& text, PromptEnd end, Violations& violations);
  std::vector<TokenId> AddIds(const v1::TokenIds& ids, PromptEnd end, Violations& violations);
  bool Become(Kind kind, Violations& violations);
  void CheckLength(PromptEnd end, Violations& violations);

  const ModelInfo& info_;
  const Tokenizer& tokenizer_;
  StreamEncoder encoder_;
  Kind kind_ = Kind::kNone;
  size_t text_bytes_ = 0;
  size_t num_tokens_ = 0;
};

// Says in `violations` why a text was not tokenised; `advice` follows what is wrong with it.
void AddEncodeError(const absl::Status& error, const char* advice, Violations& violations);

// Refuses a text that no max_prompt_tokens tokens can stand for. True: it may fit.
bool CheckTextBytes(size_t bytes, const ModelInfo& info, const Tokenizer& tokenizer,
                    Violations& violations);

}  // namespace bst
