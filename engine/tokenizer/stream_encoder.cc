#include "engine/tokenizer/stream_encoder.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace bst {

absl::StatusOr<std::vector<TokenId>> StreamEncoder::Push(std::string_view text) {
  held_ += text;
  const std::optional<Tokenizer::Cut> cut = tokenizer_.LastCut(held_, searched_);
  // A cut needs to know the byte behind it, so the last byte is looked at again.
  searched_ = held_.empty() ? 0 : held_.size() - 1;
  if (!cut.has_value()) return std::vector<TokenId>();
  absl::StatusOr<std::vector<TokenId>> tokens =
      tokenizer_.Encode(std::string_view(held_).substr(0, cut->end));
  held_ = std::string(held_, cut->next);  // erase() would keep the memory of the whole piece
  searched_ -= std::min(searched_, cut->next);
  return tokens;
}

absl::StatusOr<std::vector<TokenId>> StreamEncoder::Finish() {
  return tokenizer_.Encode(std::exchange(held_, std::string()));
}

}  // namespace bst
