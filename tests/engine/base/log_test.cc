#include "engine/base/log.h"

#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

using ::testing::HasSubstr;

constexpr std::string_view kTime = "2026-01-31T12:00:00.000Z";

TEST(LogTest, TextLineHasLevelTimeEventAndFields) {
  EXPECT_EQ(FormatLogLine(LogFormat::kText, LogLevel::kInfo, kTime, "ready",
                          {{"port", 50051}, {"model", "tiny"}, {"load_seconds", 0.5}}),
            "I 2026-01-31T12:00:00.000Z ready port=50051 model=tiny load_seconds=0.5");
  EXPECT_EQ(FormatLogLine(LogFormat::kText, LogLevel::kWarning, kTime, "slow", {}),
            "W 2026-01-31T12:00:00.000Z slow");
  EXPECT_EQ(FormatLogLine(LogFormat::kText, LogLevel::kError, kTime, "bad", {}),
            "E 2026-01-31T12:00:00.000Z bad");
}

TEST(LogTest, TextValuesThatWouldSplitTheLineAreQuoted) {
  const auto value_of = [](std::string_view value) {
    const std::string line =
        FormatLogLine(LogFormat::kText, LogLevel::kInfo, kTime, "e", {{"k", value}});
    return line.substr(line.find("k=") + 2);
  };
  EXPECT_EQ(value_of("plain/path-1.0"), "plain/path-1.0");
  EXPECT_EQ(value_of("two words"), R"("two words")");
  EXPECT_EQ(value_of("a=b"), R"("a=b")");
  EXPECT_EQ(value_of("line\nbreak"), R"("line\u000abreak")");
  EXPECT_EQ(value_of(R"(quo"te)"), R"("quo\"te")");
  EXPECT_EQ(value_of(""), R"("")");
}

TEST(LogTest, JsonLineKeepsNumbersAndEscapesStrings) {
  EXPECT_EQ(FormatLogLine(LogFormat::kJson, LogLevel::kError, kTime, "request",
                          {{"id", "a\"b\\c\td"}, {"tokens", 12}, {"rate", 2.5}}),
            R"({"level":"E","time":"2026-01-31T12:00:00.000Z","event":"request",)"
            R"("id":"a\"b\\c\u0009d","tokens":12,"rate":2.5})");
}

TEST(LogTest, NumbersThatJsonHasNoWordForAreNull) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const auto line = [](LogFormat format) {
    return FormatLogLine(format, LogLevel::kInfo, kTime, "e",
                         {{"a", kInfinity}, {"b", -kInfinity}, {"c", kNan}, {"d", 1e300}});
  };
  EXPECT_THAT(line(LogFormat::kJson), HasSubstr(R"("a":null,"b":null,"c":null,"d":1e+300})"));
  EXPECT_THAT(line(LogFormat::kText), HasSubstr("a=inf b=-inf c=nan d=1e+300"));
}

TEST(LogTest, LogWritesOneLineToStderrInTheFormatThatIsSet) {
  testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "first", {{"n", 1}});
  SetLogFormat(LogFormat::kJson);
  Log(LogLevel::kInfo, "second", {{"n", 2}});
  SetLogFormat(LogFormat::kText);
  const std::string written = testing::internal::GetCapturedStderr();

  EXPECT_TRUE(written.starts_with("I "));
  const size_t newline = written.find('\n');
  ASSERT_NE(newline, std::string::npos);
  EXPECT_TRUE(written.substr(0, newline).ends_with("Z first n=1"));
  EXPECT_TRUE(written.substr(newline + 1).starts_with(R"({"level":"I","time":")"));
  EXPECT_TRUE(written.ends_with("\"event\":\"second\",\"n\":2}\n"));
}

}  // namespace
}  // namespace bst
