#include "engine/tokenizer/stream_encoder.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace bst {

absl::StatusOr<std::vector<TokenId>> StreamEncoder::Push(std::string_view text) {
  std::vector<TokenId> tokens;
  for (; !text.empty(); text.remove_prefix(std::min(text.size(), kPieceBytes)))
    BST_RETURN_IF_ERROR(PushPiece(text.substr(0, kPieceBytes), tokens));
  return tokens;
}

absl::Status StreamEncoder::PushPiece(std::string_view text, std::vector<TokenId>& tokens) {
  BST_RETURN_IF_ERROR(go_on_());
  held_ += text;
  const std::optional<Tokenizer::Cut> cut = tokenizer_.LastCut(held_, searched_);
  // A cut needs to know the byte behind it, so the last byte is looked at again.
  searched_ = held_.size() - 1;
  if (cut.has_value()) {
    BST_ASSIGN_OR_RETURN(const std::vector<TokenId> more,
                         tokenizer_.Encode(std::string_view(held_).substr(0, cut->end)));
    tokens.insert(tokens.end(), more.begin(), more.end());
    held_ = std::string(held_, cut->next);  // erase() would keep the memory of the whole piece
    searched_ -= std::min(searched_, cut->next);
  }
  if (held_.size() <= kMostUncutBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("has more than ", kMostUncutBytes,
                   " bytes without a place where this model's tokenizer can cut it, such as a "
                   "space between two words"));
}

absl::StatusOr<std::vector<TokenId>> StreamEncoder::Finish() {
  BST_RETURN_IF_ERROR(go_on_());
  return tokenizer_.Encode(std::exchange(held_, std::string()));
}

}  // namespace bst
