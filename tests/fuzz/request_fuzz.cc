// Any bytes as a request on the wire, against a byte model: the first byte chooses the message, the
// rest is its serialisation. What validation lets through, the engine takes; what it refuses, it
// refuses with the wrong fields, few enough for the trailers of a call.
#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/request_check.h"
#include "google/rpc/error_details.pb.h"
#include "server/prompt_reader.h"
#include "server/request_validation.h"
#include "server/violations.h"
#include "tests/support/puppet_engine.h"

namespace {

constexpr int kVocabSize = 259;
constexpr int kMaxViolations = 9;            // eight and the count of the others
constexpr size_t kMaxErrorBytes = 6 * 1024;  // clients allow 8 KB of trailers

void Check(bool condition) {
  if (!condition) std::abort();
}

const bst::ModelInfo& Info() {
  static const auto* const info = [] {
    auto* made = new bst::ModelInfo(bst::PuppetModelInfo());
    made->max_prompt_tokens = 64;  // within reach of short inputs
    return made;
  }();
  return *info;
}

bst::RequestLimits Limits() {
  return {.vocab_size = Info().vocab_size,
          .max_prompt_tokens = Info().max_prompt_tokens,
          .max_sequences = Info().max_sequences,
          .eos = Info().eos.empty() ? std::nullopt : std::optional(Info().eos.front())};
}

const bst::Tokenizer& Bytes() {
  static const auto* const tokenizer =
      new std::unique_ptr<bst::Tokenizer>(bst::Tokenizer::Byte(kVocabSize));
  return **tokenizer;
}

void CheckRefusal(const absl::Status& status) {
  Check(absl::IsInvalidArgument(status) && !status.message().empty());
  const auto payload = status.GetPayload("type.googleapis.com/google.rpc.BadRequest");
  Check(payload.has_value());
  google::rpc::BadRequest details;
  Check(details.ParseFromString(std::string(*payload)));
  Check(details.field_violations_size() > 0 && details.field_violations_size() <= kMaxViolations);
  Check(status.message().size() + payload->size() <= kMaxErrorBytes);
}

void CheckGenerate(const bst::v1::GenerateRequest& proto) {
  bst::PromptReader prompt(Info(), Bytes());
  const auto valid = bst::ValidateGenerate(proto, Info(), prompt, bst::PromptEnd::kComplete);
  if (!valid.ok()) return CheckRefusal(valid.status());
  Check(bst::CheckRequest(valid->request, Limits()).ok());

  // The same as the first part of an upload that ends there.
  bst::PromptReader upload(Info(), Bytes());
  const auto begun = bst::ValidateGenerate(proto, Info(), upload, bst::PromptEnd::kMoreFollows);
  Check(begun.ok() && bst::CheckRequest(begun->request, Limits()).ok());
  bst::Violations violations;
  std::vector<bst::TokenId> tokens = begun->request.prompt;
  for (const bst::TokenId token : upload.Finish(violations)) tokens.push_back(token);
  Check(violations.empty() && tokens == valid->request.prompt);
}

void CheckScore(const bst::v1::ScoreRequest& proto) {
  const auto valid = bst::ValidateScore(proto, Info(), Bytes());
  if (!valid.ok()) return CheckRefusal(valid.status());
  Check(bst::CheckRequest(*valid, Limits()).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  // Or a line about every text that is not UTF-8.
  [[maybe_unused]] static google::protobuf::LogHandler* const log =
      google::protobuf::SetLogHandler(nullptr);
  const auto* const bytes = data + 1;
  const auto length = static_cast<int>(size - 1);
  bst::v1::GenerateRequest generate;
  bst::v1::ScoreRequest score;
  if (data[0] % 2 == 0) {
    if (generate.ParseFromArray(bytes, length)) CheckGenerate(generate);
  } else {
    if (score.ParseFromArray(bytes, length)) CheckScore(score);
  }
  return 0;
}
