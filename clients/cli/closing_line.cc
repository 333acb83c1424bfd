#include "clients/cli/closing_line.h"

#include <cstdio>

namespace bst::cli {

std::string ClosingLine(const v1::Finished& finished) {
  const double speed = finished.timings().tokens_per_second();
  char rate[64] = "";  // what has no second token has none
  if (speed > 0)
    std::snprintf(rate, sizeof(rate), speed < 100 ? "%.3g tokens/s, " : "%.0f tokens/s, ", speed);
  char line[256];
  std::snprintf(line, sizeof(line), "[%llu tokens (prompt %llu), first after %.3g s, %s%s]",
                static_cast<unsigned long long>(finished.usage().generated_tokens()),
                static_cast<unsigned long long>(finished.usage().prompt_tokens()),
                finished.timings().time_to_first_token_seconds(), rate,
                v1::FinishReason_Name(finished.reason()).c_str());
  return line;
}

}  // namespace bst::cli
