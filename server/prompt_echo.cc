#include "server/prompt_echo.h"

#include <algorithm>

#include "server/output_assembler.h"

namespace bst {

void PromptEcho::Add(absl::Span<const TokenId> tokens, PromptEnd end) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  complete_ |= end == PromptEnd::kComplete;
}

void PromptEcho::Drop() {
  tokens_ = std::vector<TokenId>();
  ended_ = true;
}

std::optional<v1::Tokens> PromptEcho::Take() {
  if (ended_ || (taken_ == tokens_.size() && !complete_)) return std::nullopt;
  v1::Tokens message;
  message.set_is_prompt(true);
  const size_t end = std::min(tokens_.size(), taken_ + kMaxTokensPerMessage);
  for (; taken_ < end; ++taken_) {
    message.add_token_ids(static_cast<uint32_t>(tokens_[taken_].value()));
    message.mutable_text()->append(decoder_.Push(tokens_[taken_]));
  }
  if (taken_ == tokens_.size()) {
    tokens_ = std::vector<TokenId>();
    taken_ = 0;
    ended_ = complete_;
    if (complete_) message.mutable_text()->append(decoder_.Finish());
  }
  if (message.token_ids().empty() && message.text().empty()) return std::nullopt;
  return message;
}

}  // namespace bst
