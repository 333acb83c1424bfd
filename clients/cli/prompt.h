// What generate and score have in common: the prompt (--prompt, --prompt-file or --ids-file) and
// the priority.
//
// Threads     The main thread.
// Tested by   tests/clients/prompt_test.cc
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bst/v1/generation.pb.h"

namespace CLI {
class App;
}

namespace bst::cli {

struct Prompt {
  std::string text, text_file, ids_file;

  // Exactly one of the three is required.
  void AddFlags(CLI::App& app);

  // Text alone, for commands that take no ids.
  void AddTextFlags(CLI::App& app);

  // The text of --prompt or --prompt-file. Throws UsageError when the file cannot be read or is not
  // UTF-8.
  std::string Text() const;
  bool is_ids() const { return !ids_file.empty(); }

  // Sets the prompt of a GenerateRequest or ScoreRequest. Throws UsageError.
  template <typename Request>
  void Fill(Request& request) const {
    if (is_ids()) {
      const std::vector<uint32_t> ids = Ids();
      request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
    } else {
      request.set_text(Text());
    }
  }

 private:
  std::vector<uint32_t> Ids() const;
};

// --priority=low|normal|high
void AddPriorityFlag(CLI::App& app, std::optional<v1::Priority>& priority);

// The numbers of a JSON list; throws UsageError naming `source`.
std::vector<uint32_t> ParseIds(const std::string& json, const std::string& source);

bool IsUtf8(std::string_view text);

// Throws UsageError naming `flag` where `text`, its value, is not UTF-8: Protobuf would complain of
// a field instead.
void CheckUtf8(std::string_view text, const std::string& flag);

}  // namespace bst::cli
