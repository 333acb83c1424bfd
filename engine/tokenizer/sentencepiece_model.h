// SentencePieceModel: what we need of the SentencePiece library, in types of the standard library.
//
// A wall: sentencepiece_processor.h declares its own absl::string_view, so no file can include both
// it and Abseil. This header names neither.
//
// Threads   Immutable after Load; thread-safe.
// Errors    Failures of the library, exceptions included, come back as Failure.
// Tested by tests/engine/tokenizer/sentencepiece_tokenizer_test.cc
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace bst {

class SentencePieceModel {
 public:
  struct Failure {
    std::string message;
  };
  template <typename T>
  using Result = std::variant<T, Failure>;

  // `serialized`: the contents of a tokenizer.model file.
  static Result<std::unique_ptr<SentencePieceModel>> Load(const std::string& serialized);
  ~SentencePieceModel();

  int num_pieces() const;
  Result<std::vector<int>> Encode(std::string_view text) const;

  // The bytes a piece stands for, U+2581 made a space; empty for control, unknown and unused
  // pieces. REQUIRES: 0 <= id < num_pieces().
  std::string PieceBytes(int id) const;
  // A piece of ordinary text that begins with U+2581, not a byte piece.
  bool BeginsWithSpace(int id) const;
  // Whether the model drops the space of a text's first piece when it decodes.
  bool DropsFirstSpace() const;

 private:
  explicit SentencePieceModel(std::unique_ptr<sentencepiece::SentencePieceProcessor> processor);

  bool HasText(int id) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace bst
