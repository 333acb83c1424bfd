// Any bytes in any pieces through the streaming encoder: the tokens of the whole, for bytes and for
// the demo model's SentencePiece vocabulary; and any bytes as a SentencePiece model file to the
// proof that says where a text may be cut. The first byte says how long the pieces are.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/tokenizer/sentencepiece_cuts.h"
#include "engine/tokenizer/stream_encoder.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

const bst::Tokenizer& DemoTokenizer() {
  static const auto tokenizer =
      bst::Tokenizer::SentencePiece("models/bst-books-4m/tokenizer.model", 4096);
  Check(tokenizer.ok());
  return **tokenizer;
}

void CheckSameAsWhole(const bst::Tokenizer& tokenizer, std::string_view text, size_t piece_length) {
  bst::StreamEncoder encoder(tokenizer);
  std::vector<bst::TokenId> tokens;
  const auto take = [&tokens](const absl::StatusOr<std::vector<bst::TokenId>>& more) {
    Check(more.ok());
    tokens.insert(tokens.end(), more->begin(), more->end());
  };
  for (size_t begin = 0; begin < text.size(); begin += piece_length) {
    take(encoder.Push(text.substr(begin, piece_length)));
  }
  take(encoder.Finish());
  const auto whole = tokenizer.Encode(text);
  Check(whole.ok() && tokens == *whole);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t piece_length = 1 + data[0] % 31;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  CheckSameAsWhole(*bst::Tokenizer::Byte(256), bytes, piece_length);
  CheckSameAsWhole(DemoTokenizer(), bytes, piece_length);
  bst::SpaceCuts::Of(bytes).Last(bytes, piece_length);
  return 0;
}
