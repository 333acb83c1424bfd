#include "clients/cli/progress_bar.h"

#include <unistd.h>

#include <cstdio>

namespace bst::cli {

std::string ProgressText(uint64_t done, uint64_t total) {
  constexpr uint64_t kWidth = 20;
  const uint64_t filled = total == 0 ? kWidth : done * kWidth / total;
  const uint64_t percent = total == 0 ? 100 : done * 100 / total;
  char numbers[96];
  std::snprintf(numbers, sizeof(numbers), "] %3llu %%  %llu of %llu tokens",
                static_cast<unsigned long long>(percent), static_cast<unsigned long long>(done),
                static_cast<unsigned long long>(total));
  return "reading the prompt [" + std::string(filled, '#') + std::string(kWidth - filled, ' ') +
         numbers;
}

ProgressBar::ProgressBar() : terminal_(isatty(STDERR_FILENO) == 1) {}

void ProgressBar::Show(uint64_t done, uint64_t total) {
  if (!terminal_) return;
  std::fprintf(stderr, "\r%s\033[K", ProgressText(done, total).c_str());
  shown_ = true;
}

void ProgressBar::Clear() {
  if (shown_) std::fprintf(stderr, "\r\033[K");
  shown_ = false;
}

}  // namespace bst::cli
