// Tokenizer: text <-> TokenId, and StreamDecoder: TokenIds that arrive one by one -> valid UTF-8.
//
// Two kinds: bytes (token id = byte value, ids 256 and up are special) and SentencePiece.
// Special ids (control, unknown and unused pieces, ids of 256 and up with bytes, any id outside the
// vocabulary's text) have empty text.
//
// Threads     Tokenizer: immutable, thread-safe. StreamDecoder: thread-compatible.
// Tested by   tests/engine/tokenizer/tokenizer_test.cc, stream_decoder_test.cc,
// tests/fuzz/utf8_fuzz.cc
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/ids.h"

namespace bst {

class Tokenizer {
 public:
  static std::unique_ptr<Tokenizer> Byte(int vocab_size);
  // Errors: kNotFound; kFailedPrecondition when the file is no SentencePiece model, one that the
  // library could not use safely (sentencepiece_check.h) or has more than `vocab_size` pieces, or
  // the SentencePiece library cannot be opened; kResourceExhausted (memory).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> SentencePiece(const std::string& path,
                                                                  int vocab_size);
  virtual ~Tokenizer() = default;

  // The tokens of `text` alone: no bos. Any bytes are accepted: what is not UTF-8 is replaced by
  // U+FFFD first, except by the byte tokenizer, which takes bytes as they are.
  // Errors: kInternal when the SentencePiece library fails, kResourceExhausted when it runs out of
  // memory.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text) const = 0;

  // Where a text may be cut: Encode(text) is Encode of [0, end) and then of [next, ...), whatever
  // else may follow. next - end is 0, or 1 where the space between two words is left out.
  struct Cut {
    size_t end = 0;
    size_t next = 0;
  };
  // The last such place of `text` with end >= from; nullopt: none is known. See StreamEncoder.
  virtual std::optional<Cut> LastCut(std::string_view text, size_t from) const = 0;

  // The bytes that `token` contributes; possibly part of a UTF-8 character,
  // possibly empty. `at_start`: no text-bearing token came before (SentencePiece models with a
  // dummy prefix drop its space there).
  virtual std::string TokenBytes(TokenId token, bool at_start) const = 0;

  // All of `tokens`, as the start of a text, in valid UTF-8.
  std::string Decode(absl::Span<const TokenId> tokens) const;

  virtual int vocab_size() const = 0;

  // The bytes of the longest token's text, at least 1: n tokens stand for at most n times as many
  // bytes of a text. What SentencePiece normalises (runs of spaces, compatibility forms of
  // characters) or does not know may take more.
  virtual int max_token_bytes() const = 0;
};

// Turns tokens into text of whole UTF-8 characters: holds back an incomplete character until the
// bytes that finish it arrive, and turns bytes that can never become one into U+FFFD (one per
// maximal ill-formed subpart, as the Unicode standard recommends).
//
// Invariants  (1) Everything that Push and Finish return is valid UTF-8 by itself.
//             (2) Joined together, it is Tokenizer::Decode of the tokens (kStartOfText).
class StreamDecoder {
 public:
  // Where the tokens stand. A SentencePiece model with a dummy prefix begins the text "the end"
  // with the piece of " the": at the start of a text that space is dropped, where a text goes on
  // (the answer to a prompt) it is a real one.
  enum class Position { kStartOfText, kContinuation };

  explicit StreamDecoder(const Tokenizer& tokenizer, Position position = Position::kStartOfText)
      : tokenizer_(tokenizer), at_start_(position == Position::kStartOfText) {}

  // Text that is complete now; possibly empty.
  std::string Push(TokenId token);
  // The end: what was held back becomes U+FFFD.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;  // outlives the decoder
  std::string pending_;         // a prefix of a character, at most 3 bytes
  bool at_start_;
};

}  // namespace bst
