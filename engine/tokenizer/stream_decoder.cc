#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace bst {

std::string StreamDecoder::Push(TokenId token) {
  const std::string bytes = pending_ + tokenizer_.TokenBytes(token, at_start_);
  // A first token that is nothing but the dropped space is text all the same.
  if (at_start_ && !tokenizer_.TokenBytes(token, /*at_start=*/false).empty()) at_start_ = false;
  DecodedUtf8 decoded = DecodeUtf8(bytes, Utf8Tail::kHoldBack);
  pending_ = std::string(decoded.tail);
  return std::move(decoded.text);
}

std::string StreamDecoder::Finish() {
  std::string text = DecodeUtf8(pending_, Utf8Tail::kReplace).text;
  pending_.clear();
  return text;
}

}  // namespace bst
