#include "server/prompt_reader.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace bst {

bool CheckTextBytes(size_t bytes, const ModelInfo& info, const Tokenizer& tokenizer,
                    Violations& violations) {
  const auto token_bytes = static_cast<size_t>(tokenizer.max_token_bytes());
  const size_t least_tokens = (bytes + token_bytes - 1) / token_bytes;
  if (least_tokens <= static_cast<size_t>(info.max_prompt_tokens)) return true;
  violations.Add("text", absl::StrCat("has ", bytes, " bytes, at least ", least_tokens,
                                      " tokens, limit ", info.max_prompt_tokens));
  violations.set_too_long();
  return false;
}

void AddEncodeError(const absl::Status& error, const char* advice, Violations& violations) {
  if (absl::IsInvalidArgument(error)) {
    violations.Add("text", absl::StrCat(error.message(), advice));
  } else {
    violations.Fail(error);
  }
}

bool PromptReader::Become(Kind kind, Violations& violations) {
  if (kind_ != Kind::kNone && kind_ != kind) {
    const bool text = kind == Kind::kText;
    violations.Add("part", absl::StrCat("is ", text ? "text" : "token_ids", ", must be ",
                                        text ? "token_ids" : "text", " as the prompt before it"));
    return false;
  }
  kind_ = kind;
  return true;
}

std::vector<TokenId> PromptReader::AddText(const std::string& text, PromptEnd end,
                                           Violations& violations) {
  if (!Become(Kind::kText, violations)) return {};
  text_bytes_ += text.size();
  if (!CheckTextBytes(text_bytes_, info_, tokenizer_, violations)) return {};
  std::vector<TokenId> tokens;
  const auto take = [&](const absl::StatusOr<std::vector<TokenId>>& encoded) {
    if (!encoded.ok()) {
      AddEncodeError(encoded.status(), "; send token_ids instead", violations);
      return false;
    }
    // The empty text is an error even where bos would make it one token.
    if (num_tokens_ == 0 && tokens.empty() && !encoded->empty()) tokens = info_.bos;
    tokens.insert(tokens.end(), encoded->begin(), encoded->end());
    return true;
  };
  if (!take(encoder_.Push(text))) return {};
  if (end == PromptEnd::kComplete && !take(encoder_.Finish())) return {};
  num_tokens_ += tokens.size();
  CheckLength(end, violations);
  return tokens;
}

std::vector<TokenId> PromptReader::AddIds(const v1::TokenIds& ids, PromptEnd end,
                                          Violations& violations) {
  if (!Become(Kind::kIds, violations)) return {};
  std::vector<TokenId> tokens;
  tokens.reserve(static_cast<size_t>(ids.ids_size()));
  for (const uint32_t id : ids.ids()) {
    if (id >= static_cast<uint32_t>(info_.vocab_size)) {
      violations.TokenInVocabulary(absl::StrCat("token_ids.ids[", num_tokens_ + tokens.size(), "]"),
                                   id, info_.vocab_size);
      return {};
    }
    tokens.emplace_back(static_cast<int32_t>(id));
  }
  num_tokens_ += tokens.size();
  CheckLength(end, violations);
  return tokens;
}

std::vector<TokenId> PromptReader::Finish(Violations& violations) {
  if (kind_ == Kind::kText) return AddText("", PromptEnd::kComplete, violations);
  CheckLength(PromptEnd::kComplete, violations);
  return {};
}

void PromptReader::CheckLength(PromptEnd end, Violations& violations) {
  const char* const field = kind_ == Kind::kNone   ? "prompt"
                            : kind_ == Kind::kText ? "text"
                                                   : "token_ids.ids";
  const bool complete = end == PromptEnd::kComplete;
  if (complete && num_tokens_ == 0) {
    violations.Add(field, "is empty, must have at least one token");
  } else if (num_tokens_ > static_cast<size_t>(info_.max_prompt_tokens)) {
    violations.Add(field, absl::StrCat("has ", complete ? "" : "at least ", num_tokens_,
                                       " tokens, limit ", info_.max_prompt_tokens));
    violations.set_too_long();
  }
}

}  // namespace bst
