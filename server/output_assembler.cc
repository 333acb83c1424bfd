#include "server/output_assembler.h"

#include <utility>

namespace bst {

void AddTopTokens(const std::vector<TokenLogprob>& top,
                  google::protobuf::RepeatedPtrField<v1::TopToken>& out) {
  for (const TokenLogprob& alternative : top) {
    v1::TopToken* const token = out.Add();
    token->set_token_id(static_cast<uint32_t>(alternative.token.value()));
    token->set_logprob(alternative.logprob);
  }
}

OutputAssembler::OutputAssembler(const Tokenizer& tokenizer, const OutputOptions& options,
                                 StreamDecoder::Position position)
    : logprobs_(options.logprobs), decoder_(tokenizer, position), matcher_(options.stop) {}

void OutputAssembler::AppendText(std::string_view text) {
  if (text.empty()) return;
  if (pending_.empty()) pending_.emplace_back();
  pending_.back().text.append(text);
  pending_bytes_ += text.size();
}

void OutputAssembler::Add(const GeneratedEvent& event) {
  if (stop_match().has_value()) return;
  ++num_tokens_;
  if (pending_.empty() || pending_.back().tokens.size() == kMaxTokensPerMessage) {
    pending_.emplace_back();
  }
  Pending& pending = pending_.back();
  pending.tokens.push_back(event.token);
  pending_bytes_ += sizeof(TokenLogprob);
  if (!event.top.empty()) {
    pending.top.resize(pending.tokens.size());
    pending.top.back() = event.top;
    pending_bytes_ += MemoryOf(event.top);
  }
  AppendText(matcher_.Push(decoder_.Push(event.token.token)));
}

void OutputAssembler::Finish() {
  if (stop_match().has_value()) return;
  AppendText(matcher_.Push(decoder_.Finish()));
  AppendText(matcher_.Finish());
}

std::optional<v1::Tokens> OutputAssembler::TakeOutput() {
  if (pending_.empty()) return std::nullopt;
  Pending pending = std::move(pending_.front());
  pending_.pop_front();
  pending_bytes_ -= MemoryOfMessage(pending);
  v1::Tokens message;
  message.set_text(std::move(pending.text));
  for (size_t i = 0; i < pending.tokens.size(); ++i) {
    message.add_token_ids(static_cast<uint32_t>(pending.tokens[i].token.value()));
    if (!logprobs_) continue;
    v1::TokenLogprob* const logprob = message.add_logprobs();
    logprob->set_logprob(pending.tokens[i].logprob);
    if (i < pending.top.size()) AddTopTokens(pending.top[i], *logprob->mutable_top());
  }
  return message;
}

void OutputAssembler::DropPending() {
  pending_.clear();
  pending_bytes_ = 0;
}

size_t OutputAssembler::MemoryOfMessage(const Pending& pending) {
  size_t bytes = pending.tokens.size() * sizeof(TokenLogprob) + pending.text.size();
  for (const auto& top : pending.top) {
    if (!top.empty()) bytes += MemoryOf(top);
  }
  return bytes;
}

}  // namespace bst
