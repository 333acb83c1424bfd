#include "engine/tokenizer/tokenizer.h"

namespace bst {

std::string Tokenizer::Decode(absl::Span<const TokenId> tokens) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (const TokenId token : tokens) text += decoder.Push(token);
  return text + decoder.Finish();
}

}  // namespace bst
