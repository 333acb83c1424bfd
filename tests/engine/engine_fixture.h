// What the tests of the engine share: a tiny model, an engine on it, requests and their outcomes.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/create_engine.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/support/recording_sink.h"
#include "tests/support/tiny_model.h"

namespace bst {

// One token per byte.
inline std::vector<TokenId> Tokens(std::string_view text) {
  std::vector<TokenId> tokens;
  for (const char c : text) tokens.push_back(TokenId(static_cast<unsigned char>(c)));
  return tokens;
}

// `length` bytes that do not repeat soon.
inline std::vector<TokenId> LongPrompt(int length) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back(TokenId((i * 37 + i / 11) % 256));
  return tokens;
}

// Each of the first nine uses another sampling parameter.
inline void UseEverySamplingParameter(std::vector<GenerateRequest>& requests) {
  requests[0].sampling.temperature = 0;
  requests[1].sampling.top_k = 5;
  requests[2].sampling.top_p = 0.7f;
  requests[3].sampling.min_p = 0.1f;
  requests[4].sampling.typical_p = 0.5f;
  requests[5].sampling.repetition_penalty = 1.3f;
  requests[6].sampling.presence_penalty = 1.0f;
  requests[7].sampling.frequency_penalty = 1.0f;
  requests[8].sampling.logit_bias = {{TokenId(65), 3.0f}};
}

inline GenerateRequest Greedy(std::vector<TokenId> prompt, int max_new_tokens) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.stopping.max_new_tokens = max_new_tokens;
  return request;
}

inline EngineOptions TinyOptions(const TinyModel& model) {
  EngineOptions options;
  options.model_directory = model.directory();
  options.threads = 1;
  options.max_sequences = 4;
  options.max_step_tokens = 64;
  options.chunk_tokens = 32;
  return options;
}

inline std::unique_ptr<Engine> MakeEngine(const EngineOptions& options,
                                          EngineObserver* observer = nullptr,
                                          EngineParts parts = {}) {
  auto engine = CreateEngine(options, observer, std::move(parts));
  BST_CHECK(engine.ok(), engine.status().ToString());
  return *std::move(engine);
}

// A request under way.
struct Stream {
  SequenceId id;
  std::shared_ptr<RecordingSink> sink;
};

template <typename Request>
Stream Start(Engine& engine, Request request, RecordingSink::Hook hook = nullptr) {
  auto sink = std::make_shared<RecordingSink>(std::move(hook));
  const absl::StatusOr<SequenceId> id = engine.Submit(std::move(request), sink);
  BST_CHECK(id.ok(), id.status().ToString());
  return {*id, std::move(sink)};
}

// Those of one of the request's sequences.
inline std::vector<TokenId> TokensOf(const Stream& stream, int sequence_index) {
  std::vector<TokenId> tokens;
  for (const GeneratedEvent& event : stream.sink->Events<GeneratedEvent>()) {
    if (event.sequence_index == sequence_index) tokens.push_back(event.token.token);
  }
  return tokens;
}

inline std::vector<TokenId> TokensOf(const Stream& stream) {
  std::vector<TokenId> tokens;
  for (const GeneratedEvent& event : stream.sink->Events<GeneratedEvent>())
    tokens.push_back(event.token.token);
  return tokens;
}

// What one of the request's sequences generated and how it ended, with every bit.
inline std::string Transcript(const Stream& stream, int sequence_index) {
  const FinishedEvent finished = stream.sink->WaitFinished();
  std::string text = absl::StrCat(stream.sink->violation(), finished.status.ToString(), "\n");
  for (const GeneratedEvent& event : stream.sink->Events<GeneratedEvent>()) {
    if (event.sequence_index != sequence_index) continue;
    absl::StrAppend(&text, event.token.token.value(), ":",
                    absl::Hex(std::bit_cast<uint32_t>(event.token.logprob)), " ");
    for (const TokenLogprob& top : event.top) absl::StrAppend(&text, top.token.value(), " ");
  }
  for (const SequenceEndedEvent& event : stream.sink->Events<SequenceEndedEvent>()) {
    if (event.sequence_index != sequence_index) continue;
    absl::StrAppend(&text, "\nreason ", static_cast<int>(event.reason), " generated ",
                    event.generated_tokens);
  }
  return text;
}

// Generated or scored, in order.
inline std::vector<float> LogprobsOf(const Stream& stream) {
  std::vector<float> logprobs;
  for (const GeneratedEvent& event : stream.sink->Events<GeneratedEvent>())
    logprobs.push_back(event.token.logprob);
  for (const ScoredEvent& event : stream.sink->Events<ScoredEvent>()) {
    for (const TokenLogprob& token : event.tokens) logprobs.push_back(token.logprob);
  }
  return logprobs;
}

// The likeliest tokens of every generated or scored position, flattened.
inline std::vector<std::pair<TokenId, float>> TopOf(const Stream& stream) {
  std::vector<std::pair<TokenId, float>> flat;
  const auto add = [&flat](const std::vector<TokenLogprob>& top) {
    for (const TokenLogprob& token : top) flat.push_back({token.token, token.logprob});
  };
  for (const GeneratedEvent& event : stream.sink->Events<GeneratedEvent>()) add(event.top);
  for (const ScoredEvent& event : stream.sink->Events<ScoredEvent>()) {
    for (const auto& top : event.top) add(top);
  }
  return flat;
}

// The whole outcome as text, with every bit of every number: two streams agree exactly if these do.
inline std::string Transcript(const Stream& stream) {
  const FinishedEvent finished = stream.sink->WaitFinished();
  std::string text =
      absl::StrCat(stream.sink->violation(), "reason ", static_cast<int>(finished.reason), " ",
                   finished.status.ToString(), " generated ", finished.generated_tokens, "\n");
  for (const TokenId token : TokensOf(stream)) absl::StrAppend(&text, token.value(), " ");
  for (const float logprob : LogprobsOf(stream)) {
    absl::StrAppend(&text, absl::Hex(std::bit_cast<uint32_t>(logprob)), " ");
  }
  for (const auto& [token, logprob] : TopOf(stream)) {
    absl::StrAppend(&text, token.value(), ":", absl::Hex(std::bit_cast<uint32_t>(logprob)), " ");
  }
  return text;
}

}  // namespace bst
