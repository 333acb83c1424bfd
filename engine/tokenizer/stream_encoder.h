// StreamEncoder: a text that arrives in pieces -> its tokens, each as soon as it is certain.
//
// Invariants  (1) The tokens of all pieces, joined, are Tokenizer::Encode of the whole text,
//                 wherever the text was cut into pieces: also inside a UTF-8 character.
//             (2) What is held back begins behind the last place where Tokenizer::LastCut knows
//                 that the text may be cut. The byte tokenizer holds nothing back, a SentencePiece
//                 BPE model at most from the last space between two words on; where the model has
//                 no such places everything is held back to the end.
//             (3) The tokenizer gets kPieceBytes at a time, where the text can be cut: what it
//                 takes does not grow with the text, and GoOn is asked between the pieces.
// Memory      The text that is held back, up to twice, at most kMostUncutBytes and a piece: the
//             caller bounds what many encoders hold together by held_bytes(). Each byte is looked
//             at a bounded number of times.
// Threads     Thread-compatible.
// Tested by   tests/engine/tokenizer/stream_encoder_test.cc, tests/fuzz/stream_encode_fuzz.cc
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/ids.h"
#include "engine/tokenizer/tokenizer.h"

namespace bst {

class StreamEncoder {
 public:
  // Whether the tokens are still wanted; an error is the caller's to make.
  using GoOn = std::function<absl::Status()>;
  static absl::Status Always() { return absl::OkStatus(); }

  static constexpr size_t kPieceBytes = size_t{64} << 10;
  // SentencePiece takes some 250 bytes of memory for one that it cannot merge with another.
  static constexpr size_t kMostUncutBytes = size_t{2} << 20;

  // `tokenizer` outlives the encoder.
  explicit StreamEncoder(const Tokenizer& tokenizer, GoOn go_on = Always)
      : tokenizer_(tokenizer), go_on_(std::move(go_on)) {}

  // The tokens that are certain now. Errors: those of Tokenizer::Encode and of GoOn;
  // kInvalidArgument for more than kMostUncutBytes that cannot be cut. The encoder is of no use
  // then.
  absl::StatusOr<std::vector<TokenId>> Push(std::string_view text);
  // The end of the text: the tokens of what was held back.
  absl::StatusOr<std::vector<TokenId>> Finish();

  // The text that is held back.
  size_t held_bytes() const { return held_.size(); }

 private:
  absl::Status PushPiece(std::string_view text, std::vector<TokenId>& tokens);

  const Tokenizer& tokenizer_;
  const GoOn go_on_;
  std::string held_;
  size_t searched_ = 0;  // no cut in front of this place of held_
};

}  // namespace bst
