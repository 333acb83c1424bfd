// StopStringMatcher: finds stop strings in a text that arrives in pieces, and holds back what may
// be the beginning of one.
//
// Invariants  (1) What it returns, joined, does not depend on how the text was cut into pieces.
//             (2) No returned piece ends with a beginning of a stop string, except from Finish().
//             (3) If pieces are whole UTF-8 characters, so is what it returns.
// A stop string is found where its last byte arrives; of several that end there the one listed
// first.
//
// Threads     Thread-compatible.
// Tested by   tests/server/stop_string_matcher_test.cc
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bst {

struct StopStringOptions {
  std::vector<std::string> strings;  // none of them empty
  bool include = false;              // the text ends with the stop string, not before it
};

class StopStringMatcher {
 public:
  explicit StopStringMatcher(StopStringOptions options) : options_(std::move(options)) {}

  // The text that is certain now. REQUIRES: nothing was matched yet.
  std::string Push(std::string_view text);

  // The end of the text: what was held back. Nothing after a match.
  std::string Finish();

  // The stop string that was found, if any.
  const std::optional<std::string>& match() const { return match_; }

 private:
  size_t HeldBackBytes() const;

  StopStringOptions options_;
  std::string held_;  // the longest end of the text that begins a stop string
  std::optional<std::string> match_;
};

}  // namespace bst
