// SentencePieceModel: what we need of the SentencePiece library, in types of the standard library.
//
// A wall, for two reasons. sentencepiece_processor.h declares its own absl::string_view, so no file
// can include both it and Abseil. And libsentencepiece carries and exports a Protobuf of its own,
// older than the one gRPC needs: with both in one symbol scope a process crashes before main. So
// the implementation (sentencepiece_plugin.cc) is a shared library, libbst_sentencepiece.so, opened
// in a scope of its own when the first model is loaded. This header names neither library.
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

namespace bst {

class SentencePieceModel {
 public:
  struct Failure {
    std::string message;
    bool is_out_of_memory = false;
  };
  template <typename T>
  using Result = std::variant<T, Failure>;

  // `serialized`: the contents of a tokenizer.model file.
  static Result<std::unique_ptr<SentencePieceModel>> Load(const std::string& serialized);
  virtual ~SentencePieceModel() = default;

  virtual int num_pieces() const = 0;
  virtual Result<std::vector<int>> Encode(std::string_view text) const = 0;

  // The bytes a piece stands for, U+2581 made a space; empty for control, unknown and unused
  // pieces. REQUIRES: 0 <= id < num_pieces().
  virtual std::string PieceBytes(int id) const = 0;
  // A piece of ordinary text that begins with U+2581, not a byte piece.
  virtual bool BeginsWithSpace(int id) const = 0;
  // Whether the model drops the space of a text's first piece when it decodes.
  virtual bool DropsFirstSpace() const = 0;
};

// What the shared library exports: `result` becomes what Load returns.
using LoadSentencePieceModelFunction =
    void (*)(const std::string& serialized,
             SentencePieceModel::Result<std::unique_ptr<SentencePieceModel>>& result);
inline constexpr char kLoadSentencePieceModel[] = "BstLoadSentencePieceModel";

}  // namespace bst
