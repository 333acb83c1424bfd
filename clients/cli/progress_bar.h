// ProgressBar: shows on stderr how much of a prompt the server has read; on a terminal only.
//
// Threads     Thread-compatible.
// Tested by   tests/clients/terminal_text_test.cc (the text), tests/e2e/cli_test.py (silent without
// a terminal)
#pragma once

#include <cstdint>
#include <string>

namespace bst::cli {

// "reading the prompt [######              ]  30 %  3000 of 10000 tokens"
std::string ProgressText(uint64_t done, uint64_t total);

class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar() { Clear(); }

  void Show(uint64_t done, uint64_t total);
  // Wipes the line. No-op when nothing is shown.
  void Clear();

 private:
  const bool terminal_;
  bool shown_ = false;
};

}  // namespace bst::cli
