#include "server/request_validation.h"

#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "server/violations.h"

namespace bst {
namespace {

std::string DrawRequestId(absl::BitGen& random) {
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(random),
                         absl::Uniform<uint64_t>(random));
}

void CheckRequestId(const std::string& id, Violations& violations) {
  bool printable = true;
  for (const char c : id) printable &= c > ' ' && c <= '~';
  if (id.empty() || id.size() > kMaxRequestIdBytes || !printable) {
    // Not the value: it may be long, or unprintable.
    violations.Add("request_id",
                   absl::StrCat("has ", id.size(), " bytes, must have 1 to ", kMaxRequestIdBytes,
                                " printable ASCII characters without spaces"));
  }
}

template <typename Proto>
std::string RequestId(const Proto& proto, absl::BitGen& random, Violations& violations) {
  if (!proto.has_request_id()) return DrawRequestId(random);
  CheckRequestId(proto.request_id(), violations);
  return proto.request_id();
}

TokenId ToTokenId(uint32_t id) { return TokenId(static_cast<int32_t>(id)); }

// Protobuf keeps what this server's enum does not know.
Priority PriorityOf(v1::Priority priority, Violations& violations) {
  switch (priority) {
    case v1::LOW:
      return Priority::kLow;
    case v1::PRIORITY_UNSPECIFIED:
    case v1::NORMAL:
      return Priority::kNormal;
    case v1::HIGH:
      return Priority::kHigh;
    default:
      violations.Add("priority", absl::StrCat("is ", static_cast<int>(priority),
                                              ", must be LOW (1), NORMAL (2) or HIGH (3)"));
      return Priority::kNormal;
  }
}

SamplingParams Sampling(const v1::Sampling& proto, const ModelInfo& info, absl::BitGen& random,
                        Violations& violations) {
  SamplingParams params = info.default_sampling;
  if (proto.has_temperature()) params.temperature = proto.temperature();
  if (proto.has_top_k()) params.top_k = proto.top_k();
  if (proto.has_top_p()) params.top_p = proto.top_p();
  if (proto.has_min_p()) params.min_p = proto.min_p();
  if (proto.has_typical_p()) params.typical_p = proto.typical_p();
  if (proto.has_repetition_penalty()) params.repetition_penalty = proto.repetition_penalty();
  if (proto.has_presence_penalty()) params.presence_penalty = proto.presence_penalty();
  if (proto.has_frequency_penalty()) params.frequency_penalty = proto.frequency_penalty();
  params.seed = proto.has_seed() ? proto.seed() : absl::Uniform<uint64_t>(random);

  violations.Between("sampling.temperature", params.temperature, 0.0f, 100.0f);
  violations.Between("sampling.top_k", params.top_k, -1, std::numeric_limits<int32_t>::max());
  violations.AboveZero("sampling.top_p", params.top_p, 1);
  violations.Between("sampling.min_p", params.min_p, 0.0f, 1.0f);
  violations.AboveZero("sampling.typical_p", params.typical_p, 1);
  violations.AboveZero("sampling.repetition_penalty", params.repetition_penalty, 10);
  violations.Between("sampling.presence_penalty", params.presence_penalty, -2.0f, 2.0f);
  violations.Between("sampling.frequency_penalty", params.frequency_penalty, -2.0f, 2.0f);
  if (proto.logit_bias_size() > 0) params.logit_bias.clear();
  if (proto.logit_bias_size() > info.vocab_size) {
    violations.Add("sampling.logit_bias",
                   absl::StrCat("has ", proto.logit_bias_size(), " tokens, the vocabulary has ",
                                info.vocab_size));
    return params;
  }
  int banned = 0;
  for (const auto& [id, bias] : proto.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    violations.TokenInVocabulary(field, id, info.vocab_size);
    const bool bans = std::isinf(bias) && bias < 0;
    banned += bans ? 1 : 0;
    if (!bans && !(bias >= -100 && bias <= 100)) {
      violations.Add(field, absl::StrCat("is ", bias, ", must be in [-100, 100] or -infinity"));
    }
    if (id < static_cast<uint32_t>(info.vocab_size))
      params.logit_bias.emplace_back(ToTokenId(id), bias);
  }
  if (banned >= info.vocab_size) {
    violations.Add("sampling.logit_bias",
                   absl::StrCat("bans all ", banned, " tokens, at least one must stay"));
  }
  return params;
}

StoppingParams Stopping(const v1::Stopping& proto, const ModelInfo& info, Violations& violations) {
  StoppingParams params;
  const uint32_t max_new_tokens = proto.has_max_new_tokens()
                                      ? proto.max_new_tokens()
                                      : static_cast<uint32_t>(info.default_max_new_tokens);
  violations.Between("stopping.max_new_tokens", max_new_tokens, uint32_t{1}, kMaxNewTokensLimit);
  if (proto.min_new_tokens() > max_new_tokens) {
    violations.Add("stopping.min_new_tokens",
                   absl::StrCat("is ", proto.min_new_tokens(),
                                ", must be in [0, max_new_tokens], which is ", max_new_tokens));
  }
  params.max_new_tokens = static_cast<int>(max_new_tokens);
  params.min_new_tokens = static_cast<int>(proto.min_new_tokens());
  params.ignore_eos = proto.ignore_eos();
  if (proto.stop_token_ids_size() > kMaxStopTokenIds) {
    violations.Add("stopping.stop_token_ids", absl::StrCat("has ", proto.stop_token_ids_size(),
                                                           " ids, limit ", kMaxStopTokenIds));
    return params;
  }
  for (int i = 0; i < proto.stop_token_ids_size(); ++i) {
    const uint32_t id = proto.stop_token_ids(i);
    violations.TokenInVocabulary(absl::StrCat("stopping.stop_token_ids[", i, "]"), id,
                                 info.vocab_size);
    params.stop_token_ids.push_back(ToTokenId(id));
  }
  return params;
}

StopStringOptions StopStrings(const v1::Stopping& proto, Violations& violations) {
  if (proto.stop_strings_size() > kMaxStopStrings) {
    violations.Add("stopping.stop_strings", absl::StrCat("has ", proto.stop_strings_size(),
                                                         " strings, limit ", kMaxStopStrings));
    return {};
  }
  for (int i = 0; i < proto.stop_strings_size(); ++i) {
    const size_t bytes = proto.stop_strings(i).size();
    if (bytes >= 1 && bytes <= kMaxStopStringBytes) continue;
    violations.Add(absl::StrCat("stopping.stop_strings[", i, "]"),
                   absl::StrCat("has ", bytes, " bytes, must have 1 to ", kMaxStopStringBytes));
  }
  return {{proto.stop_strings().begin(), proto.stop_strings().end()}, proto.include_stop_string()};
}

absl::StatusOr<std::vector<TokenId>> EncodeInPieces(const std::string& text,
                                                    const Tokenizer& tokenizer,
                                                    PromptReader::GoOn go_on) {
  StreamEncoder encoder(tokenizer, std::move(go_on));
  BST_ASSIGN_OR_RETURN(std::vector<TokenId> tokens, encoder.Push(text));
  BST_ASSIGN_OR_RETURN(const std::vector<TokenId> rest, encoder.Finish());
  tokens.insert(tokens.end(), rest.begin(), rest.end());
  return tokens;
}

}  // namespace

absl::StatusOr<ValidGenerate> ValidateGenerate(const v1::GenerateRequest& proto,
                                               const ModelInfo& info, PromptReader& prompt,
                                               PromptEnd prompt_end) {
  Violations violations;
  absl::BitGen random;
  ValidGenerate valid;
  GenerateRequest& request = valid.request;
  request.request_id = RequestId(proto, random, violations);
  request.prompt = prompt.Add(proto, prompt_end, violations);
  request.prompt_open = prompt_end == PromptEnd::kMoreFollows;
  request.priority = PriorityOf(proto.priority(), violations);
  request.sampling = Sampling(proto.sampling(), info, random, violations);
  const uint32_t num_sequences =
      proto.sampling().has_num_sequences() ? proto.sampling().num_sequences() : 1;
  violations.Between("sampling.num_sequences", num_sequences, uint32_t{1},
                     static_cast<uint32_t>(info.max_sequences));
  request.num_sequences = static_cast<int>(num_sequences);
  request.stopping = Stopping(proto.stopping(), info, violations);

  const v1::Output& output = proto.output();
  violations.Between("output.top_logprobs", output.top_logprobs(), uint32_t{0}, kMaxTopLogprobs);
  request.top_logprobs = static_cast<int>(output.top_logprobs());
  request.prompt_progress = !output.has_prompt_progress() || output.prompt_progress();
  valid.output.logprobs = output.logprobs() || output.top_logprobs() > 0;
  valid.output.echo = output.echo();
  valid.output.stop = StopStrings(proto.stopping(), violations);

  if (proto.has_queue_timeout_ms()) {
    violations.Between("queue_timeout_ms", proto.queue_timeout_ms(), uint32_t{1}, kMaxTimeMs);
    request.queue_timeout = absl::Milliseconds(proto.queue_timeout_ms());
  }
  if (proto.has_time_limit_ms()) {
    violations.Between("time_limit_ms", proto.time_limit_ms(), uint32_t{1}, kMaxTimeMs);
    request.time_limit = absl::Milliseconds(proto.time_limit_ms());
  }
  if (violations.empty() && !LeavesTokensToDraw(request, info.vocab_size, info.eos_token())) {
    violations.Add(
        request.sampling.logit_bias.empty() ? "stopping.stop_token_ids" : "sampling.logit_bias",
        absl::StrCat("leaves no token to draw before stopping.min_new_tokens, ",
                     request.stopping.min_new_tokens));
  }
  BST_RETURN_IF_ERROR(violations.status());
  return valid;
}

absl::StatusOr<ScoreRequest> ValidateScore(const v1::ScoreRequest& proto, const ModelInfo& info,
                                           const Tokenizer& tokenizer, PromptReader::GoOn go_on) {
  Violations violations;
  absl::BitGen random;
  ScoreRequest request;
  request.request_id = RequestId(proto, random, violations);
  PromptReader prompt(info, tokenizer, std::move(go_on));
  request.tokens = prompt.Add(proto, PromptEnd::kComplete, violations);
  request.priority = PriorityOf(proto.priority(), violations);
  violations.Between("top_logprobs", proto.top_logprobs(), uint32_t{0}, kMaxTopLogprobs);
  request.top_logprobs = static_cast<int>(proto.top_logprobs());
  BST_RETURN_IF_ERROR(violations.status());
  return request;
}

absl::StatusOr<std::vector<TokenId>> EncodeText(const std::string& text, const ModelInfo& info,
                                                const Tokenizer& tokenizer,
                                                PromptReader::GoOn go_on) {
  Violations violations;
  if (!CheckTextBytes(text.size(), info, tokenizer, violations)) return violations.status();
  absl::StatusOr<std::vector<TokenId>> tokens = EncodeInPieces(text, tokenizer, std::move(go_on));
  if (tokens.ok()) return tokens;
  AddEncodeError(tokens.status(), "", violations);
  return violations.status();
}

absl::StatusOr<std::vector<TokenId>> ValidateTokenIds(
    const google::protobuf::RepeatedField<uint32_t>& ids, const ModelInfo& info) {
  Violations violations;
  std::vector<TokenId> tokens;
  if (ids.size() > info.max_prompt_tokens) {
    violations.Add("token_ids",
                   absl::StrCat("has ", ids.size(), " tokens, limit ", info.max_prompt_tokens));
    violations.set_too_long();
    return violations.status();
  }
  tokens.reserve(static_cast<size_t>(ids.size()));
  for (const uint32_t id : ids) {
    if (id >= static_cast<uint32_t>(info.vocab_size)) {
      violations.TokenInVocabulary(absl::StrCat("token_ids[", tokens.size(), "]"), id,
                                   info.vocab_size);
      break;
    }
    tokens.push_back(ToTokenId(id));
  }
  BST_RETURN_IF_ERROR(violations.status());
  return tokens;
}

absl::Status ValidateRequestId(const std::string& id) {
  Violations violations;
  CheckRequestId(id, violations);
  return violations.status();
}

bool IsTooLong(const absl::Status& status) { return Violations::IsTooLong(status); }

}  // namespace bst
