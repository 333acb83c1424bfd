#include "engine/request_check.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/ids.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

constexpr int kMaxTopLogprobs = 20;

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, " ", what));
}

absl::Status CheckTokens(absl::string_view field, const std::vector<TokenId>& tokens,
                         int vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int32_t id = tokens[i].value();
    if (id < 0 || id >= vocab_size) {
      return Invalid(
          field, absl::StrCat("token ", i, " is ", id, ", not in the vocabulary of ", vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(absl::string_view field, const std::vector<TokenId>& tokens,
                         const RequestLimits& limits) {
  if (static_cast<int64_t>(tokens.size()) > limits.max_prompt_tokens) {
    return Invalid(
        field, absl::StrCat("has ", tokens.size(), " tokens, limit ", limits.max_prompt_tokens));
  }
  return CheckTokens(field, tokens, limits.vocab_size);
}

absl::Status CheckNumSequences(int num_sequences, int max_sequences) {
  if (num_sequences >= 1 && num_sequences <= max_sequences) return absl::OkStatus();
  return Invalid("num_sequences",
                 absl::StrCat("is ", num_sequences, ", not in 1 .. ", max_sequences));
}

absl::Status CheckTopLogprobs(int top_logprobs) {
  if (top_logprobs < 0 || top_logprobs > kMaxTopLogprobs) {
    return Invalid("top_logprobs",
                   absl::StrCat("is ", top_logprobs, ", not in 0 .. ", kMaxTopLogprobs));
  }
  return absl::OkStatus();
}

absl::Status CheckStopping(const StoppingParams& stopping, int vocab_size) {
  if (stopping.max_new_tokens < 1) {
    return Invalid("max_new_tokens",
                   absl::StrCat("is ", stopping.max_new_tokens, ", must be at least 1"));
  }
  if (stopping.min_new_tokens < 0 || stopping.min_new_tokens > stopping.max_new_tokens) {
    return Invalid("min_new_tokens",
                   absl::StrCat("is ", stopping.min_new_tokens, ", not in 0 .. max_new_tokens, ",
                                stopping.max_new_tokens));
  }
  return CheckTokens("stop_token_ids", stopping.stop_token_ids, vocab_size);
}

absl::Status CheckSomethingCanBeDrawn(const GenerateRequest& request, const RequestLimits& limits) {
  if (LeavesTokensToDraw(request, limits.vocab_size, limits.eos)) return absl::OkStatus();
  return Invalid(request.sampling.logit_bias.empty() ? "stop_token_ids" : "logit_bias",
                 absl::StrCat("leaves no token to draw before min_new_tokens, ",
                              request.stopping.min_new_tokens));
}

absl::Status CheckDuration(absl::string_view field, absl::Duration duration) {
  if (duration > absl::ZeroDuration()) return absl::OkStatus();
  return Invalid(field, absl::StrCat("is ", absl::FormatDuration(duration), ", must be positive"));
}

absl::Status CheckAge(absl::Duration age) {
  if (age >= absl::ZeroDuration() && age < absl::InfiniteDuration()) return absl::OkStatus();
  return Invalid("age", absl::StrCat("is ", absl::FormatDuration(age), ", must be 0 or more"));
}

}  // namespace

absl::Status CheckRequest(const GenerateRequest& request, const RequestLimits& limits) {
  if (request.prompt.empty() && !request.prompt_open) return Invalid("prompt", "is empty");
  BST_RETURN_IF_ERROR(CheckPrompt("prompt", request.prompt, limits));
  BST_RETURN_IF_ERROR(CheckNumSequences(request.num_sequences, limits.max_sequences));
  BST_RETURN_IF_ERROR(CheckStopping(request.stopping, limits.vocab_size));
  BST_RETURN_IF_ERROR(CheckTopLogprobs(request.top_logprobs));
  BST_RETURN_IF_ERROR(CheckAge(request.age));
  BST_RETURN_IF_ERROR(CheckDuration("queue_timeout", request.queue_timeout));
  BST_RETURN_IF_ERROR(CheckDuration("time_limit", request.time_limit));
  BST_RETURN_IF_ERROR(Validate(request.sampling, limits.vocab_size));
  return CheckSomethingCanBeDrawn(request, limits);
}

absl::Status CheckRequest(const ScoreRequest& request, const RequestLimits& limits) {
  if (request.tokens.empty()) return Invalid("tokens", "is empty");
  BST_RETURN_IF_ERROR(CheckPrompt("tokens", request.tokens, limits));
  BST_RETURN_IF_ERROR(CheckAge(request.age));
  return CheckTopLogprobs(request.top_logprobs);
}

absl::Status CheckPromptPart(const std::vector<TokenId>& tokens, int vocab_size) {
  return CheckTokens("prompt", tokens, vocab_size);
}

}  // namespace bst
