#include "clients/cli/closing_line.h"

#include <cstdio>

namespace bst::cli {

std::string ClosingLine(const v1::Finished& finished) {
  char line[256];
  std::snprintf(
      line, sizeof(line), "[%llu tokens (prompt %llu), first after %.3g s, %.3g tokens/s, %s]",
      static_cast<unsigned long long>(finished.usage().generated_tokens()),
      static_cast<unsigned long long>(finished.usage().prompt_tokens()),
      finished.timings().time_to_first_token_seconds(), finished.timings().tokens_per_second(),
      v1::FinishReason_Name(finished.reason()).c_str());
  return line;
}

}  // namespace bst::cli
