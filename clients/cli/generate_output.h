// GenerateOutput: what `bst generate` shows of a stream: one JSON object at its end; or text, of
// one continuation as it comes, of several each as soon as it and those before it are complete:
//
//   --- continuation 0: EOS
//   Once upon a time ...
//   --- continuation 1: MAX_TOKENS
//   ...
//
// Threads     Thread-compatible.
// Tested by   tests/clients/generate_output_test.cc, tests/e2e/cli_test.py
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bst/v1/generation.pb.h"
#include "clients/cli/json_text.h"

namespace bst::cli {

struct ShownFields {
  bool prompt_text = false, logprobs = false, top_logprobs = false;
};

class GenerateOutput {
 public:
  enum class Format { kText, kJson };
  using Write = std::function<void(std::string_view)>;

  // `write` gets the text.
  GenerateOutput(Format format, uint32_t num_sequences, Write write);

  void Add(const v1::Accepted& accepted) { accepted_ = accepted; }
  void Add(const v1::Tokens& tokens);
  void Add(const v1::SequenceFinished& finished);
  // The end of the stream, however it ended: what there is of continuations that are not complete.
  void Finish();

  // The seed is a string: as numbers, readers as jq round those above 2^53.
  Json ToJson(const v1::Finished& finished, const ShownFields& shown) const;

 private:
  struct Continuation {
    Json token_ids = Json::array(), logprobs = Json::array(), top_logprobs = Json::array();
    std::string text;
    std::optional<v1::FinishReason> reason;
  };

  // nullptr for one that was not asked for.
  Continuation* At(uint32_t index);
  void WriteNext();

  const Format format_;
  const uint32_t num_sequences_;
  const Write write_;
  v1::Accepted accepted_;
  std::string prompt_text_;
  std::vector<Continuation> continuations_;  // as many as have come, at least one
  size_t written_ = 0;                       // continuations, of several
};

}  // namespace bst::cli
