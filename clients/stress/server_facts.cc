#include "clients/stress/server_facts.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

constexpr std::chrono::seconds kAnswerTime(10);
constexpr std::chrono::milliseconds kPoll(100);

std::string Describe(const grpc::Status& status) {
  return client::CodeName(status.error_code()) + ": " + status.error_message();
}

// Of a text that a server takes: its message must fit, and so must its tokens, of a byte at least.
size_t PieceBytes(const ModelLimits& limits) {
  constexpr uint64_t kUsual = 16 << 10, kOtherFields = 16, kLongestCharacter = 4;
  const uint64_t message =
      limits.max_message_bytes - std::min(limits.max_message_bytes, kOtherFields);
  return std::max(std::min({kUsual, message, limits.max_prompt_tokens}), kLongestCharacter);
}

// The first `bytes` of `text` at most, without half a character at the end.
std::string_view Piece(std::string_view text, size_t bytes) {
  if (bytes >= text.size()) return text;
  while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xc0) == 0x80) --bytes;
  return text.substr(0, bytes);
}

}  // namespace

v1::ModelInfo GetModelInfo(v1::Generation::Stub& stub, const std::string& key,
                           double wait_seconds) {
  const auto give_up =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(wait_seconds);
  while (true) {
    grpc::ClientContext context;
    client::AddKey(key, context);
    context.set_deadline(std::chrono::system_clock::now() + kAnswerTime);
    v1::ModelInfo info;
    const grpc::Status status = stub.GetModelInfo(&context, {}, &info);
    if (status.ok()) return info;
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE ||
        std::chrono::steady_clock::now() >= give_up)
      throw ServerError(Describe(status));
    std::this_thread::sleep_for(kPoll);
  }
}

ModelLimits LimitsOf(const v1::ModelInfo& info) {
  ModelLimits limits;
  limits.vocab_size = info.vocab_size();
  limits.max_prompt_tokens = info.limits().max_prompt_tokens();
  limits.max_new_tokens = info.limits().max_new_tokens();
  limits.max_message_bytes = info.limits().max_message_bytes();
  if (info.has_bos_token_id()) limits.special_ids.push_back(info.bos_token_id());
  if (info.has_eos_token_id()) limits.special_ids.push_back(info.eos_token_id());
  if (info.has_pad_token_id()) limits.special_ids.push_back(info.pad_token_id());
  return limits;
}

std::vector<uint32_t> TokenizeText(v1::Generation::Stub& stub, const std::string& key,
                                   const ModelLimits& limits, std::string_view text) {
  text = Piece(text, kMaxTextBytes);
  std::vector<uint32_t> tokens;
  while (!text.empty()) {
    const std::string_view piece = Piece(text, PieceBytes(limits));
    if (piece.empty()) throw ServerError("the text is not UTF-8");
    v1::TokenizeRequest request;
    request.set_text(std::string(piece));
    text.remove_prefix(piece.size());
    grpc::ClientContext context;
    client::AddKey(key, context);
    context.set_deadline(std::chrono::system_clock::now() + kAnswerTime);
    v1::TokenizeResponse response;
    const grpc::Status status = stub.Tokenize(&context, request, &response);
    if (!status.ok()) throw ServerError("Tokenize: " + Describe(status));
    tokens.insert(tokens.end(), response.token_ids().begin(), response.token_ids().end());
  }
  return tokens;
}

}  // namespace bst::stress
