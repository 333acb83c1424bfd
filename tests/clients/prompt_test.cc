#include "clients/cli/prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "clients/cli/connection.h"

namespace bst::cli {
namespace {

TEST(Prompt, ParseIds) {
  EXPECT_THAT(ParseIds("[0, 255, 4294967295]", "f"), testing::ElementsAre(0u, 255u, 4294967295u));
  EXPECT_THAT(ParseIds(" [] ", "f"), testing::IsEmpty());
  for (const char* const bad :
       {"", "{}", "7", "[1", "[-1]", "[1.5]", "[\"1\"]", "[4294967296]", "[null]"}) {
    EXPECT_THROW(ParseIds(bad, "f"), UsageError) << bad;
  }
}

// The examples of the Unicode standard, table 3-7: first and last of each row, and just outside.
TEST(Prompt, IsUtf8) {
  for (const char* const good :
       {"", "a", "\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF", "a€b𝄞c"}) {
    EXPECT_TRUE(IsUtf8(good)) << good;
  }
  for (const char* const bad : {"\x80", "\xC1\x80", "\xC2", "\xC2\x7F", "\xE0\x9F\xBF",
                                "\xED\xA0\x80", "\xE2\x82", "\xF0\x8F\x80\x80", "\xF4\x90\x80\x80",
                                "\xF5\x80\x80\x80", "\xFF", "a\xE2\x82 b", "\xE2\x82\xC0"}) {
    EXPECT_FALSE(IsUtf8(bad)) << bad;
  }
}

TEST(Prompt, TextThatIsNotUtf8IsWrongUsage) {
  Prompt prompt;
  prompt.text = "caf\xE9";
  EXPECT_THROW(prompt.Text(), UsageError);
  prompt.text = "café";
  v1::ScoreRequest request;
  prompt.Fill(request);
  EXPECT_EQ(request.text(), "café");
}

}  // namespace
}  // namespace bst::cli
