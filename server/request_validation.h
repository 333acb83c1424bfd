// Request protos -> the engine's plain structs, or kInvalidArgument that names the wrong fields
// (the first 8, and how many more there are), their values and limits (google.rpc.BadRequest).
//
// Merged here, in this order: the request; the model's generation_config (info.default_sampling and
// info.default_max_new_tokens); the built-in default. Text is tokenised here, with the model's bos
// in front. An unset seed or request id is drawn.
//
// Threads     Free functions, thread-safe. They run on gRPC threads.
// Tested by   tests/server/request_validation_test.cc
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bst/v1/generation.pb.h"
#include "engine/engine.h"
#include "engine/generate_request.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/output_assembler.h"
#include "server/prompt_reader.h"

namespace bst {

// Limits of the wire; what depends on the model or the flags is in ModelInfo.
inline constexpr uint32_t kMaxNewTokensLimit = 1'000'000;
inline constexpr uint32_t kMaxTopLogprobs = 20;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 256;
inline constexpr int kMaxStopTokenIds = 64;
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr uint32_t kMaxTimeMs = 86'400'000;

struct ValidGenerate {
  GenerateRequest request;
  OutputOptions output;
};

// `prompt` takes the request's prompt, which with kMoreFollows may be a beginning of it, or empty.
// Errors: kInvalidArgument; IsTooLong tells a prompt over the limit from other mistakes.
absl::StatusOr<ValidGenerate> ValidateGenerate(const v1::GenerateRequest& proto,
                                               const ModelInfo& info, PromptReader& prompt,
                                               PromptEnd prompt_end);
absl::StatusOr<ScoreRequest> ValidateScore(const v1::ScoreRequest& proto, const ModelInfo& info,
                                           const Tokenizer& tokenizer,
                                           PromptReader::GoOn go_on = StreamEncoder::Always);
// The tokens of `text` alone, without bos. Texts of more than max_prompt_tokens times
// tokenizer.max_token_bytes() bytes are too long, as in prompts.
absl::StatusOr<std::vector<TokenId>> EncodeText(const std::string& text, const ModelInfo& info,
                                                const Tokenizer& tokenizer,
                                                PromptReader::GoOn go_on = StreamEncoder::Always);
// At most max_prompt_tokens ids.
absl::StatusOr<std::vector<TokenId>> ValidateTokenIds(
    const google::protobuf::RepeatedField<uint32_t>& ids, const ModelInfo& info);

// Whether a request can have this id.
absl::Status ValidateRequestId(const std::string& id);

// Whether an error of the functions above says that the prompt is over the limit.
bool IsTooLong(const absl::Status& status);

}  // namespace bst
