#include "server/stop_string_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace bst {
namespace {

// All that `matcher` returns for `pieces`.
std::string Feed(StopStringMatcher& matcher, const std::vector<std::string>& pieces) {
  std::string text;
  for (const std::string& piece : pieces) {
    if (matcher.match().has_value()) break;
    text += matcher.Push(piece);
  }
  return text + matcher.Finish();
}

TEST(StopStringMatcher, PassesTextThroughWithoutStopStrings) {
  StopStringMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopStringMatcher, HoldsBackABeginningAndReleasesItWhenItLeadsNowhere) {
  StopStringMatcher matcher({{"END"}, false});
  EXPECT_EQ(matcher.Push("a E"), "a ");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("X"), "ENX");
  EXPECT_EQ(matcher.Push("EE"), "E");
  EXPECT_EQ(matcher.Finish(), "E");
  EXPECT_FALSE(matcher.match().has_value());
}

TEST(StopStringMatcher, FindsAStopStringAcrossPieces) {
  StopStringMatcher matcher({{"END"}, false});
  EXPECT_EQ(matcher.Push("the E"), "the ");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("D of it"), "");
  EXPECT_EQ(matcher.match(), "END");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopStringMatcher, KeepsTheStopStringWhenAsked) {
  StopStringMatcher matcher({{"END"}, true});
  EXPECT_EQ(Feed(matcher, {"the E", "ND of it"}), "the END");
}

TEST(StopStringMatcher, OverlappingBeginnings) {
  StopStringMatcher matcher({{"aab"}, false});
  EXPECT_EQ(Feed(matcher, {"a", "a", "a", "b"}), "a");
  EXPECT_EQ(matcher.match(), "aab");
}

TEST(StopStringMatcher, TheOneThatEndsFirstCounts) {
  StopStringMatcher whole({{"abcdef", "cd"}, false});
  EXPECT_EQ(Feed(whole, {"xabcdef"}), "xab");
  EXPECT_EQ(whole.match(), "cd");
  StopStringMatcher listed({{"cd", "bcd"}, false});
  EXPECT_EQ(Feed(listed, {"abcd"}), "ab");
  EXPECT_EQ(listed.match(), "cd");
}

TEST(StopStringMatcher, StopStringsOfOneAndManyBytes) {
  StopStringMatcher newline({{"\n"}, false});
  EXPECT_EQ(Feed(newline, {"a", "\nb"}), "a");
  StopStringMatcher umlaut({{"ß"}, false});
  EXPECT_EQ(Feed(umlaut, {"Stra", "ßen"}), "Stra");
}

// Against the definition: the text is cut at the stop string whose last byte comes first.
TEST(StopStringMatcher, DoesNotDependOnHowTheTextIsCut) {
  std::mt19937 random(20240607);
  const auto letters = [&random](size_t length) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += "ab"[random() % 2];
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) stops.push_back(letters(1 + random() % 6));
    const std::string text = letters(random() % 24);
    std::string expected = text;
    for (size_t end = 1; end <= text.size() && expected == text; ++end) {
      for (const std::string& stop : stops) {
        if (text.substr(0, end).ends_with(stop)) {
          expected = text.substr(0, end - stop.size());
          break;
        }
      }
      if (expected.size() < text.size()) break;
    }
    std::vector<std::string> pieces;
    for (size_t begin = 0; begin < text.size();) {
      const size_t length = 1 + random() % 5;
      pieces.push_back(text.substr(begin, length));
      begin += length;
    }
    StopStringMatcher matcher({stops, false});
    ASSERT_EQ(Feed(matcher, pieces), expected)
        << "round " << round << ", text " << text << ", stops " << testing::PrintToString(stops);
  }
}

}  // namespace
}  // namespace bst
