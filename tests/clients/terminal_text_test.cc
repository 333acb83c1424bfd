#include <gtest/gtest.h>

#include "clients/cli/closing_line.h"
#include "clients/cli/progress_bar.h"

namespace bst::cli {
namespace {

TEST(ProgressBar, Text) {
  EXPECT_EQ(ProgressText(0, 10'000),
            "reading the prompt [                    ]   0 %  0 of 10000 tokens");
  EXPECT_EQ(ProgressText(3'000, 10'000),
            "reading the prompt [######              ]  30 %  3000 of 10000 tokens");
  EXPECT_EQ(ProgressText(10, 10),
            "reading the prompt [####################] 100 %  10 of 10 tokens");
  EXPECT_EQ(ProgressText(0, 0), "reading the prompt [####################] 100 %  0 of 0 tokens");
}

TEST(ClosingLine, Text) {
  v1::Finished finished;
  finished.set_reason(v1::STOP_STRING);
  finished.mutable_usage()->set_prompt_tokens(5);
  finished.mutable_usage()->set_generated_tokens(12);
  finished.mutable_timings()->set_time_to_first_token_seconds(0.12345);
  finished.mutable_timings()->set_tokens_per_second(45.67);
  EXPECT_EQ(ClosingLine(finished),
            "[12 tokens (prompt 5), first after 0.123 s, 45.7 tokens/s, STOP_STRING]");
  finished.mutable_timings()->set_tokens_per_second(2371.4);
  EXPECT_EQ(ClosingLine(finished),
            "[12 tokens (prompt 5), first after 0.123 s, 2371 tokens/s, STOP_STRING]");
  finished.mutable_timings()->set_tokens_per_second(0);  // of a single token
  EXPECT_EQ(ClosingLine(finished), "[12 tokens (prompt 5), first after 0.123 s, STOP_STRING]");
}

}  // namespace
}  // namespace bst::cli
