// Any bytes through the UTF-8 decoder: the same as the reference, all at once and in any pieces.
// The first byte says how long the pieces are.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "tests/engine/tokenizer/utf8_reference.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t piece_length = 1 + data[0] % 7;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::string expected = bst::Utf8Reference::Decode(bytes);
  Check(bst::DecodeUtf8(bytes, bst::Utf8Tail::kReplace).text == expected);
  Check(bst::Utf8Reference::IsValid(expected));

  std::string text, pending;
  for (size_t begin = 0; begin < bytes.size(); begin += piece_length) {
    const std::string piece = pending + std::string(bytes.substr(begin, piece_length));
    const bst::DecodedUtf8 decoded = bst::DecodeUtf8(piece, bst::Utf8Tail::kHoldBack);
    Check(bst::Utf8Reference::IsValid(decoded.text));
    Check(decoded.tail.size() <= 3);
    text += decoded.text;
    pending = std::string(decoded.tail);
  }
  Check(text + bst::DecodeUtf8(pending, bst::Utf8Tail::kReplace).text == expected);

  const std::unique_ptr<bst::Tokenizer> tokenizer = bst::Tokenizer::Byte(256);
  const auto tokens = tokenizer->Encode(bytes);
  Check(tokens.ok() && tokenizer->Decode(*tokens) == expected);
  return 0;
}
